/* tests/unit/output_test.c - the output parser: known answers made into tokens and parsed back.
 *
 * tests/golden/output/cases.json holds random conversations' worth of answers, reasoning and
 * tool calls as token sequences (made by tests/oracle/make_tokenizer_golden.py) and what they
 * were made from. Each is parsed whole, and again cut off at every token: what came out
 * by then must be a beginning of the whole, record by record. The cases below are for
 * what is malformed, cut off or too big. Run from the repository root. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/output.h"
#include "model/tokenizer_utf8.h"
#include "shm/error.h"
#include "tests/unit/tokenizer_golden.h"

#define TRACE_BYTES (8u << 20)

static struct tokenizer *tok;
static struct output_grammar grammar;

/* Everything a parser emitted, as one text: each record "KIND:text" behind a byte 0x1E, deltas
 * of one kind joined. */
struct trace {
    char *text;
    size_t bytes;
    enum output_kind last;
};

static void on_record(void *context, const struct output_record *r)
{
    struct trace *t = context;
    const bool is_delta = r->kind == OUTPUT_TEXT_DELTA || r->kind == OUTPUT_REASONING_DELTA || r->kind == OUTPUT_TOOL_ARGS_DELTA;

    assert_true(utf8_is_valid(r->text, r->bytes));
    assert_true(!is_delta || (r->bytes > 0 && r->bytes <= OUTPUT_BATCH_BYTES));
    assert_true(t->last != OUTPUT_STOP);
    assert_true(t->bytes + r->bytes + 8 < TRACE_BYTES);
    if (!is_delta || t->last != r->kind)
        t->bytes += (size_t)sprintf(t->text + t->bytes, "\x1E%c:", "?RTBAES"[r->kind]);
    memcpy(t->text + t->bytes, r->text, r->bytes);
    t->bytes += r->bytes;
    t->text[t->bytes] = 0;
    t->last = r->kind;
}

static void trace_clear(struct trace *t)
{
    if (!t->text) t->text = malloc(TRACE_BYTES);
    if (!t->text) abort();
    t->bytes = 0;
    t->text[0] = 0;
    t->last = 0;
}

static struct output_parser parser;
static struct trace trace;

static void begin(const uint32_t *prompt, size_t prompt_count, const char *const *stops, size_t stop_count, unsigned flags)
{
    struct output_stop stop[OUTPUT_STOPS_MAX];

    for (size_t i = 0; i < stop_count; i++) stop[i] = (struct output_stop){ stops[i], strlen(stops[i]) };
    trace_clear(&trace);
    const struct output_config config = { .tokenizer = tok, .grammar = &grammar, .prompt_ids = prompt, .prompt_count = prompt_count,
                                          .stops = stop, .stop_count = stop_count, .emit = on_record, .context = &trace, .flags = flags };
    assert_int_equal(output_parser_init(&parser, &config), 0);
}

/* Feeds text in which control tokens stand by name; every other character is a token of its own. */
static void feed_text(const char *text)
{
    static const char *const name[] = { "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|\"|>", "<|turn>", "<turn|>" };
    uint32_t ids[16];

    while (*text) {
        size_t used = 0;
        for (size_t i = 0; i < sizeof name / sizeof *name; i++)
            if (strncmp(text, name[i], strlen(name[i])) == 0) {
                used = strlen(name[i]);
                assert_true(output_parser_feed(&parser, tokenizer_id(tok, name[i])) >= 0);
            }
        if (used == 0) {
            uint32_t scalar;
            utf8_decode(text, strlen(text), &scalar, &used);
            const int count = tokenizer_encode(tok, text, used, NULL, 0, ids, 16);
            assert_true(count > 0);
            for (int i = 0; i < count; i++) assert_true(output_parser_feed(&parser, ids[i]) >= 0);
        }
        text += used;
    }
}

static void expect(const char *text, const char *want)
{
    feed_text(text);
    output_parser_finish(&parser);
    for (char *p = trace.text; *p; p++)
        if (*p == '\x1E') *p = '|';
    if (strcmp(trace.text, want) != 0) fail_msg("%s\n gave %s\n want %s", text, trace.text, want);
}

static void check(const char *text, const char *want)
{
    begin(NULL, 0, NULL, 0, 0);
    expect(text, want);
}

