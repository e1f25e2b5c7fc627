/* tests/unit/chat_completions_test.c - chunks and bodies of chat and text completions from a log. */
#include "schemas/chat_completions.h"

#include "front_table.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static json_t *parsed(const struct wire *w)
{
    json_error_t error;
    json_t *j = json_loadb(w->data, w->bytes, JSON_REJECT_DUPLICATES, &error);

    if (!j) fail_msg("%s in %s", error.text, w->data);
    return j;
}

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text ? text : "";
}

static void whole(struct fake *k, const char *meta)
{
    fake_open(k);
    fake_request(k, "chatcmpl-00ff", meta, "{\"messages\":[]}");
    fake_prompt(k, 4);
    for (uint32_t i = 0; i < 12; i++) table_output(&k->table, 0)[i] = 200 + i;
    fake_text(k, LOG_REASONING, "hm ", 2);
    fake_text(k, LOG_TEXT, "a\"b", 5);
    fake_text(k, LOG_TOOL_BEGIN, "f", 6);
    fake_text(k, LOG_TOOL_ARGS, "{}", 8);
    fake_text(k, LOG_TOOL_END, "", 9);
    fake_end(k, FINISH_EOS, 10, 2, 1);
}

static void test_chunks_add_up_to_the_message(void **state)
{
    struct wire out = {0}, text = {0}, reasoning = {0}, arguments = {0};
    struct chat_fold fold = {0};
    json_t *ids = json_array(), *chunk, *id;
    const char *name = NULL, *reason = NULL;
    char name_copy[8] = "", reason_copy[16] = "";
    struct fake k;
    struct view v;
    size_t i;

    (void)state;
    whole(&k, "{\"api\":1,\"model\":\"m\",\"choice\":0,\"token_ids\":true}");
    assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    for (int n = 0; wire_clear(&out), chat_next(&v, &fold, &out) == 1; n++) {
        chunk = parsed(&out);
        const json_t *choice = json_array_get(json_object_get(chunk, "choices"), 0), *delta = json_object_get(choice, "delta");
        const json_t *call = json_array_get(json_object_get(delta, "tool_calls"), 0);
        if (n == 0) assert_string_equal(text_of(delta, "role"), "assistant");
        wire_text(&text, text_of(delta, "content"));
        wire_text(&reasoning, text_of(delta, "reasoning_content"));
        if (call) {
            if (*(name = text_of(json_object_get(call, "function"), "name"))) snprintf(name_copy, sizeof name_copy, "%s", name);
            wire_text(&arguments, text_of(json_object_get(call, "function"), "arguments"));
        }
        if (*(reason = text_of(choice, "finish_reason"))) snprintf(reason_copy, sizeof reason_copy, "%s", reason);
        json_array_foreach(json_object_get(choice, "token_ids"), i, id) json_array_append(ids, id);
        json_decref(chunk);
    }
    assert_true(fold.done);
    assert_string_equal(text.data, "a\"b");
    assert_string_equal(reasoning.data, "hm ");
    assert_string_equal(arguments.data, "{}");
    assert_string_equal(name_copy, "f");
    assert_string_equal(reason_copy, "tool_calls");
    assert_int_equal(json_array_size(ids), 10); /* every token, the last one included, exactly once */
    json_array_foreach(ids, i, id) assert_int_equal(json_integer_value(id), 200 + i);
    json_decref(ids);
    wire_free(&out);
    wire_free(&text);
    wire_free(&reasoning);
    wire_free(&arguments);
    view_close(&v);
    fake_close(&k);
}

static void test_the_body_says_the_same(void **state)
{
    struct wire out = {0};
    struct fault f;
    struct fake k;
    struct view v;

    (void)state;
    whole(&k, "{\"api\":1,\"model\":\"m\",\"choice\":0}");
    assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    assert_true(chat_body(&v, 1, &out, &f));
    json_t *body = parsed(&out);
    const json_t *choice = json_array_get(json_object_get(body, "choices"), 0), *message = json_object_get(choice, "message");
    assert_string_equal(text_of(message, "content"), "a\"b");
    assert_string_equal(text_of(message, "reasoning_content"), "hm ");
    assert_int_equal(json_array_size(json_object_get(message, "tool_calls")), 1);
    assert_string_equal(text_of(choice, "finish_reason"), "tool_calls");
    const json_t *usage = json_object_get(body, "usage");
    assert_int_equal(json_integer_value(json_object_get(usage, "total_tokens")), 14);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(usage, "prompt_tokens_details"), "cached_tokens")), 0); /* prefill says nothing of this one */
    json_decref(body);
    wire_free(&out);
    view_close(&v);
    fake_close(&k);
}

