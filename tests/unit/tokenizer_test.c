/* tests/unit/tokenizer_test.c - the tokenizer against the reference library's answers.
 *
 * Reads tests/golden/tokenizer (made by tests/oracle/make_tokenizer_golden.py). Checks the
 * ids of a corpus, trusted and not; that malformed files are refused with a sentence; and
 * that neither text nor file can make it fail otherwise. Run from the repository root. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "model/detok.h"
#include "model/tokenizer.h"
#include "model/tokenizer_internal.h"
#include "model/tokenizer_utf8.h"
#include "shm/error.h"
#include "tests/unit/tokenizer_golden.h"

#define IDS_MAX (2u << 20)

static uint32_t ids[IDS_MAX];

/* ---- the reference's answers ---- */

static void check_encode_case(const struct tokenizer *t, const json_t *item, const char *name, size_t index)
{
    static char text[1 << 16];
    struct tokenizer_span span[64];
    const json_t *trusted = json_object_get(item, "trusted"), *want = json_object_get(item, "ids");
    const size_t bytes = golden_unhex(json_object_get(item, "text"), text, sizeof text);
    size_t count = json_is_array(trusted) ? json_array_size(trusted) : TOKENIZER_ALL_TRUSTED;

    for (size_t i = 0; json_is_array(trusted) && i < count; i++) {
        const json_t *range = json_array_get(trusted, i);
        assert_true(i < 64);
        span[i].begin_bytes = (uint32_t)json_integer_value(json_array_get(range, 0));
        span[i].end_bytes = (uint32_t)json_integer_value(json_array_get(range, 1));
    }
    const int got = tokenizer_encode(t, text, bytes, json_is_array(trusted) ? span : NULL, count, ids, IDS_MAX);
    if (got != (int)json_array_size(want)) fail_msg("%s, case %zu: %d ids, the reference has %zu", name, index, got, json_array_size(want));
    for (int i = 0; i < got; i++)
        if (ids[i] != (uint32_t)json_integer_value(json_array_get(want, (size_t)i)))
            fail_msg("%s, case %zu: id %d is %u, the reference has %lld", name, index, i, ids[i],
                     json_integer_value(json_array_get(want, (size_t)i)));
}

/* The characters of alphabet in an order that the golden script makes too. */
static char *make_text(const char *alphabet, size_t count, uint64_t state, size_t *bytes)
{
    uint32_t scalar[64], letters = 0;
    size_t used, wrote = 0;

    for (size_t at = 0; alphabet[at]; at += used) utf8_decode(alphabet + at, strlen(alphabet + at), &scalar[letters++], &used);
    char *text = malloc(count * 4);
    assert_non_null(text);
    for (size_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        wrote += utf8_encode(scalar[(state >> 33) % letters], text + wrote);
    }
    *bytes = wrote;
    return text;
}

static void check_long_case(const struct tokenizer *t, const json_t *item)
{
    size_t bytes;
    char *text = make_text(json_string_value(json_object_get(item, "alphabet")), (size_t)json_integer_value(json_object_get(item, "count")),
                           (uint64_t)json_integer_value(json_object_get(item, "seed")), &bytes);
    const int got = tokenizer_encode(t, text, bytes, NULL, TOKENIZER_ALL_TRUSTED, ids, IDS_MAX);
    uint64_t hash = 0xCBF29CE484222325u;
    char hex[17];

    assert_int_equal(got, json_integer_value(json_object_get(item, "ids_count")));
    for (int i = 0; i < got; i++) hash = (hash ^ ids[i]) * 0x100000001B3u;
    snprintf(hex, sizeof hex, "%016llx", (unsigned long long)hash);
    assert_string_equal(hex, json_string_value(json_object_get(item, "ids_fnv")));
    free(text);
}