/* ---- golden cases ---- */

static size_t read_ids(const json_t *list, uint32_t *out, size_t max)
{
    const size_t count = json_array_size(list);

    assert_true(count <= max);
    for (size_t i = 0; i < count; i++) out[i] = (uint32_t)json_integer_value(json_array_get(list, i));
    return count;
}

static const char *text_of(const json_t *item, size_t index)
{
    const char *text = json_string_value(json_array_get(item, index));

    if (!text) fail_msg("the golden file is broken");
    return text ? text : "";
}

/* One record of the trace: its kind; *text is cut out of the trace. */
static char next_record(char **at, char **text)
{
    if (**at != '\x1E') return 0;
    const char kind = (*at)[1];
    *text = *at + 3;
    *at = *text + strcspn(*text, "\x1E");
    return kind;
}

static void check_tool(char **at, const json_t *item, size_t index)
{
    char *text = NULL, *args = NULL;
    json_t *got, *want = json_loads(text_of(item, 2), 0, NULL);

    if (next_record(at, &text) != 'B' || (size_t)(*at - text) != strlen(text_of(item, 1)) || memcmp(text, text_of(item, 1), (size_t)(*at - text)) != 0)
        fail_msg("case %zu: tool name", index);
    if (next_record(at, &args) != 'A') fail_msg("case %zu: no arguments", index);
    got = json_loadb(args, (size_t)(*at - args), JSON_REJECT_DUPLICATES, NULL);
    if (!got || !json_equal(got, want)) fail_msg("case %zu: arguments %.*s, want %s", index, (int)(*at - args), args, text_of(item, 2));
    if (next_record(at, &text) != 'E' || *at != text) fail_msg("case %zu: the call has no clean end", index);
    json_decref(got);
    json_decref(want);
}

static void check_items(const json_t *items, size_t index)
{
    char *at = trace.text, *text;
    const json_t *item;
    size_t i;

    json_array_foreach(items, i, item) {
        const char *kind = text_of(item, 0);
        if (strcmp(kind, "tool") == 0) {
            check_tool(&at, item, index);
            continue;
        }
        const char letter = strcmp(kind, "text") == 0 ? 'T' : strcmp(kind, "stop") == 0 ? 'S' : 'R';
        const char *want = text_of(item, 1);
        if (next_record(&at, &text) != letter || (size_t)(at - text) != strlen(want) || memcmp(text, want, strlen(want)) != 0)
            fail_msg("case %zu, item %zu: \"%s\", want %s \"%s\"", index, i, trace.text, kind, want);
    }
    if (*at) fail_msg("case %zu: more than wanted: %s", index, at);
}

static void check_case(const json_t *item, size_t index)
{
    static uint32_t prompt[4096], ids[65536];
    static size_t bytes_after[65536];
    static char whole[1 << 20];
    const char *stops[OUTPUT_STOPS_MAX];
    const json_t *stop_list = json_object_get(item, "stops");
    const size_t prompt_count = read_ids(json_object_get(item, "prompt"), prompt, 4096);
    const size_t count = read_ids(json_object_get(item, "ids"), ids, 65536);

    for (size_t i = 0; i < json_array_size(stop_list); i++) stops[i] = text_of(stop_list, i);
    begin(prompt, prompt_count, stops, json_array_size(stop_list), 0);
    for (size_t i = 0; i < count; i++) {
        assert_true(output_parser_feed(&parser, ids[i]) >= 0);
        bytes_after[i] = trace.bytes;
    }
    output_parser_finish(&parser);
    check_items(json_object_get(item, "items"), index);
    memcpy(whole, trace.text, trace.bytes + 1);

    /* The same, begun again and cut off after every token: a function of the tokens so far. */
    const size_t step = count < 64 ? 1 : count / 64;
    for (size_t cut = 0; cut < count; cut += step) {
        begin(prompt, prompt_count, stops, json_array_size(stop_list), 0);
        for (size_t i = 0; i <= cut; i++) output_parser_feed(&parser, ids[i]);
        assert_int_equal(trace.bytes, bytes_after[cut]);
        assert_memory_equal(trace.text, whole, trace.bytes);
        struct output_parser copy = parser; /* a parser is plain memory: a copy goes on as the original would */
        memset(&parser, 0xAA, sizeof parser);
        parser = copy;
        for (size_t i = cut + 1; i < count; i++) output_parser_feed(&parser, ids[i]);
        output_parser_finish(&parser);
        assert_string_equal(trace.text, whole);
    }
}

