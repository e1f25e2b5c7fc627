/* kernels/cuda/plain_weights.cu - the weight arena of plain.h: where everything lies, and filling it. */
#include "launch.h"
#include "pack.h"
#include "plain.h"
#include "plain_math.cuh"
#include "kernels/stored.h"
#include "shm/error.h"
#include <cuda_runtime.h>

#define ARENA_ALIGN 256
#define LANES 16
#define VOCAB_MAX (1u << 24)          /* MODEL sizes of model/config.c */
#define DIM_MAX (1u << 17)
#define HEADS_MAX 256
#define FILL_THREADS 256
#define FILL_PIECE (64u << 20)        /* elements filled at a time */

struct place { uint64_t offset; uint32_t rows, columns; };   /* columns 0: a vector of f32 */

static int check_heads(const struct cuda_model_spec *s, uint32_t type)
{
    const uint32_t dim = s->head_dim[type], kv = s->kv_heads[type];

    if (dim == 0 || dim % 32 || dim > PLAIN_HEAD_DIM_MAX || kv == 0 || s->q_heads % kv) return -E_UNSUPPORTED;
    if (s->rope_turned[type] > dim / 2 || !(s->rope_theta[type] >= 1.0) || !(s->rope_divisor[type] > 0.0)) return -E_UNSUPPORTED;
    return s->page_bytes[type] % 64 ? -E_UNSUPPORTED : 0;
}

/* The cache's element must be the same everywhere; K and V of a layer stand one behind the other in a page. */
static int check_layer(struct plain_arena *a, const struct cuda_model_spec *s, uint32_t i)
{
    const struct cuda_layer_spec *l = &s->layer[i];
    uint64_t elements;

    if (l->type > CUDA_FULL || check_heads(s, l->type) != 0 || l->v_offset <= l->k_offset || l->k_offset % 64) return -E_UNSUPPORTED;
    elements = (uint64_t)s->kv_heads[l->type] * s->head_dim[l->type] * PLAIN_PAGE_TOKENS;
    if (a->kv_bytes == 0) a->kv_bytes = l->v_offset - l->k_offset == 4 * elements ? 4 : l->v_offset - l->k_offset == elements ? 1 : 2;
    if (l->v_offset - l->k_offset != a->kv_bytes * elements || l->v_offset + a->kv_bytes * elements > s->page_bytes[l->type]) return -E_UNSUPPORTED;
    return 0;
}

static int check_sizes(const struct cuda_model_spec *s)
{
    if (s->layers == 0 || s->layers > CUDA_LAYERS_MAX || s->q_heads == 0 || s->q_heads > HEADS_MAX || s->window == 0) return -E_UNSUPPORTED;
    if (s->hidden == 0 || s->hidden % LANES || s->hidden > DIM_MAX || s->intermediate == 0 || s->intermediate % LANES || s->intermediate > DIM_MAX) return -E_UNSUPPORTED;
    if (s->vocab == 0 || s->vocab % LANES || s->vocab > VOCAB_MAX || s->suppress_count > CUDA_SUPPRESS_MAX) return -E_UNSUPPORTED;
    return s->format == WEIGHT_BF16 || s->format == WEIGHT_F32 ? 0 : -E_UNSUPPORTED;      /* the table's */
}

