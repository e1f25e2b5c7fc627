/* tests/unit/table_test.c - schemas/table: records do not overlap, words belong to one generation, limits hold. */
#include "schemas/table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

static const struct table_limits small = {.slot_count = 5, .context_max = 1, .request_bytes_max = 1, .full_pages_max = 1, .sliding_pages_max = 1, .log_bytes_max = 1, .media_tokens_max = 1};
static const struct table_limits usual = {.slot_count = 128, .context_max = 8192, .request_bytes_max = (32u << 20) + 65536, .full_pages_max = 512,
                                          .sliding_pages_max = 83, .log_bytes_max = 589824, .media_tokens_max = 8192};
static const struct table_limits odd = {.slot_count = 3, .context_max = 1001, .request_bytes_max = 4097, .full_pages_max = 17, .sliding_pages_max = 3, .log_bytes_max = 70001, .media_tokens_max = 3};
static const struct table_limits large = {.slot_count = SLOTS_MAX, .context_max = 1u << 20, .request_bytes_max = 1u << 30, .full_pages_max = 1u << 16,
                                          .sliding_pages_max = 4096, .log_bytes_max = 1u << 30, .media_tokens_max = 1u << 20};
static const struct table_limits *const all[] = {&small, &usual, &odd, &large};

static const int with_slots[] = {ROLE_LAUNCHER, ROLE_GATEWAY, ROLE_TOKENIZE, ROLE_PREFILL, ROLE_VERIFY, ROLE_DETOKENIZE, ROLE_VISION};

/* [begin, end) inside a record of `stride` bytes; parts must come in order, apart, and aligned. */
static void in_order(const uint64_t (*part)[2], unsigned count, uint64_t stride, unsigned alignment)
{
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(part[i][0] % alignment, 0);
        assert_true(part[i][0] < part[i][1]);
        assert_true(part[i][1] <= (i + 1 < count ? part[i + 1][0] : stride));
    }
}

static void test_parts_of_a_record_do_not_overlap(void **state)
{
    (void)state;
    for (unsigned i = 0; i < sizeof all / sizeof all[0]; i++) {
        const struct table_limits *l = all[i];
        struct table t;
        table_init(&t, l);
        const uint64_t tokens = sizeof(uint32_t) * (uint64_t)l->context_max;
        in_order((const uint64_t[][2]){{0, sizeof(struct gateway_slot)}, {t.request_offset, t.request_offset + l->request_bytes_max}}, 2, t.stride[ROLE_GATEWAY], 64);
        in_order((const uint64_t[][2]){{0, sizeof(struct tokenize_slot)}, {t.prompt_offset, t.prompt_offset + tokens}}, 2, t.stride[ROLE_TOKENIZE], 64);
        in_order((const uint64_t[][2]){{0, sizeof(struct prefill_slot)},
                                       {t.full_pages_offset, t.full_pages_offset + 4 * (uint64_t)l->full_pages_max},
                                       {t.sliding_pages_offset, t.sliding_pages_offset + 4 * (uint64_t)l->sliding_pages_max}}, 3, t.stride[ROLE_PREFILL], 64);
        in_order((const uint64_t[][2]){{0, sizeof(struct verify_slot)},
                                       {t.output_offset, t.output_offset + tokens},
                                       {t.logprobs_offset, t.logprobs_offset + sizeof(struct token_logprobs) * (uint64_t)l->context_max}}, 3, t.stride[ROLE_VERIFY], 64);
        in_order((const uint64_t[][2]){{0, sizeof(struct detokenize_slot)}, {t.log_offset, t.log_offset + l->log_bytes_max}}, 2, t.stride[ROLE_DETOKENIZE], 64);
        in_order((const uint64_t[][2]){{0, sizeof(struct vision_slot)}, {t.media_offset, t.media_offset + MEDIA_TOKEN_BYTES * (uint64_t)l->media_tokens_max}}, 2, t.stride[ROLE_VISION], 64);
        in_order((const uint64_t[][2]){{0, sizeof(struct launcher_slot)}}, 1, t.stride[ROLE_LAUNCHER], 64);
    }
}

static void test_strides_keep_commit_words_apart(void **state)
{
    (void)state;
    for (unsigned i = 0; i < sizeof all / sizeof all[0]; i++)
        for (unsigned r = 0; r < sizeof with_slots / sizeof with_slots[0]; r++) {
            assert_true(table_stride(all[i], with_slots[r]) > 0);
            assert_int_equal(table_stride(all[i], with_slots[r]) % 128, 0);
        }
    assert_int_equal(table_stride(&usual, ROLE_KEEPER), 0);
    assert_int_equal(table_stride(&usual, ROLE_DRAFT), 0);
    assert_int_equal(table_stride(&usual, -1), 0);
    assert_int_equal(table_stride(&(struct table_limits){.slot_count = 1, .context_max = 1}, ROLE_VISION), 0); /* a model of text alone has no vision records */
    assert_int_equal(offsetof(struct gateway_slot, cancel) % 128 + offsetof(struct gateway_slot, order) % 128, 0);
    assert_int_equal(offsetof(struct prefill_slot, filled) % 128 + offsetof(struct prefill_slot, ready) % 128 + offsetof(struct prefill_slot, full_page_count) % 128, 0);
    assert_int_equal(offsetof(struct verify_slot, finish) % 128 + offsetof(struct verify_slot, first_ns) % 128, 0);
    assert_int_equal(offsetof(struct detokenize_slot, stop) % 128 + offsetof(struct detokenize_slot, over) % 128, 0);
}

