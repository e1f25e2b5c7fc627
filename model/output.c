/* model/output.c - the states of a model's output: text, reasoning, tool call.
 *
 * A token is either a control token, which changes the state, or text, which goes character
 * by character to the state's reader. Whatever the state, bytes reach the callback through
 * one batch per token (output_put), so a record never ends inside a character.
 * Cannot fail once initialised; a token id outside the vocabulary is refused. */
#include "model/output_private.h"

#include <stdio.h>
#include <string.h>

#include "model/tokenizer_utf8.h"
#include "shm/error.h"
#include "shm/must.h"

enum state {
    IN_TEXT,
    IN_CHANNEL_NAME, /* "thought\n" is being read; head */
    IN_REASONING,
    IN_TOOL_HEAD,    /* "call:NAME{" is being read; head */
    IN_TOOL_ARGS,
    IN_TOOL_TAIL,    /* the call is over; white space before its closing token */
    IN_TOOL_REST,    /* the call is over, but there is more: text */
    IN_TOOL_TEXT,    /* not a call after all: text, control tokens spelled out */
};

static const char channel_name[] = "thought\n";
static const char call_prefix[] = "call:";

void output_grammar_init(struct output_grammar *g, const struct tokenizer *t)
{
    *g = (struct output_grammar){
        .channel_begin = tokenizer_id(t, "<|channel>"), .channel_end = tokenizer_id(t, "<channel|>"),
        .tool_begin = tokenizer_id(t, "<|tool_call>"), .tool_end = tokenizer_id(t, "<tool_call|>"),
        .quote = tokenizer_id(t, "<|\"|>"),
        .turn_begin = tokenizer_id(t, "<|turn>"), .turn_end = tokenizer_id(t, "<turn|>"),
        .response_begin = tokenizer_id(t, "<|tool_response>"), .response_end = tokenizer_id(t, "<tool_response|>"),
    };
    /* Half a grammar is none: an opener without its end could never be left again. */
    if (g->channel_begin == TOKENIZER_NO_ID || g->channel_end == TOKENIZER_NO_ID)
        g->channel_begin = g->channel_end = TOKENIZER_NO_ID;
    if (g->tool_begin == TOKENIZER_NO_ID || g->tool_end == TOKENIZER_NO_ID || g->quote == TOKENIZER_NO_ID)
        g->tool_begin = g->tool_end = g->quote = TOKENIZER_NO_ID;
}

/* ---- what goes out ---- */

static void emit(struct output_parser *p, enum output_kind kind, const char *text, size_t bytes)
{
    const struct output_record record = { kind, text, bytes };

    if (!p->muted) p->emit(p->context, &record);
}

static void emit_batch(struct output_parser *p)
{
    if (p->batch_count > 0) emit(p, p->batch_kind, p->batch, p->batch_count);
    p->batch_count = 0;
}

void output_put(struct output_parser *p, enum output_kind kind, const char *bytes, size_t count)
{
    if (p->batch_kind != kind) emit_batch(p);
    p->batch_kind = kind;
    while (count > 0) {
        size_t part = count;
        if (part > sizeof p->batch - p->batch_count) {
            part = sizeof p->batch - p->batch_count;
            while (part > 0 && ((uint8_t)bytes[part] & 0xC0) == 0x80) part--; /* back to where a character begins */
        }
        memcpy(p->batch + p->batch_count, bytes, part);
        p->batch_count += (uint32_t)part;
        bytes += part;
        count -= part;
        if (count > 0) emit_batch(p);
    }
}

