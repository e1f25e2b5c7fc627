/* tests/unit/request_test.c - request bodies: what is understood, and what each fault is called. */
#include "schemas/request.h"

#include "front_table.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const struct request_defaults defaults = {.model = "m", .temperature = 1.0f, .top_p = 0.95f, .min_p = 0.05f, .top_k = 64, .vocab = 1000, .context_max = CONTEXT, .choices_max = 8};

static int read_text(struct request *r, enum api api, bool websocket, const char *text, struct fault *f)
{
    memset(f, 0, sizeof *f);
    json_t *body = field_parse(text, strlen(text), f);
    const int rc = body ? request_read(r, api, websocket, body, &defaults, f) : -1;

    json_decref(body);
    return rc;
}

#define TOOLS "\"tools\":[{\"type\":\"function\",\"name\":\"f\"},{\"type\":\"function\",\"name\":\"g\"}]"

static void test_faults_name_what_is_wrong(void **state)
{
    static const struct { enum api api; const char *text, *code, *param; } cases[] = {
        {API_RESPONSES, "[1]", "invalid_json", ""},
        {API_RESPONSES, "{\"input\":\"a\",\"input\":\"b\"}", "invalid_json", ""},
        {API_RESPONSES, "{\"input\":\"\xff\"}", "invalid_json", ""},
        {API_RESPONSES, "{\"input\":\"\\u0000\"}", "invalid_json", ""},
        {API_RESPONSES, "{\"input\":\"a\",\"seed\":99999999999999999999}", "invalid_json", ""},
        {API_RESPONSES, "{}", "missing_required_parameter", "input"},
        {API_RESPONSES, "{\"input\":7}", "invalid_type", "input"},
        {API_RESPONSES, "{\"input\":\"a\",\"model\":\"gpt\"}", "model_not_found", "model"},
        {API_RESPONSES, "{\"input\":\"a\",\"temprature\":1}", "unknown_parameter", "temprature"},
        {API_RESPONSES, "{\"input\":\"a\",\"temperature\":3}", "out_of_range", "temperature"},
        {API_RESPONSES, "{\"input\":\"a\",\"temperature\":\"hot\"}", "invalid_type", "temperature"},
        {API_RESPONSES, "{\"input\":\"a\",\"max_output_tokens\":0}", "out_of_range", "max_output_tokens"},
        {API_RESPONSES, "{\"input\":\"a\",\"background\":true}", "unsupported_parameter", "background"},
        {API_RESPONSES, "{\"input\":\"a\",\"truncation\":\"auto\"}", "unsupported_parameter", "truncation"},
        {API_RESPONSES, "{\"input\":\"a\",\"text\":{\"format\":{\"type\":\"json_schema\"}}}", "unsupported_parameter", "text.format"},
        {API_RESPONSES, "{\"input\":\"a\",\"tools\":[{\"type\":\"web_search\"}]}", "unsupported_tool", "tools[0]"},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":\"required\"}", "invalid_value", "tool_choice"}, /* no tools */
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"parallel_tool_calls\":1," TOOLS "}", "invalid_type", "parallel_tool_calls"},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":\"sometimes\"}", "unsupported_parameter", "tool_choice"},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":{\"type\":\"allowed_tools\"}," TOOLS "}", "unsupported_parameter", "tool_choice"},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":{\"type\":\"function\",\"name\":\"h\"}," TOOLS "}", "invalid_value", "tool_choice"},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":\"required\",\"reasoning\":{\"effort\":\"low\"}," TOOLS "}", "unsupported_parameter", "tool_choice"},
        {API_RESPONSES, "{\"input\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_image\",\"image_url\":\"x\"}]}]}", "unsupported_content", "input[0].content[0]"},
        {API_RESPONSES, "{\"input\":[{\"type\":\"function_call\",\"name\":\"f\",\"call_id\":\"c\",\"arguments\":\"no json\"}]}", "invalid_value", "input[0]"},
        {API_RESPONSES, "{\"input\":[{\"type\":\"function_call_output\",\"output\":\"x\"}]}", "missing_required_parameter", "input[0]"},
        {API_RESPONSES, "{\"input\":\"a\",\"reasoning\":{\"effort\":\"huge\"}}", "invalid_value", "reasoning.effort"},
        {API_RESPONSES, "{\"input\":\"a\",\"stop\":[\"\"]}", "out_of_range", "stop"},
        {API_RESPONSES, "{\"input\":\"a\",\"cache_salt\":\"\"}", "out_of_range", "cache_salt"},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"cache_salt\":7}", "invalid_type", "cache_salt"},
        {API_RESPONSES, "{\"input\":\"a\",\"stop_token_ids\":[1000]}", "out_of_range", "stop_token_ids"},
        {API_RESPONSES, "{\"input\":\"a\",\"logit_bias\":{\"x\":1}}", "out_of_range", "logit_bias"},
        {API_RESPONSES, "{\"input\":\"a\",\"image\":{\"quality\":\"high\"}}", "unsupported_parameter", "image"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"include_reasoning\":false}", "unsupported_parameter", "include_reasoning"},
        {API_CHAT, "{\"messages\":[]}", "missing_required_parameter", "messages"},
        {API_CHAT, "{\"messages\":[{\"role\":\"robot\",\"content\":\"a\"}]}", "invalid_value", "messages[0]"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", "missing_required_parameter", "messages[0].content"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"n\":9}", "out_of_range", "n"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"top_logprobs\":2}", "invalid_value", "top_logprobs"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"response_format\":{\"type\":\"json_object\"}}", "unsupported_parameter", "response_format"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"tool\",\"content\":\"x\"}]}", "invalid_value", "messages"}, /* a template would drop it */
        {API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"a\",\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]},"
                   "{\"role\":\"tool\",\"tool_call_id\":\"b\",\"content\":\"x\"}]}", "invalid_value", "messages"},
        {API_RESPONSES, "{\"input\":[{\"type\":\"function_call_output\",\"call_id\":\"c\",\"output\":\"x\"}]}", "invalid_value", "input"},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"echo\":true,\"logprobs\":1}", "unsupported_parameter", "echo"},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"best_of\":3,\"n\":2}", "unsupported_parameter", "best_of"},
        {API_COMPLETIONS, "{\"prompt\":[]}", "invalid_type", "prompt"},
        {API_COMPLETIONS, "{\"prompt\":\"\"}", "invalid_value", "prompt"},
        {API_COMPLETIONS, "{\"prompt\":[1,1000]}", "out_of_range", "prompt"},
        {API_COMPLETIONS, "{\"prompt\":[\"a\",7]}", "invalid_type", "prompt"},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"prompt_logprobs\":1}", "unsupported_parameter", "prompt_logprobs"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct request r;
        struct fault f;
        if (read_text(&r, cases[i].api, false, cases[i].text, &f) == 0) fail_msg("accepted: %s", cases[i].text);
        if (strcmp(f.code, cases[i].code) || strcmp(f.param, cases[i].param)) fail_msg("%s: %s (%s) %s", cases[i].text, f.code, f.param, f.message);
        assert_true(f.status >= 400 && f.message[0]);
    }
    struct request r; /* and what asks for nothing more is taken */
    struct fault f;
    assert_int_equal(read_text(&r, API_COMPLETIONS, false, "{\"prompt\":\"a\",\"best_of\":2,\"n\":2}", &f), 0);
    request_free(&r);
}

