/* model/tokenizer_utf8.h - one UTF-8 decoder for tokenizer, detokeniser and parsers.
 *
 * Malformed input is replaced as Python's bytes.decode("utf-8", "replace") does it: each
 * longest beginning of a well-formed sequence (Unicode table 3-7), or single byte that
 * begins none, counts as one U+FFFD. Pure functions on the caller's memory. */
#ifndef SLUICE_MODEL_TOKENIZER_UTF8_H
#define SLUICE_MODEL_TOKENIZER_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT 0xFFFDu

enum utf8_verdict {
    UTF8_GOOD,       /* a whole character */
    UTF8_BAD,        /* these bytes begin no character */
    UTF8_UNFINISHED, /* the input ends inside a character that may still become good */
};

/* Looks at the character that begins at text[0]; count >= 1. *used is how many bytes it
 * (or the malformed piece) takes, at least 1; *scalar is the character or U+FFFD. */
enum utf8_verdict utf8_decode(const char *text, size_t count, uint32_t *scalar, size_t *used);

/* Writes a scalar value (below 0x110000, no surrogate) as 1..4 bytes; returns how many. */
size_t utf8_encode(uint32_t scalar, char out[4]);

bool utf8_is_valid(const char *text, size_t count);

#endif
