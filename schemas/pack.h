/* schemas/pack.h - what the gateway commits about a request, in the record's variable part.
 *
 *   0                      the request: msgpack, schemas/chat_request.md (or {"prompt": ...}); request_bytes long
 *   next multiple of 8     u32 bytes, then JSON text: the gateway's own notes (schemas/view.h), "meta"
 *
 * Other stages read the request alone; the notes let a new gateway go on with a stream
 * that an old one began. */
#ifndef SLUICE_SCHEMAS_PACK_H
#define SLUICE_SCHEMAS_PACK_H

#include <jansson.h>
#include <msgpack.h>
#include <stddef.h>
#include <stdint.h>

/* Both parts; out is initialised by the caller and empty. Returns request_bytes. */
size_t pack_record(msgpack_sbuffer *out, const char *meta, size_t meta_bytes, const json_t *chat);

/* The notes behind a request of request_bytes, in an area of area_bytes; not NUL-terminated, borrowed. 0, or -E_FORMAT. */
int pack_meta(const uint8_t *area, uint64_t area_bytes, uint64_t request_bytes, const char **meta, size_t *meta_bytes);

/* One member of a record as JSON (a new reference), or NULL when absent or malformed. */
json_t *pack_member(const uint8_t *record, size_t record_bytes, const char *name);

#endif