static void test_a_call_can_be_forced(void **state)
{
    static const struct { enum api api; const char *text, *forced; } cases[] = {
        {API_RESPONSES, "{\"input\":\"a\"," TOOLS "}", NULL},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":\"auto\"," TOOLS "}", NULL},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":\"none\"," TOOLS "}", NULL},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":\"required\"," TOOLS "}", ""},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":{\"type\":\"function\",\"name\":\"g\"}," TOOLS "}", "g"},
        {API_RESPONSES, "{\"input\":\"a\",\"tool_choice\":\"required\",\"reasoning\":{\"effort\":\"none\"}," TOOLS "}", ""},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}," TOOLS "}", "f"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tool_choice\":\"required\",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"one\"}}]}", "one"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct request r;
        struct fault f = {0};
        if (read_text(&r, cases[i].api, false, cases[i].text, &f) != 0) fail_msg("%s: %s", cases[i].text, f.message);
        const char *forced = json_string_value(json_object_get(r.chat[0], "forced_call"));
        if (cases[i].forced ? !forced || strcmp(forced, cases[i].forced) != 0 : forced != NULL) fail_msg("%s: forces %s", cases[i].text, forced ? forced : "nothing");
        request_free(&r);
    }
}

static void test_deep_json_is_refused(void **state)
{
    char text[4096] = "{\"input\":";
    struct request r;
    struct fault f;

    (void)state;
    for (int i = 0; i < 1000; i++) strcat(text, "[");
    assert_true(read_text(&r, API_RESPONSES, false, text, &f) < 0);
    assert_non_null(strstr(f.message, "nested"));
}