static void test_parses_what_it_was_made_from(void **state)
{
    json_error_t error;
    json_t *golden = json_load_file("tests/golden/output/cases.json", 0, &error);
    const json_t *item;
    size_t i;

    (void)state;
    if (!golden) fail_msg("%s", error.text);
    assert_true(golden_is_of(GOLDEN_DIR "gemma.json", "tests/golden/output/cases.json"));
    json_array_foreach(json_object_get(golden, "cases"), i, item) check_case(item, i);
    json_decref(golden);
}

/* ---- channels ---- */

static void test_channels(void **state)
{
    (void)state;
    check("plain", "|T:plain");
    check("<|channel>thought\nwhy<channel|>so", "|R:why|T:so");
    check("<|channel>thought\n<channel|>so", "|T:so");
    check("<|channel>thoughtful<channel|>so", "|R:thoughtful|T:so");
    check("<|channel>thought<channel|>so", "|T:so");
    check("<|channel>other\nx<channel|>so", "|R:other\nx|T:so");
    check("<|channel>thought\na<channel|>b<|channel>thought\nc<channel|>d", "|R:a|T:b|R:c|T:d");
    check("<|channel>thought\na<|channel>thought\nb", "|R:ab");
    check("a<channel|>b", "|T:ab");
    check("<|channel>thought\nwhy<|tool_call>call:f{}<tool_call|>", "|R:why|B:f|A:{}|E:");
    check("<|channel>thou", "");
    check("<|channel>thought\n<|turn>x<|\"|>y<tool_call|>z", "|R:xyz");
    check("a<|turn>b<|\"|>c<tool_call|>d<turn|>e", "|T:abcde");
}

static void check_prompt(const char *prompt, const char *text, const char *want, enum output_mode mode)
{
    uint32_t ids[256];
    const int count = tokenizer_encode(tok, prompt, strlen(prompt), NULL, TOKENIZER_ALL_TRUSTED, ids, 256);

    assert_true(count >= 0);
    begin(ids, (size_t)count, NULL, 0, 0);
    assert_int_equal(output_parser_mode(&parser), mode);
    expect(text, want);
}

static void test_the_prompt_gives_the_starting_state(void **state)
{
    (void)state;
    check_prompt("<|turn>model\n<|channel>thought\n", "why<channel|>so", "|R:why|T:so", OUTPUT_MODE_REASONING);
    check_prompt("<|turn>model\n<|channel>", "thought\nwhy<channel|>so", "|R:why|T:so", OUTPUT_MODE_REASONING);
    check_prompt("<|turn>model\n<|channel>thou", "ght\nwhy<channel|>so", "|R:why|T:so", OUTPUT_MODE_REASONING);
    check_prompt("<|turn>model\n<|channel>thought\nfirst, ", "why<channel|>so", "|R:why|T:so", OUTPUT_MODE_REASONING);
    check_prompt("<|turn>model\n<|channel>thought\n<channel|>", "so", "|T:so", OUTPUT_MODE_TEXT);
    check_prompt("<|channel>thought\n<|turn>model\n", "so", "|T:so", OUTPUT_MODE_TEXT);
    check_prompt("<|tool_call>call:f{}<tool_call|><|tool_response>response:f{}<tool_response|>", "so", "|T:so", OUTPUT_MODE_TEXT);
    check_prompt("", "so", "|T:so", OUTPUT_MODE_TEXT);
    /* a call that was forced: what the prompt has of it belongs to the output */
    check_prompt("<|turn>model\n<|tool_call>call:", "f{a:1}<tool_call|>", "|B:f|A:{\"a\":1}|E:", OUTPUT_MODE_TOOL);
    check_prompt("<|turn>model\n<|tool_call>call:f{", "a:1}<tool_call|>so", "|B:f|A:{\"a\":1}|E:|T:so", OUTPUT_MODE_TOOL);
    check_prompt("<|channel>thought\n<channel|><|tool_call>call:f{", "}<tool_call|>", "|B:f|A:{}|E:", OUTPUT_MODE_TOOL);
    check_prompt("<|turn>model\n<|tool_call>call:", " f{}<tool_call|>", "|T:<|tool_call>call: f{}<tool_call|>", OUTPUT_MODE_TOOL);
}

