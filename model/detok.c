/* model/detok.c - streaming detokenisation: bytes of tokens to whole UTF-8 characters.
 *
 * Only byte tokens can leave a character unfinished; ordinary tokens are valid UTF-8, since
 * they come from a JSON file. So the pending bytes are always the beginning of a character,
 * at most three of them, and anything but a fitting byte token ends them: each becomes one
 * U+FFFD, as the reference replaces bytes one by one. */
#include "model/detok.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "model/tokenizer_utf8.h"
#include "shm/error.h"
#include "shm/must.h"

void detok_init(struct detok *d)
{
    memset(d, 0, sizeof *d);
}

int detok_flush(struct detok *d, char *out, size_t out_bytes)
{
    size_t wrote = 0;

    must(d->pending_count < sizeof d->pending);
    if (3u * d->pending_count > out_bytes) return -E_FULL;
    for (; d->pending_count > 0; d->pending_count--) wrote += utf8_encode(UTF8_REPLACEMENT, out + wrote);
    return (int)wrote;
}

/* Adds one raw byte; room for 12 bytes has been checked. */
static size_t feed_byte(struct detok *d, uint8_t byte, char *out)
{
    uint32_t scalar;
    size_t used, wrote = 0;

    d->pending[d->pending_count++] = byte;
    while (d->pending_count > 0) {
        const enum utf8_verdict verdict = utf8_decode((const char *)d->pending, d->pending_count, &scalar, &used);
        if (verdict == UTF8_UNFINISHED) break;
        /* A wrong beginning gives one U+FFFD for each of its bytes; the byte that broke it stays. */
        for (size_t i = 0; i < (verdict == UTF8_GOOD ? 1 : used); i++) wrote += utf8_encode(scalar, out + wrote);
        d->pending_count = (uint8_t)(d->pending_count - used);
        memmove(d->pending, d->pending + used, d->pending_count);
    }
    return wrote;
}

int detok_feed(struct detok *d, const struct tokenizer *t, uint32_t id, char *out, size_t out_bytes, unsigned flags)
{
    char bytes[TOKENIZER_TOKEN_BYTES_MAX];
    const bool unknown = (flags & DETOK_SHOW_UNKNOWN) && id >= tokenizer_vocab_count(t);
    const int count = unknown ? snprintf(bytes, sizeof bytes, "<unused%u>", id) : tokenizer_token_bytes(t, id, bytes, sizeof bytes, flags);

    if (count <= 0) return count; /* nothing to see: a pending character stays pending */
    if ((size_t)count + 12 > out_bytes) return -E_FULL;
    if (!unknown && tokenizer_is_byte(t, id)) return (int)feed_byte(d, (uint8_t)bytes[0], out);
    const int flushed = detok_flush(d, out, out_bytes);
    must(flushed >= 0);
    memcpy(out + flushed, bytes, (size_t)count);
    return flushed + count;
}
