/* tests/gpu/outputs_test.cu - rows of model/features.h: written from the residual stream (outputs_store_step, outputs_store_rows) and from one sequence to another (outputs_copy);
 * exit 0 pass, 1 fail, 77 no GPU.
 *
 * Written: each wanted layer at its place, the row invalid until the last; rows of a call that a later one of it overwrites, and dead ones, are left out.
 * Whole rows of the right sequence, position and layers are copied, others leave what is there; rings go round; slots of one place hand a row on. bf16 and f32 rows. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/outputs.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
#define EXPECT(x) do { if (!(x)) { fprintf(stderr, "%s:%d not so: %s\n", __FILE__, __LINE__, #x); exit(1); } } while (0)

#define HIDDEN 3840u
#define SOURCES 5u
#define PLACES 4u
#define ROWS 40u                      /* of a place */
#define SEQS 8u
#define LAYERS 0x421084ull            /* five of them */
#define NEW 9u                        /* generation of every sequence that gets rows */

struct row_head { unsigned long long layers, of; uint8_t pad[48]; };

struct rig {
    uint32_t element_bytes;
    uint64_t row_bytes;
    std::vector<uint8_t> host;
    struct outputs_keep keep;
};

static row_head *head_of(struct rig *r, uint32_t seq, uint32_t position) { return (row_head *)(r->host.data() + ((seq % PLACES) * ROWS + position % ROWS) * r->row_bytes); }

static void put(struct rig *r, uint32_t seq, uint32_t generation, uint32_t position, unsigned long long layers)
{
    row_head *head = head_of(r, seq, position);
    uint32_t *word = (uint32_t *)(head + 1);

    head->layers = layers;
    head->of = (unsigned long long)generation << 32 | position;
    for (uint64_t i = 0; i < (r->row_bytes - sizeof *head) / 4; i++) word[i] = (uint32_t)(seq * 0x10000000u + position * 0x10000u + i);
}

static bool has(struct rig *r, uint32_t seq, uint32_t generation, uint32_t position, uint32_t written_by)
{
    const row_head *head = head_of(r, seq, position);
    const uint32_t *word = (const uint32_t *)(head + 1);

    if (head->layers != LAYERS || head->of != ((unsigned long long)generation << 32 | position)) return false;
    for (uint64_t i = 0; i < (r->row_bytes - sizeof *head) / 4; i++)
        if (word[i] != (uint32_t)(written_by * 0x10000000u + position * 0x10000u + i)) return false;
    return true;
}

static void open_rig(struct rig *r, uint32_t element_bytes)
{
    const std::vector<uint32_t> generation(SEQS, NEW);
    void *memory;
    uint32_t *generations;

    r->element_bytes = element_bytes;
    r->row_bytes = sizeof(row_head) + (uint64_t)SOURCES * HIDDEN * element_bytes;
    r->host.assign(PLACES * ROWS * r->row_bytes, 0);
    CHECK(cudaMalloc(&memory, r->host.size()));
    CHECK(cudaMalloc(&generations, SEQS * sizeof *generations));
    CHECK(cudaMemcpy(generations, generation.data(), SEQS * sizeof *generations, cudaMemcpyHostToDevice));
    const cuda_features features = { memory, r->row_bytes, PLACES, ROWS, SOURCES, element_bytes };
    r->keep = { features, generations, LAYERS, HIDDEN };
}

static void copy(struct rig *r, uint32_t from_seq, uint32_t from_generation, uint32_t seq, uint32_t first, uint32_t count)
{
    CHECK(cudaMemcpy(r->keep.memory.device, r->host.data(), r->host.size(), cudaMemcpyHostToDevice));
    EXPECT(outputs_copy(&r->keep, from_seq, from_generation, seq, first, count, NULL) == 0);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(r->host.data(), r->keep.memory.device, r->host.size(), cudaMemcpyDeviceToHost));
}

static void test_rows(struct rig *r)
{
    for (uint32_t p = 0; p < 10; p++) put(r, 1, 7, p, LAYERS);
    put(r, 1, 7, 3, LAYERS | 1);      /* other layers */
    put(r, 1, 6, 4, LAYERS);          /* an earlier sequence's */
    put(r, 1, 7, 5 + ROWS, LAYERS);   /* a later position */
    put(r, 2, NEW, 4, LAYERS);        /* what is here stays when nothing comes */
    copy(r, 1, 7, 2, 0, 12);
    for (uint32_t p = 0; p < 12; p++) EXPECT(has(r, 2, NEW, p, p == 4 ? 2 : 1) == (p < 10 && p != 3 && p != 5));
    EXPECT(has(r, 1, 7, 0, 1) && head_of(r, 3, 0)->layers == 0);
}

static void test_a_ring_goes_round(struct rig *r)
{
    for (uint32_t p = 60; p < 100; p++) put(r, 1, 7, p, LAYERS);
    copy(r, 1, 7, 3, 0, 100);
    for (uint32_t p = 60; p < 100; p++) EXPECT(has(r, 3, NEW, p, 1));
}

static void test_one_place(struct rig *r)
{
    for (uint32_t p = 0; p < 10; p++) put(r, 0, 7, p, LAYERS);
    copy(r, 0, 7, PLACES, 0, 10);
    for (uint32_t p = 0; p < 10; p++) EXPECT(has(r, PLACES, NEW, p, 0) && !has(r, 0, 7, p, 0));
}

/* ---- from the residual stream ---- */

/* Element i of the output of a layer at a position of a sequence: bf16 holds it exactly. */
static float value(uint32_t seq, uint32_t position, uint32_t layer, uint32_t i) { return (float)(int)((seq * 31 + position * 7 + layer * 3 + i) % 255) - 127.0f; }