static void test_openings_of_calls(void **state)
{
    char text[OUTPUT_NAME_BYTES_MAX + 16], name[OUTPUT_NAME_BYTES_MAX + 2];

    (void)state;
    assert_int_equal(output_call_opening("", text, sizeof text), 5);
    assert_string_equal(text, "call:");
    assert_int_equal(output_call_opening("get_the.time-2", text, sizeof text), 20);
    assert_string_equal(text, "call:get_the.time-2{");
    assert_int_equal(output_call_opening("a b", text, sizeof text), -E_RANGE);
    assert_int_equal(output_call_opening("f{}", text, sizeof text), -E_RANGE);
    assert_int_equal(output_call_opening("f", text, 7), -E_RANGE);
    memset(name, 'n', sizeof name);
    name[OUTPUT_NAME_BYTES_MAX] = '\0';
    assert_int_equal(output_call_opening(name, text, sizeof text), OUTPUT_NAME_BYTES_MAX + 6);
    name[OUTPUT_NAME_BYTES_MAX] = 'n';
    name[OUTPUT_NAME_BYTES_MAX + 1] = '\0';
    assert_int_equal(output_call_opening(name, text, sizeof text), -E_RANGE);
}

static void test_counts_reasoning_tokens(void **state)
{
    (void)state;
    check("<|channel>thought\nab<channel|>xyz<|channel>thought\nc<|tool_call>call:f{}<tool_call|>", "|R:ab|T:xyz|R:c|B:f|A:{}|E:");
    assert_int_equal(output_parser_reasoning_tokens(&parser), 1 + 8 + 2 + 1 + 1 + 8 + 1);
}

/* ---- tool calls ---- */

static void test_tool_calls(void **state)
{
    (void)state;
    check("<|tool_call>call:f{}<tool_call|>", "|B:f|A:{}|E:");
    check("<|tool_call>call:f{a:1}<tool_call|><|tool_call>call:g{b:[1,2]}<tool_call|>", "|B:f|A:{\"a\":1}|E:|B:g|A:{\"b\":[1,2]}|E:");
    check("hi <|tool_call>call:f{a:<|\"|>x{,]\"y\n<|\"|>}<tool_call|> bye", "|T:hi |B:f|A:{\"a\":\"x{,]\\\"y\\n\"}|E:|T: bye");
    check("<|tool_call>call:f{<|\"|>a:b<|\"|> : {c : [ <|\"|><|\"|> , {} , [] ] } }<tool_call|>", "|B:f|A:{\"a:b\":{\"c\":[\"\",{},[]]}}|E:");
    check("<|tool_call>call:f{a:true,b:false,c:null,d:None,e:nil,f:True,g:truex}<tool_call|>",
          "|B:f|A:{\"a\":true,\"b\":false,\"c\":null,\"d\":null,\"e\":null,\"f\":\"True\",\"g\":\"truex\"}|E:");
    check("<|tool_call>call:f{a:1,b:-2,c:+3,d:007,e:1.5,f:5.,g:.5,h:-.5,i:1.5e3,j:1e5,k:1.,l:.,m:-,n:12a,o:-0,p:00.10}<tool_call|>",
          "|B:f|A:{\"a\":1,\"b\":-2,\"c\":3,\"d\":7,\"e\":1.5,\"f\":5.0,\"g\":0.5,\"h\":-0.5,\"i\":1.5e3,\"j\":\"1e5\",\"k\":1.0,\"l\":\".\",\"m\":\"-\","
          "\"n\":\"12a\",\"o\":-0,\"p\":0.10}|E:");
    check("<|tool_call>call:f{a: new york  ,b:x y}<tool_call|>", "|B:f|A:{\"a\":\"new york\",\"b\":\"x y\"}|E:");
    check("<|tool_call>call:f{a:<|\"|>1<|\"|>b:<|\"|>2<|\"|>}<tool_call|>", "|B:f|A:{\"a\":\"1\",\"b\":\"2\"}|E:");
    check("<|tool_call>call:f{a:<|\"|>\\\x01\x7F<|\"|>}<tool_call|>", "|B:f|A:{\"a\":\"\\\\\\u0001\x7F\"}|E:");
    check("<|tool_call>call:f{}\n <tool_call|>", "|B:f|A:{}|E:");
}

