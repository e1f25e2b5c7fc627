/* tests/fuzz/media_fuzz.c - base64, data URLs and a record of files from anywhere: what is accepted lies within what was given. */
#include "schemas/media.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *text = (const char *)data, *part;
    size_t text_bytes = 0, out_bytes = 0;
    uint8_t *out, *area;
    uint64_t at = 0;
    struct media_file_hdr hdr;
    const uint8_t *file;

    if (media_base64(text, bytes, &out, &out_bytes) == 0) {
        if (out_bytes > bytes / 4 * 3 + 3) abort();
        free(out);
    }
    part = media_data_url(text, bytes, &text_bytes);
    if (part && (part < text || (size_t)(part - text) > bytes || text_bytes != bytes - (size_t)(part - text))) abort();
    area = malloc(bytes + 1); /* a copy of its own size: a step too far is seen */
    memcpy(area, data, bytes);
    while (media_next(area, bytes, &at, &hdr, &file) == 0) {
        volatile uint8_t sum = 0;
        for (uint64_t i = 0; i < hdr.bytes; i++) sum = (uint8_t)(sum + file[i]);
    }
    free(area);
    return 0;
}