static void expect_too_many(const char *begin, const char *unit, size_t count, const char *end, const char *what)
{
    const size_t unit_bytes = strlen(unit);
    char *text = malloc(strlen(begin) + count * unit_bytes + strlen(end) + 1);
    struct request r;
    struct fault f;

    assert_non_null(text);
    strcpy(text, begin);
    char *at = text + strlen(begin);
    for (size_t i = 0; i < count; i++, at += unit_bytes) memcpy(at, unit, unit_bytes);
    strcpy(at, end);
    assert_true(read_text(&r, API_RESPONSES, false, text, &f) < 0);
    if (!strstr(f.message, what)) fail_msg("%s: expected %s", f.message, what);
    free(text);
}

static void test_json_of_very_many_values_is_refused(void **state)
{
    (void)state;
    expect_too_many("{\"input\":[", "0,", FIELD_VALUES_MAX, "0]}", "values");
    expect_too_many("{\"input\":[", "[],", FIELD_VALUES_MAX / 2, "0]}", "values");
    expect_too_many("{\"input\":[", "{\"\":0},", FIELD_MEMBERS_MAX, "{}]}", "members");
    expect_too_many("{\"input\":[{\"type\":\"function_call\",\"call_id\":\"c\",\"name\":\"f\",\"arguments\":\"{\\\"a\\\":[", "0,", 1u << 20, "0]}\"}]}", "together");
    expect_too_many("{\"input\":\"", ",:[{", FIELD_VALUES_MAX, "\",\"no_such\":0}", "no_such"); /* inside a string they are text */
}

static json_t *messages_of(struct request *r)
{
    return json_object_get(r->chat[0], "messages");
}

static void expect_messages(struct request *r, const char *wanted)
{
    char *text = json_dumps(messages_of(r), JSON_COMPACT | JSON_SORT_KEYS);

    assert_string_equal(text, wanted);
    free(text);
}

static void test_items_become_messages(void **state)
{
    struct request r;
    struct fault f;

    (void)state;
    assert_int_equal(read_text(&r, API_RESPONSES, true,
        "{\"type\":\"response.create\",\"stream_id\":\"s\",\"instructions\":\"Be kind.\",\"input\":["
        "{\"role\":\"developer\",\"content\":\"d\"},{\"role\":\"user\",\"content\":[{\"type\":\"input_text\",\"text\":\"a\"},{\"type\":\"input_text\",\"text\":\"b\"}]},"
        "{\"type\":\"reasoning\",\"content\":[{\"type\":\"reasoning_text\",\"text\":\"hm\"}]},"
        "{\"type\":\"function_call\",\"call_id\":\"c1\",\"name\":\"f\",\"arguments\":\"{\\\"x\\\":1}\"},{\"type\":\"function_call\",\"call_id\":\"c2\",\"name\":\"g\",\"arguments\":\"\"},"
        "{\"type\":\"function_call_output\",\"call_id\":\"c1\",\"output\":\"one\"},"
        "{\"type\":\"message\",\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\",\"text\":\"done\",\"annotations\":[]}]}]}", &f), 0);
    assert_string_equal(r.stream_id, "s");
    assert_int_equal(r.instructions, 1);
    expect_messages(&r,
        "[{\"content\":\"Be kind.\",\"role\":\"system\"},{\"content\":\"d\",\"role\":\"system\"},"
        "{\"content\":[{\"text\":\"a\",\"type\":\"text\"},{\"text\":\"b\",\"type\":\"text\"}],\"role\":\"user\"},"
        "{\"content\":\"\",\"reasoning_content\":\"hm\",\"role\":\"assistant\",\"tool_calls\":["
        "{\"function\":{\"arguments\":{\"x\":1},\"name\":\"f\"},\"id\":\"c1\",\"type\":\"function\"},{\"function\":{\"arguments\":{},\"name\":\"g\"},\"id\":\"c2\",\"type\":\"function\"}]},"
        "{\"content\":\"one\",\"role\":\"tool\",\"tool_call_id\":\"c1\"},{\"content\":\"done\",\"role\":\"assistant\"}]");
    request_free(&r);
}