/* A text that spells a control token is data, wherever it stands. */
static void test_spelled_control_tokens_are_text(void **state)
{
    static const char spelled[] = "<|channel>thought\n<|tool_call>call:f{}<tool_call|>";
    uint32_t ids[256];
    const int count = tokenizer_encode(tok, spelled, sizeof spelled - 1, NULL, 0, ids, 256);

    (void)state;
    begin(NULL, 0, NULL, 0, 0);
    for (int i = 0; i < count; i++) output_parser_feed(&parser, ids[i]);
    expect("", "|T:<|channel>thought\n<|tool_call>call:f{}<tool_call|>");
    begin(NULL, 0, NULL, 0, 0);
    feed_text("<|tool_call>call:f{a:<|\"|>");
    for (int i = 0; i < count; i++) output_parser_feed(&parser, ids[i]);
    expect("<|\"|>}<tool_call|>", "|B:f|A:{\"a\":\"<|channel>thought\\n<|tool_call>call:f{}<tool_call|>\"}|E:");
}

static void test_malformed_calls_do_not_vanish(void **state)
{
    (void)state;
    check("<|tool_call>cull:f{}<tool_call|>x", "|T:<|tool_call>cull:f{}<tool_call|>x");
    check("<|tool_call>call:{}<tool_call|>", "|T:<|tool_call>call:{}<tool_call|>");
    check("<|tool_call>call:f g{a:<|\"|>x<|\"|>}<tool_call|>", "|T:<|tool_call>call:f g{a:<|\"|>x<|\"|>}<tool_call|>");
    check("<|tool_call>call:f<tool_call|>x", "|T:<|tool_call>call:f<tool_call|>x");
    check("<|tool_call>call:f<|\"|>x", "|T:<|tool_call>call:f<|\"|>x");
    check("<|tool_call>call:f<|channel>thought\nx<channel|>y", "|T:<|tool_call>call:f|R:x|T:y");
    check("<|tool_call>call:f", "|T:<|tool_call>call:f");
    check("<|tool_call><tool_call|>", "|T:<|tool_call><tool_call|>");
    check("<|tool_call><|tool_call>call:f{}<tool_call|>", "|T:<|tool_call>|B:f|A:{}|E:");
    check("<|tool_call>call:f{}rest<|\"|> of it<tool_call|>!", "|B:f|A:{}|E:|T:rest<|\"|> of it!");
}

static void test_broken_arguments_stay_json(void **state)
{
    (void)state;
    check("<|tool_call>call:f{a:1<tool_call|>x", "|B:f|A:{\"a\":1}|E:the arguments end without a closing brace|T:x");
    check("<|tool_call>call:f{a:[{b:<|\"|>x<tool_call|>", "|B:f|A:{\"a\":[{\"b\":\"x\"}]}|E:a string argument does not end");
    check("<|tool_call>call:f{a:}<tool_call|>", "|B:f|A:{\"a\":\"\"}|E:an argument has no value");
    check("<|tool_call>call:f{a:,b:1}<tool_call|>", "|B:f|A:{\"a\":\"\",\"b\":1}|E:an argument has no value");
    check("<|tool_call>call:f{b:1,a}<tool_call|>", "|B:f|A:{\"b\":1}|E:an argument has no value");
    check("<|tool_call>call:f{a<tool_call|>", "|B:f|A:{}|E:an argument has no value");
    check("<|tool_call>call:f{a:<tool_call|>", "|B:f|A:{\"a\":\"\"}|E:an argument has no value");
    check("<|tool_call>call:f{<|\"|>a<|\"|>b:1}<tool_call|>", "|B:f|A:{}|E:an argument name is not followed by a colon|T::1}");
    check("<|tool_call>call:f{a:[1}<tool_call|>", "|B:f|A:{\"a\":[1]}|E:a bracket does not match");
    check("<|tool_call>call:f{a:1]}<tool_call|>z", "|B:f|A:{\"a\":1}|E:a bracket does not match|T:}z");
    check("<|tool_call>call:f{{a:1}}<tool_call|>", "|B:f|A:{}|E:a bracket does not match|T:a:1}}");
    check("<|tool_call>call:f{a:x<|\"|>y<|\"|>}<tool_call|>", "|B:f|A:{\"a\":\"x\"}|E:a quote stands where none can be|T:y<|\"|>}");
    check("<|tool_call>call:f{a:1<|tool_call>call:g{}<tool_call|>", "|B:f|A:{\"a\":1}|E:the arguments end without a closing brace|B:g|A:{}|E:");
}

