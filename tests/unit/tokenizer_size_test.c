/* tests/unit/tokenizer_size_test.c - a tokenizer.json of Gemma's full size (made here, 37 MB).
 *
 * Times are printed, not judged (bench/tokenizer_bench.c measures them); what would take quadratic time
 * runs into the runner's limit. Run from the repository root. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "bench/tokenizer_full.h"
#include "model/detok.h"
#include "model/tokenizer.h"
#include "shm/error.h"

#define LINE_BYTES (1u << 20)

static char *json;
static size_t json_bytes;
static struct tokenizer *tok;
static uint32_t ids[LINE_BYTES + 16];
static char line[LINE_BYTES + 16];

static double used_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_loads_the_full_size(void **state)
{
    char err[256];
    const double begin = used_s();

    (void)state;
    if (tokenizer_open(&tok, json, json_bytes, err, sizeof err) != 0) fail_msg("%s", err);
    const double took = used_s() - begin;
    printf("loaded in %.0f ms, holds %.1f MB\n", took * 1e3, (double)tokenizer_memory_bytes(tok) / 1e6);
    assert_int_equal(tokenizer_vocab_count(tok), FULL_VOCAB);
    assert_true(tokenizer_memory_bytes(tok) < 64u << 20);
}

/* Whatever the line is made of, and wherever the merging has to begin. */
static void test_a_line_of_a_megabyte_is_ordinary(void **state)
{
    static const char *const unit[] = { "e", "et", "eta on ", "\xE4\xB8\x80\xE4\xB8\x81", " ", "\n", "<", "<|turn", "\xF0\x9F\x98\x80", "\xFF", "aaaaaaab" };

    (void)state;
    for (size_t i = 0; i < sizeof unit / sizeof *unit; i++) {
        const size_t unit_bytes = strlen(unit[i]), bytes = LINE_BYTES / unit_bytes * unit_bytes;
        for (size_t at = 0; at < bytes; at += unit_bytes) memcpy(line + at, unit[i], unit_bytes);
        const bool is_utf8 = unit[i][0] != '\xFF';
        const size_t used = is_utf8 ? bytes : bytes / 16; /* a bad byte becomes three tokens here */
        const double begin = used_s();
        const int count = tokenizer_encode(tok, line, used, NULL, 0, ids, sizeof ids / sizeof *ids);
        const double took = used_s() - begin;
        assert_true(count > 0);
        printf("a line of unit %zu: %.0f ms\n", i, took * 1e3);

        struct detok d;
        char out[DETOK_BYTES_MAX];
        size_t at = 0;
        detok_init(&d);
        for (int k = 0; k < count; k++) {
            const int bytes_out = detok_feed(&d, tok, ids[k], out, sizeof out, 0);
            assert_true(bytes_out >= 0);
            if (is_utf8) assert_memory_equal(out, line + at, (size_t)bytes_out);
            at += (size_t)bytes_out;
        }
        assert_int_equal(at, is_utf8 ? used : used * 3);
    }
}

/* Text that cannot fit is refused before it is looked at. */
static void test_refuses_a_text_that_cannot_fit_at_once(void **state)
{
    const double begin = used_s();

    (void)state;
    memset(line, 'e', LINE_BYTES);
    for (int i = 0; i < 10000; i++) assert_int_equal(tokenizer_encode(tok, line, LINE_BYTES, NULL, 0, ids, 1000), -E_FULL);
    printf("10,000 refusals: %.0f ms\n", (used_s() - begin) * 1e3);
}

static int make(void **state)
{
    (void)state;
    json = tokenizer_full_json(&json_bytes);
    return json ? 0 : -1;
}

static int done(void **state)
{
    (void)state;
    free(json);
    tokenizer_close(tok);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loads_the_full_size),
        cmocka_unit_test(test_a_line_of_a_megabyte_is_ordinary),
        cmocka_unit_test(test_refuses_a_text_that_cannot_fit_at_once),
    };

    return cmocka_run_group_tests(tests, make, done);
}
