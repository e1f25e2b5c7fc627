/* tests/unit/lookup_test.c - what followed the last time: against a plain search, over random texts with few different tokens, cut anywhere into prompt and output. */
#include "stages/draft/draft.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TOKENS_MAX 700u
#define TEXTS 20000
#define MATCH_MAX 8u /* as lookup.c */
#define MATCH_MIN 2u

/* The longest match of at least MATCH_MIN tokens, counted up to MATCH_MAX, and of those the latest. */
static uint32_t plain(const uint32_t *text, uint32_t count, uint32_t *end_out)
{
    uint32_t best = MATCH_MIN - 1, at = 0;

    for (uint32_t end = MATCH_MIN; end < count; end++) {
        uint32_t same = 0;
        while (same < MATCH_MAX && same < end && text[end - 1 - same] == text[count - 1 - same]) same++;
        if (same >= best && same >= MATCH_MIN) {
            best = same;
            at = end;
        }
    }
    *end_out = at;
    return at ? best : 0;
}

static void test_finds_the_longest_latest(void **state)
{
    uint32_t text[TOKENS_MAX], hits = 0;

    (void)state;
    srand(7);
    for (int n = 0; n < TEXTS; n++) {
        const uint32_t kinds = 2 + (uint32_t)rand() % 40, count = 1 + (uint32_t)rand() % 600, prompt_count = (uint32_t)rand() % (count + 1), most = 1 + (uint32_t)rand() % 7;
        for (uint32_t i = 0; i < count; i++) text[i] = (uint32_t)rand() % kinds;
        if (n % 3 == 0 && count > 40) memcpy(text + count - 12, text + (uint32_t)rand() % (count - 24), 12 * sizeof *text);
        uint32_t *copy = malloc(count * sizeof *copy + 1); /* so that a sanitizer sees a read beyond either part */
        memcpy(copy, text + prompt_count, (count - prompt_count) * sizeof *copy);
        const struct text t = {.prompt = text, .output = copy, .prompt_count = prompt_count, .count = count};
        struct guess g;
        uint32_t end = 0;
        const uint32_t wanted = plain(text, count, &end), got = lookup_guess(&t, most, &g);
        assert_int_equal(got, wanted);
        assert_int_equal(g.count, wanted ? most : 0);
        for (uint32_t i = 0; i < g.count; i++) assert_int_equal(g.token[i], end + i < count ? text[end + i] : g.token[end + i - count]);
        hits += wanted > 0;
        free(copy);
    }
    assert_true(hits > TEXTS / 2);
}

static void test_short_texts(void **state)
{
    const uint32_t tokens[] = {5, 6, 5, 6, 5};
    struct guess g;

    (void)state;
    for (uint32_t count = 0; count < 4; count++) assert_int_equal(lookup_guess(&(struct text){tokens, tokens + 1, 1, count ? count : 1}, 7, &g), 0);
    assert_int_equal(lookup_guess(&(struct text){tokens, tokens + 5, 5, 5}, 3, &g), 3);
    assert_int_equal(g.token[0], 6);
    assert_int_equal(g.token[1], 5);
    assert_int_equal(g.token[2], 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_finds_the_longest_latest), cmocka_unit_test(test_short_texts)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
