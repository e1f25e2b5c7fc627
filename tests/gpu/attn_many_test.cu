/* tests/gpu/attn_many_test.cu - attention for many sequences (attn_many.h) against attention for blocks of rows (attn.h), bit by bit; exit 0 pass, 1 fail, 77 no GPU.
 *
 * Both get the same q, k, v of the same rows and the same pages: outputs and the new keys and values in the pages must be equal, for lengths at and around every
 * border of chunks, spans and the window, for single rows and blocks of rows, with fewer rows than the launch has room for, and for caches of bf16 and E4M3. What no row may see holds NaN.
 * --time ROWS:CONTEXT,...: microseconds a layer of either, in a chain of layers whose keys do not stay in the L2. */
#include "kernels/cuda/attn_many.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include <cuda_runtime.h>
#include <random>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
#define OK(x) do { const int r_ = (x); if (r_ < 0) { fprintf(stderr, "%s:%d %s: error %d (%s)\n", __FILE__, __LINE__, #x, r_, launch_error()); exit(1); } } while (0)

#define ROWS STEP_ROWS_MAX
#define LAYERS 4u
#define RING_PAGES 34u
#define CONTEXT_MAX 4096u
#define SPANS_MAX 128u
#define ROPE_STRIDE 192u

struct kind { uint32_t d, kv_heads, window, turned, ring_pages, qkv; };

static const struct kind kinds[] = { { 256, 8, 1024, 128, RING_PAGES, 8192 }, { 512, 1, 0, 64, CONTEXT_MAX / ATTN_PAGE_TOKENS, 8704 } };

struct bench {
    const struct kind *kind;
    struct attn_args args;
    struct step_state *state;
    uint64_t layer_bytes, out_count;
    std::vector<uint32_t> pages;
    uint32_t sms;
    cudaStream_t stream;
};

__device__ __forceinline__ uint32_t hashed(uint64_t x)
{
    x ^= x >> 31, x *= 0x9e3779b97f4a7c15ull, x ^= x >> 29, x *= 0xbf58476d1ce4e5b9ull;
    return (uint32_t)(x >> 32);
}

/* K and V of positions [first, end) of a sequence, all layers and heads. One block per position. */
__global__ void fill_keys(attn_args a, uint32_t d, uint64_t layer_bytes, uint32_t layers, uint32_t seq, uint32_t first, bool poison)
{
    const uint32_t position = first + blockIdx.x;
    const uint64_t page = a.pages[(uint64_t)seq * a.pages_stride + position / ATTN_PAGE_TOKENS % a.ring_pages];

    for (uint32_t i = threadIdx.x; i < layers * 2 * a.kv_heads * d; i += blockDim.x) {
        const uint32_t e = i % d, head = i / d % a.kv_heads, half = i / d / a.kv_heads % 2, layer = i / d / a.kv_heads / 2;
        const uint64_t at = ((uint64_t)head * ATTN_PAGE_TOKENS + position % ATTN_PAGE_TOKENS) * d + e;
        uint8_t *to = a.arena + page * a.page_bytes + layer * layer_bytes + half * (layer_bytes / 2);
        const uint32_t h = hashed(((uint64_t)seq << 40) ^ ((uint64_t)position << 20) ^ i);

        const float x = ((float)(h & 0xffff) + (float)(h >> 16) - 65535.0f) * (half ? 3e-5f : 2e-6f);

        if (a.kv_fp8) to[at] = poison ? 0xff : (uint8_t)pack_e4m3(x, 0.0f);
        else ((__nv_bfloat16 *)to)[at] = poison ? __ushort_as_bfloat16(0xffff) : __float2bfloat16_rn(x);
    }
}

