/* tests/gpu/wide_test.cu - the products for 17 to 64 rows and for 33 to 128 against the product for 16, bit by bit; exit 0 pass, 1 fail, 77 no GPU.
 *
 * rowmm's own test holds it against f64 sums; here every row of every row count must have the bits that rowmm gives it in pieces of 16 rows,
 * in all three kinds of output and with both formats, launch after launch (a moving difference is a race). Outputs are poisoned before each launch.
 * --time: us a product instead, launch behind launch over 240 MB of weights at least. A shape's name as last argument: that one alone. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/rowmm_many.h"
#include "kernels/cuda/rowmm_wide.h"
#include "rows.cuh"
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
#define OK(x) do { const int r_ = (x); if (r_ < 0) { fprintf(stderr, "%s:%d %s: error %d (%s)\n", __FILE__, __LINE__, #x, r_, launch_error()); exit(1); } } while (0)

#define ROWS 128
#define WIDE -1                       /* whose product: rowmm_wide's, rowmm's, or rowmm_many's with the tile of that number */
#define SMALL -2
#define COPIES_BYTES 240000000ull     /* --time: weights that take turns, more than the L2 holds */
#define TIMED 60

struct shape { const char *name; uint32_t rows, k, kind; };

struct bench { struct packed_matrix w; uint16_t *x; float *x_power; uint8_t *out; float *tile_top; struct rowmm_ready ready; struct rowmm_tuning tuning; uint64_t row_bytes, slice_bytes; uint32_t columns, slices; };

static int launch(const struct bench *b, const struct shape *s, const struct packed_matrix *w, uint32_t first, uint32_t m, int whose)
{
    struct rowmm_args a = {};

    a.x = b->x + (uint64_t)first * s->k, a.x_power = b->x_power, a.out_power = s->kind == ROWMM_GEGLU ? b->x_power : NULL, a.out = b->out, a.out_stride = b->columns, a.out_slice_stride = (uint64_t)ROWS * b->columns;
    a.m = m, a.out_kind = s->kind, a.softcap = 30.0f, a.tile_top = b->tile_top;
    if (whose == SMALL) return rowmm_launch(w, a, &b->tuning, NULL);
    return whose == WIDE ? rowmm_wide_launch(w, a, &b->tuning, NULL) : rowmm_many_launch_tile(w, a, &b->ready, &b->tuning, (uint32_t)whose, NULL);
}

/* Rows first .. first + m - 1 of x, by either product; the bytes of each row's results: every slice's, then the tile maxima. */
static std::vector<std::vector<uint8_t>> product(const struct bench *b, const struct shape *s, uint32_t first, uint32_t m, int whose)
{
    const uint64_t out_bytes = b->slice_bytes * b->slices, top_bytes = 4ull * s->rows / 16;
    std::vector<uint8_t> raw(out_bytes), top(top_bytes * ROWS);
    std::vector<std::vector<uint8_t>> rows(m);

    CHECK(cudaMemset(b->out, 0xff, out_bytes));
    CHECK(cudaMemset(b->tile_top, 0xff, top.size()));
    OK(launch(b, s, &b->w, first, m, whose));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(raw.data(), b->out, out_bytes, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(top.data(), b->tile_top, top.size(), cudaMemcpyDeviceToHost));
    for (uint32_t r = 0; r < m; r++) {
        for (uint32_t i = 0; i < b->slices; i++) {
            const uint8_t *from = raw.data() + i * b->slice_bytes + r * b->row_bytes;
            rows[r].insert(rows[r].end(), from, from + b->row_bytes);
        }
        if (s->kind == ROWMM_LOGITS) rows[r].insert(rows[r].end(), top.data() + r * top_bytes, top.data() + (r + 1) * top_bytes);
    }
    return rows;
}

/* Rows of one launch that do not have the wanted bits. */
static uint32_t differences(const struct bench *b, const struct shape *s, const std::vector<std::vector<uint8_t>> &want, uint32_t first, uint32_t m, int whose)
{
    const std::vector<std::vector<uint8_t>> got = product(b, s, first, m, whose);
    uint32_t different = 0;

    for (uint32_t r = 0; r < m; r++) different += got[r] != want[first + r];
    return different;
}

static float time_us(const struct bench *b, const struct shape *s, uint32_t copies, uint32_t m, int whose)
{
    const uint64_t bytes = packed_bytes(b->w.format, s->rows, s->k);
    cudaEvent_t events[2];
    float best = 1e9f, ms;

    for (cudaEvent_t &e : events) CHECK(cudaEventCreate(&e));
    for (uint32_t round = 0; round < 3; round++) {
        CHECK(cudaEventRecord(events[0], NULL));
        for (uint32_t i = 0; i < TIMED; i++) {
            struct packed_matrix w = b->w;

            w.data += i % copies * bytes;
            OK(launch(b, s, &w, 0, m, whose));
        }
        CHECK(cudaEventRecord(events[1], NULL));
        CHECK(cudaEventSynchronize(events[1]));
        CHECK(cudaEventElapsedTime(&ms, events[0], events[1]));
        if (ms < best) best = ms;
    }
    for (cudaEvent_t &e : events) CHECK(cudaEventDestroy(e));
    return best * 1000 / TIMED;
}

static void time_all(const struct bench *b, const struct shape *s, uint32_t copies)
{
    printf("%-8s %6u x %5u %-5s us:", s->name, s->rows, s->k, b->w.format == WEIGHT_FP8 ? "fp8" : "bf16");
    for (uint32_t m : { 32u, 64u }) printf("  wide %u %.1f", m, time_us(b, s, copies, m, WIDE));
    for (uint32_t m : { 64u, 96u, 128u }) {
        printf("  many %u (%u)", m, rowmm_many_choice(&b->w, m, b->tuning.sm_count));
        for (int tile = 0; tile < (int)rowmm_many_tiles; tile++) printf(" %.1f", time_us(b, s, copies, m, tile));
    }
    printf("\n");
    fflush(stdout);
}

