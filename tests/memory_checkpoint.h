/* tests/memory_checkpoint.h - one safetensors file in memory with a given list of tensors, opened: for tests of a model's side towers,
 * whose tensors synthetic.h does not know. Fails the test by cmocka. */
#ifndef SLUICE_TESTS_MEMORY_CHECKPOINT_H
#define SLUICE_TESTS_MEMORY_CHECKPOINT_H

#include "kernels/bf16.h"
#include "model/safetensors.h"
#include "tests/synthetic.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct memory_tensor { char name[160]; const char *rule; uint32_t rows, columns; };   /* rule: what its values depend on; columns 0: a vector */
struct memory_checkpoint { uint8_t *bytes; uint64_t count; struct safetensors index; };

/* Values are value(&list[i], index), stored as F32 or rounded to BF16. */
static inline void memory_checkpoint_make(struct memory_checkpoint *c, const struct memory_tensor *list, uint32_t count, bool f32,
                                          float (*value)(const struct memory_tensor *, uint64_t))
{
    static char header[1 << 16];
    struct model_error err = {""};
    uint64_t at = 0, n = (uint64_t)snprintf(header, sizeof header, "{");

    for (uint32_t i = 0; i < count; i++) {
        const uint64_t bytes = (uint64_t)list[i].rows * (list[i].columns ? list[i].columns : 1) * (f32 ? 4 : 2);

        n += (uint64_t)snprintf(header + n, sizeof header - n, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", i ? "," : "", list[i].name, f32 ? "F32" : "BF16", list[i].rows);
        if (list[i].columns) n += (uint64_t)snprintf(header + n, sizeof header - n, ",%u", list[i].columns);
        n += (uint64_t)snprintf(header + n, sizeof header - n, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at, (unsigned long long)(at + bytes));
        at += bytes;
    }
    n += (uint64_t)snprintf(header + n, sizeof header - n, "}");
    while (n % 8) header[n++] = ' ';
    c->count = 8 + n + at;
    c->bytes = malloc(c->count);
    memcpy(c->bytes, &n, 8);
    memcpy(c->bytes + 8, header, n);
    uint8_t *to = c->bytes + 8 + n;
    for (uint32_t i = 0; i < count; i++)
        for (uint64_t k = 0; k < (uint64_t)list[i].rows * (list[i].columns ? list[i].columns : 1); k++) {
            const float v = value(&list[i], k);
            const uint16_t narrow = bf16_of(v);

            memcpy(to, f32 ? (const void *)&v : (const void *)&narrow, f32 ? 4 : 2);
            to += f32 ? 4 : 2;
        }
    safetensors_init(&c->index);
    if (safetensors_add(&c->index, "test", 0, c->bytes, c->count, &err) != 0 || safetensors_finish(&c->index, &err) != 0) fail_msg("%s", err.text);
}

static inline void memory_checkpoint_free(struct memory_checkpoint *c)
{
    safetensors_free(&c->index);
    free(c->bytes);
}

#endif