/* Cut off by the end of the output: the JSON stays cut, and nobody says the call has ended. */
static void test_a_cut_call_has_no_end(void **state)
{
    (void)state;
    check("<|tool_call>call:f{a:<|\"|>rm -rf /tmp", "|B:f|A:{\"a\":\"rm -rf /tmp");
    check("<|tool_call>call:f{a:12", "|B:f|A:{\"a\":");
    check("<|tool_call>call:f{a:12,", "|B:f|A:{\"a\":12");
    check("<|tool_call>call:f{a:tr", "|B:f|A:{\"a\":");
    check("<|tool_call>call:f{long_na", "|B:f|A:{");
    check("<|tool_call>call:f{a:1}", "|B:f|A:{\"a\":1}|E:");
}

static void test_limits_are_graceful(void **state)
{
    static char text[4096], want[4096];
    char *t = text, *w = want;

    (void)state;
    t += sprintf(t, "<|tool_call>call:f{a:");
    w += sprintf(w, "|B:f|A:{\"a\":");
    for (unsigned i = 0; i < OUTPUT_DEPTH_MAX; i++) *t++ = '[';
    for (unsigned i = 1; i < OUTPUT_DEPTH_MAX; i++) *w++ = '[';
    for (unsigned i = 1; i < OUTPUT_DEPTH_MAX; i++) *w++ = ']';
    strcpy(t, "1<tool_call|>");
    strcpy(w, "}|E:the arguments are nested too deeply|T:1");
    check(text, want);

    memset(text, 0, sizeof text);
    t = stpcpy(text, "<|tool_call>call:f{");
    memset(t, 'n', OUTPUT_HELD_BYTES_MAX + 1);
    strcat(text, ":1}<tool_call|>");
    check(text, "|B:f|A:{}|E:an argument name is too long|T::1}");

    memset(text, 0, sizeof text);
    t = stpcpy(text, "<|tool_call>call:");
    memset(t, 'n', OUTPUT_NAME_BYTES_MAX + 1);
    strcat(text, "{}<tool_call|>");
    stpcpy(stpcpy(want, "|T:"), text);
    check(text, want);

    /* A bare value too long to hold is a string, without the white space around it. */
    memset(text, 0, sizeof text);
    memset(want, 0, sizeof want);
    t = stpcpy(text, "<|tool_call>call:f{a: ");
    memset(t, '7', 700);
    memset(t + 300, ' ', 40);
    strcpy(t + 700, "  \n ,b:2}<tool_call|>");
    w = stpcpy(want, "|B:f|A:{\"a\":\"");
    memcpy(w, t, 700);
    strcpy(w + 700, "\",\"b\":2}|E:");
    check(text, want);
}

/* A megabyte of argument streams through a parser of a few kilobytes. */
static void test_a_long_argument_streams(void **state)
{
    const uint32_t word = tokenizer_id(tok, "a"), newline = 107;
    size_t bytes = 0;

    (void)state;
    assert_true(sizeof parser < 16384);
    begin(NULL, 0, NULL, 0, 0);
    feed_text("<|tool_call>call:f{a:<|\"|>");
    for (int i = 0; i < 1 << 20; i++) {
        assert_int_equal(output_parser_feed(&parser, i % 64 ? word : newline), 0);
        if (i == 1000) bytes = trace.bytes;
    }
    assert_true(bytes > 1000); /* it came out while it came in */
    feed_text("<|\"|>}<tool_call|>");
    assert_true(trace.bytes > (1 << 20) + (1 << 14));
    assert_string_equal(trace.text + trace.bytes - 6, "a\"}\x1E" "E:");
}