/* What stages in other languages have written down (schemas/wiring.md). */
static void test_documented_offsets(void **state)
{
    (void)state;
    struct table t;

    table_init(&t, &usual);
    assert_int_equal(t.prompt_offset, 4096);
    assert_int_equal(t.output_offset, 4096);
    assert_int_equal(t.stride[ROLE_TOKENIZE], 4096 + 4 * 8192);
    assert_int_equal(sizeof(struct token_logprobs), 8 + 8 * LOGPROBS_TOP_MAX);
    assert_int_equal(t.stride[ROLE_VERIFY], 4096 + 4 * 8192 + sizeof(struct token_logprobs) * 8192);
    assert_int_equal(t.stride[ROLE_LAUNCHER], 128);
    assert_int_equal(offsetof(struct tokenize_slot, prompt_count), 128);
    assert_int_equal(offsetof(struct launcher_slot, verdict), 64);
    assert_int_equal(offsetof(struct launcher_board, started_ns), 128);
    assert_int_equal(offsetof(struct launcher_board, restarts), 136);
    assert_int_equal(offsetof(struct launcher_board, pid), 136 + 10 * 8);
    assert_int_equal(offsetof(struct launcher_board, up_since_ns), 136 + 20 * 8);
    assert_int_equal(offsetof(struct gateway_slot, cancel), 128);
    assert_int_equal(offsetof(struct verify_slot, finish), 128);
}

static void test_the_log_holds_a_full_context(void **state)
{
    (void)state;
    uint32_t before = 0;

    for (uint32_t context = 1; context <= 1u << 24; context *= 2) {
        const uint32_t bytes = table_log_bytes(context);
        assert_true(bytes >= before && bytes <= UINT32_MAX / 2);
        assert_true(bytes >= sizeof(struct log_record) + sizeof(struct log_end));
        before = bytes;
    }
}

static void test_a_word_speaks_of_one_generation(void **state)
{
    (void)state;
    const uint64_t word = word_pack(0xfffffffeu, 0x80000001u);

    assert_int_equal(word_generation(word), 0xfffffffeu);
    assert_int_equal(word_value(word), 0x80000001u);
    assert_int_equal(word_for(&word, 0xfffffffeu), 0x80000001u);
    assert_int_equal(word_for(&word, 0xfffffffdu), 0);
    assert_int_equal(word_for(&word, 0xffffffffu), 0);
    assert_int_equal(word_for(&word, 0), 0);
}

/* ---- questions about a slot ------------------------------------------------------------- */

static struct table *whole_table(void)
{
    struct table *t = calloc(1, sizeof *t);

    table_init(t, &odd);
    for (int role = 0; role < ROLE_COUNT; role++)
        if (t->stride[role]) t->base[role] = calloc(odd.slot_count, t->stride[role]);
    return t;
}

static void free_table(struct table *t)
{
    for (int role = 0; role < ROLE_COUNT; role++) free(t->base[role]);
    free(t);
}

