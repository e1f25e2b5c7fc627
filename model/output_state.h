/* model/output_state.h - the fields of struct output_parser (model/output.h includes this).
 *
 * Only model/output*.c touch them. They stand in a header so that a stage can keep one
 * parser per sequence in memory it allocated before it was ready. No field points to
 * memory the parser owns; the whole block may be zeroed to forget it. */
#ifndef SLUICE_MODEL_OUTPUT_STATE_H
#define SLUICE_MODEL_OUTPUT_STATE_H

/* One stop string and how much of it the text seen so far ends with. */
struct output_stop_state {
    uint8_t text[OUTPUT_STOP_BYTES_MAX];
    uint8_t fallback[OUTPUT_STOP_BYTES_MAX]; /* [i]: longest proper border of text[0..i], in bytes */
    uint16_t bytes;
    uint16_t matched; /* < bytes */
};

struct output_stops {
    struct output_stop_state stop[OUTPUT_STOPS_MAX];
    uint32_t count;
    uint32_t held_count;                         /* < OUTPUT_STOP_BYTES_MAX between characters */
    uint8_t held[OUTPUT_STOP_BYTES_MAX + 4];     /* text that may become a stop string */
};

/* The arguments of one tool call on their way to JSON. */
struct output_args {
    uint32_t state;                              /* enum in model/output_args.c */
    uint32_t fault;                              /* the first thing that was wrong; enum in output_args.c */
    uint32_t depth;                              /* open containers, 1..OUTPUT_DEPTH_MAX */
    uint64_t is_array, has_items;                /* bit d - 1: the container at depth d */
    uint32_t held_count;
    char held[OUTPUT_HELD_BYTES_MAX];            /* an argument name or bare value, not complete */
};

struct output_parser {
    const struct tokenizer *tokenizer;           /* borrowed */
    const struct output_grammar *grammar;        /* borrowed */
    output_emit *emit;
    void *context;                               /* borrowed */
    uint32_t flags;
    uint32_t state;                              /* enum in model/output.c */
    uint64_t reasoning_tokens;
    struct detok detok;
    uint8_t muted;                               /* replaying the prompt: nothing is emitted */
    uint8_t stopped;
    uint8_t finished;
    uint32_t head_count;
    char head[OUTPUT_NAME_BYTES_MAX + 16];       /* channel name or "call:NAME", not complete */
    enum output_kind batch_kind;
    uint32_t batch_count;
    char batch[OUTPUT_BATCH_BYTES];              /* bytes of one kind, emitted as one record */
    struct output_args args;
    struct output_stops stops;
};

#endif
