/* model/output.h - what a model's tokens mean: reasoning, answer text, tool calls, stop strings.
 *
 * Fed one token id at a time, gives records through a callback. Parsing is by token id:
 * text that merely spells a control token is text. The concatenation of the records is a
 * function of the prompt tail and the tokens fed so far, so after a crash the caller feeds
 * all tokens again and drops what was already sent. struct output_parser is one fixed-size
 * block without pointers of its own to free; it borrows tokenizer, grammar and callback.
 *
 * Grammar (Gemma 4; a model without these tokens gives text only):
 *   <|channel>thought\n ... <channel|>            reasoning; may come again later
 *   <|tool_call>call:NAME{ARGS}<tool_call|>       a tool call; also ends an open channel
 *   anything else                                 answer text; other special tokens are dropped
 * ARGS: key:value pairs; a value is <|"|>text<|"|>, {..}, [..] or bare (true, false, null, a
 * number, else a string). Given out as strict JSON while it arrives; a bare value is
 * withheld until it is complete.
 *
 * What is malformed does not vanish:
 *   - a call that does not begin with call:NAME{ is answer text, its control tokens spelled out;
 *   - a call that goes wrong later (missing braces, unterminated string, too deep) has its
 *     JSON closed, and OUTPUT_TOOL_END carries the reason; text after it is answer text;
 *   - a call cut off by the end of the output has no OUTPUT_TOOL_END, and its JSON stays cut.
 * A stray <channel|> is dropped. An unfinished channel name at the end is dropped.
 *
 * Stop strings are looked for in answer text only (in raw mode: in all text), within one
 * stretch of it; the match that ends first wins, of those the longest. */
#ifndef SLUICE_MODEL_OUTPUT_H
#define SLUICE_MODEL_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/detok.h"
#include "model/tokenizer.h"

#define OUTPUT_STOPS_MAX      16u
#define OUTPUT_STOP_BYTES_MAX 256u
#define OUTPUT_NAME_BYTES_MAX 128u /* longest tool name */
#define OUTPUT_HELD_BYTES_MAX 256u /* longest argument name; a longer bare value is a string */
#define OUTPUT_DEPTH_MAX      64u  /* nesting of tool arguments */
#define OUTPUT_BATCH_BYTES    512u /* a record has at most this many bytes */

enum output_kind {
    OUTPUT_REASONING_DELTA = 1, /* UTF-8 */
    OUTPUT_TEXT_DELTA = 2,      /* UTF-8 */
    OUTPUT_TOOL_BEGIN = 3,      /* the tool's name */
    OUTPUT_TOOL_ARGS_DELTA = 4, /* a piece of JSON text, UTF-8, never inside a character */
    OUTPUT_TOOL_END = 5,        /* empty: the arguments were well formed; else what was wrong with them */
    OUTPUT_STOP = 6,            /* the stop string that matched; nothing follows */
};

struct output_record {
    enum output_kind kind;
    const char *text; /* borrowed, until the callback returns; not NUL-terminated */
    size_t bytes;
};

/* Called zero or more times per token, in order. Deltas are never empty. */
typedef void output_emit(void *context, const struct output_record *record);

/* The control tokens, looked up once per tokenizer; TOKENIZER_NO_ID where there is none. */
struct output_grammar {
    uint32_t channel_begin, channel_end;     /* <|channel> <channel|> */
    uint32_t tool_begin, tool_end, quote;    /* <|tool_call> <tool_call|> <|"|> */
    uint32_t turn_begin, turn_end;           /* <|turn> <turn|> */
    uint32_t response_begin, response_end;   /* <|tool_response> <tool_response|> */
};

struct output_stop {
    const char *text;
    size_t bytes; /* 1..OUTPUT_STOP_BYTES_MAX */
};

enum output_flags {
    OUTPUT_RAW = 1,           /* no grammar: all is text */
    OUTPUT_SHOW_SPECIALS = 2, /* with OUTPUT_RAW: special tokens are spelled out instead of dropped */
    OUTPUT_SHOW_UNKNOWN = 4,  /* ids beyond the tokenizer's vocabulary are text such as <unused2048> instead of -E_RANGE */
};

struct output_config {
    const struct tokenizer *tokenizer;    /* borrowed while the parser is used */
    const struct output_grammar *grammar; /* borrowed while the parser is used */
    const uint32_t *prompt_ids;           /* read by output_parser_init only */
    size_t prompt_count;
    const struct output_stop *stops;      /* copied by output_parser_init */
    size_t stop_count;
    output_emit *emit;
    void *context;
    unsigned flags; /* enum output_flags */
};

enum output_mode {
    OUTPUT_MODE_TEXT,
    OUTPUT_MODE_REASONING, /* in a channel, its name included */
    OUTPUT_MODE_TOOL,      /* in a tool call */
    OUTPUT_MODE_STOPPED,   /* a stop string matched, or output_parser_finish was called */
};

#include "model/output_state.h" /* struct output_parser: fixed size, its fields are private */

/* Finds the control tokens of a vocabulary. Cannot fail: what is missing is switched off. */
void output_grammar_init(struct output_grammar *g, const struct tokenizer *t);

/* How a call begins behind its control token, for a prompt that shall end in one: "call:", and
 * for a tool by its name "call:NAME{". Bytes written, without the NUL behind them; -E_RANGE: the
 * name is none that a call can have, or there is no room. */
int output_call_opening(const char *name, char *out, size_t bytes);

/* Prepares a parser; the starting state comes from the prompt's tail: a channel that is open
 * there goes on as reasoning, a call goes on as one: what is known of it is emitted. -E_RANGE: too many stop strings, or one empty or too long;
 * -E_FORMAT: a stop string is not UTF-8, or a prompt id is not in the vocabulary. */
int output_parser_init(struct output_parser *p, const struct output_config *config);

/* Feeds one generated token; not the end-of-sequence token that ended the output.
 * 0: go on. 1: a stop string matched, now or earlier; nothing more will be emitted.
 * -E_RANGE: no such token; nothing has changed. */
int output_parser_feed(struct output_parser *p, uint32_t id);

/* The output is over: emits what is held back. 0, or 1 if a stop string had matched.
 * Calling it again, or feeding after it, emits nothing. */
int output_parser_finish(struct output_parser *p);

enum output_mode output_parser_mode(const struct output_parser *p);

/* Tokens fed so far that were reasoning, the channel's control tokens included. */
uint64_t output_parser_reasoning_tokens(const struct output_parser *p);

#endif
