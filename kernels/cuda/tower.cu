/* kernels/cuda/tower.cu - see tower.h: weights, the small kernels, and the order of all in a layer.
 *
 *   pixels, embedding + position, then per layer: norm, q k v, attention, out, norm, fc1, fc2, and behind the last: norm, mean of squares, norm, projection */
#include "tower.h"
#include "launch.h"
#include "soft_matrix.h"
#include "tower_attn.h"
#include "tower_mm.h"
#include "kernels/bf16.h"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <new>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "model/siglip.h"
}

#define PIECE_K 64                    /* tower_mm.h: k is a multiple of it */
#define GO_LAYERS 4                   /* launched at a time: some milliseconds */
#define NORM_THREADS 128
#define HIDDEN_MAX 8192u              /* of pool_kernel's shared memory */

struct tower_layer {
    __nv_bfloat16 *qkv, *out, *fc1, *fc2;
    float *qkv_bias, *out_bias, *fc1_bias, *fc2_bias, *ln1[2], *ln2[2];
};

struct tower {
    struct siglip_config c;
    uint32_t count, head, room, rows_max, tokens;      /* patches; elements of a head, and with its padding; soft tokens of a picture */
    uint32_t patch_k, hidden_k, inner_k;               /* k of products, rounded up */
    struct tower_layer layer[SIGLIP_LAYERS_MAX];       /* device, owned, as all that follows */
    __nv_bfloat16 *patch, *projection;
    float *patch_bias, *position, *post[2], *norm;
    uint8_t *rgb;                                      /* [pictures of a call][image][image][3] */
    float *x;                                          /* [count][hidden] */
    __nv_bfloat16 *pixels, *normed, *qkv, *attended, *wide, *pooled;
    uint32_t *first;                                   /* host, owned: [pictures of a call] their first rows */
    uint32_t pictures, picture, next_layer;            /* of the call in hand */
};

static uint32_t up(uint32_t n, uint32_t align) { return (n + align - 1) / align * align; }

/* ---- small kernels -------------------------------------------------------------------------------- */

/* A patch's values, colour by colour, zeros behind them: level v becomes (v - 127.5) / 127.5. */
__global__ void pixels_kernel(const uint8_t *rgb, __nv_bfloat16 *pixels, uint32_t image, uint32_t patch, uint32_t k)
{
    const uint32_t side = image / patch, area = patch * patch, top = blockIdx.x / side * patch, left = blockIdx.x % side * patch;

    for (uint32_t i = threadIdx.x; i < k; i += blockDim.x) {
        const uint32_t colour = i / area, y = i % area / patch, x = i % patch;
        const float value = colour < 3 ? ((float)rgb[((uint64_t)(top + y) * image + left + x) * 3 + colour] - 127.5f) / 127.5f : 0.0f;

        pixels[(uint64_t)blockIdx.x * k + i] = __float2bfloat16_rn(value);
    }
}

/* Sum over the block, the same in every thread. */
__device__ __forceinline__ float block_sum(float x)
{
    __shared__ float part[NORM_THREADS / 32];

    for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
    for (int i = 0; i < NORM_THREADS / 32; i++) x += part[i];
    return x;
}

/* Mean, and what the distance from it is multiplied by. */
__device__ __forceinline__ float2 row_norm(const float *x, uint32_t n, float eps)
{
    float sum = 0.0f, square = 0.0f;

    for (uint32_t i = threadIdx.x; i < n; i += NORM_THREADS) sum += x[i];
    const float mean = block_sum(sum) / (float)n;
    for (uint32_t i = threadIdx.x; i < n; i += NORM_THREADS) square += (x[i] - mean) * (x[i] - mean);
    return make_float2(mean, rsqrtf(block_sum(square) / (float)n + eps));
}