template <typename T> static T *to_device(const std::vector<T> &v)
{
    T *p;

    CHECK(cudaMalloc(&p, v.size() * sizeof(T)));
    CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

static std::vector<float> normals(size_t n, float deviation, uint32_t seed)
{
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> v(n);

    for (float &x : v) x = normal(random);
    return v;
}

static std::vector<__nv_bfloat16> to_bf16(const std::vector<float> &from, float plus)
{
    std::vector<__nv_bfloat16> v;

    for (float x : from) v.push_back(__float2bfloat16_rn(x + plus));
    return v;
}

static struct bench make_bench(const struct kind *k, bool kv_fp8, uint32_t sms)
{
    struct bench b = {};
    struct attn_args *a = &b.args;
    std::vector<uint32_t> pages(ROWS * k->ring_pages);
    std::vector<float2> rope;

    b.kind = k, b.sms = sms, b.layer_bytes = 2ull * k->kv_heads * ATTN_PAGE_TOKENS * k->d * (kv_fp8 ? 1 : 2), b.out_count = (uint64_t)ROWS * ATTN_HEADS * k->d;
    for (uint32_t i = 0; i < pages.size(); i++) pages[i] = (uint32_t)((uint64_t)i * 7919 % pages.size());
    for (float x : normals(ROWS * ROPE_STRIDE, 2.0f, 5)) rope.push_back(make_float2(cosf(x), sinf(x)));
    CHECK(cudaMalloc(&b.state, sizeof *b.state));
    CHECK(cudaMalloc(&a->arena, pages.size() * LAYERS * b.layer_bytes));
    CHECK(cudaMalloc(&a->part, 4ull * ROWS * ATTN_HEADS * SPANS_MAX * k->d));
    CHECK(cudaMalloc(&a->part_ml, sizeof(float2) * ROWS * ATTN_HEADS * SPANS_MAX));
    CHECK(cudaMalloc(&a->out, 2 * b.out_count));
    CHECK(cudaMemset(a->arena, 0xff, pages.size() * LAYERS * b.layer_bytes));
    a->state = b.state, a->qkv = to_device(normals((size_t)ROWS * k->qkv, 1.5f, 1)), a->qkv_stride = k->qkv;
    a->kv_heads = k->kv_heads, a->has_v = k->d == 256, a->window = k->window, a->kv_fp8 = kv_fp8, a->has_v_norm = 1;
    a->page_bytes = LAYERS * b.layer_bytes, a->v_offset = b.layer_bytes / 2, b.pages = pages, a->pages = to_device(pages), a->pages_stride = a->ring_pages = k->ring_pages;
    a->q_norm = to_device(to_bf16(normals(k->d, 0.2f, 2), 1.0f)), a->k_norm = to_device(to_bf16(normals(k->d, 0.2f, 3), 1.0f));
    a->rope = to_device(rope), a->rope_stride = ROPE_STRIDE, a->turned = k->turned, a->eps = 1e-6f, a->scale = k->d == 256 ? 0.15f : 0.1f, a->spans_max = SPANS_MAX;
    CHECK(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking));
    return b;
}

/* One sequence for each block of rows; group_rows[i] rows from position first[i] on. */
static struct step_state make_state(const std::vector<uint32_t> &first, const std::vector<uint32_t> &group_rows)
{
    struct step_state s;

    memset(&s, 0, sizeof s);
    s.step = 1;
    for (size_t g = 0; g < first.size(); g++) {
        s.group[s.groups++] = step_group{ s.rows, group_rows[g], first[g], (uint32_t)g };
        for (uint32_t i = 0; i < group_rows[g]; i++) s.row[s.rows++] = step_row{ 0, first[g] + i, (uint32_t)g, 0 };
    }
    return s;
}

static uint32_t longest(const struct step_state *s)
{
    uint32_t keys = 0;

    for (uint32_t g = 0; g < s->groups; g++) keys = s->group[g].first_position + s->group[g].rows > keys ? s->group[g].first_position + s->group[g].rows : keys;
    return keys;
}

static int launch(const struct bench *b, const struct attn_args *a, bool many, uint32_t rows, uint32_t keys)
{
    if (!many) return attn_launch(a, b->kind->d, rows, b->sms, b->stream);
    return b->kind->d == 256 ? attn_many_launch(a, rows, b->stream) : attn_many_full_launch(a, rows, b->sms, keys <= attn_many_short_keys(rows), b->stream);
}

/* Fills what earlier steps have written, poisons the rest of what the rings hold. */
static void fill(const struct bench *b, const struct step_state *s, uint32_t layers)
{
    CHECK(cudaMemcpy(b->state, s, sizeof *s, cudaMemcpyHostToDevice));
    for (uint32_t g = 0; g < s->groups; g++) {
        const uint32_t p0 = s->group[g].first_position, kept = b->kind->ring_pages * ATTN_PAGE_TOKENS - 32, first = p0 > kept ? p0 - kept : 0;

        if (p0 > first) fill_keys<<<p0 - first, 256, 0, b->stream>>>(b->args, b->kind->d, b->layer_bytes, layers, g, first, false);
        fill_keys<<<32, 256, 0, b->stream>>>(b->args, b->kind->d, b->layer_bytes, layers, g, p0, true);
    }
    CHECK(cudaStreamSynchronize(b->stream));
}

