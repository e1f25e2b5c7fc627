/* tests/unit/jinja_golden.h - what the tests of the template interpreter share: golden files, and
 * requests packed into msgpack the way the gateway does it. */
#ifndef SLUICE_TESTS_JINJA_GOLDEN_H
#define SLUICE_TESTS_JINJA_GOLDEN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <msgpack.h>

#include "model/chat.h"

#define GOLDEN_NOW_SECONDS 1735732800   /* 2025-01-01 12:00 UTC, as in tests/oracle/make_jinja_golden.py */

static inline void golden_pack(msgpack_packer *p, const json_t *v)
{
    const char *key;
    json_t *item;
    size_t i;

    switch (json_typeof(v)) {
    case JSON_NULL: msgpack_pack_nil(p); break;
    case JSON_TRUE: msgpack_pack_true(p); break;
    case JSON_FALSE: msgpack_pack_false(p); break;
    case JSON_INTEGER: msgpack_pack_int64(p, json_integer_value(v)); break;
    case JSON_REAL: msgpack_pack_double(p, json_real_value(v)); break;
    case JSON_STRING:
        msgpack_pack_str(p, json_string_length(v));
        msgpack_pack_str_body(p, json_string_value(v), json_string_length(v));
        break;
    case JSON_ARRAY:
        msgpack_pack_array(p, json_array_size(v));
        json_array_foreach(v, i, item) golden_pack(p, item);
        break;
    case JSON_OBJECT:
        msgpack_pack_map(p, json_object_size(v));
        json_object_foreach((json_t *)v, key, item) {
            msgpack_pack_str(p, strlen(key));
            msgpack_pack_str_body(p, key, strlen(key));
            golden_pack(p, item);
        }
        break;
    }
}

static inline struct chat_options golden_options(void)
{
    static const struct chat_token tokens[] = {{"bos_token", "<bos>"}, {"eos_token", "<eos>"}};

    return (struct chat_options){.tokens = tokens, .token_count = 2, .now_seconds = GOLDEN_NOW_SECONDS};
}

/* Renders `request` (JSON) by template source; 0 or a negative code with err filled. */
static inline int golden_render(const char *source, const json_t *request, const struct chat_options *options, struct chat_text *out,
                                char *err, size_t err_bytes)
{
    struct chat_template *t;
    msgpack_sbuffer buffer;
    msgpack_packer packer;
    int rc = chat_template_open(&t, source, strlen(source), err, err_bytes);

    memset(out, 0, sizeof *out);
    if (rc != 0) return rc;
    msgpack_sbuffer_init(&buffer);
    msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
    golden_pack(&packer, request);
    rc = chat_render(t, buffer.data, buffer.size, options, out, err, err_bytes);
    msgpack_sbuffer_destroy(&buffer);
    chat_template_close(t);
    return rc;
}

static inline json_t *golden_load(const char *path)
{
    json_error_t error;
    json_t *all = json_load_file(path, JSON_ALLOW_NUL, &error);

    if (!all) fail_msg("%s: %s (run from the repository root)", path, error.text);
    return all;
}

/* The message without "line N: ". */
static inline const char *golden_message(const char *err)
{
    const char *colon = strncmp(err, "line ", 5) == 0 ? strstr(err, ": ") : NULL;

    return colon ? colon + 2 : err;
}

/* Compares one render with its golden case; 0 when equal, else prints the difference. */
static inline int golden_check(const char *name, const json_t *golden, int rc, const struct chat_text *out, const char *err)
{
    const char *text = json_string_value(json_object_get(golden, "text"));
    const size_t bytes = json_string_length(json_object_get(golden, "text"));
    const char *error = json_string_value(json_object_get(golden, "error")), *kind = json_string_value(json_object_get(golden, "kind"));

    if (text) {
        if (rc == 0 && out->bytes == bytes && memcmp(out->text, text, bytes) == 0) return 0;
        print_message("%s\n  want: %s\n  got:  %s\n", name, text, rc ? err : out->text);
        return 1;
    }
    if (rc != 0 && (strcmp(kind, "exact") != 0 || strcmp(golden_message(err), error) == 0)) return 0;
    print_message("%s\n  want error: %s\n  got:        %s\n", name, error, rc ? err : out->text);
    return 1;
}

#endif