/* y = LN(x) as bf16; a block a row. */
__global__ void __launch_bounds__(NORM_THREADS) norm_kernel(const float *x, const float *weight, const float *bias, __nv_bfloat16 *y, uint32_t n, uint32_t k, float eps)
{
    const float *row = x + (uint64_t)blockIdx.x * n;
    const float2 norm = row_norm(row, n, eps);

    for (uint32_t i = threadIdx.x; i < n; i += NORM_THREADS) y[(uint64_t)blockIdx.x * k + i] = __float2bfloat16_rn((row[i] - norm.x) * norm.y * weight[i] + bias[i]);
}

/* A soft token before its projection: RMSNorm of the mean of LN over a square of patches. */
__global__ void __launch_bounds__(NORM_THREADS) pool_kernel(const float *x, const float *weight, const float *bias, const float *rms_weight, __nv_bfloat16 *y, uint32_t side, uint32_t tokens_side, uint32_t n, uint32_t k, float eps)
{
    extern __shared__ float mean[];
    const uint32_t square = side / tokens_side, top = blockIdx.x / tokens_side * square, left = blockIdx.x % tokens_side * square;
    float sum = 0.0f;

    for (uint32_t i = threadIdx.x; i < n; i += NORM_THREADS) mean[i] = 0.0f;
    for (uint32_t s = 0; s < square * square; s++) {
        const float *row = x + (uint64_t)((top + s / square) * side + left + s % square) * n;
        const float2 norm = row_norm(row, n, eps);

        for (uint32_t i = threadIdx.x; i < n; i += NORM_THREADS) mean[i] += (row[i] - norm.x) * norm.y * weight[i] + bias[i];
    }
    for (uint32_t i = threadIdx.x; i < n; i += NORM_THREADS) {
        mean[i] /= (float)(square * square);
        sum += mean[i] * mean[i];
    }
    const float scale = rsqrtf(block_sum(sum) / (float)n + eps);
    for (uint32_t i = threadIdx.x; i < n; i += NORM_THREADS) y[(uint64_t)blockIdx.x * k + i] = __float2bfloat16_rn(mean[i] * scale * rms_weight[i]);
}

/* ---- weights ------------------------------------------------------------------------------------------ */

static int device_zeros(void **to, uint64_t bytes)
{
    const int rc = launch_check(cudaMalloc(to, bytes), "vision tower");

    return rc ? rc : launch_check(cudaMemset(*to, 0, bytes), "vision tower");
}

/* Rows of bf16, k elements of each, into rows of `room`. */
static int send_rows(__nv_bfloat16 *to, const uint16_t *from, uint32_t rows, uint32_t k, uint32_t room)
{
    return launch_check(cudaMemcpy2D(to, room * 2ull, from, k * 2ull, k * 2ull, rows, cudaMemcpyHostToDevice), "vision tower");
}

/* What is not bf16 is rounded to it, on the host. */
static int send_matrix(__nv_bfloat16 *to, const struct stored_matrix *m, uint32_t room)
{
    if (m->element == STORED_BF16) return send_rows(to, (const uint16_t *)m->data, m->rows, m->k, room);
    uint16_t *host = (uint16_t *)malloc((uint64_t)m->rows * m->k * 2);
    if (!host) return -E_NOMEM;
    for (uint32_t r = 0; r < m->rows; r++)
        for (uint32_t i = 0; i < m->k; i++) host[(uint64_t)r * m->k + i] = bf16_of(stored_value(m, r, i));
    const int rc = send_rows(to, host, m->rows, m->k, room);
    free(host);
    return rc;
}

static int send_floats(__nv_bfloat16 *to, const float *from, uint32_t rows, uint32_t k, uint32_t room)
{
    const struct stored_matrix m = { from, NULL, NULL, rows, k, 0, 0, STORED_F32, 0, 0, 0.0f, 0.0f };

    return send_matrix(to, &m, room);
}

static int pair(float *to[2], const float *weight, const float *bias, uint64_t n)
{
    const int rc = soft_vector_open(&to[0], weight, n);

    return rc ? rc : soft_vector_open(&to[1], bias, n);
}

