/* model/chat_request.c - msgpack bytes to template values (model/chat_request.h).
 *
 * Reads    a private copy of the request
 * Owns     nothing: values are in the run's arena, strings point into the copy where they are valid
 * Fails    by the run; every length is checked against the bytes that are left before it is believed. */
#include "model/chat_request.h"

#include <string.h>

#include "model/jinja_unicode.h"
#include "shm/error.h"

struct reader {
    struct jinja_run *r;
    const unsigned char *at, *end;
    uint32_t depth;
};

__attribute__((noreturn))
static void fail(struct reader *x, const char *what) { jinja_fail(x->r, E_FORMAT, "the request is not valid msgpack: %s", what); }

static uint64_t big_endian(struct reader *x, unsigned bytes)
{
    uint64_t v = 0;

    if (bytes > (size_t)(x->end - x->at)) fail(x, "it ends early");
    for (unsigned i = 0; i < bytes; i++) v = v << 8 | *x->at++;
    return v;
}

static struct jinja_value data_value(struct jinja_value v)
{
    v.untrusted = 1;
    return v;
}

static struct jinja_str *replace_invalid(struct reader *x, const char *text, size_t bytes)
{
    struct jinja_buf b = {0};

    for (size_t at = 0; at < bytes;) {
        unsigned bad, n = jinja_utf8_check(text + at, bytes - at, &bad);
        if (n) jinja_buf_put(x->r, &b, text + at, n, false);
        else jinja_buf_put(x->r, &b, "\xef\xbf\xbd", 3, false);
        at += n ? n : bad;
    }
    return jinja_buf_finish(x->r, &b);
}

static struct jinja_str *read_string(struct reader *x, uint64_t bytes)
{
    const char *text = (const char *)x->at;
    size_t at = 0;
    unsigned bad, n = 1;

    if (bytes > (size_t)(x->end - x->at)) fail(x, "a string ends early");
    x->at += bytes;
    jinja_step_bytes(x->r, bytes);
    while (at < bytes && (n = jinja_utf8_check(text + at, bytes - at, &bad)) != 0) at += n;
    return n ? jinja_str_wrap(x->r, text, bytes, false) : replace_invalid(x, text, bytes);
}

static struct jinja_value read_value(struct reader *x);

static struct jinja_value read_array(struct reader *x, uint64_t count)
{
    struct jinja_value *items;

    if (count > (size_t)(x->end - x->at)) fail(x, "an array ends early");
    items = jinja_alloc_array(x->r, count, sizeof *items);
    for (uint64_t i = 0; i < count; i++) items[i] = read_value(x);
    return jinja_list_of(x->r, items, (uint32_t)count);
}

/* As in Python, the last of equal keys wins and keeps the first one's place. */
static struct jinja_value read_map(struct reader *x, uint64_t count)
{
    struct jinja_dict *d;

    if (count > (size_t)(x->end - x->at) / 2) fail(x, "a map ends early");
    d = jinja_dict_new(x->r, (uint32_t)count);
    for (uint64_t i = 0; i < count; i++) {
        const struct jinja_value key = read_value(x);
        if (key.type != JINJA_STRING) fail(x, "a key is not a string");
        jinja_dict_put(x->r, d, key, read_value(x));
    }
    return (struct jinja_value){.type = JINJA_DICT, .u.dict = d};
}

static struct jinja_value read_float(struct reader *x, bool twice)
{
    union { uint64_t bits; double value; } d;
    union { uint32_t bits; float value; } f;

    if (twice) {
        d.bits = big_endian(x, 8);
        return data_value(jinja_float(d.value));
    }
    f.bits = (uint32_t)big_endian(x, 4);
    return data_value(jinja_float((double)f.value));
}

static struct jinja_value read_unsigned(struct reader *x, unsigned bytes)
{
    const uint64_t v = big_endian(x, bytes);

    if (v > INT64_MAX) jinja_fail(x->r, E_RANGE, "the request has an integer above 2^63-1");
    return data_value(jinja_int((int64_t)v));
}

static struct jinja_value read_signed(struct reader *x, unsigned bytes)
{
    const uint64_t v = big_endian(x, bytes);

    switch (bytes) {
    case 1: return data_value(jinja_int((int8_t)v));
    case 2: return data_value(jinja_int((int16_t)v));
    case 4: return data_value(jinja_int((int32_t)v));
    default: return data_value(jinja_int((int64_t)v));
    }
}

static struct jinja_value read_tagged(struct reader *x, unsigned char tag)
{
    switch (tag) {
    case 0xc0: return jinja_none();
    case 0xc2: case 0xc3: return data_value(jinja_bool(tag == 0xc3));
    case 0xca: case 0xcb: return read_float(x, tag == 0xcb);
    case 0xcc: case 0xcd: case 0xce: case 0xcf: return read_unsigned(x, 1u << (tag - 0xcc));
    case 0xd0: case 0xd1: case 0xd2: case 0xd3: return read_signed(x, 1u << (tag - 0xd0));
    case 0xd9: return jinja_string(read_string(x, big_endian(x, 1)));
    case 0xda: return jinja_string(read_string(x, big_endian(x, 2)));
    case 0xdb: return jinja_string(read_string(x, big_endian(x, 4)));
    case 0xdc: return read_array(x, big_endian(x, 2));
    case 0xdd: return read_array(x, big_endian(x, 4));
    case 0xde: return read_map(x, big_endian(x, 2));
    case 0xdf: return read_map(x, big_endian(x, 4));
    default: fail(x, "binary and extension types have no meaning here");
    }
}

static struct jinja_value read_value(struct reader *x)
{
    const unsigned char tag = (unsigned char)big_endian(x, 1);
    struct jinja_value v;

    jinja_step(x->r, 1);
    if (++x->depth > CHAT_DEPTH_MAX) jinja_fail(x->r, E_LIMIT, "the request nests deeper than %u", CHAT_DEPTH_MAX);
    if (tag < 0x80) v = data_value(jinja_int(tag));
    else if (tag < 0x90) v = read_map(x, tag & 15);
    else if (tag < 0xa0) v = read_array(x, tag & 15);
    else if (tag < 0xc0) v = jinja_string(read_string(x, tag & 31));
    else if (tag >= 0xe0) v = data_value(jinja_int((int8_t)tag));
    else v = read_tagged(x, tag);
    x->depth--;
    return v;
}

struct jinja_value chat_request_decode(struct jinja_run *r, const char *data, size_t bytes)
{
    struct reader x = {.r = r, .at = (const unsigned char *)data, .end = (const unsigned char *)data + bytes};
    const struct jinja_value v = read_value(&x);

    if (x.at != x.end) fail(&x, "bytes follow the value");
    return v;
}
