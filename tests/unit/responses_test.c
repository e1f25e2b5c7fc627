/* tests/unit/responses_test.c - the event stream is a pure function of the request record and the log. */
#include "schemas/responses.h"

#include "front_table.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const char meta[] = "{\"api\":0,\"model\":\"m\",\"echo\":\"\\\"temperature\\\":1.0\",\"stream_id\":\"lane \\\"1\\\"\",\"store\":true,\"choice\":0,\"instructions\":0}";
static const char chat[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";

struct events { char *text[64]; int count; };

static void gather(const struct view *v, struct responses_fold *fold, struct events *e)
{
    struct wire out = {0};

    while (e->count < 64) {
        wire_clear(&out);
        if (responses_next(v, fold, &out) != 1) break;
        e->text[e->count++] = strdup(out.data);
    }
    wire_free(&out);
}

static void free_events(struct events *e)
{
    for (int i = 0; i < e->count; i++) free(e->text[i]);
    e->count = 0;
}

static json_t *parsed(const char *text)
{
    json_error_t error;
    json_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &error);

    if (!j) fail_msg("%s in %s", error.text, text);
    return j;
}

static void expect_types(const struct events *e, const char *const *types)
{
    for (int i = 0; i < e->count; i++) {
        json_t *j = parsed(e->text[i]);
        assert_non_null(types[i]);
        assert_string_equal(json_string_value(json_object_get(j, "type")), types[i]);
        assert_int_equal(json_integer_value(json_object_get(j, "sequence_number")), i);
        assert_string_equal(json_string_value(json_object_get(j, "stream_id")), "lane \"1\"");
        json_decref(j);
    }
    assert_null(types[e->count]);
}

#define LIFE(x) "response." x

static void whole_log(struct fake *k)
{
    fake_text(k, LOG_REASONING, "let \"me\"", 3);
    fake_text(k, LOG_REASONING, " see\n", 5);
    fake_text(k, LOG_TEXT, "Sch\xc3\xb6n", 9);
    fake_text(k, LOG_TOOL_BEGIN, "f", 10);
    fake_text(k, LOG_TOOL_ARGS, "{\"a\":", 11);
    fake_text(k, LOG_TOOL_ARGS, "1}", 12);
    fake_text(k, LOG_TOOL_END, "", 13);
    fake_text(k, LOG_TOOL_BEGIN, "g", 14);
    fake_text(k, LOG_TOOL_ARGS, "{}", 15);
    fake_text(k, LOG_TOOL_END, "", 16);
    fake_end(k, FINISH_EOS, 17, 5, 2);
}

static void test_a_whole_stream_has_every_event_in_order(void **state)
{
    static const char *const types[] = {
        LIFE("created"), LIFE("in_progress"), LIFE("output_item.added"), LIFE("content_part.added"), LIFE("reasoning_text.delta"), LIFE("reasoning_text.delta"),
        LIFE("reasoning_text.done"), LIFE("content_part.done"), LIFE("output_item.done"), LIFE("output_item.added"), LIFE("content_part.added"),
        LIFE("output_text.delta"), LIFE("output_text.done"), LIFE("content_part.done"), LIFE("output_item.done"), LIFE("output_item.added"),
        LIFE("function_call_arguments.delta"), LIFE("function_call_arguments.delta"), LIFE("function_call_arguments.done"), LIFE("output_item.done"),
        LIFE("output_item.added"), LIFE("function_call_arguments.delta"), LIFE("function_call_arguments.done"), LIFE("output_item.done"), LIFE("completed"), NULL};
    struct responses_fold fold = {0};
    struct events e = {0};
    struct fake k;
    struct view v;

    (void)state;
    fake_open(&k);
    fake_request(&k, "resp_0123456789abcdef0123456789abcdef", meta, chat);
    fake_prompt(&k, 4);
    table_prefill(&k.table, 0)->cached_tokens = 3;
    table_prefill(&k.table, 0)->pages = word_pack(GENERATION, 1);
    whole_log(&k);
    assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    gather(&v, &fold, &e);
    expect_types(&e, types);
    json_t *last = parsed(e.text[e.count - 1]), *r = json_object_get(last, "response");
    assert_int_equal(json_array_size(json_object_get(r, "output")), 4);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(r, "usage"), "input_tokens")), 4);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(r, "usage"), "output_tokens")), 17);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json_object_get(r, "usage"), "input_tokens_details"), "cached_tokens")), 3);
    const json_t *call = json_array_get(json_object_get(r, "output"), 2);
    assert_string_equal(json_string_value(json_object_get(call, "arguments")), "{\"a\":1}");
    assert_string_equal(json_string_value(json_object_get(json_array_get(json_object_get(json_array_get(json_object_get(r, "output"), 1), "content"), 0), "text")), "Sch\xc3\xb6n");
    json_decref(last);
    free_events(&e);
    view_close(&v);
    fake_close(&k);
}