static int run(const struct shape *s, uint32_t format, uint32_t sms, bool timed)
{
    const uint64_t n = (uint64_t)s->rows * s->k, bytes = packed_bytes(format, s->rows, s->k);
    const uint32_t copies = timed ? (uint32_t)((COPIES_BYTES + bytes - 1) / bytes) : 1;
    struct bench b = {};
    uint16_t *source;
    float *scratch;
    std::vector<std::vector<uint8_t>> want;
    uint32_t different = 0, launches = 0, unset = 0;

    b.w.rows = s->rows, b.w.k = s->k, b.w.slice_k = packed_slice_k(s->k), b.w.format = format;
    b.slices = s->k / b.w.slice_k, b.columns = s->kind == ROWMM_GEGLU ? s->rows / 2 : s->rows;
    b.row_bytes = (s->kind == ROWMM_GEGLU ? 2ull : 4ull) * b.columns, b.slice_bytes = b.row_bytes * ROWS, b.tuning = { timed ? 11u : 10u, 3, 1, sms };
    CHECK(cudaMalloc((void **)&b.w.data, bytes * copies));
    CHECK(cudaMalloc(&b.ready.image, rowmm_ready_image_bytes(ROWS, s->k)));
    CHECK(cudaMalloc(&source, 2 * n));
    CHECK(cudaMalloc(&scratch, 4 * s->rows));
    CHECK(cudaMalloc(&b.x, 2ull * ROWS * s->k));
    CHECK(cudaMalloc(&b.out, b.slice_bytes * b.slices));
    CHECK(cudaMalloc(&b.tile_top, 4ull * ROWS * s->rows / 16));
    OK(fill_normal_launch(source, n, 1.0f / sqrtf((float)s->k), 100 + s->rows + format, NULL));
    OK(fill_normal_launch(b.x, (uint64_t)ROWS * s->k, 3.0f, 200 + s->k, NULL));
    CHECK(cudaMemset(b.x + 5 * s->k, 0, 2ull * s->k));
    CHECK(rows_make(b.x, (uint64_t)ROWS * s->k, format, &b.x_power));
    const struct pack_source from = { source, NULL, 0, WEIGHT_BF16, s->rows, 0, PACK_WHOLE, NULL };
    OK(pack_launch(&b.w, &from, scratch, NULL));
    for (uint32_t i = 1; i < copies; i++) CHECK(cudaMemcpy((void *)(b.w.data + i * bytes), b.w.data, bytes, cudaMemcpyDeviceToDevice));
    if (timed) time_all(&b, s, copies);
    for (uint32_t first = 0; first < ROWS && !timed; first += 16)
        for (std::vector<uint8_t> &row : product(&b, s, first, 16, SMALL)) want.push_back(row);
    for (uint32_t r = 0; r < want.size(); r++)
        for (uint64_t i = 0; i + 4 <= want[r].size(); i += 4) unset += memcmp(want[r].data() + i, "\xff\xff\xff\xff", 4) == 0;
    for (uint32_t m : { 17u, 24u, 31u, 32u, 33u, 40u, 48u, 63u, 64u, 1u, 32u, 64u, 32u, 64u })
        for (uint32_t first : { 0u, 7u, ROWS - m })
            if (!timed) different += differences(&b, s, want, first, m, WIDE), launches++;
    for (uint32_t m : { 33u, 64u, 65u, 96u, 127u, 128u, 1u, 40u, 128u })
        for (int tile = 0; tile < (int)rowmm_many_tiles; tile++)
            for (uint32_t first : { 0u, ROWS - m })
                if (!timed) different += differences(&b, s, want, first, m, tile), launches++;
    const int bad = different || unset;
    if (!timed) printf("%-4s %-8s %6u x %5u %-5s %u launches, rows with other bits: %u, values never written: %u\n", bad ? "FAIL" : "ok", s->name, s->rows, s->k,
           format == WEIGHT_FP8 ? "fp8" : "bf16", launches, different, unset);
    for (void *p : { (void *)b.w.data, (void *)source, (void *)scratch, (void *)b.x, (void *)b.out, (void *)b.tile_top, (void *)b.ready.image, (void *)b.x_power }) CHECK(cudaFree(p));
    return bad;
}

int main(int argc, char **argv)
{
    static const struct shape shapes[] = { { "qkv", 8192, 3840, ROWMM_PARTIAL }, { "qkv full", 8704, 3840, ROWMM_PARTIAL }, { "o", 3840, 4096, ROWMM_PARTIAL },
                                           { "o full", 3840, 8192, ROWMM_PARTIAL }, { "gate_up", 30720, 3840, ROWMM_GEGLU }, { "down", 3840, 15360, ROWMM_PARTIAL },
                                           { "head", 32768, 3840, ROWMM_LOGITS }, { "tiny", 64, 3840, ROWMM_PARTIAL } };
    const bool timed = argc > 1 && strcmp(argv[1], "--time") == 0;
    const char *only = argc > 1 + timed ? argv[1 + timed] : NULL;
    int count = 0, sms = 0, bad = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    OK(rowmm_init());
    OK(rowmm_wide_init());
    OK(rowmm_many_init());
    for (const struct shape &s : shapes)
        for (uint32_t format : { (uint32_t)WEIGHT_FP8, (uint32_t)WEIGHT_BF16 })
            if (only == NULL || strcmp(only, s.name) == 0) bad += run(&s, format, (uint32_t)sms, timed);
    return bad ? 1 : 0;
}
