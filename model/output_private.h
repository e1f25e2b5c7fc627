/* model/output_private.h - what model/output*.c share with each other and nobody else. */
#ifndef SLUICE_MODEL_OUTPUT_PRIVATE_H
#define SLUICE_MODEL_OUTPUT_PRIVATE_H

#include "model/output.h"

/* ---- output_stops.c ---- */

/* 0, -E_RANGE or -E_FORMAT, as output_parser_init. */
int output_stops_init(struct output_stops *s, const struct output_stop *stops, size_t count);

/* A new stretch of text begins; the caller has given out what was held. */
void output_stops_reset(struct output_stops *s);

/* Takes one byte of text. held[0 .. *release) cannot be part of a stop string any more: after
 * the last byte of a character the caller emits it and calls output_stops_drop. Not NULL:
 * this stop string ends here (so a character does), and held[*release ..] is it. */
const struct output_stop_state *output_stops_byte(struct output_stops *s, uint8_t byte, size_t *release);
void output_stops_drop(struct output_stops *s, size_t count);

/* ---- output.c, for output_args.c ---- */

/* Adds whole characters of one kind to the batch; a record is emitted when the kind changes or it is full. */
void output_put(struct output_parser *p, enum output_kind kind, const char *bytes, size_t count);

/* ---- output_args.c ---- */

enum output_args_result {
    ARGS_GO_ON,
    ARGS_CLOSED, /* the last brace closed */
    ARGS_BROKEN, /* cannot go on: the JSON has been closed, the rest is no part of the call */
};

/* The opening brace of ARGS has been read. */
void output_args_begin(struct output_parser *p);

/* Takes one whole UTF-8 character of ARGS, or the string quote token. */
enum output_args_result output_args_char(struct output_parser *p, const char *text, size_t bytes);
enum output_args_result output_args_quote(struct output_parser *p);

/* The call ends although its braces have not: closes the JSON. */
void output_args_end(struct output_parser *p);

/* What was wrong with the arguments, "" if nothing. */
const char *output_args_fault(const struct output_parser *p);

#endif