/* Output (with up to 16 rows of tiles, row_places.h), then the bytes of the pages that hold the new keys. */
static std::vector<uint8_t> result(const struct bench *b, const struct step_state *s, bool many, uint32_t rows, bool tiled)
{
    const uint64_t row_bytes = 2ull * ATTN_HEADS * b->kind->d;
    std::vector<uint8_t> bytes(row_bytes * s->rows + 2 * s->groups * b->layer_bytes);
    uint8_t *to = bytes.data() + row_bytes * s->rows;

    struct attn_args args = b->args;
    std::vector<uint16_t> out(b->out_count);
    const uint32_t k = ATTN_HEADS * b->kind->d;

    fill(b, s, 1);
    CHECK(cudaMemset(b->args.out, 0xff, 2 * b->out_count));
    if (tiled) args.out_places = places_tiled(rows);
    OK(launch(b, &args, many, rows, longest(s)));
    CHECK(cudaStreamSynchronize(b->stream));
    CHECK(cudaMemcpy(out.data(), b->args.out, 2 * b->out_count, cudaMemcpyDeviceToHost));
    for (uint32_t row = 0; row < s->rows; row++)
        for (uint32_t i = 0; i < k; i++) memcpy(bytes.data() + row * row_bytes + 2 * i, &out[place_of(places_known(args.out_places, k), k, row, i)], 2);
    for (uint32_t i = 0; i < 2 * s->groups; i++, to += b->layer_bytes) {
        const uint32_t position = s->group[i / 2].first_position + i % 2 * (s->group[i / 2].rows - 1);
        const uint64_t page = b->pages[i / 2 * b->kind->ring_pages + position / ATTN_PAGE_TOKENS % b->kind->ring_pages];

        CHECK(cudaMemcpy(to, b->args.arena + page * b->args.page_bytes, b->layer_bytes, cudaMemcpyDeviceToHost));
    }
    return bytes;
}

static int compare(const struct bench *b, const char *what, struct step_state state, uint32_t rows)
{
    const struct step_state *s = &state;
    const std::vector<uint8_t> want = result(b, s, false, rows, false);
    uint64_t wrong_out = 0, wrong_pages = 0, nan = 0, out_bytes = 2ull * ATTN_HEADS * b->kind->d * s->rows;

    for (int repeat = 0; repeat < 4; repeat++) {
        const std::vector<uint8_t> got = result(b, s, repeat < 3, rows, repeat > 1 && rows <= PLACES_TILE);      /* twice many's; then, of few rows, both in tiles */

        for (uint64_t i = 0; i < got.size(); i++) (i < out_bytes ? wrong_out : wrong_pages) += got[i] != want[i];
        for (uint64_t i = 0; i < out_bytes; i += 2) nan += ((got[i + 1] & 0x7f) == 0x7f && (got[i] & 0x80));
    }
    const bool bad = wrong_out || wrong_pages || nan;
    printf("%-4s d %u%s, %s: %u rows of %u, bytes of the output that differ: %llu, of the pages: %llu, NaN: %llu\n", bad ? "FAIL" : "ok", b->kind->d, b->args.kv_fp8 ? " e4m3" : "", what,
           s->rows, rows, (unsigned long long)wrong_out, (unsigned long long)wrong_pages, (unsigned long long)nan);
    return bad;
}

