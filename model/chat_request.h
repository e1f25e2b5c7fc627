/* model/chat_request.h - msgpack bytes to template values. Internal to model/chat*.c and tests.
 *
 * Reads untrusted bytes in one pass, straight into the render's arena: a tree of a general decoder would
 * be built only to be walked once, and its counts trusted before the bytes behind them are seen. */
#ifndef SLUICE_MODEL_CHAT_REQUEST_H
#define SLUICE_MODEL_CHAT_REQUEST_H

#include "model/jinja_value.h"

#define CHAT_DEPTH_MAX 32u

/* Decodes exactly one value from `bytes` bytes that nobody else changes meanwhile. All of it is marked
 * untrusted; strings that are not UTF-8 get U+FFFD. Fails by the run: -E_FORMAT malformed, an extension
 * type, binary, a key that is no string; -E_LIMIT deeper than CHAT_DEPTH_MAX; -E_RANGE integers above 2^63-1. */
struct jinja_value chat_request_decode(struct jinja_run *r, const char *data, size_t bytes);

#endif