static int open_layer(struct tower *t, struct tower_layer *to, const struct siglip_layer *from)
{
    const uint32_t h = t->c.hidden, inner = t->c.inner;
    const struct { __nv_bfloat16 **to; uint32_t rows, k; } rooms[] = { { &to->qkv, 3 * h, t->hidden_k }, { &to->out, h, t->hidden_k }, { &to->fc1, inner, t->hidden_k }, { &to->fc2, h, t->inner_k } };
    int rc = 0;

    for (const auto &r : rooms)
        if (rc == 0) rc = device_zeros((void **)r.to, 2ull * r.rows * r.k);
    if (rc == 0) rc = send_matrix(to->qkv, &from->q, t->hidden_k);
    if (rc == 0) rc = send_matrix(to->qkv + (uint64_t)h * t->hidden_k, &from->k, t->hidden_k);
    if (rc == 0) rc = send_matrix(to->qkv + 2ull * h * t->hidden_k, &from->v, t->hidden_k);
    if (rc == 0) rc = send_matrix(to->out, &from->out, t->hidden_k);
    if (rc == 0) rc = send_matrix(to->fc1, &from->fc1, t->hidden_k);
    if (rc == 0) rc = send_matrix(to->fc2, &from->fc2, t->inner_k);
    if (rc == 0) rc = device_zeros((void **)&to->qkv_bias, 3ull * h * sizeof(float));
    const float *const bias[] = { from->q_bias, from->k_bias, from->v_bias };
    for (int i = 0; i < 3 && rc == 0; i++) rc = launch_check(cudaMemcpy(to->qkv_bias + (uint64_t)i * h, bias[i], h * sizeof(float), cudaMemcpyHostToDevice), "vision tower");
    if (rc == 0) rc = soft_vector_open(&to->out_bias, from->out_bias, h);
    if (rc == 0) rc = soft_vector_open(&to->fc1_bias, from->fc1_bias, inner);
    if (rc == 0) rc = soft_vector_open(&to->fc2_bias, from->fc2_bias, h);
    if (rc == 0) rc = pair(to->ln1, from->ln1_weight, from->ln1_bias, h);
    return rc ? rc : pair(to->ln2, from->ln2_weight, from->ln2_bias, h);
}

static int open_ends(struct tower *t, const struct siglip_weights *w)
{
    const uint32_t h = t->c.hidden, values = t->c.patch * t->c.patch * 3, stored = up(values, KERNELS_LANES);
    int rc = device_zeros((void **)&t->patch, 2ull * h * t->patch_k);

    if (rc == 0) rc = device_zeros((void **)&t->projection, 2ull * t->c.text_hidden * t->hidden_k);
    if (rc == 0) rc = send_floats(t->patch, w->patch, h, stored, t->patch_k);      /* zeros stand behind the values already */
    if (rc == 0) rc = send_floats(t->projection, w->projection, t->c.text_hidden, h, t->hidden_k);
    if (rc == 0) rc = soft_vector_open(&t->patch_bias, w->patch_bias, h);
    if (rc == 0) rc = soft_vector_open(&t->position, w->position, (uint64_t)t->count * h);
    if (rc == 0) rc = pair(t->post, w->post_weight, w->post_bias, h);
    return rc ? rc : soft_vector_open(&t->norm, w->norm, h);
}

static int open_scratch(struct tower *t)
{
    const uint64_t n = t->count, pictures = t->rows_max / t->tokens;
    const struct { void **at; uint64_t bytes; } want[] = {
        { (void **)&t->rgb, pictures * t->c.image * t->c.image * 3 }, { (void **)&t->x, 4 * n * t->c.hidden }, { (void **)&t->pixels, 2 * n * t->patch_k },
        { (void **)&t->normed, 2 * n * t->hidden_k }, { (void **)&t->qkv, 6 * n * t->c.heads * t->room }, { (void **)&t->attended, 2 * n * t->hidden_k },
        { (void **)&t->wide, 2 * n * t->inner_k }, { (void **)&t->pooled, 2ull * t->tokens * t->hidden_k },
    };
    int rc = 0;

    for (const auto &w : want)
        if (rc == 0) rc = device_zeros(w.at, w.bytes);
    t->first = new (std::nothrow) uint32_t[pictures];
    return rc ? rc : t->first ? 0 : -E_NOMEM;
}