/* Whole characters of answer text, through the search for stop strings. */
static void put_text(struct output_parser *p, const char *text, size_t bytes)
{
    struct output_stops *s = &p->stops;
    const struct output_stop_state *hit;
    size_t release;

    if (p->muted || p->stopped) return;
    if (s->count == 0) {
        output_put(p, OUTPUT_TEXT_DELTA, text, bytes);
        return;
    }
    for (size_t at = 0; at < bytes; at++) {
        hit = output_stops_byte(s, (uint8_t)text[at], &release);
        if (at + 1 < bytes && ((uint8_t)text[at + 1] & 0xC0) == 0x80) continue; /* inside a character */
        output_put(p, OUTPUT_TEXT_DELTA, (const char *)s->held, release);
        output_stops_drop(s, release);
        if (!hit) continue;
        emit_batch(p);
        emit(p, OUTPUT_STOP, (const char *)hit->text, hit->bytes);
        p->stopped = 1;
        return;
    }
}

/* A stretch of text is over: what was held for a stop string is text after all. */
static void end_text(struct output_parser *p)
{
    if (!p->muted && !p->stopped) output_put(p, OUTPUT_TEXT_DELTA, (const char *)p->stops.held, p->stops.held_count);
    output_stops_reset(&p->stops);
}

/* A control token as text. */
static void put_spelled(struct output_parser *p, uint32_t id)
{
    size_t bytes;
    const char *text = tokenizer_token_text(p->tokenizer, id, &bytes);

    put_text(p, text, bytes);
}

/* ---- readers of characters ---- */

/* The call never began: what was read of it is text. */
static void call_is_text(struct output_parser *p)
{
    put_spelled(p, p->grammar->tool_begin);
    put_text(p, p->head, p->head_count);
    p->head_count = 0;
    p->state = IN_TOOL_TEXT;
}

static void end_call(struct output_parser *p, enum state next)
{
    const char *fault = output_args_fault(p);

    emit_batch(p);
    emit(p, OUTPUT_TOOL_END, fault, strlen(fault));
    p->state = next;
}

static void args_result(struct output_parser *p, enum output_args_result result)
{
    if (result == ARGS_CLOSED) end_call(p, IN_TOOL_TAIL);
    if (result == ARGS_BROKEN) end_call(p, IN_TOOL_REST);
}

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
}

static void head_char(struct output_parser *p, const char *text, size_t bytes)
{
    const size_t prefix = sizeof call_prefix - 1;

    if (p->head_count > prefix && text[0] == '{') {
        emit_batch(p);
        emit(p, OUTPUT_TOOL_BEGIN, p->head + prefix, p->head_count - prefix);
        p->head_count = 0;
        p->state = IN_TOOL_ARGS;
        output_args_begin(p);
        return;
    }
    const bool fits = p->head_count < prefix ? text[0] == call_prefix[p->head_count]
                                             : is_name_char(text[0]) && p->head_count < prefix + OUTPUT_NAME_BYTES_MAX;
    if (!fits) {
        call_is_text(p);
        put_text(p, text, bytes);
        return;
    }
    must(p->head_count < sizeof p->head);
    p->head[p->head_count++] = text[0]; /* a character that fits is ASCII */
}

static void channel_name_char(struct output_parser *p, const char *text, size_t bytes)
{
    if (text[0] == channel_name[p->head_count]) {
        p->head[p->head_count++] = text[0];
        if (p->head_count < sizeof channel_name - 1) return;
        p->head_count = 0;
        p->state = IN_REASONING;
        return;
    }
    output_put(p, OUTPUT_REASONING_DELTA, p->head, p->head_count); /* some other beginning: all of it counts */
    output_put(p, OUTPUT_REASONING_DELTA, text, bytes);
    p->head_count = 0;
    p->state = IN_REASONING;
}

/* Takes characters in the present state; returns how many bytes it took. */
static size_t read_some(struct output_parser *p, const char *text, size_t bytes)
{
    size_t used;
    uint32_t scalar;

    utf8_decode(text, bytes, &scalar, &used);
    switch ((enum state)p->state) {
    case IN_REASONING:
        output_put(p, OUTPUT_REASONING_DELTA, text, bytes);
        return bytes;
    case IN_CHANNEL_NAME:
        channel_name_char(p, text, used);
        return used;
    case IN_TOOL_HEAD:
        head_char(p, text, used);
        return used;
    case IN_TOOL_ARGS:
        args_result(p, output_args_char(p, text, used));
        return used;
    case IN_TOOL_TAIL:
        if (text[0] == ' ' || text[0] == '\n' || text[0] == '\t' || text[0] == '\r') return used;
        p->state = IN_TOOL_REST;
        break;
    case IN_TEXT:
    case IN_TOOL_REST:
    case IN_TOOL_TEXT:
        break;
    }
    put_text(p, text, bytes);
    return bytes;
}