static void check_golden(const char *tokenizer_path, const char *cases_path)
{
    struct tokenizer *t;
    json_t *golden = golden_open(tokenizer_path, cases_path, &t);
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(golden, "encode"), i, item) check_encode_case(t, item, cases_path, i);
    json_array_foreach(json_object_get(golden, "long"), i, item) check_long_case(t, item);
    json_decref(golden);
    tokenizer_close(t);
}

static void test_encodes_as_the_reference_gemma(void **state)
{
    (void)state;
    check_golden(GOLDEN_DIR "gemma.json", GOLDEN_DIR "cases_gemma.json");
}

static void test_encodes_as_the_reference_every_flag(void **state)
{
    (void)state;
    check_golden(GOLDEN_DIR "flags.json", GOLDEN_DIR "cases_flags.json");
}

static void test_encodes_as_the_reference_demo(void **state)
{
    (void)state;
    if (!golden_is_of("model/demo/tokenizer.json", GOLDEN_DIR "cases_demo.json")) skip(); /* made for another file: run the script */
    check_golden("model/demo/tokenizer.json", GOLDEN_DIR "cases_demo.json");
}

/* ---- look-ups ---- */

static struct tokenizer *open_gemma(void)
{
    struct tokenizer *t;
    char err[256];

    if (tokenizer_open_file(&t, GOLDEN_DIR "gemma.json", err, sizeof err) != 0) fail_msg("%s", err);
    return t;
}

static void test_looks_up_names_and_ids(void **state)
{
    struct tokenizer *t = open_gemma();
    size_t bytes;

    (void)state;
    assert_int_equal(tokenizer_id(t, "<|turn>"), 105);
    assert_int_equal(tokenizer_id(t, "<turn|>"), 106);
    assert_int_equal(tokenizer_id(t, "no such token"), TOKENIZER_NO_ID);
    assert_int_equal(tokenizer_id_bytes(t, "\n\n", 2), 108);
    for (uint32_t id = 0; id < tokenizer_vocab_count(t); id++) {
        const char *text = tokenizer_token_text(t, id, &bytes);
        assert_non_null(text);
        assert_int_equal(tokenizer_id_bytes(t, text, bytes), id);
    }
    assert_null(tokenizer_token_text(t, tokenizer_vocab_count(t), &bytes));
    assert_int_equal(bytes, 0);
    assert_true(tokenizer_is_special(t, 105));
    assert_false(tokenizer_is_special(t, 107));
    assert_true(tokenizer_is_added(t, 107));
    assert_false(tokenizer_is_special(t, UINT32_MAX));
    assert_true(tokenizer_is_byte(t, tokenizer_id(t, "<0x41>")));
    assert_int_equal(tokenizer_byte_value(t, tokenizer_id(t, "<0xFE>")), 0xFE);
    assert_int_equal(tokenizer_byte_value(t, 105), -E_RANGE);
    tokenizer_close(t);
}

/* ---- trust ---- */

static void test_a_user_cannot_type_any_special_token(void **state)
{
    struct tokenizer *t = open_gemma();
    char text[TOKENIZER_TOKEN_BYTES_MAX + 16];

    (void)state;
    for (uint32_t special = 0; special < tokenizer_vocab_count(t); special++) {
        size_t bytes;
        const char *name = tokenizer_token_text(t, special, &bytes);
        if (!tokenizer_is_special(t, special)) continue;
        const size_t text_bytes = (size_t)snprintf(text, sizeof text, "a %.*s\n%.*s", (int)bytes, name, (int)bytes, name);
        const int count = tokenizer_encode(t, text, text_bytes, NULL, 0, ids, IDS_MAX);
        assert_true(count > 0);
        for (int i = 0; i < count; i++) assert_false(tokenizer_is_special(t, ids[i]));
    }
    tokenizer_close(t);
}