/* Every record filled with its own mark, every mark still there: accessors and strides agree and nothing overlaps. */
static void test_records_of_all_slots_are_apart(void **state)
{
    (void)state;
    struct table *t = whole_table();

    for (uint32_t s = 0; s < odd.slot_count; s++) {
        memset(table_gateway(t, s), (int)(1 + s), sizeof(struct gateway_slot));
        memset(table_request(t, s), (int)(11 + s), odd.request_bytes_max);
        memset(table_tokenize(t, s), (int)(21 + s), sizeof(struct tokenize_slot));
        memset(table_prompt(t, s), (int)(31 + s), 4 * odd.context_max);
        memset(table_prefill(t, s), (int)(41 + s), sizeof(struct prefill_slot));
        memset(table_full_pages(t, s), (int)(51 + s), 4 * odd.full_pages_max);
        memset(table_sliding_pages(t, s), (int)(61 + s), 4 * odd.sliding_pages_max);
        memset(table_verify(t, s), (int)(71 + s), sizeof(struct verify_slot));
        memset(table_output(t, s), (int)(81 + s), 4 * odd.context_max);
        memset(table_logprobs(t, s), (int)(91 + s), sizeof(struct token_logprobs) * odd.context_max);
        memset(table_detokenize(t, s), (int)(101 + s), sizeof(struct detokenize_slot));
        memset(table_log(t, s), (int)(111 + s), odd.log_bytes_max);
        memset(table_launcher(t, s), (int)(121 + s), sizeof(struct launcher_slot));
        memset(table_vision(t, s), (int)(131 + s), sizeof(struct vision_slot));
        memset(table_media_area(t, s), (int)(141 + s), MEDIA_TOKEN_BYTES * odd.media_tokens_max);
    }
    for (uint32_t s = 0; s < odd.slot_count; s++) {
        const struct {
            const void *at;
            uint64_t bytes;
            int mark;
        } part[] = {{table_gateway(t, s), sizeof(struct gateway_slot), 1},     {table_request(t, s), odd.request_bytes_max, 11},
                    {table_tokenize(t, s), sizeof(struct tokenize_slot), 21},  {table_prompt(t, s), 4 * odd.context_max, 31},
                    {table_prefill(t, s), sizeof(struct prefill_slot), 41},    {table_full_pages(t, s), 4 * odd.full_pages_max, 51},
                    {table_sliding_pages(t, s), 4 * odd.sliding_pages_max, 61}, {table_verify(t, s), sizeof(struct verify_slot), 71},
                    {table_output(t, s), 4 * odd.context_max, 81},             {table_logprobs(t, s), sizeof(struct token_logprobs) * odd.context_max, 91},
                    {table_detokenize(t, s), sizeof(struct detokenize_slot), 101}, {table_log(t, s), odd.log_bytes_max, 111},
                    {table_launcher(t, s), sizeof(struct launcher_slot), 121}, {table_vision(t, s), sizeof(struct vision_slot), 131},
                    {table_media_area(t, s), MEDIA_TOKEN_BYTES * odd.media_tokens_max, 141}};
        for (unsigned i = 0; i < sizeof part / sizeof part[0]; i++)
            for (uint64_t b = 0; b < part[i].bytes; b++)
                if (((const uint8_t *)part[i].at)[b] != part[i].mark + s) fail_msg("slot %u part %u was overwritten at byte %llu", s, i, (unsigned long long)b);
    }
    free_table(t);
}

static void test_a_slot_lives_while_requested(void **state)
{
    (void)state;
    struct table *t = whole_table();
    uint64_t *commit = &table_gateway(t, 1)->commit;

    assert_int_equal(slot_live(t, 1), 0);
    *commit = word_pack(9, PHASE_REQUESTED);
    assert_int_equal(slot_live(t, 1), 9);
    assert_int_equal(slot_live(t, 0), 0);
    assert_int_equal(slot_live(t, 2), 0);
    *commit = word_pack(9, PHASE_CLOSED);
    assert_int_equal(slot_live(t, 1), 0);
    *commit = word_pack(10, PHASE_FREE);
    assert_int_equal(slot_live(t, 1), 0);
    free_table(t);
}

static void test_who_ends_a_request(void **state)
{
    (void)state;
    struct table *t = whole_table();

    assert_false(slot_is_unwanted(t, 0, 4));
    table_gateway(t, 0)->cancel = word_pack(3, 1); /* the request before was cancelled */
    assert_false(slot_is_unwanted(t, 0, 4));
    table_gateway(t, 0)->cancel = word_pack(4, 1);
    assert_true(slot_is_unwanted(t, 0, 4));
    table_gateway(t, 0)->cancel = 0;
    table_launcher(t, 0)->verdict = word_pack(4, 1 + ROLE_DRAFT);
    assert_false(slot_is_unwanted(t, 0, 4)); /* it goes on without drafts */
    table_launcher(t, 0)->verdict = word_pack(4, 1 + ROLE_VERIFY);
    assert_true(slot_is_unwanted(t, 0, 4));
    assert_false(slot_is_unwanted(t, 0, 5));
    free_table(t);
}

static void test_when_a_request_is_over(void **state)
{
    (void)state;
    struct table *t = whole_table();

    assert_false(slot_is_over(t, 2, 4));
    table_tokenize(t, 2)->commit = word_pack(4, PROMPT_READY);
    assert_false(slot_is_over(t, 2, 4));
    table_verify(t, 2)->finish = word_pack(3, FINISH_EOS);
    assert_false(slot_is_over(t, 2, 4));
    table_verify(t, 2)->finish = word_pack(4, FINISH_EOS);
    assert_true(slot_is_over(t, 2, 4));
    table_verify(t, 2)->finish = 0;
    table_tokenize(t, 2)->commit = word_pack(4, PROMPT_TOO_LONG);
    assert_true(slot_is_over(t, 2, 4));
    free_table(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_of_a_record_do_not_overlap), cmocka_unit_test(test_strides_keep_commit_words_apart),
        cmocka_unit_test(test_documented_offsets),               cmocka_unit_test(test_the_log_holds_a_full_context),
        cmocka_unit_test(test_a_word_speaks_of_one_generation),  cmocka_unit_test(test_records_of_all_slots_are_apart),
        cmocka_unit_test(test_a_slot_lives_while_requested),     cmocka_unit_test(test_who_ends_a_request),
        cmocka_unit_test(test_when_a_request_is_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
