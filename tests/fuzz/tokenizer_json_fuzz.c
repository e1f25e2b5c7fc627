/* tests/fuzz/tokenizer_json_fuzz.c - a damaged tokenizer.json is refused or works, nothing else.
 *
 * The first byte chooses: 0, the input is the file; else it is a list of edits of a small valid
 * file (place, bytes to remove, bytes to put there), which reaches far more than random text.
 * What opens must encode and decode. Run from the repository root. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/detok.h"
#include "model/tokenizer.h"
#include "shm/must.h"

#define BASE_BYTES 65536
#define EDITS_MAX  16

static char base[BASE_BYTES];
static size_t base_bytes;

static void try_file(const char *json, size_t bytes)
{
    static const char text[] = "the [L] a b  <s>words word \xF0\x9F\x8C\x8D\n\n\xE6\x97\xA5\xE6\x9C\xAC nw [R] \xFF abcd";
    struct tokenizer *t;
    char err[128], out[DETOK_BYTES_MAX];
    uint32_t ids[512];
    struct detok d;

    if (tokenizer_open(&t, json, bytes, err, sizeof err) != 0) {
        must(!t && err[0] != 0);
        return;
    }
    const int count = tokenizer_encode(t, text, sizeof text - 1, NULL, TOKENIZER_ALL_TRUSTED, ids, 512);
    must(count >= 0);
    detok_init(&d);
    for (int i = 0; i < count; i++) must(detok_feed(&d, t, ids[i], out, sizeof out, 0) >= 0);
    must(detok_flush(&d, out, sizeof out) >= 0);
    tokenizer_close(t);
}

static void try_edits(const uint8_t *data, size_t size)
{
    char *copy = malloc(BASE_BYTES + EDITS_MAX * 64), *exact;
    size_t bytes = base_bytes;

    must(copy);
    memcpy(copy, base, base_bytes);
    for (int edit = 0; edit < EDITS_MAX && size >= 4; edit++) {
        const size_t at = (data[0] | (size_t)data[1] << 8) % (bytes + 1);
        const size_t removed = data[2] < bytes - at ? data[2] : bytes - at;
        size_t added = data[3] % 64;
        data += 4;
        size -= 4;
        if (added > size) added = size;
        memmove(copy + at + added, copy + at + removed, bytes - at - removed);
        memcpy(copy + at, data, added);
        bytes += added - removed;
        data += added;
        size -= added;
    }
    exact = malloc(bytes + 1); /* its own block: reading past the end is seen */
    must(exact);
    memcpy(exact, copy, bytes);
    try_file(exact, bytes);
    free(exact);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (base_bytes == 0) {
        FILE *f = fopen("tests/golden/tokenizer/flags.json", "rb");
        must(f);
        base_bytes = fread(base, 1, sizeof base, f);
        must(base_bytes > 0 && base_bytes < sizeof base);
        fclose(f);
    }
    if (size == 0) return 0;
    if (data[0] == 0) try_file((const char *)data + 1, size - 1);
    else              try_edits(data + 1, size - 1);
    return 0;
}
