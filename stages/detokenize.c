/* stages/detokenize.c - turns committed tokens into the log that clients read: text, reasoning, tool calls, and the end.
 *
 * Reads    verify slots (tokens, finish), tokenize slots (prompt tail: does the output begin inside reasoning, or a call?), gateway
 *          slots (stop strings, raw mode)
 * Writes   detokenize slots: the log (struct log_record), and the stop flag when a stop string ended the output
 * Rings    in: verify-detokenize; out: detokenize-gateway (the log grew), detokenize-verify (stop)
 * Owns     one parser a slot
 * Fails    a log that is full ends the output with "length". Restarted: the parser is a function of the tokens, so it
 *          is fed again what the log already covers, in silence, and goes on from there. */
#include "model/engine.h"
#include "model/output.h"
#include "schemas/counters.h"
#include "schemas/table.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/stage.h"

#include <stdlib.h>
#include <string.h>

#define LOG_END_ROOM (sizeof(struct log_record) + sizeof(struct log_end))
#define RECORD_ROOM (sizeof(struct log_record) + OUTPUT_BATCH_BYTES + 8)

struct sequence {
    uint32_t generation; /* 0: none */
    uint32_t fed;        /* output tokens the parser has seen */
    uint32_t written;    /* log bytes written; committed when a batch is done */
    uint32_t last;       /* offset of the newest uncommitted record, to which a delta of its kind is added */
    uint32_t tool_calls;
    bool call_ended;     /* the first one */
    bool silent;         /* catching up with a predecessor's log */
    bool has_last, full, stopped;
    struct output_parser parser;
};

struct detokenize {
    struct stage stage;
    struct table table;
    struct engine engine;
    struct tokenizer *tokenizer;
    struct output_grammar grammar;
    struct sequence *seq; /* [slot_count] */
    uint32_t slot;        /* whose records the parser emits now */
};

/* ---- the log ------------------------------------------------------------------------ */

static uint32_t padded(uint32_t bytes)
{
    return (bytes + 7) & ~7u;
}

static void append(struct detokenize *k, struct sequence *q, uint32_t type, const void *payload, uint32_t bytes)
{
    struct log_record *r = (struct log_record *)(table_log(&k->table, k->slot) + q->written);

    *r = (struct log_record){.bytes = bytes, .type = type, .tokens = q->fed};
    if (bytes) memcpy(r + 1, payload, bytes);
    q->last = q->written;
    q->has_last = true;
    q->written += (uint32_t)sizeof *r + padded(bytes);
    stage_count(&k->stage, DETOKENIZE_RECORDS, 1);
    stage_count(&k->stage, DETOKENIZE_BYTES, bytes);
}

/* Several tokens of one round make one delta. */
static bool extend(struct detokenize *k, struct sequence *q, uint32_t type, const struct output_record *record)
{
    if (!q->has_last) return false;
    struct log_record *r = (struct log_record *)(table_log(&k->table, k->slot) + q->last);
    if (r->type != type || type == LOG_TOOL_BEGIN || type == LOG_TOOL_END) return false;
    memcpy((uint8_t *)(r + 1) + r->bytes, record->text, record->bytes);
    r->bytes += (uint32_t)record->bytes;
    r->tokens = q->fed;
    q->written = q->last + (uint32_t)sizeof *r + padded(r->bytes);
    stage_count(&k->stage, DETOKENIZE_BYTES, record->bytes);
    return true;
}

static void on_record(void *context, const struct output_record *record)
{
    static const uint32_t types[] = {[OUTPUT_REASONING_DELTA] = LOG_REASONING, [OUTPUT_TEXT_DELTA] = LOG_TEXT, [OUTPUT_TOOL_BEGIN] = LOG_TOOL_BEGIN,
                                     [OUTPUT_TOOL_ARGS_DELTA] = LOG_TOOL_ARGS, [OUTPUT_TOOL_END] = LOG_TOOL_END};
    struct detokenize *k = context;
    struct sequence *q = &k->seq[k->slot];

    if (record->kind == OUTPUT_TOOL_BEGIN) q->tool_calls++;
    if (record->kind == OUTPUT_TOOL_END) q->call_ended = true;
    if (record->kind == OUTPUT_STOP || q->silent || q->full) return;
    if (q->written + record->bytes + RECORD_ROOM + LOG_END_ROOM > k->table.limits.log_bytes_max) {
        q->full = true;
        return;
    }
    if (!extend(k, q, types[record->kind], record)) append(k, q, types[record->kind], record->text, (uint32_t)record->bytes);
}

static void commit_log(struct detokenize *k, struct sequence *q)
{
    struct detokenize_slot *d = table_detokenize(&k->table, k->slot);
    const uint32_t committed = word_for(&d->commit, q->generation);

    if (q->written == committed) return;
    q->has_last = false;
    shm_store_release(&d->commit, word_pack(q->generation, q->written));
}