static void read_all(struct output_parser *p, const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes && !p->stopped;) at += read_some(p, text + at, bytes - at);
}

/* The bytes of an unfinished character end with the state they belong to. */
static void flush_character(struct output_parser *p)
{
    char text[16];
    const int bytes = detok_flush(&p->detok, text, sizeof text);

    must(bytes >= 0);
    read_all(p, text, (size_t)bytes);
}

/* ---- control tokens ---- */

/* Leaves the present state because a new channel or call begins. */
static void leave(struct output_parser *p)
{
    flush_character(p);
    switch ((enum state)p->state) {
    case IN_TOOL_HEAD:
        call_is_text(p);
        break;
    case IN_TOOL_ARGS:
        output_args_end(p);
        end_call(p, IN_TEXT);
        break;
    default:
        break;
    }
    end_text(p);
    p->head_count = 0;
}

static void end_tool_token(struct output_parser *p)
{
    if (p->state == IN_TEXT || p->state == IN_CHANNEL_NAME || p->state == IN_REASONING) return; /* a stray one */
    flush_character(p);
    if (p->state == IN_TOOL_HEAD) call_is_text(p);
    if (p->state == IN_TOOL_TEXT) put_spelled(p, p->grammar->tool_end);
    if (p->state == IN_TOOL_ARGS) {
        output_args_end(p);
        end_call(p, IN_TEXT);
    }
    p->state = IN_TEXT;
}

static void quote_token(struct output_parser *p)
{
    if (p->state == IN_TEXT || p->state == IN_CHANNEL_NAME || p->state == IN_REASONING) return;
    flush_character(p);
    if (p->state == IN_TOOL_ARGS) {
        args_result(p, output_args_quote(p));
        return;
    }
    if (p->state == IN_TOOL_HEAD) call_is_text(p);
    else if (p->state == IN_TOOL_TAIL) p->state = IN_TOOL_REST;
    put_spelled(p, p->grammar->quote);
}

static bool in_channel(const struct output_parser *p)
{
    return p->state == IN_CHANNEL_NAME || p->state == IN_REASONING;
}

/* Returns false when the token is ordinary. */
static bool control(struct output_parser *p, uint32_t id)
{
    const struct output_grammar *g = p->grammar;

    if ((p->flags & OUTPUT_RAW) || id == TOKENIZER_NO_ID) return false;
    if (id == g->channel_begin || id == g->tool_begin) {
        leave(p);
        p->state = id == g->channel_begin ? IN_CHANNEL_NAME : IN_TOOL_HEAD;
    } else if (id == g->channel_end) {
        if (!in_channel(p)) return true;
        flush_character(p);
        p->head_count = 0; /* an unfinished channel name is no reasoning */
        p->state = IN_TEXT;
    } else if (id == g->tool_end) {
        end_tool_token(p);
    } else if (id == g->quote) {
        quote_token(p);
    } else {
        return false;
    }
    return true;
}

static void take(struct output_parser *p, uint32_t id)
{
    const bool show = (p->flags & OUTPUT_RAW) && (p->flags & OUTPUT_SHOW_SPECIALS);
    char text[DETOK_BYTES_MAX];

    if (control(p, id)) return;
    const int bytes = detok_feed(&p->detok, p->tokenizer, id, text, sizeof text,
                                 (show ? 0u : DETOK_SKIP_SPECIAL) | (p->flags & OUTPUT_SHOW_UNKNOWN ? DETOK_SHOW_UNKNOWN : 0u));
    must(bytes >= 0);
    read_all(p, text, (size_t)bytes);
}