/* ---- stop strings ---- */

static void check_stop(const char *text, const char *const *stops, size_t count, const char *want)
{
    begin(NULL, 0, stops, count, 0);
    expect(text, want);
}

static void test_stop_strings(void **state)
{
    static const char *const one[] = { "STOP" }, *const two[] = { "abc", "b" }, *const nested[] = { "xab", "ab" }, *const self[] = { "aabaac" };
    static const char *const long_one[] = { "日本語" };

    (void)state;
    check_stop("go STOP on", one, 1, "|T:go |S:STOP");
    check_stop("STOP", one, 1, "|S:STOP");
    check_stop("STO", one, 1, "|T:STO");
    check_stop("STSTOPx", one, 1, "|T:ST|S:STOP");
    check_stop("STO<|channel>thought\nSTOP<channel|>P", one, 1, "|T:STO|R:STOP|T:P");
    check_stop("ST<|turn>OP!", one, 1, "|S:STOP");
    check_stop("<|tool_call>call:STOP{STOP:<|\"|>STOP<|\"|>}<tool_call|>STOP", one, 1, "|B:STOP|A:{\"STOP\":\"STOP\"}|E:|S:STOP");
    check_stop("<|tool_call>bad STOP<tool_call|>", one, 1, "|T:<|tool_call>bad |S:STOP");
    check_stop("abc", two, 2, "|T:a|S:b");
    check_stop("_xab_", nested, 2, "|T:_|S:xab");
    check_stop("aabaabaac", self, 1, "|T:aab|S:aabaac");
    check_stop("日本日本語x", long_one, 1, "|T:日本|S:日本語");
    assert_int_equal(output_parser_mode(&parser), OUTPUT_MODE_STOPPED);
    assert_int_equal(output_parser_feed(&parser, 107), 1);
    assert_int_equal(output_parser_finish(&parser), 1);
}

static void test_text_is_held_only_while_it_may_be_a_stop_string(void **state)
{
    static const char *const stops[] = { "<end>" };

    (void)state;
    begin(NULL, 0, stops, 1, 0);
    feed_text("a<en");
    assert_string_equal(trace.text, "\x1ET:a");
    feed_text("t");
    assert_string_equal(trace.text, "\x1ET:a<ent");
    expect("<", "|T:a<ent<");
}

static void test_refuses_bad_settings(void **state)
{
    static char long_text[OUTPUT_STOP_BYTES_MAX + 1];
    struct output_stop stop[OUTPUT_STOPS_MAX + 1];
    struct output_config config = { .tokenizer = tok, .grammar = &grammar, .stops = stop, .emit = on_record, .context = &trace };

    (void)state;
    memset(long_text, 'x', sizeof long_text);
    for (size_t i = 0; i <= OUTPUT_STOPS_MAX; i++) stop[i] = (struct output_stop){ long_text, OUTPUT_STOP_BYTES_MAX };
    config.stop_count = OUTPUT_STOPS_MAX;
    assert_int_equal(output_parser_init(&parser, &config), 0);
    config.stop_count++;
    assert_int_equal(output_parser_init(&parser, &config), -E_RANGE);
    config.stop_count = 1;
    stop[0].bytes = 0;
    assert_int_equal(output_parser_init(&parser, &config), -E_RANGE);
    stop[0].bytes = OUTPUT_STOP_BYTES_MAX + 1;
    assert_int_equal(output_parser_init(&parser, &config), -E_RANGE);
    stop[0] = (struct output_stop){ "a\xFF", 2 };
    assert_int_equal(output_parser_init(&parser, &config), -E_FORMAT);
    config.stop_count = 0;
    config.prompt_ids = (uint32_t[]){ tokenizer_vocab_count(tok) };
    config.prompt_count = 1;
    assert_int_equal(output_parser_init(&parser, &config), -E_FORMAT);
    begin(NULL, 0, NULL, 0, 0);
    assert_int_equal(output_parser_feed(&parser, tokenizer_vocab_count(tok)), -E_RANGE);
    expect("x", "|T:x");
}

