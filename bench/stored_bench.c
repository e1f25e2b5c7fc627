/* bench/stored_bench.c - products of one thread with weights in each storage format: GB/s of stored bytes and weights per second.
 *
 *   build/bench/stored_bench [--kernels portable|avx2|avx512] [ROWS...]
 *
 * One matrix of 15360 x 3840 (a down or gate projection of gemma 4 12B), larger than the caches; CPU time of the thread, best of
 * several runs. One row of activations is a decode step, where memory is the limit; 64 are a prefill. */
#include "kernels/kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BENCH_N 15360u
#define BENCH_K 3840u
#define BENCH_ROWS_MAX 256u
#define BENCH_RUNS 5

struct format { const char *name; uint32_t element, scale_rows, scale_columns; };

static const struct format formats[] = {
    { "BF16", STORED_BF16, 0, 0 }, { "FP8 per row", STORED_E4M3, 1, BENCH_K }, { "FP8 128x128", STORED_E4M3, STORED_BLOCK, STORED_BLOCK },
    { "NVFP4", STORED_E2M1, 1, STORED_GROUP },
};

static double now_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void bench_one(const struct kernels *kernels, const struct format *format, const uint8_t *code, const float *scale, const uint8_t *group,
                      const float *x, float *y, uint32_t rows)
{
    const struct stored_matrix w = { .data = code, .scale = scale, .group_scale = group, .rows = BENCH_N, .k = BENCH_K, .scale_rows = format->scale_rows,
                                     .scale_columns = format->scale_columns, .element = format->element, .global = 1 };
    double best = 1e9;

    for (int run = 0; run < BENCH_RUNS; run++) {
        const double start = now_seconds();
        double took;

        if (format->element == STORED_BF16) kernels->linear(y, BENCH_N, x, BENCH_K, rows, code, KERNELS_BF16, BENCH_K, 0, BENCH_N);
        else kernels->linear_stored(y, BENCH_N, x, BENCH_K, NULL, rows, &w, 0, BENCH_N);
        took = now_seconds() - start;
        if (took < best) best = took;
    }
    printf("%-10s %4u rows  %8.3f ms  %6.2f GB/s of stored bytes  %7.2f G weights/s  %7.1f GFLOP/s\n", format->name, rows, best * 1e3,
           (double)stored_bytes(&w) / best * 1e-9, (double)BENCH_N * BENCH_K / best * 1e-9, 2.0 * BENCH_N * BENCH_K * rows / best * 1e-9);
}

int main(int argc, char **argv)
{
    static const char *const names[] = { "best", "portable", "avx2", "avx512" };
    uint8_t *code = aligned_alloc(64, 2ull * BENCH_N * BENCH_K), *group = aligned_alloc(64, (uint64_t)BENCH_N * BENCH_K / STORED_GROUP);
    float *scale = malloc(BENCH_N * sizeof(float)), *x = malloc((uint64_t)BENCH_ROWS_MAX * BENCH_K * sizeof(float)), *y = malloc((uint64_t)BENCH_ROWS_MAX * BENCH_N * sizeof(float));
    const struct kernels *kernels = kernels_get(KERNELS_BEST);
    int first = 1;

    if (argc > 2 && strcmp(argv[1], "--kernels") == 0) {
        for (int i = 0; i < 4; i++)
            if (strcmp(argv[2], names[i]) == 0) kernels = kernels_get((enum kernels_isa)i);
        first = 3;
    }
    if (!code || !group || !scale || !x || !y || !kernels) return 1;
    for (uint64_t i = 0; i < 2ull * BENCH_N * BENCH_K; i++) code[i] = (uint8_t)((i * 2654435761u >> 20) % 0x7f);
    memset(group, 0x38, (uint64_t)BENCH_N * BENCH_K / STORED_GROUP);
    for (uint32_t i = 0; i < BENCH_N; i++) scale[i] = 1e-3f;
    for (uint32_t i = 0; i < BENCH_ROWS_MAX * BENCH_K; i++) x[i] = (float)(i % 17) - 8;
    printf("%s kernels, one thread\n", kernels->name);
    for (int i = first; i < (argc > first ? argc : first + 3); i++) {
        const uint32_t rows = argc > first ? (uint32_t)atoi(argv[i]) : (uint32_t[]){ 1, 8, 64 }[i - first];

        for (uint32_t f = 0; f < sizeof(formats) / sizeof(formats[0]) && rows >= 1 && rows <= BENCH_ROWS_MAX; f++)
            bench_one(kernels, &formats[f], code, scale, group, x, y, rows);
    }
    free(code);
    free(group);
    free(scale);
    free(x);
    free(y);
    return 0;
}