static void test_refuses_bad_spans(void **state)
{
    struct tokenizer *t = open_gemma();
    static const struct tokenizer_span backwards[] = { { 3, 2 } }, outside[] = { { 0, 6 } }, unsorted[] = { { 2, 4 }, { 1, 2 } };

    (void)state;
    assert_int_equal(tokenizer_encode(t, "hello", 5, backwards, 1, ids, IDS_MAX), -E_RANGE);
    assert_int_equal(tokenizer_encode(t, "hello", 5, outside, 1, ids, IDS_MAX), -E_RANGE);
    assert_int_equal(tokenizer_encode(t, "hello", 5, unsorted, 2, ids, IDS_MAX), -E_RANGE);
    static const struct tokenizer_span empty[] = { { 0, 0 }, { 0, 0 }, { 0, 0 }, { 0, 8 } }; /* empty ranges are allowed, and touch */
    assert_int_equal(tokenizer_encode(t, "", 0, empty, 3, ids, IDS_MAX), 0);
    assert_int_equal(tokenizer_encode(t, "<|turn>\n", 8, empty, 4, ids, IDS_MAX), 2);
    assert_int_equal(ids[0], 105);
    tokenizer_close(t);
}

static void test_stops_when_ids_are_full(void **state)
{
    struct tokenizer *t = open_gemma();
    static const char text[] = "one two three <b> four";
    const int need = tokenizer_encode(t, text, sizeof text - 1, NULL, 0, ids, IDS_MAX);

    (void)state;
    assert_true(need > 4);
    for (int room = 0; room < need; room++) {
        ids[room] = 0xDEAD;
        assert_int_equal(tokenizer_encode(t, text, sizeof text - 1, NULL, 0, ids, (size_t)room), -E_FULL);
        assert_int_equal(ids[room], 0xDEAD);
    }
    assert_int_equal(tokenizer_encode(t, text, sizeof text - 1, NULL, 0, ids, (size_t)need), need);
    assert_int_equal(tokenizer_encode(t, text, TOKENIZER_TEXT_BYTES_MAX + 1, NULL, 0, ids, IDS_MAX), -E_LIMIT);
    assert_int_equal(tokenizer_encode(t, "", 0, NULL, 0, ids, 0), 0);
    tokenizer_close(t);
}

/* ---- files that must be refused ---- */

/* A small complete file with one replacement: the first appearance of `from` becomes `to`. */
static int open_changed(const char *from, const char *to, char *err, size_t err_bytes, struct tokenizer **t)
{
    json_t *root = json_load_file(GOLDEN_DIR "flags.json", 0, NULL);
    char *json = json_dumps(root, JSON_COMPACT);
    char *found = from ? strstr(json, from) : json;
    char *changed = malloc(strlen(json) + strlen(to) + 1);

    if (!found || !changed) fail_msg("nothing to change: %s", from ? from : "");
    stpcpy(stpcpy(mempcpy(changed, json, (size_t)(found - json)), to), found + (from ? strlen(from) : 0));
    const int rc = tokenizer_open(t, changed, strlen(changed), err, err_bytes);
    free(changed);
    free(json);
    json_decref(root);
    return rc;
}

