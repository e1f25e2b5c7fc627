/* bench/siglip_bench.c - time of a picture through Gemma 3's vision tower at its real size, 896 x 896 pixels.
 *
 *   build/bench/siglip_bench [--threads N] [--layers N]      (all CPUs; 2 of the 27 layers, from which the whole is reckoned)
 *
 * Random weights, BF16 matrices. Wall time and CPU time of the process: where others use the machine, CPU time / threads is what it would take alone. */
#include "model/siglip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REAL_LAYERS 27u
#define IMAGE 896u
#define PATCH 14u
#define HIDDEN 1152u
#define INNER 4304u
#define TEXT 3840u

static double seconds(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t state = 1;

static uint32_t draw(void)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 40);
}

static float *numbers(uint64_t count, float middle)
{
    float *x = malloc(count * sizeof *x);

    for (uint64_t i = 0; x && i < count; i++) x[i] = middle + ((float)draw() * 0x1p-24f - 0.5f) * 0.1f;
    return x;
}

static struct stored_matrix matrix(uint32_t rows, uint32_t k)
{
    uint16_t *codes = malloc((uint64_t)rows * k * sizeof *codes);

    for (uint64_t i = 0; codes && i < (uint64_t)rows * k; i++) codes[i] = (uint16_t)(0x3c00 + draw() % 0x100 + (draw() & 1) * 0x8000);   /* about 0.01, both signs */
    return (struct stored_matrix){.data = codes, .rows = rows, .k = k, .element = STORED_BF16};
}

static void fill(struct siglip_weights *w, uint32_t layers)
{
    w->config = (struct siglip_config){.image = IMAGE, .patch = PATCH, .side = IMAGE / PATCH, .hidden = HIDDEN, .inner = INNER, .heads = 16, .layers = layers, .tokens_side = 16,
                                       .text_hidden = TEXT, .eps = 1e-6f};
    w->patch = numbers((uint64_t)HIDDEN * 592, 0);      /* 14 x 14 x 3 rounded up to a whole number of lanes */
    w->position = numbers((uint64_t)64 * 64 * HIDDEN, 0);
    w->projection = numbers((uint64_t)TEXT * HIDDEN, 0);
    w->patch_bias = w->post_bias = numbers(HIDDEN, 0);
    w->post_weight = w->norm = numbers(HIDDEN, 1);
    for (uint32_t i = 0; i < layers; i++)
        w->layer[i] = (struct siglip_layer){w->norm, w->patch_bias, w->norm, w->patch_bias, w->patch_bias, w->patch_bias, w->patch_bias, w->patch_bias, numbers(INNER, 0), w->patch_bias,
                                            matrix(HIDDEN, HIDDEN), matrix(HIDDEN, HIDDEN), matrix(HIDDEN, HIDDEN), matrix(HIDDEN, HIDDEN), matrix(INNER, HIDDEN), matrix(HIDDEN, INNER)};
}

int main(int argc, char **argv)
{
    static struct siglip_weights w[2];      /* memory is the process's until its end */
    uint8_t *rgb = malloc((uint64_t)IMAGE * IMAGE * 3);
    float *out = malloc(256ull * TEXT * sizeof *out);
    uint32_t threads = 0, layers = 2;
    double wall[2], cpu[2];
    struct siglip *s;
    struct pool *pool;

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0) threads = (uint32_t)atoi(argv[i + 1]);
        if (strcmp(argv[i], "--layers") == 0) layers = (uint32_t)atoi(argv[i + 1]);
    }
    if (!rgb || !out || layers < 2 || layers > REAL_LAYERS || pool_open(&pool, threads, 0) != 0) return 1;
    for (uint32_t i = 0; i < IMAGE * IMAGE * 3; i++) rgb[i] = (uint8_t)draw();
    fill(&w[0], 1);
    fill(&w[1], layers);
    for (int run = 0; run < 2; run++) {
        if (siglip_open(&s, &w[run], kernels_get(KERNELS_BEST), pool) != 0) return 1;
        wall[run] = seconds(CLOCK_MONOTONIC);
        cpu[run] = seconds(CLOCK_PROCESS_CPUTIME_ID);
        siglip_embed(s, rgb, out);
        wall[run] = seconds(CLOCK_MONOTONIC) - wall[run];
        cpu[run] = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu[run];
        siglip_close(s);
    }
    const double layer = (wall[1] - wall[0]) / (layers - 1), layer_cpu = (cpu[1] - cpu[0]) / (layers - 1), n = 4096;
    const double flops = 2 * n * (4.0 * HIDDEN * HIDDEN + 2.0 * HIDDEN * INNER + 2 * n * HIDDEN);
    printf("%s kernels, %u threads, %.0f MB beside the weights\n", kernels_get(KERNELS_BEST)->name, pool_threads(pool), (double)siglip_bytes(&w[0].config, pool_threads(pool)) * 1e-6);
    printf("a layer: %.2f s (%.2f s of CPU, %.1f GFLOP/s a thread); the rest: %.2f s; %u layers: %.1f s, %.1f s of CPU\n", layer, layer_cpu, flops / layer_cpu * 1e-9, wall[0] - layer,
           REAL_LAYERS, wall[0] + layer * (REAL_LAYERS - 1), cpu[0] + layer_cpu * (REAL_LAYERS - 1));
    pool_close(pool);
    return 0;
}
