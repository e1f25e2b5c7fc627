/* model/chat.h - a chat request to the text of a prompt, by the checkpoint's own template.
 *
 * chat_template_open parses a chat_template.jinja once; the result is immutable, may be shared by
 * threads, and renders any number of requests. chat_render takes one request in the msgpack form of
 * schemas/chat_request.md and executes the template on it as Python's jinja2 would under
 * transformers' apply_chat_template: same text, same errors.
 *
 * Trust: every byte of the result is known to come either from the template's own literals and the
 * special tokens passed in chat_options (trusted) or from the request (not). Only text inside a
 * trusted span may become a control token; a user who types "<turn|>" has typed seven characters.
 * The spans say nothing else: ordinary tokenization runs over the whole text.
 *
 * Fails: every failure is a negative -E_CODE and a sentence in `err` ("line 12: 'messages' is
 * undefined"). The request is copied before it is read, so shared memory that changes meanwhile gives
 * an error or a wrong text, never a crash. Steps, output bytes, memory, recursion are all limited:
 * -E_LIMIT. Nothing of a failed render is left behind. */
#ifndef SLUICE_MODEL_CHAT_H
#define SLUICE_MODEL_CHAT_H

#include <stddef.h>
#include <stdint.h>

#include "model/tokenizer.h"

struct chat_template;   /* opaque; freed by chat_template_close */

/* A string the tokenizer configuration gives to templates by name: bos_token, eos_token, ... */
struct chat_token {
    const char *name;   /* borrowed from the caller during chat_render */
    const char *text;   /* borrowed likewise; UTF-8, trusted */
};

struct chat_options {
    const struct chat_token *tokens;   /* borrowed during chat_render; a request cannot override them */
    size_t token_count;
    int64_t now_seconds;        /* what strftime_now() sees, seconds since 1970; 0: the clock. Local time zone */
    uint64_t steps_max;         /* 0: CHAT_STEPS_MAX; about 20-50 ns each */
    size_t output_bytes_max;    /* 0: CHAT_OUTPUT_BYTES_MAX; at most UINT32_MAX */
    size_t memory_bytes_max;    /* 0: CHAT_MEMORY_BYTES_MAX; everything one render allocates */
};

#define CHAT_STEPS_MAX        (50 * 1000 * 1000ull)
#define CHAT_OUTPUT_BYTES_MAX (64u << 20)
#define CHAT_MEMORY_BYTES_MAX ((size_t)256 << 20)

/* A rendered prompt; its pointers are freed by chat_text_free. */
struct chat_text {
    char *text;                       /* UTF-8, valid; a NUL follows the last byte and is not counted */
    size_t bytes;
    struct tokenizer_span *trusted;   /* ascending, disjoint, not touching; ends on code point borders */
    size_t trusted_count;
    char *forced_call;                /* the member of that name: behind the text stands the opening of a call, which is the caller's to write (model/output.h); NULL: none */
};

/* Parses `source` (UTF-8, `bytes` long; borrowed during the call). 0: *t is the caller's to close.
 * -E_FORMAT: not a template, err names the line; -E_UNSUPPORTED: a construct that is not built
 * (include, import, extends, block); -E_LIMIT: nested too deep or too large; -E_NOMEM. Any process. */
int chat_template_open(struct chat_template **t, const char *source, size_t bytes, char *err, size_t err_bytes);

/* Frees the template; NULL is allowed. No render may be running. */
void chat_template_close(struct chat_template *t);

/* Renders one request. `options` may be NULL. 0: *out is the caller's to free with chat_text_free.
 * -E_FORMAT: the request is not of the form of schemas/chat_request.md, or the template refused it
 * (raise_exception's own message stands in err); -E_LIMIT, -E_NOMEM as above. On failure *out is zero.
 * Thread-safe for one template. Any process. */
int chat_render(const struct chat_template *t, const void *msgpack_request, size_t bytes,
                const struct chat_options *options, struct chat_text *out, char *err, size_t err_bytes);

/* Frees what chat_render returned and zeroes it. */
void chat_text_free(struct chat_text *text);

#endif