/* The same bytes whether the log is read at the end, record by record, or again by another process. */
static void test_a_replay_gives_the_same_bytes(void **state)
{
    struct responses_fold at_once = {0}, live = {0};
    struct events whole = {0}, pieces = {0};
    struct fake k;
    struct view v, again;

    (void)state;
    fake_open(&k);
    fake_request(&k, "resp_0123456789abcdef0123456789abcdef", meta, chat);
    assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    gather(&v, &live, &pieces); /* before the prompt is tokenized */
    assert_int_equal(pieces.count, 2);
    fake_prompt(&k, 4);
    whole_log(&k);
    const uint32_t full = k.log_bytes;
    const uint64_t over = table_detokenize(&k.table, 0)->over;
    table_detokenize(&k.table, 0)->over = 0;
    struct log_record r;
    const char *payload;
    table_detokenize(&k.table, 0)->commit = word_pack(GENERATION, full);
    uint64_t next = 0;
    for (uint64_t at = 0; at < full; at = next) { /* the log grows by one record at a time */
        table_detokenize(&k.table, 0)->commit = word_pack(GENERATION, full);
        assert_int_equal(view_record(&v, at, &r, &payload, &next), 1);
        table_detokenize(&k.table, 0)->commit = word_pack(GENERATION, (uint32_t)next);
        gather(&v, &live, &pieces);
    }
    table_detokenize(&k.table, 0)->over = over;
    gather(&v, &live, &pieces);
    assert_true(live.done);
    assert_int_equal(view_open(&again, &k.table, 0, GENERATION), 0);
    gather(&again, &at_once, &whole);
    assert_int_equal(whole.count, pieces.count);
    for (int i = 0; i < whole.count; i++) assert_string_equal(whole.text[i], pieces.text[i]);
    free_events(&whole);
    free_events(&pieces);
    view_close(&again);
    view_close(&v);
    fake_close(&k);
}

struct ending { enum finish_reason finish; const char *type, *status, *detail; };

static void test_each_finish_reason_has_its_terminal_event(void **state)
{
    static const struct ending endings[] = {
        {FINISH_EOS, "response.completed", "completed", NULL}, {FINISH_STOP_STRING, "response.completed", "completed", NULL},
        {FINISH_STOP_TOKEN, "response.completed", "completed", NULL}, {FINISH_PREFILLED, "response.completed", "completed", NULL},
        {FINISH_LENGTH, "response.incomplete", "incomplete", "max_output_tokens"}, {FINISH_CANCELLED, "response.incomplete", "incomplete", "cancelled"},
        {FINISH_FAILED, "response.failed", "failed", NULL}};

    (void)state;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        struct responses_fold fold = {0};
        struct events e = {0};
        struct fake k;
        struct view v;
        fake_open(&k);
        fake_request(&k, "resp_00", meta, chat);
        fake_prompt(&k, 1);
        fake_text(&k, LOG_TEXT, "a", 1);
        fake_end(&k, endings[i].finish, 2, 0, 0);
        assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
        gather(&v, &fold, &e);
        json_t *last = parsed(e.text[e.count - 1]), *r = json_object_get(last, "response");
        assert_string_equal(json_string_value(json_object_get(last, "type")), endings[i].type);
        assert_string_equal(json_string_value(json_object_get(r, "status")), endings[i].status);
        if (endings[i].detail) assert_string_equal(json_string_value(json_object_get(json_object_get(r, "incomplete_details"), "reason")), endings[i].detail);
        if (endings[i].finish == FINISH_FAILED) assert_string_equal(json_string_value(json_object_get(json_object_get(r, "error"), "code")), "quarantined");
        json_decref(last);
        free_events(&e);
        view_close(&v);
        fake_close(&k);
    }
}

