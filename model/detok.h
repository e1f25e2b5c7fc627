/* model/detok.h - token ids back to UTF-8, one token at a time.
 *
 * struct detok is a few bytes, needs no allocation and no cleanup, and may be copied.
 * What comes out after n tokens is a function of those n tokens and the flags only.
 * Output is always valid UTF-8, cut between characters: the bytes of a character that
 * is spread over several byte tokens are held until it is complete.
 *
 * Against the reference (decode of the whole sequence): equal, except that the
 * reference looks at a whole run of byte tokens at once and, when any byte in it is
 * wrong, replaces all of them, good characters too; a stream has shown the good
 * ones already. Here each byte that is part of no character becomes one U+FFFD. */
#ifndef SLUICE_MODEL_DETOK_H
#define SLUICE_MODEL_DETOK_H

#include <stddef.h>
#include <stdint.h>

#include "model/tokenizer.h"

enum detok_flags {
    DETOK_SKIP_SPECIAL = 1, /* special tokens give nothing (and do not end a pending character) */
    DETOK_SHOW_UNKNOWN = 2, /* ids beyond the vocabulary give a visible <unusedID> (models may have more rows than the tokenizer has names) */
};

/* A buffer of this size always has room for what one token or one flush gives. */
#define DETOK_BYTES_MAX (TOKENIZER_TOKEN_BYTES_MAX + 16u)

struct detok {
    uint8_t pending[4];    /* the beginning of a character, from byte tokens */
    uint8_t pending_count; /* 0..3 */
};

/* The bytes one token stands for, without context: U+2581 becomes a space, a byte token
 * gives its raw byte. Returns the count (0: skipped, or a gap in the vocabulary),
 * -E_RANGE: id not below tokenizer_vocab_count, -E_FULL: out is too small. */
int tokenizer_token_bytes(const struct tokenizer *t, uint32_t id, char *out, size_t out_bytes, unsigned flags);

void detok_init(struct detok *d);

/* Feeds one token. Returns the number of bytes written to out (DETOK_BYTES_MAX is
 * always enough), -E_RANGE (never with DETOK_SHOW_UNKNOWN) or -E_FULL as above; on failure nothing has changed. */
int detok_feed(struct detok *d, const struct tokenizer *t, uint32_t id, char *out, size_t out_bytes, unsigned flags);

/* Ends the text: pending bytes become U+FFFD. Returns the bytes written. */
int detok_flush(struct detok *d, char *out, size_t out_bytes);

#endif