static uint64_t take(struct plain_arena *a, uint64_t elements, uint32_t element_bytes)
{
    const uint64_t at = a->bytes;

    a->bytes += (elements * element_bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return at;
}

static uint64_t code_bytes(uint32_t format, uint64_t n) { return format == WEIGHT_F32 ? 4 * n : format == WEIGHT_BF16 ? 2 * n : format == WEIGHT_FP4 ? n / 2 : n; }

static uint32_t scale_columns(const struct plain_matrix *m)
{
    return m->format == WEIGHT_FP8_BLOCK ? (m->k + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK : m->format == WEIGHT_FP4 ? m->k / WEIGHT_GROUP : m->format == WEIGHT_FP8 ? 1 : 0;
}

static uint64_t scale_row_bytes(const struct plain_matrix *m) { return (uint64_t)scale_columns(m) * (m->format == WEIGHT_FP4 ? 1 : 4); }

static bool are_alike(const struct plain_matrix *a, const struct plain_matrix *b)
{
    return a->format == b->format && a->activation == b->activation && a->input_scale == b->input_scale;
}

/* Room for matrices that stand one behind the other. */
static void take_matrices(struct plain_arena *a, struct plain_matrix *m, uint32_t count)
{
    uint64_t rows = 0, before = 0;

    for (uint32_t i = 0; i < count; i++) rows += m[i].rows;
    const uint64_t codes = take(a, code_bytes(m->format, rows * m->k), 1), scale = take(a, rows * scale_row_bytes(m), 1);
    const uint64_t factor = m->format == WEIGHT_FP4 ? take(a, rows, 4) : 0;
    for (uint32_t i = 0; i < count; before += m[i].rows, i++) {
        m[i].codes = codes + code_bytes(m->format, before * m->k);
        m[i].scale = scale + before * scale_row_bytes(m);
        m[i].factor = factor + 4 * before;
    }
}

static uint32_t q_rows(const struct cuda_model_spec *s, uint32_t layer) { return s->q_heads * s->head_dim[s->layer[layer].type]; }
static uint32_t kv_rows(const struct cuda_model_spec *s, uint32_t layer) { return s->kv_heads[s->layer[layer].type] * s->head_dim[s->layer[layer].type]; }

static int describe_matrix(struct plain_arena *a, const struct cuda_model_spec *s, uint32_t layer, enum cuda_tensor tensor, uint32_t rows, uint32_t k)
{
    struct plain_matrix *m = &a->layer[layer].matrix[tensor];
    const struct cuda_layer_format *l = &s->layer[layer].stored;

    *m = { 0, 0, 0, rows, k, l->format[tensor] ? l->format[tensor] : s->format, l->activation[tensor], l->activation[tensor] == STORED_STATIC ? l->input_scale[tensor] : 0.0f };
    if (m->format == 0 || m->format >= WEIGHT_FORMATS || (m->format == WEIGHT_FP4 && k % (2 * WEIGHT_GROUP)) || m->activation > STORED_STATIC) return -E_UNSUPPORTED;
    if (m->activation == STORED_STATIC && !(m->input_scale > 0.0f)) return -E_UNSUPPORTED;
    if (m->format == WEIGHT_BF16 || m->format == WEIGHT_F32) m->activation = STORED_AS_IS;
    if (m->format == WEIGHT_FP8_BLOCK && k <= WEIGHT_BLOCK) m->format = WEIGHT_FP8;      /* one block along k: a row has one scale, and the CPU multiplies the sum by it */
    if (m->activation != STORED_AS_IS && k > a->rounded) a->rounded = k;
    return 0;
}

static int plan_matrices(struct plain_arena *a, const struct cuda_model_spec *s, uint32_t i)
{
    struct plain_layer *l = &a->layer[i];
    struct plain_matrix *m = l->matrix;
    const uint32_t kv = kv_rows(s, i), v = s->layer[i].has_v ? kv : 0;
    int rc = describe_matrix(a, s, i, CUDA_Q, q_rows(s, i), s->hidden);

    if (rc == 0) rc = describe_matrix(a, s, i, CUDA_K, kv, s->hidden);
    if (rc == 0 && v) rc = describe_matrix(a, s, i, CUDA_V, v, s->hidden);
    if (rc == 0) rc = describe_matrix(a, s, i, CUDA_O, s->hidden, q_rows(s, i));
    if (rc == 0) rc = describe_matrix(a, s, i, CUDA_GATE, s->intermediate, s->hidden);
    if (rc == 0) rc = describe_matrix(a, s, i, CUDA_UP, s->intermediate, s->hidden);
    if (rc == 0) rc = describe_matrix(a, s, i, CUDA_DOWN, s->hidden, s->intermediate);
    if (rc || !are_alike(&m[CUDA_GATE], &m[CUDA_UP])) return -E_UNSUPPORTED;      /* one kernel does both */
    l->stacked = are_alike(&m[CUDA_Q], &m[CUDA_K]) && (v == 0 || are_alike(&m[CUDA_Q], &m[CUDA_V]));
    if (l->stacked) take_matrices(a, &m[CUDA_Q], v ? 3 : 2);
    for (int t = l->stacked ? CUDA_O : CUDA_Q; t <= CUDA_DOWN; t++)
        if (m[t].rows) take_matrices(a, &m[t], 1);
    return 0;
}

extern "C" int plain_plan(struct plain_arena *a, const struct cuda_model_spec *s)
{
    int rc = check_sizes(s);

    memset(a, 0, sizeof *a);
    a->weight_bytes = s->format == WEIGHT_F32 ? 4 : 2;
    for (uint32_t i = 0; i < s->layers && rc == 0; i++) {
        struct plain_layer *l = &a->layer[i];

        if ((rc = check_layer(a, s, i)) != 0) break;
        if ((rc = plan_matrices(a, s, i)) != 0) break;
        l->input_norm = take(a, s->hidden, 4);
        l->post_attention_norm = take(a, s->hidden, 4);
        l->pre_ff_norm = take(a, s->hidden, 4);
        l->post_ff_norm = take(a, s->hidden, 4);
        l->q_norm = take(a, s->head_dim[s->layer[i].type], 4);
        l->k_norm = take(a, s->head_dim[s->layer[i].type], 4);
        l->scalar = take(a, 1, 4);
    }
    if (rc) return rc;
    a->embed = take(a, (uint64_t)s->vocab * s->hidden, a->weight_bytes);
    a->final_norm = take(a, s->hidden, 4);
    return 0;
}

extern "C" uint64_t plain_weights_bytes(const struct cuda_model_spec *spec)
{
    struct plain_arena a;

    return plain_plan(&a, spec) == 0 ? a.bytes : 0;
}

static int find_place(const struct plain_arena *a, const struct cuda_model_spec *s, enum cuda_tensor tensor, uint32_t layer, struct place *p)
{
    const struct plain_layer *l = &a->layer[layer];
    const uint32_t dim = s->head_dim[s->layer[layer].type];

    if (tensor <= CUDA_DOWN) {
        const struct plain_matrix *m = &l->matrix[tensor];

        *p = { m->codes, m->rows, m->k };
        return m->rows ? 0 : -E_NOT_FOUND;
    }
    switch (tensor) {
    case CUDA_INPUT_NORM: *p = { l->input_norm, s->hidden, 0 }; break;
    case CUDA_POST_ATTENTION_NORM: *p = { l->post_attention_norm, s->hidden, 0 }; break;
    case CUDA_PRE_FF_NORM: *p = { l->pre_ff_norm, s->hidden, 0 }; break;
    case CUDA_POST_FF_NORM: *p = { l->post_ff_norm, s->hidden, 0 }; break;
    case CUDA_Q_NORM: *p = { l->q_norm, dim, 0 }; break;
    case CUDA_K_NORM: *p = { l->k_norm, dim, 0 }; break;
    case CUDA_LAYER_SCALAR: *p = { l->scalar, 1, 0 }; break;
    case CUDA_EMBED: *p = { a->embed, s->vocab, s->hidden }; break;
    case CUDA_FINAL_NORM: *p = { a->final_norm, s->hidden, 0 }; break;
    default: return -E_RANGE;
    }
    return 0;
}

static int plan_place(struct plain_arena *a, const struct cuda_model_spec *s, enum cuda_tensor tensor, uint32_t layer, struct place *p)
{
    const int rc = plain_plan(a, s);

    if (rc) return rc;
    if (tensor == CUDA_EMBED || tensor == CUDA_FINAL_NORM) layer = 0;
    return layer < s->layers ? find_place(a, s, tensor, layer, p) : -E_RANGE;
}

extern "C" uint32_t plain_tensor_rows(const struct cuda_model_spec *spec, enum cuda_tensor tensor, uint32_t layer)
{
    struct plain_arena a;
    struct place p;

    return plan_place(&a, spec, tensor, layer, &p) == 0 ? p.rows : 0;
}

/* to = bias + source, as f32: the norms of gemma 3 are stored as w - 1. The scalar gets no bias. */
__global__ void plain_vector_kernel(float *to, const void *from, uint32_t n, bool bf16, bool is_norm, float bias)
{
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    if (i >= n) return;
    const float w = bf16 ? plain_widen(((const uint16_t *)from)[i]) : ((const float *)from)[i];
    to[i] = is_norm ? plain_add(bias, w) : w;
}

/* f32 scales of rows: one each, one for all, or those of the rows' blocks of 128. */
__global__ void plain_scales_kernel(float *to, const float *scale, uint32_t rows, uint32_t columns, uint32_t format, uint32_t stride)
{
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, row = i / columns;

    if (row >= rows) return;
    to[i] = format == WEIGHT_FP8_BLOCK ? scale[row / WEIGHT_BLOCK * stride + i % columns] : format == WEIGHT_FP8 ? scale[row * stride] : scale[0];
}

/* Rows of a matrix and what scales them. */
static int put_rows(const struct plain_matrix *m, uint8_t *arena, uint32_t first, uint32_t rows, const void *source, uint32_t format, const float *scale, uint32_t stride, cudaStream_t stream)
{
    const uint64_t bytes = code_bytes(m->format, (uint64_t)rows * m->k), columns = m->format == WEIGHT_FP4 ? 1 : scale_columns(m);
    int rc = launch_check(cudaMemcpyAsync(arena + m->codes + code_bytes(m->format, (uint64_t)first * m->k), source, bytes, cudaMemcpyDeviceToDevice, stream), "weights");

    if (rc || columns == 0) return rc;
    if (scale == NULL) return -E_RANGE;
    if (m->format == WEIGHT_FP4)
        rc = launch_check(cudaMemcpyAsync(arena + m->scale + first * scale_row_bytes(m), (const uint8_t *)source + bytes, rows * scale_row_bytes(m), cudaMemcpyDeviceToDevice, stream), "weights");
    if (rc) return rc;
    float *to = m->format == WEIGHT_FP4 ? (float *)(arena + m->factor) + first : (float *)(arena + m->scale + first * scale_row_bytes(m));
    plain_scales_kernel<<<(uint32_t)((rows * columns + FILL_THREADS - 1) / FILL_THREADS), FILL_THREADS, 0, stream>>>(to, scale, rows, (uint32_t)columns, format, stride);
    return launch_check(cudaGetLastError(), "scales");
}

extern "C" int plain_weights_put(const struct cuda_model_spec *spec, void *arena, enum cuda_tensor tensor, uint32_t layer, uint32_t first, uint32_t rows,
                                 const void *source, uint32_t format, const float *scale, uint32_t scale_stride, void *stream)
{
    struct plain_arena a;
    struct place p;
    const int rc = plan_place(&a, spec, tensor, layer, &p);

    if (rc) return rc;
    if (source == NULL || rows == 0 || first > p.rows || rows > p.rows - first) return -E_RANGE;
    if (p.columns == 0) {
        if (format != WEIGHT_BF16 && format != WEIGHT_F32) return -E_UNSUPPORTED;
        plain_vector_kernel<<<(rows + FILL_THREADS - 1) / FILL_THREADS, FILL_THREADS, 0, (cudaStream_t)stream>>>(
            (float *)((uint8_t *)arena + p.offset) + first, source, rows, format == WEIGHT_BF16, tensor != CUDA_LAYER_SCALAR, spec->norm_plus_one ? 1.0f : 0.0f);
        return launch_check(cudaGetLastError(), "norm weights");
    }
    const struct plain_matrix table = { a.embed, 0, 0, p.rows, p.columns, spec->format, STORED_AS_IS, 0.0f }, *m = tensor == CUDA_EMBED ? &table : &a.layer[layer].matrix[tensor];

    if (format != m->format && !(format == WEIGHT_FP8_BLOCK && m->format == WEIGHT_FP8 && m->k <= WEIGHT_BLOCK)) return -E_UNSUPPORTED;
    return put_rows(m, (uint8_t *)arena, first, rows, source, format, scale, scale_stride, (cudaStream_t)stream);
}

/* f32 from an element of a matrix. Row j of the output is row `place(j)` of the source: gate and up go by turns of 8. */
__global__ void plain_unpack_kernel(float *out, const void *matrix, bool bf16, uint32_t rows, uint32_t columns, uint32_t out_first, uint32_t turns)
{
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i >= (uint64_t)rows * columns) return;
    const uint32_t row = (uint32_t)(i / columns), to = turns ? row / 8 * 16 + row % 8 + out_first : row + out_first;

    out[(uint64_t)to * columns + i % columns] = bf16 ? plain_widen(((const uint16_t *)matrix)[i]) : ((const float *)matrix)[i];
}

static int unpack(const struct cuda_model_spec *s, const void *arena, const struct place *p, void *out, uint32_t out_first, bool turns, cudaStream_t stream)
{
    const uint64_t n = (uint64_t)p->rows * p->columns;

    plain_unpack_kernel<<<(uint32_t)((n + FILL_THREADS - 1) / FILL_THREADS), FILL_THREADS, 0, stream>>>(
        (float *)out, (const uint8_t *)arena + p->offset, s->format == WEIGHT_BF16, p->rows, p->columns, out_first, turns);
    return launch_check(cudaGetLastError(), "unpack");
}

extern "C" int plain_weights_unpack(const struct cuda_model_spec *spec, const void *arena, enum cuda_tensor tensor, uint32_t layer, void *out, void *stream)
{
    struct plain_arena a;
    struct place p;
    int rc = plan_place(&a, spec, tensor, layer, &p);

    if (rc) return rc;
    if (p.columns == 0) return -E_RANGE;
    if (tensor != CUDA_EMBED && a.layer[layer].matrix[tensor].format != spec->format) return -E_UNSUPPORTED;
    if (tensor == CUDA_Q) p.rows += (spec->layer[layer].has_v ? 2 : 1) * kv_rows(spec, layer);
    rc = unpack(spec, arena, &p, out, 0, tensor == CUDA_GATE, (cudaStream_t)stream);
    if (rc == 0 && tensor == CUDA_GATE && (rc = find_place(&a, spec, CUDA_UP, layer, &p)) == 0) rc = unpack(spec, arena, &p, out, 8, true, (cudaStream_t)stream);
    const int done = launch_check(cudaStreamSynchronize((cudaStream_t)stream), "unpack");
    return rc ? rc : done;
}

__global__ void plain_spread_kernel(float *to, const uint16_t *from, uint64_t n)
{
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i < n) to[i] = plain_widen(from[i]);
}

