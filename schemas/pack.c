/* schemas/pack.c - JSON to msgpack and back. */
#include "schemas/pack.h"

#include "shm/error.h"

#include <string.h>

#define PACK_DEPTH_MAX 48u /* deeper than anything field_parse lets in, plus the record around it */

static void pack_text(msgpack_packer *p, const char *text, size_t bytes)
{
    msgpack_pack_str(p, bytes);
    msgpack_pack_str_body(p, text, bytes);
}

static void pack_json(msgpack_packer *p, const json_t *value)
{
    const char *key;
    json_t *item;
    size_t i;

    switch (json_typeof(value)) {
    case JSON_OBJECT:
        msgpack_pack_map(p, json_object_size(value));
        json_object_foreach((json_t *)value, key, item)
        {
            pack_text(p, key, strlen(key));
            pack_json(p, item);
        }
        break;
    case JSON_ARRAY:
        msgpack_pack_array(p, json_array_size(value));
        json_array_foreach(value, i, item) pack_json(p, item);
        break;
    case JSON_STRING: pack_text(p, json_string_value(value), json_string_length(value)); break;
    case JSON_INTEGER: msgpack_pack_int64(p, json_integer_value(value)); break;
    case JSON_REAL: msgpack_pack_double(p, json_real_value(value)); break;
    case JSON_TRUE: msgpack_pack_true(p); break;
    case JSON_FALSE: msgpack_pack_false(p); break;
    case JSON_NULL: msgpack_pack_nil(p); break;
    }
}

size_t pack_record(msgpack_sbuffer *out, const char *meta, size_t meta_bytes, const json_t *chat)
{
    static const char zeros[8];
    const uint32_t bytes = (uint32_t)meta_bytes;
    msgpack_packer p;

    msgpack_packer_init(&p, out, msgpack_sbuffer_write);
    pack_json(&p, chat);
    const size_t request_bytes = out->size;
    msgpack_sbuffer_write(out, zeros, (8 - request_bytes % 8) % 8);
    msgpack_sbuffer_write(out, (const char *)&bytes, sizeof bytes);
    msgpack_sbuffer_write(out, meta, meta_bytes);
    return request_bytes;
}

int pack_meta(const uint8_t *area, uint64_t area_bytes, uint64_t request_bytes, const char **meta, size_t *meta_bytes)
{
    const uint64_t at = (request_bytes + 7) & ~(uint64_t)7;
    uint32_t bytes;

    if (request_bytes > area_bytes || at > area_bytes || area_bytes - at < sizeof bytes) return -E_FORMAT;
    memcpy(&bytes, area + at, sizeof bytes);
    if (bytes > area_bytes - at - sizeof bytes) return -E_FORMAT;
    *meta = (const char *)area + at + sizeof bytes;
    *meta_bytes = bytes;
    return 0;
}

static json_t *to_json(const msgpack_object *o, unsigned depth)
{
    if (depth > PACK_DEPTH_MAX) return NULL;
    switch (o->type) {
    case MSGPACK_OBJECT_NIL: return json_null();
    case MSGPACK_OBJECT_BOOLEAN: return json_boolean(o->via.boolean);
    case MSGPACK_OBJECT_POSITIVE_INTEGER: return json_integer((json_int_t)o->via.u64);
    case MSGPACK_OBJECT_NEGATIVE_INTEGER: return json_integer((json_int_t)o->via.i64);
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64: return json_real(o->via.f64);
    case MSGPACK_OBJECT_STR: return json_stringn(o->via.str.ptr, o->via.str.size);
    case MSGPACK_OBJECT_ARRAY: {
        json_t *array = json_array();
        for (uint32_t i = 0; i < o->via.array.size; i++)
            if (json_array_append_new(array, to_json(&o->via.array.ptr[i], depth + 1)) != 0) {
                json_decref(array);
                return NULL;
            }
        return array;
    }
    case MSGPACK_OBJECT_MAP: {
        json_t *object = json_object();
        for (uint32_t i = 0; i < o->via.map.size; i++) {
            const msgpack_object_kv *kv = &o->via.map.ptr[i];
            json_t *value = kv->key.type == MSGPACK_OBJECT_STR ? to_json(&kv->val, depth + 1) : NULL;
            if (!value || json_object_setn_new(object, kv->key.via.str.ptr, kv->key.via.str.size, value) != 0) {
                json_decref(object);
                return NULL;
            }
        }
        return object;
    }
    default: return NULL;
    }
}

json_t *pack_member(const uint8_t *record, size_t record_bytes, const char *name)
{
    json_t *found = NULL;
    msgpack_unpacked unpacked;
    size_t offset = 0;

    msgpack_unpacked_init(&unpacked);
    if (msgpack_unpack_next(&unpacked, (const char *)record, record_bytes, &offset) == MSGPACK_UNPACK_SUCCESS && unpacked.data.type == MSGPACK_OBJECT_MAP)
        for (uint32_t i = 0; i < unpacked.data.via.map.size && !found; i++) {
            const msgpack_object_kv *kv = &unpacked.data.via.map.ptr[i];
            if (kv->key.type == MSGPACK_OBJECT_STR && kv->key.via.str.size == strlen(name) && memcmp(kv->key.via.str.ptr, name, strlen(name)) == 0)
                found = to_json(&kv->val, 0);
        }
    msgpack_unpacked_destroy(&unpacked);
    return found;
}