static void test_parameters_reach_the_record(void **state)
{
    struct request r;
    struct request_params p;
    struct fault f;

    (void)state;
    assert_int_equal(read_text(&r, API_CHAT, false,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"temperature\":0,\"top_p\":0.5,\"top_k\":-1,\"min_p\":0.1,\"seed\":-5,\"stop\":[\"x\",\"yz\"],\"stop_token_ids\":[3],"
        "\"ignore_eos\":true,\"logit_bias\":{\"7\":-100},\"presence_penalty\":1,\"max_completion_tokens\":9,\"n\":2,\"logprobs\":true,\"top_logprobs\":3,\"reasoning_effort\":\"high\"}", &f), 0);
    request_params_of(&r, 1, &p);
    assert_true(p.sampling.temperature == 0 && p.sampling.top_p == 0.5f && p.sampling.top_k == 0 && p.sampling.presence_penalty == 1);
    assert_true(p.sampling.seed == (uint64_t)-4); /* the second choice draws otherwise */
    assert_int_equal(p.stop_count, 2);
    assert_int_equal(p.stop_bytes[1], 2);
    assert_int_equal(p.stop_tokens[0], 3);
    assert_int_equal(p.max_tokens, 9);
    assert_true(p.flags & REQUEST_IGNORE_EOS);
    assert_true(p.sampling.want_logprobs && p.sampling.top_logprob_count == 3 && p.sampling.logit_bias[0].token == 7 && p.sampling.logit_bias[0].bias == -100);
    assert_true(json_is_true(json_object_get(json_object_get(r.chat[0], "template_kwargs"), "enable_thinking")));
    request_free(&r);
    assert_int_equal(read_text(&r, API_RESPONSES, false, "{\"input\":\"a\"}", &f), 0);
    assert_true(r.params.sampling.temperature == 1.0f && r.params.sampling.top_p == 0.95f && r.params.sampling.min_p == 0.05f && r.params.sampling.top_k == 64);
    request_free(&r);
}

/* What previous_response_id brings: the messages, the answer, without the old instructions. */
static void test_a_salt_is_kept_as_its_hash(void **state)
{
    struct request r[3];
    struct fault f;
    static const char *const texts[] = {"{\"prompt\":\"a\",\"cache_salt\":\"x\"}", "{\"prompt\":\"a\",\"cache_salt\":\"y\"}", "{\"prompt\":\"a\",\"cache_salt\":null}"};

    (void)state;
    for (int i = 0; i < 3; i++) assert_int_equal(read_text(&r[i], API_COMPLETIONS, false, texts[i], &f), 0);
    assert_true(r[0].params.is_salted && r[1].params.is_salted && !r[2].params.is_salted);
    assert_memory_not_equal(r[0].params.cache_salt, r[1].params.cache_salt, sizeof r[0].params.cache_salt);
    for (int i = 0; i < 3; i++) request_free(&r[i]);
}

