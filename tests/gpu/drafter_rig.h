/* tests/gpu/drafter_rig.h - what the tests of the GPU's drafters share: a message for every check, random weights that FP8 holds exactly, memory on both sides.
 * For programs of one file: each has its own copy. A check that fails is counted; what cannot be gone on from ends the program. */
#ifndef SLUICE_TESTS_GPU_DRAFTER_RIG_H
#define SLUICE_TESTS_GPU_DRAFTER_RIG_H

#include "kernels/bf16.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_weights.h"
#include "kernels/stored.h"
#include "model/features.h"
#include "shm/error.h"
#include "tests/gpu/check.h"
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

static inline void expect(bool fine, const char *format, ...)
{
    va_list args;

    if (!fine) failures++;
    va_start(args, format);
    printf("%s  ", fine ? "ok  " : "FAIL");
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

static uint64_t random_state = 88172645463325252ull;

static inline uint32_t next_word(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static inline float uniform(void) { return (float)next_word() / 2147483648.0f - 1.0f; }

static inline void *room(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);

    if (!p) die("out of memory");
    return p;
}

/* Outputs of `sources` layers at every position of every place: their rows in f->base, as the target leaves them; returns [places][context][sources * hidden] as those rows mean it. */
static inline float *make_features(struct features *f, uint32_t places, uint32_t context, uint32_t hidden, uint32_t sources, uint32_t element_bytes, uint64_t layers, uint32_t generation)
{
    const uint64_t floats = (uint64_t)sources * hidden;

    features_init_device(f, places, context, context, hidden, sources + 1, element_bytes);
    f->base = room(features_bytes(f));
    memset(f->base, 0, features_bytes(f));
    float *outputs = room(places * context * floats * sizeof(float));
    for (uint32_t p = 0; p < places; p++)
        for (uint32_t t = 0; t < context; t++) {
            struct feature_row *row = (struct feature_row *)(f->base + features_offset(f, p, t));
            float *out = outputs + ((uint64_t)p * context + t) * floats;
            for (uint64_t i = 0; i < floats; i++) {
                const float x = 3 * uniform();
                out[i] = element_bytes == 4 ? x : bf16_round(x);
                if (element_bytes == 4) ((float *)(row + 1))[i] = x;
                else ((uint16_t *)(row + 1))[i] = bf16_of(x);
            }
            row->layers = layers;
            row->of = features_whose(generation + p, t);
        }
    return outputs;
}

static inline void *to_device(const void *from, uint64_t bytes)
{
    void *device;

    cuda_ok(cudaMalloc(&device, bytes), "memory");
    cuda_ok(cudaMemcpy(device, from, bytes, cudaMemcpyHostToDevice), "copy");
    return device;
}

/* Values that E4M3 with one scale per row holds exactly: few bits, and the row's largest is 448 times the scale. */
static inline struct stored_matrix make_matrix(uint32_t rows, uint32_t k)
{
    uint16_t *data = room((uint64_t)rows * k * 2);
    const float scale = exp2f(-floorf(log2f(sqrtf((float)k))) - 8);

    for (uint64_t row = 0; row < rows; row++) {
        for (uint64_t i = 0; i < k; i++) {
            const float size = exp2f((float)(next_word() % 5) + 3) * (1 + (float)(next_word() % 8) / 8);
            data[row * k + i] = bf16_of((next_word() & 1 ? size : -size) * scale);
        }
        data[row * k + next_word() % k] = bf16_of(448 * scale);
    }
    return (struct stored_matrix){.data = data, .rows = rows, .k = k, .element = STORED_BF16};
}

static inline float *make_vector(uint32_t count, float around)
{
    float *v = room(count * sizeof *v);

    for (uint32_t i = 0; i < count; i++) v[i] = bf16_round(around * (1 + 0.25f * uniform()));
    return v;
}

static inline double difference(const float *a, const float *b, uint32_t count)
{
    double sum = 0, own = 0;

    for (uint32_t i = 0; i < count; i++) sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]), own += (double)b[i] * b[i];
    return sqrt(sum / own);
}

/* A target of which only the embedding table matters: its weights' memory, with `bytes` of BF16 there. finished: as a loader ends; packed weights that nobody wrote are left alone otherwise. */
static inline void *load_table(const struct cuda_model_spec *spec, const uint16_t *rows, uint64_t bytes, bool finished)
{
    struct cuda_weights *weights;
    void *target, *table = to_device(rows, bytes);

    cuda_ok(cudaMalloc(&target, cuda_weights_bytes(spec)), "memory");
    ok(cuda_weights_open(&weights, spec, target), "weights");
    ok(cuda_weights_load(weights, CUDA_EMBED, 0, table, WEIGHT_BF16, NULL, 0), "table");
    if (finished) ok(cuda_weights_finish(weights), "table");
    cuda_weights_close(weights);
    cuda_ok(cudaFree(table), "memory");
    return target;
}

#endif