static void test_a_refused_prompt_fails_with_its_words(void **state)
{
    struct responses_fold fold = {0};
    struct events e = {0};
    struct wire body = {0};
    struct fault fault;
    struct fake k;
    struct view v;

    (void)state;
    fake_open(&k);
    fake_request(&k, "resp_00", meta, chat);
    fake_refuse(&k, PROMPT_TOO_LONG, "9999 tokens are too many");
    assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    gather(&v, &fold, &e);
    assert_int_equal(e.count, 3);
    assert_non_null(strstr(e.text[2], "\"response.failed\""));
    assert_non_null(strstr(e.text[2], "context_length_exceeded"));
    assert_non_null(strstr(e.text[2], "9999 tokens are too many"));
    assert_true(responses_body(&v, &body, &fault));
    assert_int_equal(fault.status, 400);
    wire_free(&body);
    free_events(&e);
    view_close(&v);
    fake_close(&k);
}

/* A log that another process damaged ends the stream with an error; it never reads outside. */
static void test_a_damaged_log_ends_in_failure(void **state)
{
    (void)state;
    for (uint32_t damage = 0; damage < 6; damage++) {
        struct responses_fold fold = {0};
        struct events e = {0};
        struct fake k;
        struct view v;
        fake_open(&k);
        fake_request(&k, "resp_00", meta, chat);
        fake_prompt(&k, 1);
        fake_text(&k, LOG_TEXT, "abc", 1);
        struct log_record *r = (struct log_record *)table_log(&k.table, 0);
        if (damage == 0) r->bytes = 0xffffffffu;
        if (damage == 1) r->bytes = 4096;
        if (damage == 2) r->type = 99;
        if (damage == 3) r->tokens = 0xffffffffu;
        if (damage == 4) table_detokenize(&k.table, 0)->commit = word_pack(GENERATION, 0xfffffff0u);
        if (damage == 5) r->type = LOG_TOOL_ARGS;
        assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
        gather(&v, &fold, &e);
        assert_non_null(strstr(e.text[e.count - 1], "\"response.failed\""));
        free_events(&e);
        view_close(&v);
        fake_close(&k);
    }
}

static void test_a_record_that_is_not_ours_is_not_opened(void **state)
{
    struct fake k;
    struct view v;

    (void)state;
    fake_open(&k);
    fake_request(&k, "resp_00", meta, chat);
    assert_int_not_equal(view_open(&v, &k.table, 0, GENERATION + 1), 0);
    table_gateway(&k.table, 0)->request_bytes = 65530; /* the notes would lie outside */
    assert_int_not_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    table_gateway(&k.table, 0)->request_bytes = UINT64_MAX - 3;
    assert_int_not_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    fake_close(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_whole_stream_has_every_event_in_order), cmocka_unit_test(test_a_replay_gives_the_same_bytes),
        cmocka_unit_test(test_each_finish_reason_has_its_terminal_event), cmocka_unit_test(test_a_refused_prompt_fails_with_its_words),
        cmocka_unit_test(test_a_damaged_log_ends_in_failure), cmocka_unit_test(test_a_record_that_is_not_ours_is_not_opened),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
