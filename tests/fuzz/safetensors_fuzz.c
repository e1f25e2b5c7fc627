/* tests/fuzz/safetensors_fuzz.c - any bytes as a safetensors file: no crash, and every tensor of an accepted file lies inside it. */
#include "model/safetensors.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors index;
    struct model_error err;
    uint8_t *file = NULL;

    if (posix_memalign((void **)&file, 64, size + 1) != 0) return 0;
    memcpy(file, data, size);
    safetensors_init(&index);
    if (safetensors_add(&index, "fuzz", 0, file, size, &err) == 0 && safetensors_finish(&index, &err) == 0) {
        for (uint32_t i = 0; i < index.count; i++) {
            const struct tensor *t = &index.tensor[i];
            const uint8_t *begin = t->data;
            volatile uint8_t sink;

            if (begin < file || t->byte_count > size || begin + t->byte_count > file + size) abort();
            if (t->byte_count > 0) sink = begin[0], sink = begin[t->byte_count - 1], (void)sink;
            if (safetensors_find(&index, t->name) != t) abort();
        }
    }
    safetensors_free(&index);
    free(file);
    return 0;
}
