/* schemas/pack.h - the request record that the gateway commits: msgpack, schemas/chat_request.md, with "meta" in front.
 *
 *   { "meta": <JSON text: what the event stream needs, schemas/view.h>, "messages": [...], ... }
 *
 * "meta" is the first entry and a str32, so that it is found without reading the rest.
 * Other stages ignore it. */
#ifndef SLUICE_SCHEMAS_PACK_H
#define SLUICE_SCHEMAS_PACK_H

#include <jansson.h>
#include <msgpack.h>
#include <stddef.h>
#include <stdint.h>

/* Appends value as msgpack. */
void pack_json(msgpack_packer *p, const json_t *value);

/* The whole record: meta first, then the members of chat. out is initialised by the caller. */
void pack_record(msgpack_sbuffer *out, const char *meta, size_t meta_bytes, const json_t *chat);

/* The meta text inside a record, not NUL-terminated, borrowed from it. 0, or -E_FORMAT. */
int pack_meta(const uint8_t *record, size_t record_bytes, const char **meta, size_t *meta_bytes);

/* One member of a record as JSON (a new reference), or NULL when absent or malformed. */
json_t *pack_member(const uint8_t *record, size_t record_bytes, const char *name);

#endif
