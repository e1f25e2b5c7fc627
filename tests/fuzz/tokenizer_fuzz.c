/* tests/fuzz/tokenizer_fuzz.c - any bytes as text, any ranges as trusted.
 *
 * Besides memory errors it looks for what must hold: ids are in the vocabulary; no special
 * token comes from text that is not trusted; and decoding gives the text back (malformed
 * UTF-8 replaced, U+2581 as a space). Run from the repository root. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/detok.h"
#include "model/tokenizer.h"
#include "model/tokenizer_utf8.h"
#include "shm/must.h"

#define TEXT_BYTES 65536
#define SPANS      8

static struct tokenizer *tokenizers[2]; /* [1] has tokens that swallow white space: no way back to the text */

static size_t clean(const char *text, size_t bytes, char *out)
{
    size_t used, wrote = 0;
    uint32_t scalar;

    for (size_t at = 0; at < bytes; at += used) {
        utf8_decode(text + at, bytes - at, &scalar, &used);
        wrote += utf8_encode(scalar == 0x2581 ? ' ' : scalar, out + wrote);
    }
    return wrote;
}

static void check_round_trip(const struct tokenizer *t, const char *text, size_t bytes, const uint32_t *ids, int count)
{
    static char want[TEXT_BYTES * 3], out[DETOK_BYTES_MAX];
    const size_t want_bytes = clean(text, bytes, want);
    struct detok d;
    size_t at = 0;

    detok_init(&d);
    for (int i = 0; i <= count; i++) {
        const int got = i < count ? detok_feed(&d, t, ids[i], out, sizeof out, 0) : detok_flush(&d, out, sizeof out);
        must(got >= 0 && at + (size_t)got <= want_bytes);
        must(memcmp(out, want + at, (size_t)got) == 0);
        at += (size_t)got;
    }
    must(at == want_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint32_t ids[TEXT_BYTES * 3], fewer[TEXT_BYTES * 3];
    struct tokenizer_span span[SPANS];
    uint32_t at = 0;

    if (!tokenizers[0]) {
        must(tokenizer_open_file(&tokenizers[0], "tests/golden/tokenizer/gemma.json", NULL, 0) == 0);
        must(tokenizer_open_file(&tokenizers[1], "tests/golden/tokenizer/flags.json", NULL, 0) == 0);
    }
    if (size < 2 || size > TEXT_BYTES) return 0;
    const struct tokenizer *t = tokenizers[data[0] & 1];
    size_t spans = data[1] % (SPANS + 1);
    if (size < 2 + 2 * spans) return 0;
    const char *text = (const char *)data + 2 + 2 * spans;
    const size_t bytes = size - 2 - 2 * spans;

    for (size_t i = 0; i < spans; i++) {
        at += data[2 + 2 * i];
        span[i].begin_bytes = at < bytes ? at : (uint32_t)bytes;
        at += data[3 + 2 * i];
        span[i].end_bytes = at < bytes ? at : (uint32_t)bytes;
    }
    const bool all = data[0] & 2;
    const int count = tokenizer_encode(t, text, bytes, all ? NULL : span, all ? TOKENIZER_ALL_TRUSTED : spans, ids, sizeof ids / sizeof *ids);
    must(count >= 0);
    for (int i = 0; i < count; i++) {
        must(ids[i] < tokenizer_vocab_count(t));
        must(all || spans > 0 || !tokenizer_is_special(t, ids[i]));
    }
    if (t == tokenizers[0]) check_round_trip(t, text, bytes, ids, count);
    if (count > 0) must(tokenizer_encode(t, text, bytes, all ? NULL : span, all ? TOKENIZER_ALL_TRUSTED : spans, fewer, (size_t)count - 1) < 0);
    return 0;
}
