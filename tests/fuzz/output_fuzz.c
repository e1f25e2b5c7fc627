/* tests/fuzz/output_fuzz.c - any sequence of tokens through the output parser.
 *
 * What must hold whatever the model writes: records are UTF-8, not empty, not too long and in an
 * order that makes sense; the arguments of a call that ended are JSON; no stop string
 * is left in the text; nothing follows OUTPUT_STOP; and a parser that is copied in the middle and
 * goes on gives the same. Run from the repository root. */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/output.h"
#include "model/tokenizer_utf8.h"
#include "shm/must.h"

#define ARGS_BYTES (1u << 20)

static struct tokenizer *tok;
static struct output_grammar grammar;
static const char *const stop_text[] = { "ab", "aab", "\n\n", "stop", "{", "\xE6\x97\xA5", "sto", " " };

struct watch {
    char args[ARGS_BYTES], text[ARGS_BYTES];
    size_t args_bytes, text_bytes;
    bool in_call, stopped;
    uint64_t hash;       /* of all that was emitted, joined deltas as one */
    enum output_kind last;
    unsigned stops;      /* bit per stop string in use */
};

/* A stretch of text has ended: none of the stop strings may be in it. */
static void end_stretch(struct watch *w)
{
    for (unsigned i = 0; i < 8; i++)
        if (w->stops >> i & 1) must(!memmem(w->text, w->text_bytes, stop_text[i], strlen(stop_text[i])));
    w->text_bytes = 0;
}

static void on_end(struct watch *w)
{
    json_error_t error;
    json_t *args = json_loadb(w->args, w->args_bytes, JSON_ALLOW_NUL, &error);

    must(w->in_call && (args ? json_is_object(args) : json_error_code(&error) == json_error_null_byte_in_key)); /* JSON, but the library takes no such name */
    json_decref(args);
    w->in_call = false;
}

static void on_record(void *context, const struct output_record *r)
{
    struct watch *w = context;
    const bool is_delta = r->kind == OUTPUT_TEXT_DELTA || r->kind == OUTPUT_REASONING_DELTA || r->kind == OUTPUT_TOOL_ARGS_DELTA;

    must(!w->stopped && utf8_is_valid(r->text, r->bytes));
    must(!is_delta || (r->bytes > 0 && r->bytes <= OUTPUT_BATCH_BYTES));
    must(w->in_call == (r->kind == OUTPUT_TOOL_ARGS_DELTA || r->kind == OUTPUT_TOOL_END));
    if (!is_delta || w->last != r->kind) w->hash = (w->hash ^ (uint64_t)r->kind << 8) * 0x100000001B3u;
    for (size_t i = 0; i < r->bytes; i++) w->hash = (w->hash ^ (uint8_t)r->text[i]) * 0x100000001B3u;
    w->last = r->kind;
    if (r->kind != OUTPUT_TEXT_DELTA) end_stretch(w);

    if (r->kind == OUTPUT_TEXT_DELTA && w->text_bytes + r->bytes <= sizeof w->text) {
        memcpy(w->text + w->text_bytes, r->text, r->bytes);
        w->text_bytes += r->bytes;
    }
    if (r->kind == OUTPUT_TOOL_BEGIN) {
        must(r->bytes > 0 && r->bytes <= OUTPUT_NAME_BYTES_MAX);
        w->in_call = true;
        w->args_bytes = 0;
    }
    if (r->kind == OUTPUT_TOOL_ARGS_DELTA) {
        must(w->args_bytes + r->bytes <= sizeof w->args);
        memcpy(w->args + w->args_bytes, r->text, r->bytes);
        w->args_bytes += r->bytes;
    }
    if (r->kind == OUTPUT_TOOL_END) on_end(w);
    if (r->kind == OUTPUT_STOP) w->stopped = true;
}

/* One byte of input is one token, or a few: the interesting ones are frequent. */
static size_t token_of(uint8_t byte, uint32_t *ids)
{
    static const char *const frequent[] = { "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|\"|>", "<|turn>", "call:", "f{", "thought\n" };
    const unsigned high = byte & 0x7F;

    if (byte < 0x80) { /* a character */
        const int count = tokenizer_encode(tok, (const char *)&byte, 1, NULL, 0, ids, 16);
        must(count > 0);
        return (size_t)count;
    }
    if (high < 9) {
        const int count = tokenizer_encode(tok, frequent[high], strlen(frequent[high]), NULL, TOKENIZER_ALL_TRUSTED, ids, 16);
        must(count > 0);
        return (size_t)count;
    }
    if (high < 64) { /* a byte of a character, perhaps */
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", 0x80 | (high * 2 + 1) % 128);
        ids[0] = tokenizer_id(tok, name);
    } else {
        ids[0] = high * 41 % tokenizer_vocab_count(tok);
    }
    return 1;
}

static uint64_t run(const struct output_config *config, struct watch *w, const uint32_t *ids, size_t count, size_t copy_at)
{
    struct output_parser a, b;
    const unsigned stops = w->stops;

    memset(w, 0, offsetof(struct watch, stops));
    w->stops = stops;
    must(output_parser_init(&a, config) == 0);
    for (size_t i = 0; i < count; i++) {
        if (i == copy_at) {
            b = a;
            memset(&a, 0x55, sizeof a);
            a = b;
        }
        const int rc = output_parser_feed(&a, ids[i]);
        must(rc == (w->stopped ? 1 : 0));
    }
    must(output_parser_finish(&a) == (w->stopped ? 1 : 0));
    must(output_parser_finish(&a) == (w->stopped ? 1 : 0));
    end_stretch(w);
    return w->hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint32_t ids[65536 * 16];
    static struct watch watch;
    struct output_stop stops[8];
    size_t count = 0, stop_count = 0;

    if (!tok) {
        must(tokenizer_open_file(&tok, "tests/golden/tokenizer/gemma.json", NULL, 0) == 0);
        output_grammar_init(&grammar, tok);
    }
    if (size < 4 || size > 65536) return 0;
    watch.stops = data[1] & data[2];
    for (unsigned i = 0; i < 8; i++)
        if (watch.stops >> i & 1) stops[stop_count++] = (struct output_stop){ stop_text[i], strlen(stop_text[i]) };
    for (size_t i = 4; i < size; i++) count += token_of(data[i], ids + count);
    const size_t prompt = data[3] < count ? data[3] : count;
    const struct output_config config = { .tokenizer = tok, .grammar = &grammar, .prompt_ids = ids, .prompt_count = prompt, .stops = stops,
                                          .stop_count = stop_count, .emit = on_record, .context = &watch, .flags = data[0] & 3 };
    const uint64_t whole = run(&config, &watch, ids + prompt, count - prompt, SIZE_MAX);
    must(run(&config, &watch, ids + prompt, count - prompt, (count - prompt) / 2) == whole);
    return 0;
}
