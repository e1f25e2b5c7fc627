/* model/tokenizer.h - text to token ids: the BPE tokenizer of Gemma 3 and Gemma 4.
 *
 * Reads a Hugging Face tokenizer.json of the structure those models ship: BPE with
 * byte fallback, a normalizer that replaces ' ' by U+2581, added tokens. Any other
 * structure is refused by name. Equal, id for id, to what the `tokenizers` library
 * gives for the same file, with two deliberate exceptions, both for safety:
 *   - a special added token (special: true) is recognised only where the caller says
 *     that the text is trusted (struct tokenizer_span); elsewhere it is plain text;
 *   - merges never build a special token out of plain text.
 *
 * An opened tokenizer is constant: any number of threads may encode with it. It does
 * not touch the JSON buffer after tokenizer_open returns. Encoding allocates scratch
 * memory (about 30 bytes per byte of the longest stretch without a possible cut) and
 * frees it before it returns. Failures are values, never a crash: the file and the
 * text both come from outside. Back from tokens to text: model/detok.h. */
#ifndef SLUICE_MODEL_TOKENIZER_H
#define SLUICE_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TOKENIZER_JSON_BYTES_MAX  ((size_t)256 << 20) /* a larger file is refused */
#define TOKENIZER_VOCAB_MAX       (1u << 20)          /* ids are below this */
#define TOKENIZER_MERGES_MAX      (1u << 22)
#define TOKENIZER_ADDED_MAX       (1u << 16)
#define TOKENIZER_TOKEN_BYTES_MAX 1024u               /* longest vocabulary string, in bytes */
#define TOKENIZER_TEXT_BYTES_MAX  ((size_t)256 << 20) /* longest text of one tokenizer_encode */
#define TOKENIZER_NO_ID           UINT32_MAX
#define TOKENIZER_ALL_TRUSTED     SIZE_MAX            /* as trusted_count, with trusted == NULL */

struct tokenizer;

/* A range of bytes of the text whose author is trusted to write control tokens
 * (the chat template). Ranges are sorted, do not overlap, touching ones count as one. */
struct tokenizer_span {
    uint32_t begin_bytes, end_bytes; /* [begin, end) */
};

/* Parses a tokenizer.json. 0: *out is owned by the caller (tokenizer_close).
 * -E_FORMAT malformed, -E_UNSUPPORTED another kind of tokenizer, -E_LIMIT one of the
 * limits above, -E_NOMEM: *out is NULL and err holds a sentence. err may be NULL. */
int tokenizer_open(struct tokenizer **out, const char *json, size_t json_bytes, char *err, size_t err_bytes);

/* The same from a file (mapped while it is read); -E_IO when it cannot be opened. */
int tokenizer_open_file(struct tokenizer **out, const char *path, char *err, size_t err_bytes);

void tokenizer_close(struct tokenizer *t); /* NULL is allowed */

/* Encodes text; no token is added that the text does not call for (no automatic <bos>).
 * trusted/trusted_count: where special tokens are recognised; (NULL, 0): nowhere;
 * (NULL, TOKENIZER_ALL_TRUSTED): everywhere, the reference behaviour. Invalid UTF-8
 * counts as U+FFFD, as Python's bytes.decode("utf-8", "replace") would replace it.
 * Returns the number of ids, at most ids_max; -E_FULL: more ids than ids_max (what ids
 * holds then is not meaningful); -E_LIMIT: text too long; -E_RANGE: spans unsorted or outside the
 * text; -E_NOMEM. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes,
                     const struct tokenizer_span *trusted, size_t trusted_count,
                     uint32_t *ids, size_t ids_max);

uint32_t tokenizer_vocab_count(const struct tokenizer *t); /* largest id + 1; ids may have gaps */
size_t tokenizer_memory_bytes(const struct tokenizer *t);  /* what an open tokenizer holds */

/* The id of a vocabulary string (added tokens included), TOKENIZER_NO_ID if there is none. */
uint32_t tokenizer_id(const struct tokenizer *t, const char *name);
uint32_t tokenizer_id_bytes(const struct tokenizer *t, const char *name, size_t bytes);

/* The vocabulary string as the file spells it: U+2581 for a space, "<0x0A>" for a byte.
 * Borrowed until tokenizer_close, not NUL-terminated. NULL, *bytes 0: no such id. */
const char *tokenizer_token_text(const struct tokenizer *t, uint32_t id, size_t *bytes);

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id); /* added token with special: true */
bool tokenizer_is_added(const struct tokenizer *t, uint32_t id);   /* any added token */
bool tokenizer_is_byte(const struct tokenizer *t, uint32_t id);    /* "<0x00>" .. "<0xFF>" */

/* The byte a byte token stands for, or -E_RANGE. */
int tokenizer_byte_value(const struct tokenizer *t, uint32_t id);

#endif
