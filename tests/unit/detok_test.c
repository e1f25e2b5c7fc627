/* tests/unit/detok_test.c - tokens back to text, against the reference library's answers.
 *
 * Reads tests/golden/tokenizer. Each sequence is fed token by token; what has come out after
 * each token must be valid UTF-8 and a beginning of the whole. Run from the repository root. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/detok.h"
#include "model/tokenizer_utf8.h"
#include "shm/error.h"
#include "tests/unit/tokenizer_golden.h"

static size_t decode(const struct tokenizer *t, const json_t *list, unsigned flags, char *out, size_t out_bytes)
{
    struct detok d;
    size_t wrote = 0;

    detok_init(&d);
    for (size_t i = 0; i <= json_array_size(list); i++) {
        const uint32_t id = (uint32_t)json_integer_value(json_array_get(list, i));
        const int got = i < json_array_size(list) ? detok_feed(&d, t, id, out + wrote, out_bytes - wrote, flags)
                                                  : detok_flush(&d, out + wrote, out_bytes - wrote);
        assert_true(got >= 0 && (size_t)got <= DETOK_BYTES_MAX);
        wrote += (size_t)got;
        assert_true(utf8_is_valid(out, wrote));
    }
    assert_int_equal(detok_flush(&d, out, out_bytes), 0);
    return wrote;
}

static void check_golden(const char *tokenizer_path, const char *cases_path)
{
    static char got[1 << 16], want[1 << 16];
    struct tokenizer *t;
    json_t *golden = golden_open(tokenizer_path, cases_path, &t);
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(golden, "decode"), i, item) {
        for (int skip_special = 0; skip_special < 2; skip_special++) {
            const size_t want_bytes = golden_unhex(json_object_get(item, skip_special ? "skip" : "all"), want, sizeof want);
            const size_t got_bytes = decode(t, json_object_get(item, "ids"), skip_special ? DETOK_SKIP_SPECIAL : 0, got, sizeof got);
            if (got_bytes != want_bytes || memcmp(got, want, got_bytes) != 0)
                fail_msg("%s, case %zu: \"%.*s\", the reference has \"%.*s\"", cases_path, i, (int)got_bytes, got, (int)want_bytes, want);
        }
    }
    json_decref(golden);
    tokenizer_close(t);
}

static void test_decodes_as_the_reference_gemma(void **state)
{
    (void)state;
    check_golden(GOLDEN_DIR "gemma.json", GOLDEN_DIR "cases_gemma.json");
}

static void test_decodes_as_the_reference_every_flag(void **state)
{
    (void)state;
    check_golden(GOLDEN_DIR "flags.json", GOLDEN_DIR "cases_flags.json");
}

static void test_decodes_as_the_reference_demo(void **state)
{
    (void)state;
    if (!golden_is_of("model/demo/tokenizer.json", GOLDEN_DIR "cases_demo.json")) skip(); /* made for another file: run the script */
    check_golden("model/demo/tokenizer.json", GOLDEN_DIR "cases_demo.json");
}

static void test_holds_a_character_until_it_is_complete(void **state)
{
    static const uint8_t emoji[] = { 0xF0, 0x9F, 0x98, 0x80 };
    struct tokenizer *t;
    struct detok d;
    char out[DETOK_BYTES_MAX], err[256], name[8];

    (void)state;
    assert_int_equal(tokenizer_open_file(&t, GOLDEN_DIR "gemma.json", err, sizeof err), 0);
    detok_init(&d);
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "<0x%02X>", emoji[i]);
        assert_int_equal(detok_feed(&d, t, tokenizer_id(t, name), out, sizeof out, 0), i == 3 ? 4 : 0);
        /* a special token that is not shown does not end the character */
        assert_int_equal(detok_feed(&d, t, 105, out + 8, sizeof out - 8, DETOK_SKIP_SPECIAL), 0);
    }
    assert_memory_equal(out, emoji, 4);
    assert_int_equal(detok_feed(&d, t, tokenizer_id(t, "<0xE4>"), out, sizeof out, 0), 0);
    assert_int_equal(detok_feed(&d, t, 107, out, sizeof out, 0), 4); /* U+FFFD and the newline */
    assert_memory_equal(out, "\xEF\xBF\xBD\n", 4);
    assert_int_equal(detok_feed(&d, t, tokenizer_vocab_count(t), out, sizeof out, 0), -E_RANGE);
    const int unknown = detok_feed(&d, t, tokenizer_vocab_count(t) + 7, out, sizeof out, DETOK_SHOW_UNKNOWN);
    char want[32];
    assert_int_equal(unknown, snprintf(want, sizeof want, "<unused%u>", tokenizer_vocab_count(t) + 7));
    assert_memory_equal(out, want, (size_t)unknown);
    assert_int_equal(detok_feed(&d, t, 107, out, 3, 0), -E_FULL);
    assert_int_equal(tokenizer_token_bytes(t, 105, out, 2, 0), -E_FULL);
    tokenizer_close(t);
}

static void test_replaces_malformed_utf8_as_python_does(void **state)
{
    static const struct { const char *text; size_t bytes; size_t replaced; } sample[] = {
        { "\xFF", 1, 1 }, { "\xC3", 1, 1 }, { "\xE4\xBD", 2, 1 }, { "\xED\xA0\x80", 3, 3 }, { "\xF0\x9F\x98\xFF", 4, 2 },
        { "\xC0\x80", 2, 2 }, { "\xF4\x90\x80\x80", 4, 4 }, { "\xF1\x80\xC2\xA9", 4, 1 }, { "\xE0\x80\x80", 3, 3 }, { "\xF4\x8F\xBF\xBF", 4, 0 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof sample / sizeof *sample; i++) {
        size_t used, replaced = 0;
        uint32_t scalar;
        for (size_t at = 0; at < sample[i].bytes; at += used)
            replaced += utf8_decode(sample[i].text + at, sample[i].bytes - at, &scalar, &used) != UTF8_GOOD;
        assert_int_equal(replaced, sample[i].replaced);
        assert_int_equal(utf8_is_valid(sample[i].text, sample[i].bytes), replaced == 0);
    }
    for (uint32_t scalar = 0; scalar < 0x110000; scalar++) {
        char text[4];
        size_t used;
        uint32_t back;
        if (scalar >= 0xD800 && scalar < 0xE000) continue;
        const size_t bytes = utf8_encode(scalar, text);
        if (utf8_decode(text, bytes, &back, &used) != UTF8_GOOD || back != scalar || used != bytes) fail_msg("U+%04X", scalar);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decodes_as_the_reference_gemma),
        cmocka_unit_test(test_decodes_as_the_reference_every_flag),
        cmocka_unit_test(test_decodes_as_the_reference_demo),
        cmocka_unit_test(test_holds_a_character_until_it_is_complete),
        cmocka_unit_test(test_replaces_malformed_utf8_as_python_does),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
