/* tests/gpu/tower_test.c - the vision tower on the device (kernels/cuda/tower.h) against model/siglip.c on the same bf16 weights.
 *
 * Small towers of odd sizes, Gemma 3's sizes with two layers, and its 27 layers for the time. The device rounds operands to bf16, the CPU computes in f32:
 * the relative error of a soft token stays below a bound that grows with the layers. Twice the same picture, alone and beside another: the same bits.
 * Run from the top of the repository. Exit 0 pass, 1 fail, 77 no GPU.
 *   cuda_tower_test [NAME]      NAME: only the case of that name */
#include "kernels/cuda/tower.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/pool.h"
#include "model/siglip.h"
#include "shm/error.h"
#include "tests/gpu/check.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t state = 88172645463325252ull;

static uint32_t next_word(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

/* ---- random weights; never freed ------------------------------------------------------------------ */

static float noise(void) { return (float)((int32_t)next_word()) * 0x1p-31f; }

static const float *vector(uint64_t n, float base, float amplitude)
{
    float *v = malloc(n * sizeof *v);

    for (uint64_t i = 0; i < n; i++) v[i] = base + amplitude * noise();
    return v;
}

static struct stored_matrix matrix(uint32_t rows, uint32_t k)
{
    uint16_t *data = malloc((uint64_t)rows * k * sizeof *data);
    const float amplitude = 1.7f / sqrtf((float)k);

    for (uint64_t i = 0; i < (uint64_t)rows * k; i++) {
        const float v = amplitude * noise();
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        data[i] = (uint16_t)(bits >> 16);
    }
    return (struct stored_matrix){.element = STORED_BF16, .rows = rows, .k = k, .data = data};
}

static struct siglip_weights *make_weights(struct siglip_config c)
{
    const uint32_t h = c.hidden, values = c.patch * c.patch * 3, room = (values + KERNELS_LANES - 1) / KERNELS_LANES * KERNELS_LANES;
    struct siglip_weights *w = calloc(1, sizeof *w);
    float *patch = calloc((uint64_t)h * room, sizeof *patch);

    c.side = c.image / c.patch;
    w->config = c;
    for (uint32_t n = 0; n < h; n++)
        for (uint32_t i = 0; i < values; i++) patch[(uint64_t)n * room + i] = 1.7f / sqrtf((float)values) * noise();
    w->patch = patch;
    w->patch_bias = vector(h, 0, 0.1f);
    w->position = vector((uint64_t)c.side * c.side * h, 0, 0.5f);
    w->post_weight = vector(h, 1, 0.1f), w->post_bias = vector(h, 0, 0.1f), w->norm = vector(h, 1, 0.1f);
    w->projection = vector((uint64_t)c.text_hidden * h, 0, 1.7f / sqrtf((float)h));
    for (uint32_t i = 0; i < c.layers; i++) {
        struct siglip_layer *l = &w->layer[i];
        l->ln1_weight = vector(h, 1, 0.1f), l->ln1_bias = vector(h, 0, 0.1f), l->ln2_weight = vector(h, 1, 0.1f), l->ln2_bias = vector(h, 0, 0.1f);
        l->q_bias = vector(h, 0, 0.1f), l->k_bias = vector(h, 0, 0.1f), l->v_bias = vector(h, 0, 0.1f), l->out_bias = vector(h, 0, 0.1f), l->fc2_bias = vector(h, 0, 0.1f);
        l->fc1_bias = vector(c.inner, 0, 0.1f);
        l->q = matrix(h, h), l->k = matrix(h, h), l->v = matrix(h, h), l->out = matrix(h, h), l->fc1 = matrix(c.inner, h), l->fc2 = matrix(h, c.inner);
    }
    return w;
}

/* ---- a case --------------------------------------------------------------------------------------------- */

struct rig { struct tower *tower; float *device, *got; uint32_t tokens, hidden, rows_max; };

/* Pictures at rows 3, 3 + tokens, ..; their soft tokens in g->got. */
static double run(struct rig *g, uint8_t *const *pictures, uint32_t count)
{
    struct cuda_prefill_piece piece[2];
    const uint64_t bytes = (uint64_t)g->rows_max * g->hidden * sizeof(float);

    for (uint32_t i = 0; i < count; i++) piece[i] = (struct cuda_prefill_piece){.first_row = 3 + i * g->tokens, .rows = g->tokens, .sees_ahead = 1, .data = pictures[i], .columns = 1};
    cuda_ok(cudaMemset(g->device, 0xff, bytes), "clear");
    const double begin = now_ms();
    ok(tower_take(g->tower, piece, count, NULL), "take");
    for (int more = 1; more > 0;) ok(more = tower_go(g->tower, g->device, NULL), "go");
    cuda_ok(cudaDeviceSynchronize(), "tower");
    const double taken = now_ms() - begin;
    cuda_ok(cudaMemcpy(g->got, g->device, bytes, cudaMemcpyDeviceToHost), "copy");
    return taken;
}

static double worst_error(const float *want, const float *got, uint32_t tokens, uint32_t hidden)
{
    double worst = 0;

    for (uint32_t t = 0; t < tokens; t++) {
        double off = 0, all = 0;
        for (uint32_t i = 0; i < hidden; i++) {
            const double d = (double)got[(uint64_t)t * hidden + i] - (double)want[(uint64_t)t * hidden + i];
            off += d * d, all += (double)want[(uint64_t)t * hidden + i] * (double)want[(uint64_t)t * hidden + i];
        }
        const double e = sqrt(off / all);
        if (!(e <= worst)) worst = e;
    }
    return worst;
}

static const char *only;              /* NULL: all cases */

/* bound 0: only the time. */
static int run_case(const char *name, struct siglip_config config, double bound)
{
    if (only && strcmp(only, name) != 0) return 0;
    struct siglip_weights *w = make_weights(config);
    const struct siglip_config *c = &w->config;
    struct rig g = {.tokens = c->tokens_side * c->tokens_side, .hidden = c->text_hidden};
    uint8_t *pictures[2];
    int bad = 0;

    g.rows_max = 3 + 2 * g.tokens;
    const uint64_t row_floats = (uint64_t)g.tokens * g.hidden;
    ok(tower_open(&g.tower, w, g.rows_max), "open");
    cuda_ok(cudaMalloc((void **)&g.device, g.rows_max * (uint64_t)g.hidden * sizeof(float)), "memory");
    g.got = malloc(g.rows_max * (uint64_t)g.hidden * sizeof(float));
    float *want = malloc(row_floats * sizeof *want), *alone = malloc(row_floats * sizeof *alone);
    for (int i = 0; i < 2; i++) {
        pictures[i] = malloc((uint64_t)c->image * c->image * 3);
        for (uint64_t k = 0; k < (uint64_t)c->image * c->image * 3; k++) pictures[i][k] = (uint8_t)((k / 3 % c->image * (k % 3 + 1) / 2 + k / 3 / c->image) / 2 + next_word() % 64);
    }
    double ms = run(&g, pictures, 1);
    memcpy(alone, g.got + 3ull * g.hidden, row_floats * sizeof *alone);
    if (bound > 0) {
        struct siglip *s;
        struct pool *pool;
        ok(pool_open(&pool, 0, 0), "threads");
        ok(siglip_open(&s, w, kernels_get(KERNELS_BEST), pool), "siglip");
        siglip_embed(s, pictures[0], want);
        siglip_close(s);
        pool_close(pool);
        const double e = worst_error(want, alone, g.tokens, g.hidden);
        printf("  %s: relative error at most %.2e\n", name, e);
        bad |= !(e < bound);
    }
    uint8_t *const turned[2] = {pictures[1], pictures[0]};
    run(&g, turned, 2);
    if (memcmp(alone, g.got + (3ull + g.tokens) * g.hidden, row_floats * sizeof *alone) != 0) printf("  %s: other bits beside another picture\n", name), bad = 1;
    for (int i = 0; i < 3; i++) {
        const double again = run(&g, pictures, 1);
        if (again < ms) ms = again;
    }
    printf("%s %s: a picture in %.2f ms\n", bad ? "FAIL" : "ok  ", name, ms);
    tower_close(g.tower);
    cudaFree(g.device);
    return bad;
}

int main(int argc, char **argv)
{
    const struct siglip_config real = {.image = 896, .patch = 14, .hidden = 1152, .inner = 4304, .heads = 16, .layers = 27, .tokens_side = 16, .text_hidden = 3840, .eps = 1e-6f};
    struct siglip_config c;
    int count = 0, bad = 0;

    only = argc > 1 ? argv[1] : NULL;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        printf("skip: no GPU\n");
        return 77;
    }
    c = (struct siglip_config){.image = 112, .patch = 14, .hidden = 48, .inner = 80, .heads = 4, .layers = 2, .tokens_side = 4, .text_hidden = 64, .eps = 1e-6f};
    bad |= run_case("small", c, 2e-2);
    c = (struct siglip_config){.image = 140, .patch = 14, .hidden = 208, .inner = 336, .heads = 2, .layers = 3, .tokens_side = 5, .text_hidden = 96, .eps = 1e-6f};
    bad |= run_case("100 patches, heads of 104", c, 2e-2);
    c = (struct siglip_config){.image = 252, .patch = 14, .hidden = 288, .inner = 400, .heads = 4, .layers = 3, .tokens_side = 6, .text_hidden = 64, .eps = 1e-6f};
    bad |= run_case("324 patches, heads of 72", c, 2e-2);
    c = real, c.layers = 2;
    bad |= run_case("Gemma 3, two layers", c, 2e-2);
    bad |= run_case("Gemma 3", real, 0);
    return bad;
}