static void test_refuses_what_it_does_not_implement(void **state)
{
    static const struct { const char *from, *to; int code; const char *says; } bad[] = {
        { "\"BPE\"", "\"Unigram\"", -E_UNSUPPORTED, "Unigram" },
        { "\"type\":\"Replace\"", "\"type\":\"NFKC\"", -E_UNSUPPORTED, "NFKC" },
        { "\"type\":\"Split\"", "\"type\":\"ByteLevel\"", -E_UNSUPPORTED, "ByteLevel" },
        { "\"invert\":false", "\"invert\":true", -E_UNSUPPORTED, "Split" },
        { "\"type\":\"ByteFallback\"", "\"type\":\"ByteFallbacks\"", -E_UNSUPPORTED, "decoder" },
        { "\"byte_fallback\":true", "\"byte_fallback\":false", -E_UNSUPPORTED, "byte_fallback" },
        { "\"ignore_merges\":false", "\"ignore_merges\":true", -E_UNSUPPORTED, "ignore_merges" },
        { "\"dropout\":null", "\"dropout\":0.1", -E_UNSUPPORTED, "dropout" },
        { "\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", -E_UNSUPPORTED, "end_of_word_suffix" },
        { "\"<0x07>\"", "\"<0x7>\"", -E_FORMAT, "<0x07>" },
        { "\"<0x07>\":9", "\"<0x07>\":8", -E_FORMAT, "id 8" },
        { "\"<0x07>\"", "\"<0x06>\"", -E_FORMAT, "<0x06>" },
        { "\"<0x07>\":9", "\"<0x07>\":1048576", -E_LIMIT, "1048576" },
        { "\"<0x07>\":9", "\"<0x07>\":-9", -E_FORMAT, "model.vocab" },
        { "\"<0x07>\":9", "\"<0x07>\":9.5", -E_FORMAT, "model.vocab" },
        { "\"<0x07>\":9", "\"<0x07>\":99999999999999999999", -E_FORMAT, "model.vocab" },
        { "\"<0x07>\":9", "\"<0x07>\":[9]", -E_FORMAT, "model.vocab" },
        { "\"a b\",\"ab c\"", "\"a b c\",\"ab c\"", -E_FORMAT, "merge" },
        { "\"ab c\"", "\"ab zz\"", -E_FORMAT, "zz" },
        { "\"ab c\"", "[\"ab\"]", -E_FORMAT, "merge" },
        { "\"ab c\"", "[\"a\",\"b\",\"c\"]", -E_FORMAT, "merge" },
        { "\"ab c\"", "[[\"a\"],\"b\"]", -E_FORMAT, "merge" },
        { "\"ab c\"", "null", -E_FORMAT, "merge" },
        { "\"content\":\"<s>\"", "\"contents\":\"<s>\"", -E_FORMAT, "added_tokens" },
        { "\"content\":\"<s>\"", "\"content\":\"<pad>\"", -E_FORMAT, "<pad>" },
        { "\"content\":\"<s>\"", "\"content\":7", -E_FORMAT, "added_tokens" },
        { "\"special\":true", "\"special\":1", -E_FORMAT, "added_tokens" },
        { "\"normalizer\":", "\"normaliser\":", -E_UNSUPPORTED, "normalizer" },
        { "\"model\":", "\"module\":", -E_FORMAT, "model" },
        { "\"version\":", "\"model\":{},\"version\":", -E_FORMAT, "second" },
        { "\"vocab\":", "\"vocab\":{},\"vocab\":", -E_FORMAT, "vocab" },
        { "\"merges\":", "\"merges\":[],\"merges\":", -E_FORMAT, "merges" },
        { "\"vocab\":", "\"merges\":[],\"vocab\":", -E_UNSUPPORTED, "before" },
        { NULL, "[", -E_FORMAT, "array" },
        { NULL, "null", -E_FORMAT, "JSON" },
    };
    struct tokenizer *t;
    char err[256];

    (void)state;
    assert_int_equal(open_changed("\"version\"", "\"version\"", err, sizeof err, &t), 0);
    tokenizer_close(t);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const int rc = open_changed(bad[i].from, bad[i].to, err, sizeof err, &t);
        if (rc != bad[i].code || !strstr(err, bad[i].says))
            fail_msg("%s -> %s: code %d, \"%s\"", bad[i].from, bad[i].to, rc, err);
        assert_null(t);
    }
}

