/* tests/gpu/soft_test.c - soft tokens made on the device (kernels/cuda/soft_make.h) against model/soft.c: EQUAL bits, in every format of the matrices.
 *
 * Pictures of random pixels, of one colour (LayerNorm then divides by next to nothing), of few levels; sounds; small sizes and Gemma 4 12B's, whose time is
 * printed. Run from the top of the repository. Exit 0 pass, 1 fail, 77 no GPU. */
#include "kernels/cuda/soft_make.h"
#include "model/engine.h"
#include "shm/error.h"
#include "tests/gpu/check.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROWS_MAX 1200u
#define TIMED 5

static uint32_t word_state = 2463534242u;

static uint32_t next_word(void)
{
    word_state ^= word_state << 13;
    word_state ^= word_state >> 17;
    return word_state ^= word_state << 5;
}

/* ---- matrices in other formats than the random weights' BF16; never freed ------------------------ */

static void to_f32(struct stored_matrix *m)
{
    const uint64_t n = (uint64_t)m->rows * m->k;
    float *data = malloc(n * sizeof *data);

    for (uint64_t i = 0; i < n; i++) data[i] = stored_from_bf16(((const uint16_t *)m->data)[i]);
    m->data = data;
    m->element = STORED_F32;
}

/* Random codes and scales of the size that the values had. scale_rows, scale_columns: as in kernels/stored.h. */
static void to_fp8(struct stored_matrix *m, uint32_t scale_rows, uint32_t scale_columns)
{
    const uint64_t n = (uint64_t)m->rows * m->k;
    uint8_t *data = malloc(n);

    m->element = STORED_E4M3;
    m->scale_rows = scale_rows;
    m->scale_columns = scale_columns;
    const uint64_t scales = (uint64_t)((m->rows + scale_rows - 1) / scale_rows) * stored_scale_stride(m);
    float *scale = malloc(scales * sizeof *scale);
    for (uint64_t i = 0; i < n; i++) data[i] = (uint8_t)((next_word() & 0x80) | (next_word() % 0x70));
    for (uint64_t i = 0; i < scales; i++) scale[i] = 1e-3f * (1.0f + (float)(next_word() % 1000) * 1e-3f);
    m->data = data;
    m->scale = scale;
}

static void to_fp4(struct stored_matrix *m, uint32_t divides)
{
    const uint64_t n = (uint64_t)m->rows * m->k;
    uint8_t *data = malloc(n / 2), *group = malloc(n / STORED_GROUP);

    for (uint64_t i = 0; i < n / 2; i++) data[i] = (uint8_t)next_word();
    for (uint64_t i = 0; i < n / STORED_GROUP; i++) group[i] = (uint8_t)(0x30 + next_word() % 16);
    m->element = STORED_E2M1;
    m->scale_rows = 1;
    m->scale_columns = STORED_GROUP;
    m->data = data;
    m->group_scale = group;
    m->global = divides ? 93.7f : 0.0107f;
    m->global_divides = divides;
}

static void convert(struct stored_matrix *m, const char *format)
{
    if (!m->data) return;
    if (strcmp(format, "f32") == 0) to_f32(m);
    else if (strcmp(format, "fp8-row") == 0) to_fp8(m, 1, m->k);
    else if (strcmp(format, "fp8-tensor") == 0) to_fp8(m, m->rows, m->k);
    else if (strcmp(format, "fp8-block") == 0) to_fp8(m, STORED_BLOCK, STORED_BLOCK);
    else if (strcmp(format, "fp4") == 0) to_fp4(m, m->rows % 32 == 0);
}

/* ---- a case ------------------------------------------------------------------------------------------ */

static void draw(uint8_t *blocks, uint32_t rows, uint32_t kind)
{
    for (uint64_t i = 0; i < (uint64_t)rows * PICTURE_PATCH_BYTES; i++)
        blocks[i] = kind == 0 ? (uint8_t)next_word() : kind == 1 ? 77 : (uint8_t)(200 + (next_word() % 64 == 0));
}

static uint64_t compare(const float *want, const float *got, uint64_t n)
{
    uint64_t wrong = 0;

    for (uint64_t i = 0; i < n; i++) wrong += memcmp(&want[i], &got[i], sizeof *want) != 0 || want[i] != want[i];
    return wrong;
}

struct run { const struct soft_weights *w; struct soft_make *make; float *device, *got, *want, *scratch; };