static void test_completions_echo_the_prompt(void **state)
{
    struct wire out = {0}, text = {0};
    struct chat_fold fold = {0};
    struct fault f;
    struct fake k;
    struct view v;

    (void)state;
    fake_open(&k);
    fake_request(&k, "cmpl-00", "{\"api\":2,\"model\":\"m\",\"choice\":3,\"prompt_text\":\"ask: \"}", "{\"prompt\":\"ask: \"}");
    fake_prompt(&k, 2);
    fake_text(&k, LOG_TEXT, "yes", 1);
    fake_end(&k, FINISH_LENGTH, 1, 0, 0);
    assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    while (wire_clear(&out), completions_next(&v, &fold, &out) == 1) {
        json_t *chunk = parsed(&out);
        wire_text(&text, text_of(json_array_get(json_object_get(chunk, "choices"), 0), "text"));
        assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(chunk, "choices"), 0), "index")), 3);
        json_decref(chunk);
    }
    assert_string_equal(text.data, "ask: yes");
    wire_clear(&out);
    assert_true(completions_body(&v, 1, 1, &out, &f));
    json_t *body = parsed(&out);
    assert_string_equal(text_of(json_array_get(json_object_get(body, "choices"), 0), "text"), "ask: yes");
    assert_string_equal(text_of(json_array_get(json_object_get(body, "choices"), 0), "finish_reason"), "length");
    json_decref(body);
    wire_free(&out);
    wire_free(&text);
    view_close(&v);
    fake_close(&k);
}

static void test_failures_are_said(void **state)
{
    struct wire out = {0};
    struct chat_fold fold = {0};
    struct fault f;
    struct fake k;
    struct view v;

    (void)state;
    fake_open(&k);
    fake_request(&k, "chatcmpl-00", "{\"api\":1,\"model\":\"m\",\"choice\":0}", "{\"messages\":[]}");
    fake_prompt(&k, 2);
    fake_end(&k, FINISH_FAILED, 0, 0, 0);
    table_launcher(&k.table, 0)->verdict = word_pack(GENERATION, 1 + ROLE_PREFILL);
    assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    assert_int_equal(chat_next(&v, &fold, &out), 1); /* the role */
    wire_clear(&out);
    assert_int_equal(chat_next(&v, &fold, &out), 1);
    assert_non_null(strstr(out.data, "quarantined"));
    assert_non_null(strstr(out.data, "prefill"));
    assert_int_equal(chat_next(&v, &fold, &out), 0);
    wire_clear(&out);
    assert_false(chat_body(&v, 1, &out, &f));
    assert_int_equal(f.status, 500);
    wire_free(&out);
    view_close(&v);
    fake_close(&k);
}

static void test_escaping_keeps_json_valid(void **state)
{
    struct wire w = {0};

    (void)state;
    wire_string_bytes(&w, "\"\\\n\x01\x7f\xc3\xa9\xff\xe2\x82\xed\xa0\x80\xf0\x9f\x98\x80", 17);
    json_t *j = json_loadb(w.data, w.bytes, JSON_DECODE_ANY, NULL);
    assert_non_null(j);
    assert_string_equal(json_string_value(j), "\"\\\n\x01\x7f\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xf0\x9f\x98\x80");
    json_decref(j);
    wire_clear(&w);
    wire_float(&w, 0.1f);
    assert_string_equal(w.data, "0.1");
    wire_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks_add_up_to_the_message), cmocka_unit_test(test_the_body_says_the_same), cmocka_unit_test(test_completions_echo_the_prompt),
        cmocka_unit_test(test_failures_are_said), cmocka_unit_test(test_escaping_keeps_json_valid),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