/* ---- entry points ---- */

int output_call_opening(const char *name, char *out, size_t bytes)
{
    const size_t name_bytes = strlen(name);

    for (size_t i = 0; i < name_bytes; i++)
        if (!is_name_char(name[i])) return -E_RANGE;
    const int written = snprintf(out, bytes, "%s%s%s", call_prefix, name, name_bytes ? "{" : "");
    return name_bytes > OUTPUT_NAME_BYTES_MAX || (size_t)written >= bytes ? -E_RANGE : written;
}

static bool is_control(const struct output_grammar *g, uint32_t id)
{
    return id == g->channel_begin || id == g->channel_end || id == g->tool_begin || id == g->tool_end
        || id == g->turn_begin || id == g->turn_end || id == g->response_begin || id == g->response_end;
}

/* Only the last control token of the prompt matters. If it opens a channel, reading goes on from there, silently; if it opens a call, the call is the output's. */
static void replay_prompt(struct output_parser *p, const uint32_t *ids, size_t count)
{
    size_t at = count;

    while (at > 0 && !is_control(p->grammar, ids[at - 1])) at--;
    if (at == 0 || ids[at - 1] == TOKENIZER_NO_ID || (ids[at - 1] != p->grammar->channel_begin && ids[at - 1] != p->grammar->tool_begin)) return;
    p->muted = ids[at - 1] == p->grammar->channel_begin;
    for (at--; at < count; at++) take(p, ids[at]);
    emit_batch(p);
    p->muted = 0;
    detok_init(&p->detok);
}

int output_parser_init(struct output_parser *p, const struct output_config *config)
{
    const uint32_t vocab_count = tokenizer_vocab_count(config->tokenizer);
    int rc;

    must(config->emit);
    memset(p, 0, sizeof *p);
    p->tokenizer = config->tokenizer;
    p->grammar = config->grammar;
    p->emit = config->emit;
    p->context = config->context;
    p->flags = config->flags;
    p->state = IN_TEXT;
    if ((rc = output_stops_init(&p->stops, config->stops, config->stop_count)) != 0) return rc;
    for (size_t i = 0; i < config->prompt_count; i++)
        if (config->prompt_ids[i] >= vocab_count && !(p->flags & OUTPUT_SHOW_UNKNOWN)) return -E_FORMAT;
    if (!(p->flags & OUTPUT_RAW)) replay_prompt(p, config->prompt_ids, config->prompt_count);
    return 0;
}

int output_parser_feed(struct output_parser *p, uint32_t id)
{
    if (id >= tokenizer_vocab_count(p->tokenizer) && !(p->flags & OUTPUT_SHOW_UNKNOWN)) return -E_RANGE;
    if (p->stopped || p->finished) return p->stopped;
    const bool was_in_channel = in_channel(p);
    take(p, id);
    if (in_channel(p) || (was_in_channel && id == p->grammar->channel_end)) p->reasoning_tokens++;
    emit_batch(p);
    return p->stopped;
}

int output_parser_finish(struct output_parser *p)
{
    if (p->stopped || p->finished) return p->stopped;
    flush_character(p);
    if (!p->stopped && p->state == IN_TOOL_HEAD) call_is_text(p);
    end_text(p);
    emit_batch(p);
    p->finished = 1;
    return p->stopped;
}

enum output_mode output_parser_mode(const struct output_parser *p)
{
    if (p->stopped || p->finished) return OUTPUT_MODE_STOPPED;
    if (in_channel(p)) return OUTPUT_MODE_REASONING;
    return p->state == IN_TEXT ? OUTPUT_MODE_TEXT : OUTPUT_MODE_TOOL;
}

uint64_t output_parser_reasoning_tokens(const struct output_parser *p)
{
    return p->reasoning_tokens;
}