__global__ void plain_set_kernel(float *to, uint32_t n, float value)
{
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    if (i < n) to[i] = value;
}

/* Deviations that keep every layer's output near 1, as in a trained model: 1 / sqrt(k). scratch: FILL_PIECE bf16, for f32 matrices. */
static int fill(const struct plain_arena *a, void *arena, const struct place *p, void *scratch, uint64_t seed, cudaStream_t stream)
{
    const uint64_t n = (uint64_t)p->rows * p->columns;
    uint8_t *to = (uint8_t *)arena + p->offset;
    int rc = 0;

    if (p->columns == 0) {
        plain_set_kernel<<<(p->rows + FILL_THREADS - 1) / FILL_THREADS, FILL_THREADS, 0, stream>>>((float *)to, p->rows, 1.0f);
        return launch_check(cudaGetLastError(), "fill");
    }
    for (uint64_t at = 0; at < n && rc == 0; at += FILL_PIECE) {
        const uint64_t count = n - at < FILL_PIECE ? n - at : FILL_PIECE;
        void *piece = a->weight_bytes == 2 ? to + 2 * at : scratch;

        rc = fill_normal_launch(piece, count, 1.0f / sqrtf((float)p->columns), seed + at / FILL_PIECE, stream);
        if (rc || a->weight_bytes == 2) continue;
        plain_spread_kernel<<<(uint32_t)((count + FILL_THREADS - 1) / FILL_THREADS), FILL_THREADS, 0, stream>>>((float *)to + at, (const uint16_t *)scratch, count);
        rc = launch_check(cudaGetLastError(), "fill");
    }
    return rc;
}