static int check(const struct bench *b)
{
    const std::vector<uint32_t> single = { 0, 1, 5, 31, 32, 33, 63, 64, 65, 127, 500, 501, 959, 960, 1022, 1023, 1024, 1025, 1039, 1087, 1088, 1100,
                                           1130, 1151, 1500, 2047, 2048, 2049, 2100, 2175, 2590, 3000 };
    std::vector<uint32_t> blocks_of, twice = single, places;
    int bad = 0;

    for (uint32_t p : single) twice.push_back(p + 700);
    bad += compare(b, "single rows", make_state(single, std::vector<uint32_t>(32, 1)), 32);
    bad += compare(b, "single rows", make_state(twice, std::vector<uint32_t>(64, 1)), 64);
    bad += compare(b, "fewer than there is room for", make_state(std::vector<uint32_t>(single.begin() + 8, single.begin() + 27), std::vector<uint32_t>(19, 1)), 32);
    bad += compare(b, "short texts", make_state(std::vector<uint32_t>(single.begin(), single.begin() + 16), std::vector<uint32_t>(16, 1)), 32);
    bad += compare(b, "short texts, blocks of rows", make_state({ 1, 31, 60, 500, 1016, 64, 990, 33 }, { 8, 7, 8, 6, 8, 5, 8, 3 }), 64);
    for (uint32_t i = 0; i < 15; i++) places.push_back(single[(i * 5 + 3) % 32]), blocks_of.push_back(1 + i % 8);
    bad += compare(b, "blocks of rows", make_state(places, blocks_of), 64);
    bad += compare(b, "a few", make_state({ 1100, 3, 2048, 1023 }, { 1, 1, 1, 1 }), 4);
    bad += compare(b, "a few", make_state({ 1100, 500, 2048, 1023, 0, 64, 1500, 3000 }, { 1, 1, 1, 1, 1, 1, 1, 1 }), 8);
    return bad;
}

/* Microseconds a layer in a chain of 40. */
static double layer_us(const struct bench *b, bool many, uint32_t rows, uint32_t keys)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
    float best = 1e9f;

    CHECK(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
    for (uint32_t i = 0; i < 40; i++) {
        struct attn_args a = b->args;

        a.k_offset += i % LAYERS * b->layer_bytes, a.v_offset += i % LAYERS * b->layer_bytes;
        OK(launch(b, &a, many, rows, keys));
    }
    CHECK(cudaStreamEndCapture(b->stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    for (int i = 0; i < 12; i++) {
        float ms;

        CHECK(cudaEventRecord(from, b->stream));
        CHECK(cudaGraphLaunch(exec, b->stream));
        CHECK(cudaEventRecord(to, b->stream));
        CHECK(cudaEventSynchronize(to));
        CHECK(cudaEventElapsedTime(&ms, from, to));
        if (i > 1 && ms < best) best = ms;
    }
    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    return best * 1e3 / 40;
}

static void time_all(const struct bench *b, const char *list)
{
    for (const char *p = list; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
        uint32_t rows, context;

        if (sscanf(p, "%u:%u", &rows, &context) != 2 || rows < 1 || rows > ROWS || context < 1 || context > CONTEXT_MAX) fprintf(stderr, "bad --time %s\n", p), exit(2);
        const struct step_state s = make_state(std::vector<uint32_t>(rows, context - 1), std::vector<uint32_t>(rows, 1));
        const uint32_t seen = b->kind->window && context > b->kind->window ? b->kind->window : context;

        fill(b, &s, LAYERS);
        const double few = layer_us(b, false, rows, context), many = layer_us(b, true, rows, context);
        printf("d %u%s, %2u rows, %4u keys: attn %.1f, attn_many %.1f us a layer, %.1f MB\n",
               b->kind->d, b->args.kv_fp8 ? " e4m3" : "", rows, context, few, many, (b->args.kv_fp8 ? 2e-6 : 4e-6) * rows * seen * b->kind->kv_heads * b->kind->d);
    }
}

int main(int argc, char **argv)
{
    int count = 0, sms = 0, bad = 0;

    if (argc != 1 && (argc != 3 || strcmp(argv[1], "--time"))) return fprintf(stderr, "usage: cuda_attn_many_test [--time ROWS:CONTEXT,...]\n"), 2;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    OK(attn_init());
    OK(attn_many_init());
    OK(attn_many_full_init());
    for (int i = 0; i < 4; i++) {
        const struct bench b = make_bench(&kinds[i % 2], i > 1, (uint32_t)sms);

        bad += check(&b);
        if (argc == 3) time_all(&b, argv[2]);
        for (const void *p : { (const void *)b.state, (const void *)b.args.arena, (const void *)b.args.part, (const void *)b.args.part_ml, (const void *)b.args.out })
            CHECK(cudaFree((void *)p));
    }
    return bad ? 1 : 0;
}