static int open_all(struct tower *t, const struct siglip_weights *w)
{
    int rc = tower_mm_init();

    if (t->room == 0 || t->head % 2 || t->c.hidden > HIDDEN_MAX || t->c.text_hidden % 2 || t->rows_max < t->tokens)
        return launch_fail(-E_UNSUPPORTED, "a vision tower of %u with %u heads", t->c.hidden, t->c.heads);
    if (rc == 0) rc = tower_attn_init();
    if (rc == 0) rc = launch_prepare((const void *)pool_kernel, t->c.hidden * (uint32_t)sizeof(float));
    if (rc == 0) rc = open_ends(t, w);
    for (uint32_t i = 0; i < t->c.layers && rc == 0; i++) rc = open_layer(t, &t->layer[i], &w->layer[i]);
    if (rc == 0) rc = open_scratch(t);
    return rc ? rc : launch_check(cudaDeviceSynchronize(), "vision tower");
}

int tower_open(struct tower **tower, const struct siglip_weights *w, uint32_t rows_max)
{
    struct tower *t = new (std::nothrow) struct tower();

    *tower = NULL;
    if (!t) return -E_NOMEM;
    t->c = w->config;
    t->count = t->c.side * t->c.side;
    t->head = t->c.hidden / t->c.heads;
    t->room = tower_attn_room(t->head);
    t->rows_max = rows_max;
    t->tokens = t->c.tokens_side * t->c.tokens_side;
    t->patch_k = up(t->c.patch * t->c.patch * 3, PIECE_K);
    t->hidden_k = up(t->c.hidden, PIECE_K);
    t->inner_k = up(t->c.inner, PIECE_K);
    const int rc = open_all(t, w);
    if (rc) tower_close(t);
    else *tower = t;
    return rc;
}

void tower_close(struct tower *t)
{
    if (!t) return;
    for (const struct tower_layer &l : t->layer) {
        void *const own[] = { l.qkv, l.out, l.fc1, l.fc2, l.qkv_bias, l.out_bias, l.fc1_bias, l.fc2_bias, l.ln1[0], l.ln1[1], l.ln2[0], l.ln2[1] };
        for (void *memory : own) cudaFree(memory);
    }
    void *const all[] = { t->patch, t->projection, t->patch_bias, t->position, t->post[0], t->post[1], t->norm, t->rgb, t->x, t->pixels, t->normed, t->qkv, t->attended, t->wide, t->pooled };
    for (void *memory : all) cudaFree(memory);
    delete[] t->first;
    delete t;
}

/* ---- a call ------------------------------------------------------------------------------------------------ */

int tower_take(struct tower *t, const struct cuda_prefill_piece *pieces, uint32_t piece_count, void *stream)
{
    const uint64_t bytes = (uint64_t)t->c.image * t->c.image * 3;
    int rc = 0;

    if (piece_count > t->rows_max / t->tokens) return -E_RANGE;
    for (uint32_t i = 0; i < piece_count; i++)
        if (!pieces[i].data || pieces[i].rows != t->tokens || pieces[i].first_row > t->rows_max - t->tokens) return -E_RANGE;
    for (uint32_t i = 0; i < piece_count && rc == 0; i++) { /* from pageable memory: the call returns when the bytes have been taken */
        t->first[i] = pieces[i].first_row;
        rc = launch_check(cudaMemcpyAsync(t->rgb + i * bytes, pieces[i].data, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream), "pictures");
    }
    t->pictures = rc ? 0 : piece_count;
    t->picture = t->next_layer = 0;
    return rc;
}

static int product(const struct tower *t, const __nv_bfloat16 *a, const __nv_bfloat16 *w, const float *bias, void *out, uint32_t m, uint32_t n, uint32_t k, uint32_t stride, enum tower_epilogue e, void *stream)
{
    const float log2_e = 1.44269504f;
    const struct tower_mm p = { a, w, bias, out, m, n, k, stride, t->c.heads, t->head, t->room, log2_e / sqrtf((float)t->head) };

    return tower_mm_launch(&p, e, stream);
}