static int check(struct run *r, const char *name, const struct cuda_prefill_piece *pieces, uint32_t count)
{
    const struct soft_config *c = &r->w->config;
    uint64_t wrong = 0, all = 0;

    cuda_ok(cudaMemset(r->device, 0xff, ROWS_MAX * (uint64_t)c->hidden * sizeof(float)), "clear");
    ok(soft_make_take(r->make, pieces, count, NULL), "take");
    for (int more = 1; more > 0;) ok(more = soft_make_go(r->make, r->device, NULL), "go");
    cuda_ok(cudaMemcpy(r->got, r->device, ROWS_MAX * (uint64_t)c->hidden * sizeof(float), cudaMemcpyDeviceToHost), "copy");
    for (uint32_t i = 0; i < count; i++) {
        const struct cuda_prefill_piece *p = &pieces[i];
        if (p->columns) ok(soft_picture(r->w, kernels_get(KERNELS_BEST), p->data, p->rows, 0, p->columns, r->scratch, r->want), "picture");
        else ok(soft_sound(r->w, kernels_get(KERNELS_BEST), p->data, p->rows, r->scratch, r->want), "sound");
        wrong += compare(r->want, r->got + (uint64_t)p->first_row * c->hidden, (uint64_t)p->rows * c->hidden);
        all += (uint64_t)p->rows * c->hidden;
    }
    if (wrong) printf("  %s: %llu of %llu numbers differ\n", name, (unsigned long long)wrong, (unsigned long long)all);
    return wrong != 0;
}

static void time_picture(struct run *r, const struct cuda_prefill_piece *piece)
{
    double best = 1e9, taken = 1e9;

    for (int i = 0; i < TIMED; i++) {
        const double begin = now_ms();
        ok(soft_make_take(r->make, piece, 1, NULL), "take");
        cuda_ok(cudaDeviceSynchronize(), "take");
        const double sent = now_ms();
        ok(soft_make_go(r->make, r->device, NULL), "go");
        cuda_ok(cudaDeviceSynchronize(), "go");
        const double end = now_ms();
        if (end - begin < best) best = end - begin, taken = sent - begin;
    }
    printf("  a picture of %u soft tokens: %.2f ms, %.2f of them to send it\n", piece->rows, best, taken);
}

static int run_case(const char *name, const struct soft_config *config, const char *format, uint32_t rows, uint32_t columns, bool timed)
{
    struct soft_weights w;
    struct cuda_soft_weights described;
    struct run r = {.w = &w};
    int bad = 0;

    ok(soft_weights_random(&w, config), "weights");
    convert(&w.dense, format);
    convert(&w.projection, format);
    convert(&w.audio_projection, format);
    engine_describe_soft(&described, &w);
    ok(soft_make_open(&r.make, &described, ROWS_MAX), "open");
    cuda_ok(cudaMalloc((void **)&r.device, ROWS_MAX * (uint64_t)config->hidden * sizeof(float)), "memory");
    r.got = malloc(ROWS_MAX * (uint64_t)config->hidden * sizeof(float));
    r.want = malloc(ROWS_MAX * (uint64_t)config->hidden * sizeof(float));
    r.scratch = malloc(soft_scratch_floats(config, ROWS_MAX) * sizeof(float));
    uint8_t *blocks = malloc((uint64_t)rows * PICTURE_PATCH_BYTES);
    float *frames = malloc(9ull * config->audio_frame * sizeof *frames);
    for (uint32_t i = 0; i < 9 * config->audio_frame; i++) frames[i] = (float)((int32_t)next_word() >> 16) * 0x1p-15f;
    for (uint32_t kind = 0; kind < 3; kind++) {
        draw(blocks, rows, kind);
        const struct cuda_prefill_piece pieces[] = {{.first_row = 7, .rows = rows, .sees_ahead = 1, .data = blocks, .columns = columns}, {.first_row = rows + 8, .rows = 9, .data = frames},
                                                    {.first_row = rows + 20, .rows = 1, .sees_ahead = 1, .data = blocks, .columns = 1}};
        bad |= check(&r, name, pieces, config->audio_frame ? 3 : 1);
        if (timed && kind == 2) time_picture(&r, &pieces[0]);
    }
    printf("%s %s: %s\n", bad ? "FAIL" : "ok  ", name, format);
    soft_make_close(r.make);
    cudaFree(r.device);
    soft_weights_free(&w);
    free(r.got), free(r.want), free(r.scratch), free(blocks), free(frames);
    return bad;
}

int main(void)
{
    static const char *const formats[] = {"bf16", "f32", "fp8-row", "fp8-tensor", "fp8-block", "fp4"};
    const struct soft_config small = {.hidden = 96, .picture_dim = 64, .picture_positions = 40, .picture_eps = 1e-6f, .audio_frame = 640, .audio_eps = 1e-6f};
    const struct soft_config odd = {.hidden = 208, .picture_dim = 352, .picture_positions = 1120, .picture_eps = 1e-5f, .audio_frame = 0, .audio_eps = 1e-6f};
    const struct soft_config real = {.hidden = 3840, .picture_dim = 3840, .picture_positions = 1120, .picture_eps = 1e-6f, .audio_frame = 640, .audio_eps = 1e-6f};
    int count = 0, bad = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        printf("skip: no GPU\n");
        return 77;
    }
    for (uint32_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        bad |= run_case("small", &small, formats[i], 6, 3, false);
        bad |= run_case("odd, two batches", &odd, formats[i], 1110, 37, false);
    }
    bad |= run_case("12B", &real, "bf16", 264, 22, true);
    bad |= run_case("12B, large budget", &real, "fp8-row", 1080, 40, true);
    return bad;
}