static void test_a_conversation_goes_on_from_the_log(void **state)
{
    static const char meta[] = "{\"api\":0,\"model\":\"m\",\"store\":true,\"choice\":0,\"instructions\":1}";
    struct request r;
    struct fault f;
    struct fake k;
    struct view v;

    (void)state;
    fake_open(&k);
    fake_request(&k, "resp_ab", meta, "{\"messages\":[{\"role\":\"system\",\"content\":\"old\"},{\"role\":\"user\",\"content\":\"hi\"}],\"add_generation_prompt\":true}");
    fake_prompt(&k, 3);
    fake_text(&k, LOG_REASONING, "hm", 1);
    fake_text(&k, LOG_TOOL_BEGIN, "f", 2);
    fake_text(&k, LOG_TOOL_ARGS, "{\"a\":", 3);
    fake_text(&k, LOG_TOOL_ARGS, "2}", 4);
    fake_text(&k, LOG_TOOL_END, "", 5);
    fake_end(&k, FINISH_EOS, 6, 1, 1);
    assert_int_equal(view_open(&v, &k.table, 0, GENERATION), 0);
    assert_int_equal(read_text(&r, API_RESPONSES, false,
        "{\"instructions\":\"new\",\"previous_response_id\":\"resp_ab\",\"input\":[{\"type\":\"function_call_output\",\"call_id\":\"call_ab01\",\"output\":\"4\"}]}", &f), 0);
    assert_int_equal(request_continue(&r, &v, &f), 0);
    expect_messages(&r, "[{\"content\":\"new\",\"role\":\"system\"},{\"content\":\"hi\",\"role\":\"user\"},"
                        "{\"content\":\"\",\"reasoning_content\":\"hm\",\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"arguments\":{\"a\":2},\"name\":\"f\"},"
                        "\"id\":\"call_ab01\",\"type\":\"function\"}]},{\"content\":\"4\",\"role\":\"tool\",\"tool_call_id\":\"call_ab01\"}]");
    request_free(&r);
    assert_int_equal(read_text(&r, API_RESPONSES, false,
        "{\"previous_response_id\":\"resp_ab\",\"input\":[{\"type\":\"function_call_output\",\"call_id\":\"call_of_another\",\"output\":\"4\"}]}", &f), 0);
    assert_true(request_continue(&r, &v, &f) < 0); /* known only once the conversation is */
    assert_string_equal(f.param, "input");
    assert_non_null(strstr(f.message, "call_of_another"));
    request_free(&r);
    view_close(&v);
    fake_close(&k);
}

static void test_a_record_reads_back(void **state)
{
    struct request r;
    struct fault f;
    msgpack_sbuffer record;
    const char *meta;
    size_t meta_bytes;

    (void)state;
    assert_int_equal(read_text(&r, API_RESPONSES, false, "{\"input\":\"h\xc3\xb6\",\"chat_template_kwargs\":{\"x\":1.5,\"y\":[true,null,-3]}}", &f), 0);
    msgpack_sbuffer_init(&record);
    const size_t bytes = request_record(&r, 0, &record);
    json_t *kwargs = pack_member((const uint8_t *)record.data, bytes, "template_kwargs");
    assert_true(json_equal(kwargs, json_object_get(r.chat[0], "template_kwargs")));
    json_decref(kwargs);
    assert_int_equal(pack_meta((const uint8_t *)record.data, record.size, bytes, &meta, &meta_bytes), 0);
    assert_true(meta_bytes > 2 && meta[0] == '{' && meta[meta_bytes - 1] == '}');
    assert_true(pack_meta((const uint8_t *)record.data, record.size - 1, bytes, &meta, &meta_bytes) < 0);
    msgpack_sbuffer_destroy(&record);
    request_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults_name_what_is_wrong), cmocka_unit_test(test_a_call_can_be_forced), cmocka_unit_test(test_deep_json_is_refused), cmocka_unit_test(test_json_of_very_many_values_is_refused),
        cmocka_unit_test(test_items_become_messages),
        cmocka_unit_test(test_parameters_reach_the_record), cmocka_unit_test(test_a_salt_is_kept_as_its_hash),
        cmocka_unit_test(test_a_conversation_goes_on_from_the_log), cmocka_unit_test(test_a_record_reads_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
