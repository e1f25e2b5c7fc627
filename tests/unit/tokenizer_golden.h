/* tests/unit/tokenizer_golden.h - reading tests/golden/tokenizer, for the tests that use it. */
#ifndef SLUICE_TESTS_TOKENIZER_GOLDEN_H
#define SLUICE_TESTS_TOKENIZER_GOLDEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "model/tokenizer.h"

#define GOLDEN_DIR "tests/golden/tokenizer/"

static inline size_t golden_unhex(const json_t *hex, char *out, size_t out_bytes)
{
    const char *text = json_string_value(hex);
    size_t count = 0;
    unsigned byte;

    assert_non_null(text);
    for (; text[0]; text += 2) {
        assert_true(count < out_bytes && sscanf(text, "%2x", &byte) == 1);
        out[count++] = (char)byte;
    }
    return count;
}

/* FNV-1a of a file, so that goldens of a file that has changed are noticed. */
static inline bool golden_file_hash(const char *path, char hex[17])
{
    uint64_t hash = 0xCBF29CE484222325u;
    FILE *f = fopen(path, "rb");
    int c;

    if (!f) return false;
    while ((c = getc(f)) != EOF) hash = (hash ^ (uint64_t)c) * 0x100000001B3u;
    fclose(f);
    snprintf(hex, 17, "%016llx", (unsigned long long)hash);
    return true;
}

/* Were these cases made from this tokenizer file? */
static inline bool golden_is_of(const char *tokenizer_path, const char *cases_path)
{
    char hex[17];
    json_t *golden = json_load_file(cases_path, 0, NULL);
    const char *want = json_string_value(json_object_get(golden, "source_fnv"));
    const bool same = want && golden_file_hash(tokenizer_path, hex) && strcmp(hex, want) == 0;

    if (!same) printf("SKIP: %s was not made from the present %s: run tests/oracle/make_tokenizer_golden.py\n", cases_path, tokenizer_path);
    json_decref(golden);
    return same;
}

static inline json_t *golden_open(const char *tokenizer_path, const char *cases_path, struct tokenizer **t)
{
    json_error_t error;
    char err[256];
    json_t *golden = json_load_file(cases_path, 0, &error);

    if (!golden) fail_msg("%s: %s", cases_path, error.text);
    if (tokenizer_open_file(t, tokenizer_path, err, sizeof err) != 0) fail_msg("%s: %s", tokenizer_path, err);
    assert_true(golden_is_of(tokenizer_path, cases_path));
    return golden;
}

#endif