static void announce(struct detokenize *k, int ring)
{
    const struct ring_msg msg = {.slot = k->slot, .generation = k->seq[k->slot].generation};

    ring_publish(&k->stage.ring[ring], &msg);
}

static void say_over(struct detokenize *k, struct sequence *q)
{
    shm_store_release(&table_detokenize(&k->table, k->slot)->over, word_pack(q->generation, 1));
    announce(k, RING_DETOKENIZE_GATEWAY);
}

static void end(struct detokenize *k, struct sequence *q, enum finish_reason reason, uint32_t output_tokens)
{
    const struct log_end e = {.finish = reason, .output_tokens = output_tokens,
                              .reasoning_tokens = (uint32_t)output_parser_reasoning_tokens(&q->parser), .tool_calls = q->tool_calls};

    q->has_last = false;
    append(k, q, LOG_END, &e, sizeof e);
    commit_log(k, q);
    say_over(k, q);
}

/* ---- sequences ------------------------------------------------------------------------ */

static int init_parser(struct detokenize *k, struct sequence *q)
{
    const struct request_params *p = &table_gateway(&k->table, k->slot)->params;
    struct output_stop stops[STOP_STRINGS_MAX];
    uint32_t stop_count = p->stop_count < STOP_STRINGS_MAX ? p->stop_count : STOP_STRINGS_MAX;

    for (uint32_t i = 0; i < stop_count; i++)
        stops[i] = (struct output_stop){p->stop[i], p->stop_bytes[i] < STOP_STRING_BYTES ? p->stop_bytes[i] : STOP_STRING_BYTES};
    const struct output_config config = {
        .tokenizer = k->tokenizer, .grammar = &k->grammar, .prompt_ids = table_prompt(&k->table, k->slot),
        .prompt_count = table_tokenize(&k->table, k->slot)->prompt_count, .stops = stops, .stop_count = stop_count, .emit = on_record, .context = k,
        .flags = OUTPUT_SHOW_UNKNOWN | (p->flags & REQUEST_RAW_OUTPUT ? OUTPUT_RAW : 0u) | (p->flags & REQUEST_SPECIAL_TEXT ? OUTPUT_SHOW_SPECIALS : 0u)};
    return output_parser_init(&q->parser, &config);
}

static void feed(struct detokenize *k, struct sequence *q, uint32_t until)
{
    const uint32_t *tokens = table_output(&k->table, k->slot);
    const struct request_params *p = &table_gateway(&k->table, k->slot)->params;

    while (q->fed < until && !q->stopped && !q->full) {
        const uint32_t token = tokens[q->fed++];
        if (engine_finish_by_token(&k->engine.generation, p, token) != FINISH_NONE) continue; /* ends the output, is no part of it */
        q->stopped = output_parser_feed(&q->parser, token) == 1 || (q->call_ended && (p->flags & REQUEST_ONE_CALL));
    }
}

/* Tokens that the log written so far covers; *complete: its end is there. */
static uint32_t log_covers(const struct detokenize *k, uint32_t generation, bool *complete)
{
    const uint32_t written = word_for(&table_detokenize(&k->table, k->slot)->commit, generation);
    uint32_t tokens = 0;

    *complete = false;
    for (uint32_t at = 0; at + sizeof(struct log_record) <= written;) {
        const struct log_record *r = (const struct log_record *)(table_log(&k->table, k->slot) + at);
        tokens = r->tokens;
        *complete = r->type == LOG_END;
        at += (uint32_t)sizeof *r + padded(r->bytes);
    }
    return tokens;
}

static void begin(struct detokenize *k, struct sequence *q, uint32_t generation)
{
    struct detokenize_slot *d = table_detokenize(&k->table, k->slot);

    memset(q, 0, sizeof *q);
    q->generation = generation;
    if (word_generation(shm_load_relaxed(&d->commit)) != generation) shm_store_release(&d->commit, word_pack(generation, 0));
    q->written = word_for(&d->commit, generation);
}

/* A sequence that is new to this process and needs no parser: true when it is over with this. */
static bool end_unparsed(struct detokenize *k, struct sequence *q, uint32_t generation)
{
    struct detokenize_slot *d = table_detokenize(&k->table, k->slot);
    const bool convicted = word_for(&table_launcher(&k->table, k->slot)->verdict, generation) == 1 + ROLE_DETOKENIZE;
    bool complete;
    const uint32_t tokens = log_covers(k, generation, &complete);

    if (!complete && !convicted) return false;
    begin(k, q, generation);
    q->fed = tokens;
    if (complete) { /* a predecessor died between the last record and saying so */
        say_over(k, q);
        if (word_for(&d->stop, generation)) announce(k, RING_DETOKENIZE_VERIFY);
    } else {
        end(k, q, FINISH_FAILED, tokens); /* it killed us twice: its tokens are not looked at again */
    }
    return true;
}