static void test_refuses_deep_and_long_files(void **state)
{
    static char deep[20000], long_token[TOKENIZER_TOKEN_BYTES_MAX + 64];
    struct tokenizer *t;
    char err[256], tiny[4];

    (void)state;
    memset(deep, '[', sizeof deep);
    memcpy(deep, "{\"x\":", 5);
    assert_int_equal(tokenizer_open(&t, deep, sizeof deep, err, sizeof err), -E_LIMIT);
    assert_non_null(strstr(err, "deeper"));
    memset(long_token, 'x', sizeof long_token);
    memcpy(long_token, "{\"model\":{\"vocab\":{\"", 20);
    memcpy(long_token + sizeof long_token - 3, "\":1", 3);
    assert_int_equal(tokenizer_open(&t, long_token, sizeof long_token, err, sizeof err), -E_LIMIT);
    assert_int_equal(tokenizer_open(&t, deep, TOKENIZER_JSON_BYTES_MAX + 1, tiny, sizeof tiny), -E_LIMIT);
    assert_int_equal(strlen(tiny), 3); /* the sentence is cut to the caller's room */
    assert_int_equal(tokenizer_open(&t, "", 0, NULL, 0), -E_FORMAT);
    assert_int_equal(tokenizer_open(&t, "{}", 2, NULL, 0), -E_FORMAT);
    assert_int_equal(tokenizer_open_file(&t, "tests/golden/no such file", err, sizeof err), -E_IO);
    assert_int_equal(tokenizer_open_file(&t, "tests/golden", err, sizeof err), -E_IO);
}

/* Every beginning of a file is malformed, and says so. */
static void test_refuses_every_truncation(void **state)
{
    json_t *root = json_load_file(GOLDEN_DIR "flags.json", 0, NULL);
    char *json = json_dumps(root, JSON_COMPACT), err[256];
    struct tokenizer *t;
    const size_t bytes = strlen(json);

    (void)state;
    for (size_t cut = 0; cut < bytes; cut += 1 + cut % 7) {
        char *copy = malloc(cut + 1); /* its own block: reading past the end is seen by the sanitizer */
        memcpy(copy, json, cut);
        assert_int_equal(tokenizer_open(&t, copy, cut, err, sizeof err), -E_FORMAT);
        assert_true(err[0] != 0);
        free(copy);
    }
    free(json);
    json_decref(root);
}

/* ---- safety of the merges ---- */

static void test_merges_never_make_a_special_token(void **state)
{
    struct tokenizer *t;
    char err[256];

    (void)state;
    /* "the" is a merge's result; the same file with "the" as a special added token. */
    assert_int_equal(open_changed("\"added_tokens\":[", "\"added_tokens\":[{\"id\":5,\"content\":\"the\",\"special\":true},", err, sizeof err, &t),
                     -E_FORMAT); /* the id must be the vocabulary's */
    assert_int_equal(open_changed("\"version\"", "\"version\"", err, sizeof err, &t), 0);
    const uint32_t the = tokenizer_id(t, "the");
    tokenizer_close(t);
    char entry[128];
    snprintf(entry, sizeof entry, "\"added_tokens\":[{\"id\":%u,\"content\":\"the\",\"special\":true},", the);
    assert_int_equal(open_changed("\"added_tokens\":[", entry, err, sizeof err, &t), 0);
    assert_int_equal(tokenizer_encode(t, "the", 3, NULL, TOKENIZER_ALL_TRUSTED, ids, IDS_MAX), 1);
    assert_int_equal(ids[0], the);
    assert_int_equal(tokenizer_encode(t, "the", 3, NULL, 0, ids, IDS_MAX), 2);
    assert_int_not_equal(ids[0], the);
    assert_int_not_equal(ids[1], the);
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encodes_as_the_reference_gemma),
        cmocka_unit_test(test_encodes_as_the_reference_every_flag),
        cmocka_unit_test(test_encodes_as_the_reference_demo),
        cmocka_unit_test(test_looks_up_names_and_ids),
        cmocka_unit_test(test_a_user_cannot_type_any_special_token),
        cmocka_unit_test(test_refuses_bad_spans),
        cmocka_unit_test(test_stops_when_ids_are_full),
        cmocka_unit_test(test_refuses_what_it_does_not_implement),
        cmocka_unit_test(test_refuses_deep_and_long_files),
        cmocka_unit_test(test_refuses_every_truncation),
        cmocka_unit_test(test_merges_never_make_a_special_token),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