static bool is_written(struct rig *r, uint32_t seq, uint32_t position)
{
    const row_head *head = head_of(r, seq, position);
    uint32_t at = 0;

    if (head->layers != LAYERS || head->of != ((unsigned long long)NEW << 32 | position)) return false;
    for (uint32_t layer = 0; layer < 64; layer++) {
        if (!(LAYERS >> layer & 1)) continue;
        for (uint32_t i = 0; i < HIDDEN; i++, at++) {
            const float got = r->element_bytes == 4 ? ((const float *)(head + 1))[at] : __bfloat162float(((const __nv_bfloat16 *)(head + 1))[at]);

            if (got != value(seq, position, layer, i)) return false;
        }
    }
    return true;
}

struct record { uint32_t token, position, seq, live; };

/* Stores the wanted layers below `end` of these rows, as a prefill, or (state) as a step. */
static void store(struct rig *r, const std::vector<record> &rows, uint32_t end, bool as_step)
{
    const uint32_t count = (uint32_t)rows.size();
    std::vector<float> residual(count * HIDDEN);
    static struct step_state state;
    struct step_state *state_device;
    record *records;
    float *device;

    memset(&state, 0, sizeof state);
    state.rows = count - 1;           /* the last row of a step is dead */
    state.groups = count;
    for (uint32_t i = 0; i < count && as_step; i++) {
        state.row[i].position = rows[i].position, state.row[i].group = i;
        state.group[i].seq = rows[i].seq;
    }
    CHECK(cudaMalloc(&device, residual.size() * 4));
    CHECK(cudaMalloc(&records, count * sizeof *records));
    CHECK(cudaMalloc(&state_device, sizeof state));
    CHECK(cudaMemcpy(records, rows.data(), count * sizeof *records, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(state_device, &state, sizeof state, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(r->keep.memory.device, r->host.data(), r->host.size(), cudaMemcpyHostToDevice));
    for (uint32_t layer = 0; layer < end; layer++) {
        if (!outputs_wanted(&r->keep, layer)) continue;
        for (uint32_t i = 0; i < count; i++)
            for (uint32_t j = 0; j < HIDDEN; j++) residual[(uint64_t)i * HIDDEN + j] = value(rows[i].seq, rows[i].position, layer, j);
        CHECK(cudaMemcpy(device, residual.data(), residual.size() * 4, cudaMemcpyHostToDevice));
        EXPECT((as_step ? outputs_store_step(&r->keep, layer, device, state_device, count, NULL) : outputs_store_rows(&r->keep, layer, device, records, true, count, NULL)) == 0);
        CHECK(cudaDeviceSynchronize());
    }
    CHECK(cudaMemcpy(r->host.data(), r->keep.memory.device, r->host.size(), cudaMemcpyDeviceToHost));
    CHECK(cudaFree(device));
    CHECK(cudaFree(records));
    CHECK(cudaFree(state_device));
}

static void test_prefill_rows(struct rig *r)
{
    std::vector<record> rows;

    for (uint32_t p = 20; p < 20 + ROWS + 5; p++) rows.push_back({ 0, p, 1, 1 });       /* five more than there is room for */
    rows.push_back({ 0, 3, 2, 0 });                                                       /* dead */
    rows.push_back({ 0, 7, 3, 1 });
    r->host.assign(r->host.size(), 0);
    store(r, rows, 64, false);
    for (uint32_t p = 20; p < 20 + ROWS + 5; p++) EXPECT(is_written(r, 1, p) == (p >= 25));
    EXPECT(!is_written(r, 2, 3) && is_written(r, 3, 7));
    store(r, { { 0, 60, 1, 1 } }, 17, false);     /* again, and its writer dies on the way */
    EXPECT(!is_written(r, 1, 60) && head_of(r, 1, 60)->layers == 0 && is_written(r, 1, 61));
}

static void test_step_rows(struct rig *r)
{
    r->host.assign(r->host.size(), 0);
    store(r, { { 0, 11, 0, 1 }, { 0, 12, 2, 1 }, { 0, 99, 3, 1 }, { 0, 5, 1, 1 } }, 64, true);
    EXPECT(is_written(r, 0, 11) && is_written(r, 2, 12) && is_written(r, 3, 99) && !is_written(r, 1, 5));
}

static void test_fit(struct rig *r)
{
    EXPECT(outputs_fit(&r->keep.memory, LAYERS, 48) && !outputs_fit(&r->keep.memory, LAYERS | 1, 48) && !outputs_fit(&r->keep.memory, LAYERS, 23) && outputs_fit(&r->keep.memory, 1, 2));
    EXPECT(!outputs_fit(&r->keep.memory, 2, 2));  /* the last layer's output goes to the final norm */
}

int main(void)
{
    struct rig r;
    int count = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        printf("skip: no GPU\n");
        return 77;
    }
    EXPECT(outputs_init() == 0);
    for (uint32_t bytes = 2; bytes <= 4; bytes += 2) {
        open_rig(&r, bytes);
        test_rows(&r);
        test_a_ring_goes_round(&r);
        test_one_place(&r);
        test_prefill_rows(&r);
        test_step_rows(&r);
        test_fit(&r);
        r.keep.layers = 0;
        put(&r, 1, 7, 0, LAYERS);
        put(&r, 2, 1, 0, LAYERS);
        copy(&r, 1, 7, 2, 0, 1);      /* nobody wants any */
        EXPECT(has(&r, 2, 1, 0, 2));
        printf("ok    rows of %u-byte elements\n", bytes);
    }
    printf("outputs: passed\n");
    return 0;
}