/* Feeds the parser what the predecessor's log covers. False: the sequence is over. */
static bool catch_up(struct detokenize *k, struct sequence *q, uint32_t generation)
{
    bool complete;

    begin(k, q, generation);
    const bool is_answered = !(table_gateway(&k->table, k->slot)->params.flags & REQUEST_PREFILL_ONLY);
    q->silent = q->written > 0 || !is_answered; /* a call that the prompt has opened is the first record */
    if (init_parser(k, q) != 0) { /* gateway checks stop strings; a damaged record fails alone */
        end(k, q, FINISH_FAILED, 0);
        return false;
    }
    q->silent = true;
    feed(k, q, log_covers(k, generation, &complete));
    q->silent = false;
    if (q->written) announce(k, RING_DETOKENIZE_GATEWAY); /* a predecessor may not have said so */
    return true;
}

static void say_thinking(struct detokenize *k, const struct sequence *q)
{
    uint64_t *word = &table_detokenize(&k->table, k->slot)->thinking;
    const uint64_t now = word_pack(q->generation, output_parser_mode(&q->parser) == OUTPUT_MODE_REASONING);

    if (shm_load_relaxed(word) != now) shm_store_release(word, now);
}

static void work(struct detokenize *k, struct sequence *q)
{
    const struct verify_slot *v = table_verify(&k->table, k->slot);
    const enum finish_reason finish = (enum finish_reason)word_for(&v->finish, q->generation); /* before commit: a finish seen now covers all tokens */
    const uint32_t committed = word_for(&v->commit, q->generation), before = q->fed, written = q->written;

    feed(k, q, committed < k->table.limits.context_max ? committed : k->table.limits.context_max);
    stage_count(&k->stage, DETOKENIZE_TOKENS, q->fed - before);
    say_thinking(k, q);
    if (q->stopped || q->full) {
        shm_store_release(&table_detokenize(&k->table, k->slot)->stop, word_pack(q->generation, 1));
        stage_count(&k->stage, DETOKENIZE_STOPS, 1);
        end(k, q, q->stopped ? FINISH_STOP_STRING : FINISH_LENGTH, q->fed);
        announce(k, RING_DETOKENIZE_VERIFY);
    } else if (finish != FINISH_NONE) {
        output_parser_finish(&q->parser);
        end(k, q, finish, q->fed);
    } else if (q->written != written) {
        commit_log(k, q);
        announce(k, RING_DETOKENIZE_GATEWAY);
    }
}

static void handle(struct detokenize *k, uint32_t slot)
{
    struct sequence *q = &k->seq[slot];
    const uint32_t generation = slot_occupied(&k->table, slot);
    const uint64_t begin_ns = clock_ns();

    if (!generation || word_generation(shm_load_acquire(&table_verify(&k->table, slot)->commit)) != generation) return;
    k->slot = slot;
    if (word_for(&table_detokenize(&k->table, slot)->over, generation)) { /* written by a predecessor that could not say so */
        if (q->generation != generation) {
            q->generation = generation;
            announce(k, RING_DETOKENIZE_GATEWAY);
            if (word_for(&table_detokenize(&k->table, slot)->stop, generation)) announce(k, RING_DETOKENIZE_VERIFY);
        }
        return;
    }
    if (q->generation != generation && end_unparsed(k, q, generation)) return;
    stage_busy(&k->stage, &slot, &generation, 1);
    if (q->generation == generation || catch_up(k, q, generation)) work(k, q);
    stage_idle(&k->stage);
    stage_count(&k->stage, DETOKENIZE_WORK_NS, clock_ns() - begin_ns);
}

static void scan(struct detokenize *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count; s++) {
        handle(k, s);
        stage_beat(&k->stage);
    }
}

static void attach(struct detokenize *k, int argc, char **argv)
{
    stage_attach(&k->stage, ROLE_DETOKENIZE, "turns tokens into text, reasoning and tool calls", argc, argv);
    table_attach(&k->table, &k->stage);
    engine_open_config(&k->engine, &k->stage);
    k->tokenizer = engine_open_tokenizer(&k->engine, &k->stage);
    output_grammar_init(&k->grammar, k->tokenizer);
    k->seq = calloc(k->table.limits.slot_count, sizeof *k->seq);
    if (!k->seq) stage_exit(&k->stage, EXIT_MISSING, "out of memory");
}

int main(int argc, char **argv)
{
    static struct detokenize k;
    struct ring *in;
    struct ring_msg msg;

    attach(&k, argc, argv);
    in = &k.stage.ring[RING_VERIFY_DETOKENIZE];
    stage_ready(&k.stage);
    scan(&k);
    while (stage_running(&k.stage)) {
        if (ring_overran(in)) scan(&k);
        else if (ring_take(in, &msg) == 1) {
            if (msg.slot < k.table.limits.slot_count) handle(&k, msg.slot);
        } else stage_wait(&k.stage, 1000);
    }
    return 0;
}