extern "C" int plain_weights_fill(const struct cuda_model_spec *spec, void *arena, uint64_t seed, void *stream)
{
    struct plain_arena a;
    struct place p;
    void *scratch = NULL;
    int rc = plain_plan(&a, spec);

    if (rc) return rc;
    for (uint32_t i = 0; i < spec->layers; i++)                /* quantised ones come from a checkpoint */
        for (int t = CUDA_Q; t <= CUDA_DOWN; t++)
            if (a.layer[i].matrix[t].rows && a.layer[i].matrix[t].format != spec->format) return -E_UNSUPPORTED;
    if (a.weight_bytes == 4) rc = launch_check(cudaMalloc(&scratch, 2ull * FILL_PIECE), "scratch memory");
    for (uint32_t i = 0; i < spec->layers && rc == 0; i++)
        for (int t = 0; t < CUDA_TENSORS && rc == 0; t++) {
            const int found = find_place(&a, spec, (enum cuda_tensor)t, i, &p);

            if (found == -E_NOT_FOUND || (i > 0 && (t == CUDA_EMBED || t == CUDA_FINAL_NORM))) continue;
            rc = found ? found : fill(&a, arena, &p, scratch, seed + 1024ull * ((uint64_t)i * CUDA_TENSORS + t), (cudaStream_t)stream);
        }
    const int done = launch_check(cudaStreamSynchronize((cudaStream_t)stream), "fill");
    cudaFree(scratch);
    return rc ? rc : done;
}