static int norm(const struct tower *t, float *const weights[2], cudaStream_t stream)
{
    norm_kernel<<<t->count, NORM_THREADS, 0, stream>>>(t->x, weights[0], weights[1], t->normed, t->c.hidden, t->hidden_k, t->c.eps);
    return launch_check(cudaGetLastError(), "norm");
}

static int embed(const struct tower *t, cudaStream_t stream)
{
    pixels_kernel<<<t->count, 128, 0, stream>>>(t->rgb + (uint64_t)t->picture * t->c.image * t->c.image * 3, t->pixels, t->c.image, t->c.patch, t->patch_k);
    int rc = launch_check(cudaGetLastError(), "pixels");
    if (rc == 0) rc = launch_check(cudaMemcpyAsync(t->x, t->position, 4ull * t->count * t->c.hidden, cudaMemcpyDeviceToDevice, stream), "positions");
    return rc ? rc : product(t, t->pixels, t->patch, t->patch_bias, t->x, t->count, t->c.hidden, t->patch_k, t->c.hidden, TOWER_RESIDUAL, stream);
}

static int run_layer(const struct tower *t, const struct tower_layer *l, cudaStream_t stream)
{
    const uint32_t n = t->count, h = t->c.hidden;
    const uint64_t part = (uint64_t)n * t->c.heads * t->room;
    const struct tower_attn attn = { t->qkv, t->qkv + part, t->qkv + 2 * part, t->attended, n, t->c.heads, t->head, t->hidden_k };
    int rc = norm(t, l->ln1, stream);

    if (rc == 0) rc = product(t, t->normed, l->qkv, l->qkv_bias, t->qkv, n, 3 * h, t->hidden_k, 0, TOWER_HEADS, stream);
    if (rc == 0) rc = tower_attn_launch(&attn, stream);
    if (rc == 0) rc = product(t, t->attended, l->out, l->out_bias, t->x, n, h, t->hidden_k, h, TOWER_RESIDUAL, stream);
    if (rc == 0) rc = norm(t, l->ln2, stream);
    if (rc == 0) rc = product(t, t->normed, l->fc1, l->fc1_bias, t->wide, n, t->c.inner, t->hidden_k, t->inner_k, TOWER_GELU, stream);
    return rc ? rc : product(t, t->wide, l->fc2, l->fc2_bias, t->x, n, h, t->inner_k, h, TOWER_RESIDUAL, stream);
}

static int project(const struct tower *t, float *out, cudaStream_t stream)
{
    pool_kernel<<<t->tokens, NORM_THREADS, t->c.hidden * sizeof(float), stream>>>(t->x, t->post[0], t->post[1], t->norm, t->pooled, t->c.side, t->c.tokens_side, t->c.hidden, t->hidden_k, t->c.eps);
    const int rc = launch_check(cudaGetLastError(), "pool");

    return rc ? rc : product(t, t->pooled, t->projection, NULL, out, t->tokens, t->c.text_hidden, t->hidden_k, t->c.text_hidden, TOWER_F32, stream);
}

int tower_go(struct tower *t, float *out, void *stream)
{
    int rc = 0;

    if (t->picture >= t->pictures) return -E_RANGE;
    if (t->next_layer == 0) rc = embed(t, (cudaStream_t)stream);
    for (uint32_t i = 0; i < GO_LAYERS && t->next_layer < t->c.layers && rc == 0; i++) rc = run_layer(t, &t->layer[t->next_layer++], (cudaStream_t)stream);
    if (rc || t->next_layer < t->c.layers) return rc ? rc : 1;
    rc = project(t, out + (uint64_t)t->first[t->picture] * t->c.text_hidden, (cudaStream_t)stream);
    t->next_layer = 0;
    t->picture++;
    return rc ? rc : t->picture < t->pictures;
}
