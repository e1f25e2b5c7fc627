/* tests/fuzz/image_fuzz.c - a picture file of unknown origin: what is accepted has the size that its header claimed, within the limits. */
#include "schemas/image.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const struct image_limits limits = {.side_max = 1024, .pixels_max = 1 << 18, .scans_max = 20};
    char why[IMAGE_ERROR_BYTES] = "";
    struct image_info info;
    struct image image = {0};

    if (image_probe(data, bytes, &limits, &info, why) != 0) {
        if (!why[0]) abort();
        return 0;
    }
    const uint32_t least = bytes % 3 ? 0 : 16;
    if (image_decode(data, bytes, &limits, &info, least, least, &image, why) != 0) {
        if (!why[0] || image.rgb) abort();
        return 0;
    }
    if (image.width > limits.side_max || image.height > limits.side_max || (uint64_t)image.width * image.height > limits.pixels_max) abort();
    free(image.rgb);
    return 0;
}