/* A model may have more rows than its tokenizer has names. */
static void test_shows_ids_beyond_the_vocabulary(void **state)
{
    char want[64];

    (void)state;
    begin(NULL, 0, NULL, 0, OUTPUT_SHOW_UNKNOWN);
    assert_int_equal(output_parser_feed(&parser, tokenizer_vocab_count(tok)), 0);
    snprintf(want, sizeof want, "|T:<unused%u>x", tokenizer_vocab_count(tok));
    expect("x", want);
}

/* ---- other modes ---- */

static void test_raw_mode(void **state)
{
    static const char *const stops[] = { "STOP" };

    (void)state;
    begin(NULL, 0, stops, 1, OUTPUT_RAW);
    expect("<|channel>thought\nx<channel|><|tool_call>call:f{}<tool_call|>y", "|T:thought\nxcall:f{}y");
    begin(NULL, 0, stops, 1, OUTPUT_RAW | OUTPUT_SHOW_SPECIALS);
    expect("<|channel>thought\nx<channel|>STOP", "|T:<|channel>thought\nx<channel|>|S:STOP");
}

static void test_a_model_without_control_tokens_gives_text(void **state)
{
    struct output_grammar none;
    struct tokenizer *plain;
    char err[256];

    (void)state;
    if (tokenizer_open_file(&plain, GOLDEN_DIR "flags.json", err, sizeof err) != 0) fail_msg("%s", err);
    output_grammar_init(&none, plain);
    assert_int_equal(none.channel_begin, TOKENIZER_NO_ID);
    assert_int_equal(none.quote, TOKENIZER_NO_ID);
    trace_clear(&trace);
    const struct output_config config = { .tokenizer = plain, .grammar = &none, .emit = on_record, .context = &trace };
    assert_int_equal(output_parser_init(&parser, &config), 0);
    for (uint32_t id = 0; id < tokenizer_vocab_count(plain); id++) assert_int_equal(output_parser_feed(&parser, id), 0);
    output_parser_finish(&parser);
    assert_memory_equal(trace.text, "\x1ET:", 3);
    assert_int_equal(trace.last, OUTPUT_TEXT_DELTA);
    tokenizer_close(plain);
}

static void test_unfinished_characters_end_with_their_state(void **state)
{
    (void)state;
    begin(NULL, 0, NULL, 0, 0);
    output_parser_feed(&parser, tokenizer_id(tok, "<0xE4>"));
    output_parser_feed(&parser, tokenizer_id(tok, "<|channel>"));
    feed_text("thought\n");
    output_parser_feed(&parser, tokenizer_id(tok, "<0xE4>"));
    output_parser_feed(&parser, tokenizer_id(tok, "<channel|>"));
    output_parser_feed(&parser, tokenizer_id(tok, "<0xE4>"));
    expect("", "|T:\xEF\xBF\xBD|R:\xEF\xBF\xBD|T:\xEF\xBF\xBD");
}

static int open_tokenizer(void **state)
{
    char err[256];

    (void)state;
    if (tokenizer_open_file(&tok, GOLDEN_DIR "gemma.json", err, sizeof err) != 0) return -1;
    output_grammar_init(&grammar, tok);
    return 0;
}

static int close_tokenizer(void **state)
{
    (void)state;
    tokenizer_close(tok);
    free(trace.text);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parses_what_it_was_made_from),
        cmocka_unit_test(test_channels),
        cmocka_unit_test(test_the_prompt_gives_the_starting_state), cmocka_unit_test(test_openings_of_calls),
        cmocka_unit_test(test_counts_reasoning_tokens),
        cmocka_unit_test(test_tool_calls),
        cmocka_unit_test(test_spelled_control_tokens_are_text),
        cmocka_unit_test(test_malformed_calls_do_not_vanish),
        cmocka_unit_test(test_broken_arguments_stay_json),
        cmocka_unit_test(test_a_cut_call_has_no_end),
        cmocka_unit_test(test_limits_are_graceful),
        cmocka_unit_test(test_a_long_argument_streams),
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_text_is_held_only_while_it_may_be_a_stop_string),
        cmocka_unit_test(test_refuses_bad_settings),
        cmocka_unit_test(test_shows_ids_beyond_the_vocabulary),
        cmocka_unit_test(test_raw_mode),
        cmocka_unit_test(test_a_model_without_control_tokens_gives_text),
        cmocka_unit_test(test_unfinished_characters_end_with_their_state),
    };

    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
