/* kernels/cuda/dspark_weights.cu - the layout of a DSpark head's weight arena and filling it (contracts in dspark_layout.h, cuda_dspark.h).
 *
 * Owns nothing between two calls: a call makes the device copies that it packs from and frees them. */
#include "dspark_layout.h"
#include "device.cuh"
#include "launch.h"
#include "pack.h"
#include "shm/error.h"
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <string.h>
#include <vector>

#define CHUNK_ROWS 4096u              /* copied and packed at once; a multiple of 16 */
#define HIDDEN_MAX 3840u              /* norm.cu */
#define PRODUCT_ROWS 64u              /* rowmm_wide.h: rows of a matrix are a multiple of it */
#define FP8_LARGEST 448.0f

/* ---- the layout ---- */

static int place(struct dspark_plan *p, struct arena_matrix *m, uint32_t rows, uint32_t k, uint32_t format)
{
    const uint32_t slice = packed_slice_k(k), slices = slice ? k / slice : 0;

    if (rows == 0 || rows % PRODUCT_ROWS || (slices != 1 && slices != 2 && slices != 4)) return -E_UNSUPPORTED;
    m->offset = p->bytes, m->rows = rows, m->k = k, m->slice_k = slice, m->format = format;
    p->bytes += (packed_bytes(format, rows, k) + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return 0;
}

static uint64_t place_bytes(struct dspark_plan *p, uint64_t bytes)
{
    const uint64_t at = p->bytes;

    p->bytes += (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return at;
}

static bool fits(const struct cuda_dspark_spec *s)
{
    if (s->layers == 0 || s->layers > CUDA_DSPARK_LAYERS_MAX || s->sources == 0 || s->sources > CUDA_DSPARK_SOURCES_MAX) return false;
    if (s->block == 0 || s->block > CUDA_DSPARK_BLOCK_MAX || s->rank != DSPARK_RANK || s->rope_turned != DSPARK_TURNED || s->attention_scale != 1.0f) return false;
    if (s->q_heads != DSPARK_HEADS || s->kv_heads != 1 || s->head_dim != DSPARK_DIM || s->hidden == 0 || s->hidden % 128 || s->hidden > HIDDEN_MAX) return false;
    if (s->choices % PRODUCT_ROWS || s->choices > s->vocab || (s->shared_head && (s->choices || s->format != WEIGHT_BF16))) return false;
    return s->vocab != 0 && s->vocab % PRODUCT_ROWS == 0 && s->mask_token < s->vocab && (s->format == WEIGHT_FP8 || s->format == WEIGHT_BF16);
}

static int place_layer(struct dspark_plan *p, struct dspark_layer_plan *l, const struct cuda_dspark_spec *s)
{
    int rc = place(p, &l->qkv, (DSPARK_HEADS + 1) * DSPARK_DIM, s->hidden, s->format);

    if (rc == 0) rc = place(p, &l->o, s->hidden, DSPARK_HEADS * DSPARK_DIM, s->format);
    if (rc == 0) rc = place(p, &l->gate_up, 2 * s->intermediate, s->hidden, s->format);
    if (rc == 0) rc = place(p, &l->down, s->hidden, s->intermediate, s->format);
    uint64_t *const vector[] = { &l->input_norm, &l->post_attention_norm, &l->pre_ff_norm, &l->post_ff_norm };
    for (uint64_t *v : vector) *v = place_bytes(p, 2ull * s->hidden);
    l->q_norm = place_bytes(p, 2ull * DSPARK_DIM);
    l->scalar = place_bytes(p, 4);
    return rc;
}

int dspark_plan_make(struct dspark_plan *p, const struct cuda_dspark_spec *s)
{
    int rc = 0;

    memset(p, 0, sizeof *p);
    if (!fits(s)) return -E_UNSUPPORTED;
    for (uint32_t i = 0; i < s->sources && rc == 0; i++) rc = place(p, &p->fc[i], s->hidden, s->hidden, s->format);
    if (rc == 0) rc = place(p, &p->keys, s->layers * DSPARK_DIM, s->hidden, s->format);
    for (uint32_t i = 0; i < s->layers && rc == 0; i++) rc = place_layer(p, &p->layer[i], s);
    if (rc == 0 && !s->shared_head) rc = place(p, &p->head, dspark_head_rows(s), s->hidden, s->format);
    p->w1 = place_bytes(p, 2ull * s->vocab * s->rank);
    p->w2 = place_bytes(p, (s->format == WEIGHT_FP8 ? 1ull : 2ull) * dspark_head_rows(s) * s->rank);
    p->w2_scale = place_bytes(p, s->format == WEIGHT_FP8 ? 4ull * dspark_head_rows(s) : 0);
    p->choice = place_bytes(p, 4ull * s->choices);
    p->table = place_bytes(p, s->own_table ? 2ull * s->vocab * s->hidden : 0);
    p->hidden_norm = place_bytes(p, 2ull * s->hidden);
    p->final_norm = place_bytes(p, 2ull * s->hidden);
    p->k_norms = place_bytes(p, 2ull * s->layers * DSPARK_DIM);
    p->confidence = place_bytes(p, 2ull * (s->hidden + s->rank));
    return rc;
}

extern "C" uint64_t cuda_dspark_weights_bytes(const struct cuda_dspark_spec *spec)
{
    struct dspark_plan p;

    return dspark_plan_make(&p, spec) == 0 ? p.bytes : 0;
}

/* ---- filling it ---- */

struct room { uint8_t *rows; float *scales; };   /* device: CHUNK_ROWS of the widest matrix, and their scales */

static int open_room(struct room *r, uint64_t k)
{
    *r = { NULL, NULL };
    const int rc = launch_check(cudaMalloc((void **)&r->rows, 2ull * CHUNK_ROWS * k), "room for the drafter's weights");
    return rc ? rc : launch_check(cudaMalloc((void **)&r->scales, 4ull * CHUNK_ROWS), "room for the drafter's scales");
}

static void close_room(struct room *r)
{
    cudaFree(r->rows);
    cudaFree(r->scales);
}

/* The first column of `k` columns in a source of `stride`; from row `tile_first` of the packed matrix on. */
struct piece { const uint16_t *source; uint64_t stride; uint32_t rows, row_first, half; };

static int put_matrix(uint8_t *arena, const struct arena_matrix *m, const struct piece *p, const struct room *r)
{
    const struct packed_matrix to = { arena + m->offset, m->rows, m->k, m->slice_k, m->format };
    const uint32_t per_tile = p->half == PACK_WHOLE ? TILE_ROWS : TILE_ROWS / 2;
    int rc = 0;

    for (uint32_t at = 0; at < p->rows && rc == 0; at += CHUNK_ROWS) {
        const uint32_t rows = p->rows - at < CHUNK_ROWS ? p->rows - at : CHUNK_ROWS;
        const struct pack_source from = { r->rows, NULL, 0, WEIGHT_BF16, rows, (p->row_first + at) / per_tile, p->half, NULL };

        rc = launch_check(cudaMemcpy2D(r->rows, 2ull * m->k, p->source + at * p->stride, 2 * p->stride, 2ull * m->k, rows, cudaMemcpyHostToDevice), "the drafter's weights");
        if (rc == 0) rc = pack_launch(&to, &from, r->scales, NULL);
        if (rc == 0) rc = launch_check(cudaDeviceSynchronize(), "the drafter's weights");
    }
    return rc;
}

/* Codes and scales of rows of DSPARK_RANK, one block each. */
__global__ void round_rows_kernel(const __nv_bfloat16 *from, uint8_t *codes, float *scale)
{
    __shared__ float largest[DSPARK_RANK];
    const uint64_t at = (uint64_t)blockIdx.x * DSPARK_RANK + threadIdx.x;
    const float x = __bfloat162float(from[at]);

    largest[threadIdx.x] = fabsf(x);
    for (uint32_t n = DSPARK_RANK / 2; n; n /= 2) {
        __syncthreads();
        if (threadIdx.x < n) largest[threadIdx.x] = fmaxf(largest[threadIdx.x], largest[threadIdx.x + n]);
    }
    __syncthreads();
    const float s = largest[0] > 0 ? largest[0] / FP8_LARGEST : 1.0f;
    codes[at] = (uint8_t)__nv_cvt_float_to_fp8(x / s, __NV_SATFINITE, __NV_E4M3);
    if (threadIdx.x == 0) scale[blockIdx.x] = s;
}

static int put_markov_out(const struct cuda_dspark_spec *s, const struct dspark_plan *p, uint8_t *arena, const uint16_t *source)
{
    const uint64_t bytes = 2ull * dspark_head_rows(s) * s->rank;
    __nv_bfloat16 *room = NULL;

    if (s->format == WEIGHT_BF16) return launch_check(cudaMemcpy(arena + p->w2, source, bytes, cudaMemcpyHostToDevice), "the drafter's weights");
    int rc = launch_check(cudaMalloc((void **)&room, bytes), "room for the drafter's weights");
    if (rc == 0) rc = launch_check(cudaMemcpy(room, source, bytes, cudaMemcpyHostToDevice), "the drafter's weights");
    if (rc == 0) {
        round_rows_kernel<<<dspark_head_rows(s), DSPARK_RANK>>>(room, arena + p->w2, (float *)(arena + p->w2_scale));
        rc = launch_check(cudaGetLastError(), "rounding the drafter's weights");
    }
    if (rc == 0) rc = launch_check(cudaDeviceSynchronize(), "the drafter's weights");
    cudaFree(room);
    return rc;
}

static int put_vector(uint8_t *to, const float *source, uint64_t elements)
{
    std::vector<__nv_bfloat16> v(elements);

    for (uint64_t i = 0; i < elements; i++) v[i] = __float2bfloat16(source[i]);
    return launch_check(cudaMemcpy(to, v.data(), 2 * elements, cudaMemcpyHostToDevice), "the drafter's vectors");
}

/* Vectors: where, and how many elements. False: it is none. */
static bool find_vector(const struct cuda_dspark_spec *s, const struct dspark_plan *p, enum cuda_dspark_tensor tensor, uint32_t layer, uint64_t *at, uint64_t *elements)
{
    const struct dspark_layer_plan *l = &p->layer[layer];

    *elements = s->hidden;
    switch (tensor) {
    case CUDA_DSPARK_INPUT_NORM: *at = l->input_norm; return true;
    case CUDA_DSPARK_POST_ATTENTION_NORM: *at = l->post_attention_norm; return true;
    case CUDA_DSPARK_PRE_FF_NORM: *at = l->pre_ff_norm; return true;
    case CUDA_DSPARK_POST_FF_NORM: *at = l->post_ff_norm; return true;
    case CUDA_DSPARK_Q_NORM: *at = l->q_norm, *elements = DSPARK_DIM; return true;
    case CUDA_DSPARK_K_NORM: *at = p->k_norms + 2ull * layer * DSPARK_DIM, *elements = DSPARK_DIM; return true;
    case CUDA_DSPARK_HIDDEN_NORM: *at = p->hidden_norm; return true;
    case CUDA_DSPARK_FINAL_NORM: *at = p->final_norm; return true;
    case CUDA_DSPARK_CONFIDENCE: *at = p->confidence, *elements = s->hidden + s->rank; return true;
    default: return false;
    }
}

static int put_fc(const struct cuda_dspark_spec *s, const struct dspark_plan *p, uint8_t *arena, const uint16_t *source, const struct room *r)
{
    int rc = 0;

    for (uint32_t i = 0; i < s->sources && rc == 0; i++) {
        const struct piece piece = { source + (uint64_t)i * s->hidden, (uint64_t)s->sources * s->hidden, s->hidden, 0, PACK_WHOLE };

        rc = put_matrix(arena, &p->fc[i], &piece, r);
    }
    return rc;
}

static int put_keys(const struct cuda_dspark_spec *s, const struct dspark_plan *p, uint8_t *arena, uint32_t layer, const uint16_t *source, const struct room *r)
{
    const struct piece own = { source, s->hidden, DSPARK_DIM, DSPARK_HEADS * DSPARK_DIM, PACK_WHOLE }, stacked = { source, s->hidden, DSPARK_DIM, layer * DSPARK_DIM, PACK_WHOLE };
    const int rc = put_matrix(arena, &p->layer[layer].qkv, &own, r);

    return rc ? rc : put_matrix(arena, &p->keys, &stacked, r);
}

/* A matrix: elements in *count with source NULL, else packs it. */
static int matrix(const struct cuda_dspark_spec *s, const struct dspark_plan *p, uint8_t *arena, enum cuda_dspark_tensor tensor, uint32_t layer, const uint16_t *source, const struct room *r, uint64_t *count)
{
    const struct dspark_layer_plan *l = &p->layer[layer];
    const struct arena_matrix *m = NULL;
    struct piece piece = { source, s->hidden, 0, 0, PACK_WHOLE };

    switch (tensor) {
    case CUDA_DSPARK_Q: m = &l->qkv, piece.rows = DSPARK_HEADS * DSPARK_DIM; break;
    case CUDA_DSPARK_O: m = &l->o, piece.rows = s->hidden, piece.stride = DSPARK_HEADS * DSPARK_DIM; break;
    case CUDA_DSPARK_GATE: m = &l->gate_up, piece.rows = s->intermediate, piece.half = 0; break;
    case CUDA_DSPARK_UP: m = &l->gate_up, piece.rows = s->intermediate, piece.half = 1; break;
    case CUDA_DSPARK_DOWN: m = &l->down, piece.rows = s->hidden, piece.stride = s->intermediate; break;
    case CUDA_DSPARK_HEAD: m = &p->head, piece.rows = s->shared_head ? 0 : dspark_head_rows(s); break;
    case CUDA_DSPARK_K: *count = (uint64_t)DSPARK_DIM * s->hidden; return source ? put_keys(s, p, arena, layer, source, r) : 0;
    case CUDA_DSPARK_FC: *count = (uint64_t)s->hidden * s->sources * s->hidden; return source ? put_fc(s, p, arena, source, r) : 0;
    case CUDA_DSPARK_MARKOV_OUT: *count = (uint64_t)dspark_head_rows(s) * s->rank; return source ? put_markov_out(s, p, arena, source) : 0;
    default: return -E_NOT_FOUND;
    }
    *count = piece.rows * piece.stride;
    return source ? put_matrix(arena, m, &piece, r) : 0;
}

extern "C" int cuda_dspark_weights_put(const struct cuda_dspark_spec *s, void *weights_device, enum cuda_dspark_tensor tensor, uint32_t layer, const void *source, uint64_t elements)
{
    uint8_t *arena = (uint8_t *)weights_device;
    struct dspark_plan p;
    uint64_t at = 0, wanted = 0;
    struct room r;
    int rc = dspark_plan_make(&p, s);

    if (rc) return rc;
    if (tensor >= CUDA_DSPARK_TENSORS || layer >= s->layers) return -E_RANGE;
    if (tensor == CUDA_DSPARK_SCALAR) return elements == 1 ? launch_check(cudaMemcpy(arena + p.layer[layer].scalar, source, 4, cudaMemcpyHostToDevice), "the drafter's scalar") : -E_RANGE;
    if (tensor == CUDA_DSPARK_CHOICE) return elements == s->choices ? launch_check(cudaMemcpy(arena + p.choice, source, 4 * elements, cudaMemcpyHostToDevice), "the drafter's choices") : -E_RANGE;
    if (find_vector(s, &p, tensor, layer, &at, &wanted)) return elements == wanted ? put_vector(arena + at, (const float *)source, elements) : -E_RANGE;
    if (tensor == CUDA_DSPARK_TABLE || tensor == CUDA_DSPARK_MARKOV_IN) {
        const bool table = tensor == CUDA_DSPARK_TABLE;

        if ((table && !s->own_table) || elements != (uint64_t)s->vocab * (table ? s->hidden : s->rank)) return -E_RANGE;
        return launch_check(cudaMemcpy(arena + (table ? p.table : p.w1), source, 2 * elements, cudaMemcpyHostToDevice), "the drafter's tables");
    }
    rc = matrix(s, &p, arena, tensor, layer, NULL, NULL, &wanted);
    if (rc || elements != wanted) return -E_RANGE;
    const uint32_t k = tensor == CUDA_DSPARK_O ? DSPARK_HEADS * DSPARK_DIM : tensor == CUDA_DSPARK_DOWN ? s->intermediate : s->hidden;
    rc = open_room(&r, k);
    if (rc == 0) rc = matrix(s, &p, arena, tensor, layer, (const uint16_t *)source, &r, &wanted);
    close_room(&r);
    return rc;
}

/* ---- the output matrix from the target's ---- */

/* One block a row: the row of the packed table that `choice` names, or that comes next. */
__global__ void gather_rows_kernel(const uint8_t *packed, uint32_t slice_k, uint32_t slices, const uint32_t *choice, uint32_t first, __nv_bfloat16 *to, uint32_t k)
{
    const uint32_t row = choice ? choice[first + blockIdx.x] : first + blockIdx.x;

    for (uint32_t i = threadIdx.x; i < k; i += blockDim.x) {
        const uint8_t *unit = packed + ((uint64_t)(row / TILE_ROWS) * slices + i / slice_k) * packed_unit_bytes(WEIGHT_BF16, slice_k);

        to[(uint64_t)blockIdx.x * k + i] = *(const __nv_bfloat16 *)(unit + packed_element_offset(WEIGHT_BF16, slice_k, row % TILE_ROWS, i % slice_k));
    }
}

extern "C" int cuda_dspark_weights_head(const struct cuda_dspark_spec *s, void *weights_device, const struct cuda_model_spec *target, const void *target_device)
{
    struct dspark_plan p;
    struct arena arena;
    struct room r = { NULL, NULL };
    int rc = dspark_plan_make(&p, s);

    if (rc == 0) rc = arena_plan(&arena, target);
    if (rc) return rc;
    if (arena.head.rows != s->vocab || arena.head.k != s->hidden || arena.head.format != WEIGHT_BF16) return -E_UNSUPPORTED;
    rc = open_room(&r, s->hidden);
    const struct packed_matrix to = { (uint8_t *)weights_device + p.head.offset, p.head.rows, p.head.k, p.head.slice_k, p.head.format };
    const uint32_t *choice = s->choices ? (const uint32_t *)((const uint8_t *)weights_device + p.choice) : NULL;
    for (uint32_t at = 0; at < p.head.rows && rc == 0; at += CHUNK_ROWS) {
        const uint32_t rows = p.head.rows - at < CHUNK_ROWS ? p.head.rows - at : CHUNK_ROWS;
        const struct pack_source source = { r.rows, NULL, 0, WEIGHT_BF16, rows, at / TILE_ROWS, PACK_WHOLE, NULL };

        gather_rows_kernel<<<rows, 256>>>((const uint8_t *)target_device + arena.head.offset, arena.head.slice_k, arena.head.k / arena.head.slice_k, choice, at, (__nv_bfloat16 *)r.rows, s->hidden);
        rc = launch_check(cudaGetLastError(), "the drafter's output matrix");
        if (rc == 0) rc = pack_launch(&to, &source, r.scales, NULL);
    }
    if (rc == 0) rc = launch_check(cudaDeviceSynchronize(), "the drafter's output matrix");
    close_room(&r);
    return rc;
}
