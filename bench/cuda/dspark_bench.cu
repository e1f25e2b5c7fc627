/* bench/cuda/dspark_bench.cu - a round of the DSpark drafter of Gemma 4 12B on random weights, put together from the parts that exist on the GPU, and its floor.
 *
 *   cuda_dspark_bench [--format fp8|bf16] [--context N] [--absorb N]
 *
 *   absorb   fc [3840 x 19200] of N feature rows (default 5: four drafts accepted), its norm, the keys of the five layers [2560 x 3840] into their rings
 *   layers   seven rows through five layers: rowmm and norm as in the target's step, dspark_attn.h over the rings
 *   head     [262144 x 3840] with the softcap, seven rows
 *   markov   the seven guesses (dspark_markov.h)
 * Before it measures, attention is compared with a plain kernel in f64, and each guess with the best one of a plain kernel; exits with 1 if they differ.
 * floor = bytes that must cross HBM / read bandwidth measured in the same run. Medians of 30; each part is a graph, "all" one graph of all four. */
#include "bench/cuda/measure.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/dspark_attn.h"
#include "kernels/cuda/dspark_markov.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/rowmm.h"
#include "kernels/cuda/sample_common.cuh"
#include <algorithm>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define HIDDEN 3840u
#define INNER 15360u
#define VOCAB 262144u
#define LAYERS 5u
#define SOURCES 5u
#define BLOCK 7u
#define ROWS 8u                      /* of buffers */
#define WINDOW 4096u
#define KEY_ROWS (LAYERS * 512u)
#define PIECE_ROWS 4096u
#define REPEATS 30

/* ---- stand-ins and references ---- */

__device__ void store_row(__nv_bfloat16 *to, float x, bool f16) { *(uint16_t *)to = (uint16_t)pack_row(x, 0.0f, f16); }

/* f = norm(sum of the sources' products), bf16 or f16 */
__global__ void feature_kernel(const float *part, uint32_t rows_max, __nv_bfloat16 *f, bool f16)
{
    __shared__ float sum_of[32];
    const float *row = part + (uint64_t)blockIdx.x * HIDDEN;
    float v[4], sum = 0;

    for (int i = 0; i < 4; i++) {
        const uint32_t at = threadIdx.x + i * 1024;

        v[i] = 0;
        for (uint32_t s = 0; s < SOURCES && at < HIDDEN; s++) v[i] += row[(uint64_t)s * rows_max * HIDDEN + at];
        sum += v[i] * v[i];
    }
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) sum_of[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < 32; i++) sum += sum_of[i];
    for (int i = 0; i < 4; i++)
        if (threadIdx.x + i * 1024 < HIDDEN) store_row(f + (uint64_t)blockIdx.x * HIDDEN + threadIdx.x + i * 1024, v[i] * rsqrtf(sum / HIDDEN + 1e-6f), f16);
}

/* The block's rows: h = row of the table, scaled; y = norm(h), bf16 or f16 */
__global__ void start_kernel(const __nv_bfloat16 *table, float scale, float *h, __nv_bfloat16 *y, bool f16)
{
    __shared__ float sum_of[32];
    const uint64_t at = (uint64_t)blockIdx.x * HIDDEN;
    float sum = 0;

    for (uint32_t i = threadIdx.x; i < HIDDEN; i += blockDim.x) {
        h[at + i] = __bfloat162float(table[at + i]) * scale;
        sum += h[at + i] * h[at + i];
    }
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) sum_of[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (uint32_t i = 0; i < blockDim.x / 32; i++) sum += sum_of[i];
    for (uint32_t i = threadIdx.x; i < HIDDEN; i += blockDim.x) store_row(y + at + i, h[at + i] * rsqrtf(sum / HIDDEN + 1e-6f), f16);
}

/* Element i of a head, normed and turned, in f64; x [512] f32. */
__device__ double plain_element(const float *x, const __nv_bfloat16 *weight, const float *inv_freq, uint32_t position, uint32_t i, bool turn)
{
    double sum = 0;

    for (uint32_t j = 0; j < DSPARK_DIM; j++) sum += (double)x[j] * x[j];
    const double scale = 1 / sqrt(sum / DSPARK_DIM + 1e-6), y = x[i] * scale * (weight ? (double)__bfloat162float(weight[i]) : 1.0);
    const uint32_t pair = i % (DSPARK_DIM / 2);

    if (!turn || pair >= DSPARK_TURNED) return y;
    const uint32_t other = i < DSPARK_DIM / 2 ? i + DSPARK_DIM / 2 : i - DSPARK_DIM / 2;
    const double z = x[other] * scale * (double)__bfloat162float(weight[other]), angle = (double)(inv_freq[pair] * (float)position);

    return i < DSPARK_DIM / 2 ? y * cos(angle) - z * sin(angle) : y * cos(angle) + z * sin(angle);
}

/* Attention of one query, a block of 512 threads: the block's own keys from qkv, the others from the rings. */
__global__ void plain_attention(dspark_attn_args a, double *out)
{
    extern __shared__ double score[];
    __shared__ double q[DSPARK_DIM];
    const uint32_t row = blockIdx.x / DSPARK_HEADS, head = blockIdx.x % DSPARK_HEADS, i = threadIdx.x, end = a.seq[0].position + a.rows;

    q[i] = plain_element(a.qkv + (uint64_t)row * a.qkv_stride + head * DSPARK_DIM, a.q_norm, a.inv_freq, a.seq[0].position + row, i, true);
    __syncthreads();
    for (uint32_t key = a.seq[0].low + i; key < end; key += DSPARK_DIM) {
        const float *own = a.qkv + (uint64_t)(key - a.seq[0].position) * a.qkv_stride + DSPARK_HEADS * DSPARK_DIM;
        double sum = 0;

        for (uint32_t j = 0; j < DSPARK_DIM; j++)
            sum += q[j] * (key >= a.seq[0].position ? plain_element(own, a.k_norm, a.inv_freq, key, j, true) : (double)__bfloat162float(a.seq[0].k[(uint64_t)(key % a.ring_rows) * DSPARK_DIM + j]));
        score[key - a.seq[0].low] = sum;
    }
    __syncthreads();
    double top = -1e300, total = 0, sum = 0;
    for (uint32_t key = a.seq[0].low; key < end; key++) top = fmax(top, score[key - a.seq[0].low]);
    for (uint32_t key = a.seq[0].low; key < end; key++) {
        const double weight = exp(score[key - a.seq[0].low] - top);

        total += weight;
        sum += weight * (key >= a.seq[0].position ? plain_element(a.qkv + (uint64_t)(key - a.seq[0].position) * a.qkv_stride + DSPARK_HEADS * DSPARK_DIM, NULL, a.inv_freq, key, i, false)
                                           : (double)__bfloat162float(a.seq[0].v[(uint64_t)(key % a.ring_rows) * DSPARK_DIM + i]));
    }
    out[(uint64_t)blockIdx.x * DSPARK_DIM + i] = sum / total;
}

/* Codes and scales of rows of DSPARK_RANK, one block each. */
__global__ void round_kernel(const __nv_bfloat16 *from, uint8_t *codes, float *scale)
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
    const float s = largest[0] > 0 ? largest[0] / 448.0f : 1.0f;
    codes[at] = (uint8_t)__nv_cvt_float_to_fp8(x / s, __NV_SATFINITE, __NV_E4M3);
    if (threadIdx.x == 0) scale[blockIdx.x] = s;
}

/* Every token's score for guess g, one thread each, sums in f64. */
__global__ void plain_scores(dspark_markov_args a, uint32_t g, uint32_t previous, float *score)
{
    const uint32_t t = blockIdx.x * blockDim.x + threadIdx.x;
    double bias = 0;

    if (t >= a.vocab) return;
    for (uint32_t i = 0; i < DSPARK_RANK; i++) {
        const uint64_t at = (uint64_t)t * DSPARK_RANK + i;
        float w;

        if (a.w2_scale) {
            const __half_raw raw = __nv_cvt_fp8_to_halfraw(((const __nv_fp8_storage_t *)a.w2)[at], __NV_E4M3);

            w = __half2float(*(const __half *)&raw);
        } else w = __bfloat162float(((const __nv_bfloat16 *)a.w2)[at]);
        bias += (double)w * (double)__bfloat162float(a.w1[(uint64_t)previous * DSPARK_RANK + i]);
    }
    const float z = a.base[(uint64_t)g * a.vocab + t] + (float)(a.w2_scale ? bias * a.w2_scale[t] : bias);

    score[t] = a.temperature == 0.0f ? z : (float)((double)(z / a.temperature) + sample_gumbel(sample_above(sample_word(sample_philox(a.seed, (uint64_t)a.position + 1 + g, t / 4), t % 4))));
}

/* ---- the drafter's memory ---- */

struct layer {
    struct packed_matrix qkv, o, gate_up, down;
    __nv_bfloat16 *k, *v;             /* rings */
};

struct bench {
    uint32_t format, context, absorb, ring_rows;
    int sms;
    cudaStream_t stream;
    struct layer layer[LAYERS];
    struct packed_matrix fc[SOURCES], keys, head;
    __nv_bfloat16 *ones, *key_norms;  /* [HIDDEN], [LAYERS * 512]: weights of the norms */
    __nv_bfloat16 *table, *features, *f; /* [ROWS][HIDDEN], [SOURCES][ROWS][HIDDEN], [ROWS][HIDDEN] */
    float *residual[2], *qkv, *part, *key_out, *logits, *tile_top, *inv_freq;
    __nv_bfloat16 *x, *act, *attended;/* FP8: f16, like f, by the power of two `one` */
    float *one;                       /* FP8: 1, on the device; else NULL */
    __nv_bfloat16 *rings;             /* K of all layers, then V */
    struct dspark_attn_args attn;
    struct dspark_markov_args markov;
};

static void *memory(uint64_t bytes)
{
    void *p;

    CHECK(cudaMalloc(&p, bytes));
    return p;
}

static struct packed_matrix random_matrix(const struct bench *b, uint32_t rows, uint32_t k, uint64_t seed)
{
    struct packed_matrix m = { NULL, rows, k, packed_slice_k(k), b->format };
    void *plain = memory(2ull * PIECE_ROWS * k);
    float *scratch = (float *)memory(4 * PIECE_ROWS);

    m.data = (const uint8_t *)memory(packed_bytes(m.format, rows, k));
    for (uint32_t row = 0; row < rows; row += PIECE_ROWS) {
        const uint32_t n = rows - row < PIECE_ROWS ? rows - row : PIECE_ROWS;
        struct pack_source from = { plain, NULL, 0, WEIGHT_BF16, n, row / TILE_ROWS, PACK_WHOLE, NULL };

        OK(fill_normal_launch(plain, (uint64_t)n * k, 1.0f / sqrtf((float)k), seed + row, NULL));
        OK(pack_launch(&m, &from, scratch, NULL));
    }
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFree(plain));
    CHECK(cudaFree(scratch));
    return m;
}

static __nv_bfloat16 *ones(uint32_t n)
{
    __nv_bfloat16 *p = (__nv_bfloat16 *)memory(2ull * n);

    OK(fill_constant_launch(p, n, 1.0f, NULL));
    return p;
}

static __nv_bfloat16 *normal(uint64_t n, float deviation, uint64_t seed)
{
    __nv_bfloat16 *p = (__nv_bfloat16 *)memory(2 * n);

    OK(fill_normal_launch(p, n, deviation, seed, NULL));
    return p;
}

static void open_layers(struct bench *b)
{
    const uint64_t ring = (uint64_t)b->ring_rows * DSPARK_DIM;
    std::vector<float> freq(DSPARK_TURNED);

    b->rings = normal(2 * LAYERS * ring, 1.0f, 77);
    for (uint32_t i = 0; i < LAYERS; i++) {
        struct layer *l = &b->layer[i];

        l->qkv = random_matrix(b, (DSPARK_HEADS + 1) * DSPARK_DIM, HIDDEN, 10 + 1000000 * i);
        l->o = random_matrix(b, HIDDEN, DSPARK_HEADS * DSPARK_DIM, 20 + 1000000 * i);
        l->gate_up = random_matrix(b, 2 * INNER, HIDDEN, 30 + 1000000 * i);
        l->down = random_matrix(b, HIDDEN, INNER, 40 + 1000000 * i);
        l->k = b->rings + i * ring, l->v = b->rings + (LAYERS + i) * ring;
    }
    for (uint32_t i = 0; i < DSPARK_TURNED; i++) freq[i] = 1.0f / powf(1e6f, (float)(2 * i) / DSPARK_DIM);
    b->inv_freq = (float *)memory(4 * DSPARK_TURNED);
    CHECK(cudaMemcpy(b->inv_freq, freq.data(), 4 * DSPARK_TURNED, cudaMemcpyHostToDevice));
    b->ones = ones(HIDDEN), b->key_norms = ones(LAYERS * DSPARK_DIM);
    for (int i = 0; i < 2; i++) b->residual[i] = (float *)memory(4ull * ROWS * HIDDEN);
    b->x = (__nv_bfloat16 *)memory(2ull * ROWS * HIDDEN);
    b->act = (__nv_bfloat16 *)memory(2ull * ROWS * INNER);
    b->attended = (__nv_bfloat16 *)memory(2ull * ROWS * DSPARK_HEADS * DSPARK_DIM);
    b->qkv = (float *)memory(4ull * ROWS * (DSPARK_HEADS + 1) * DSPARK_DIM);
    const uint64_t spans = dspark_attn_spans(b->ring_rows);
    struct dspark_attn_args *a = &b->attn;
    a->qkv = b->qkv, a->qkv_stride = (DSPARK_HEADS + 1) * DSPARK_DIM, a->rows = BLOCK, a->count = 1, a->seq[0].position = b->context, a->seq[0].low = b->context > WINDOW ? b->context - WINDOW : 0, a->spans_max = dspark_attn_spans(b->ring_rows);
    a->q_norm = b->ones, a->k_norm = b->key_norms, a->inv_freq = b->inv_freq, a->ring_rows = b->ring_rows, a->eps = 1e-6f, a->out = b->attended;
    a->q = (__nv_bfloat16 *)memory(2ull * DSPARK_QUERIES * DSPARK_DIM);
    a->part = (float *)memory(4 * spans * DSPARK_QUERIES * DSPARK_DIM);
    a->part_ml = (float2 *)memory(8 * spans * DSPARK_QUERIES);
}

static void open_markov(struct bench *b)
{
    __nv_bfloat16 *w1 = normal((uint64_t)VOCAB * DSPARK_RANK, 1.0f, 5), *w2 = normal((uint64_t)VOCAB * DSPARK_RANK, 0.1f, 6), *c = normal(HIDDEN + DSPARK_RANK, 0.01f, 7);

    b->markov = { b->logits, w1, w2, NULL, b->x, c, 0.5f, HIDDEN, VOCAB, BLOCK, VOCAB, NULL, 1000, b->context, 42, 0.0f,
                  (uint32_t *)memory(4 * DSPARK_GUESSES_MAX), (float *)memory(4 * DSPARK_GUESSES_MAX), memory(DSPARK_MARKOV_SCRATCH), b->one, NULL };
    if (b->format != WEIGHT_FP8) return;
    uint8_t *codes = (uint8_t *)memory((uint64_t)VOCAB * DSPARK_RANK);
    float *scale = (float *)memory(4 * VOCAB);
    round_kernel<<<VOCAB, DSPARK_RANK>>>(w2, codes, scale);
    CHECK(cudaGetLastError());
    b->markov.w2 = codes, b->markov.w2_scale = scale;
}

/* ---- the parts ---- */

static void product(const struct bench *b, const struct packed_matrix *w, const __nv_bfloat16 *x, void *out, uint32_t rows, enum rowmm_out kind)
{
    struct rowmm_tuning tuning = {};
    struct rowmm_args a = {};

    tuning.ring_slots = 10, tuning.window_slots = 3, tuning.wait_slots = 2, tuning.sm_count = (uint32_t)b->sms;
    a.x = x, a.out = out, a.out_stride = kind == ROWMM_GEGLU ? w->rows / 2 : w->rows, a.out_slice_stride = (uint64_t)ROWS * a.out_stride, a.m = rows, a.out_kind = kind, a.out_power = b->one;
    if (kind == ROWMM_LOGITS) a.softcap = 30.0f, a.tile_top = b->tile_top;
    OK(rowmm_launch(w, a, &tuning, b->stream));
}

static void absorb(const struct bench *b)
{
    const struct dspark_keys_args a = { b->key_out, b->absorb, LAYERS, b->context - b->absorb, b->ring_rows, b->key_norms, b->inv_freq, b->layer[0].k, b->layer[0].v, 1e-6f, NULL };

    for (uint32_t s = 0; s < SOURCES; s++)
        product(b, &b->fc[s], b->features + (uint64_t)s * ROWS * HIDDEN, b->part + (uint64_t)s * ROWS * HIDDEN, b->absorb, ROWMM_PARTIAL);
    feature_kernel<<<b->absorb, 1024, 0, b->stream>>>(b->part, ROWS, b->f, b->one != NULL);
    CHECK(cudaGetLastError());
    product(b, &b->keys, b->f, b->key_out, b->absorb, ROWMM_PARTIAL);
    OK(dspark_keys_launch(&a, b->stream));
}

/* residual[flip ^ 1] = residual[flip] + norm(sum of partial results); x = norm of it. */
static void norm(const struct bench *b, const struct packed_matrix *from, uint32_t flip)
{
    struct norm_args n = {};

    n.part = b->part, n.part_stride = (uint64_t)ROWS * HIDDEN, n.split = from->k / from->slice_k, n.hidden = HIDDEN;
    n.residual = b->residual[flip], n.residual_out = b->residual[flip ^ 1], n.w_post = n.w_next = b->ones, n.eps = 1e-6f, n.y = b->x, n.y_power = b->one;
    OK(norm_launch(&n, BLOCK, b->stream));
}

static void layers(const struct bench *b)
{
    start_kernel<<<BLOCK, 512, 0, b->stream>>>(b->table, 62.0f, b->residual[0], b->x, b->one != NULL);
    CHECK(cudaGetLastError());
    for (uint32_t i = 0; i < LAYERS; i++) {
        const struct layer *l = &b->layer[i];
        struct dspark_attn_args a = b->attn;

        a.seq[0].k = l->k, a.seq[0].v = l->v;
        product(b, &l->qkv, b->x, b->qkv, BLOCK, ROWMM_PARTIAL);
        OK(dspark_attn_launch(&a, b->stream));
        product(b, &l->o, b->attended, b->part, BLOCK, ROWMM_PARTIAL);
        norm(b, &l->o, 0);
        product(b, &l->gate_up, b->x, b->act, BLOCK, ROWMM_GEGLU);
        product(b, &l->down, b->act, b->part, BLOCK, ROWMM_PARTIAL);
        norm(b, &l->down, 1);
    }
}

static void head(const struct bench *b) { product(b, &b->head, b->x, b->logits, BLOCK, ROWMM_LOGITS); }
static void markov(const struct bench *b) { OK(dspark_markov_launch(&b->markov, (uint32_t)b->sms, b->stream)); }
static void all(const struct bench *b) { absorb(b), layers(b), head(b), markov(b); }

static void read_head(const struct bench *b)
{
    read_kernel<<<b->sms * 4, 512, 0, b->stream>>>((const uint4 *)b->head.data, packed_bytes(b->format, VOCAB, HIDDEN) / 16, b->markov.guess);
}

static double median_us(const struct bench *b, void (*work)(const struct bench *))
{
    std::vector<float> t;
    cudaEvent_t begin, end;
    cudaGraphExec_t exec;
    cudaGraph_t graph;

    CHECK(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
    work(b);
    CHECK(cudaStreamEndCapture(b->stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    for (int i = 0; i < REPEATS + 3; i++) {
        float ms;

        CHECK(cudaEventRecord(begin, b->stream));
        CHECK(cudaGraphLaunch(exec, b->stream));
        CHECK(cudaEventRecord(end, b->stream));
        CHECK(cudaEventSynchronize(end));
        CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 3) t.push_back(ms * 1e3f);
    }
    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    std::sort(t.begin(), t.end());
    return t[t.size() / 2];
}

/* The last layer's attention, of what its qkv product has left. */
static bool check_attention(const struct bench *b)
{
    const uint32_t n = BLOCK * DSPARK_HEADS * DSPARK_DIM, keys = b->attn.seq[0].position + BLOCK - b->attn.seq[0].low;
    struct dspark_attn_args a = b->attn;
    std::vector<double> wanted(n);
    std::vector<uint16_t> got(n);
    double *device = (double *)memory(8ull * n), off = 0, size = 0;

    a.seq[0].k = b->layer[LAYERS - 1].k, a.seq[0].v = b->layer[LAYERS - 1].v;
    OK(dspark_attn_launch(&a, b->stream));
    CHECK(cudaStreamSynchronize(b->stream));
    CHECK(cudaFuncSetAttribute(plain_attention, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024));
    plain_attention<<<BLOCK * DSPARK_HEADS, DSPARK_DIM, 8 * keys>>>(a, device);
    CHECK(cudaMemcpy(wanted.data(), device, 8ull * n, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(got.data(), a.out, 2ull * n, cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < n; i++) {
        const double d = (b->one ? (double)__half2float(__ushort_as_half(got[i])) : (double)__bfloat162float(__ushort_as_bfloat16(got[i]))) - wanted[i];

        off += d * d, size += wanted[i] * wanted[i];
    }
    const double error = sqrt(off / size);
    printf("check: attention over %u keys, off by %.1e (bf16 queries, keys and weights): %s\n", keys, error, error < 3e-2 ? "ok" : "WRONG");
    CHECK(cudaFree(device));
    return error < 3e-2;
}

/* Are the kernel's guesses the best ones, each behind the guess before it? */
static bool check_markov(struct bench *b, float temperature)
{
    std::vector<uint32_t> guess(BLOCK);
    std::vector<float> score(VOCAB);
    float *device = (float *)memory(4 * VOCAB), worst = 0;
    uint32_t previous = b->markov.token;

    b->markov.temperature = temperature;
    markov(b);
    CHECK(cudaStreamSynchronize(b->stream));
    CHECK(cudaMemcpy(guess.data(), b->markov.guess, 4 * BLOCK, cudaMemcpyDeviceToHost));
    for (uint32_t g = 0; g < BLOCK; g++) {
        plain_scores<<<VOCAB / 256, 256>>>(b->markov, g, previous, device);
        CHECK(cudaMemcpy(score.data(), device, 4 * VOCAB, cudaMemcpyDeviceToHost));
        const float best = *std::max_element(score.begin(), score.end());
        if (guess[g] >= VOCAB) return false;
        if (best - score[guess[g]] > worst) worst = best - score[guess[g]];
        previous = guess[g];
    }
    printf("check: guesses at temperature %g, the best one missed by at most %.1e: %s\n", temperature, worst, worst <= 1e-4f ? "ok" : "WRONG");
    CHECK(cudaFree(device));
    return worst <= 1e-4f;
}

static uint64_t matrix_bytes(const struct packed_matrix *m) { return packed_bytes(m->format, m->rows, m->k); }

static uint64_t layer_bytes(const struct bench *b)
{
    uint64_t bytes = 0;

    for (const struct layer &l : b->layer)
        bytes += matrix_bytes(&l.qkv) + matrix_bytes(&l.o) + matrix_bytes(&l.gate_up) + matrix_bytes(&l.down) + (uint64_t)(b->context - b->attn.seq[0].low) * DSPARK_DIM * 2 * 2;
    return bytes;
}

static void open_bench(struct bench *b)
{
    CHECK(cudaDeviceGetAttribute(&b->sms, cudaDevAttrMultiProcessorCount, 0));
    CHECK(cudaStreamCreate(&b->stream));
    OK(rowmm_init());
    OK(norm_init());
    OK(dspark_attn_init());
    b->ring_rows = (b->context < WINDOW ? b->context : WINDOW) + ROWS;
    if (b->format == WEIGHT_FP8) {
        const float one = 1.0f;

        b->one = (float *)memory(sizeof one);
        CHECK(cudaMemcpy(b->one, &one, sizeof one, cudaMemcpyHostToDevice));
    }
    open_layers(b);
    b->attn.out_power = b->one;
    for (uint32_t s = 0; s < SOURCES; s++) b->fc[s] = random_matrix(b, HIDDEN, HIDDEN, 100 + s);
    b->keys = random_matrix(b, KEY_ROWS, HIDDEN, 200);
    b->head = random_matrix(b, VOCAB, HIDDEN, 300);
    b->table = normal((uint64_t)ROWS * HIDDEN, 0.05f, 8);
    b->features = normal((uint64_t)SOURCES * ROWS * HIDDEN, 1.0f, 9);      /* for FP8 other numbers, but numbers */
    b->f = (__nv_bfloat16 *)memory(2ull * ROWS * HIDDEN);
    b->part = (float *)memory(4ull * SOURCES * ROWS * HIDDEN);
    b->key_out = (float *)memory(4ull * ROWS * KEY_ROWS);
    b->logits = (float *)memory(4ull * ROWS * VOCAB);
    b->tile_top = (float *)memory(4ull * ROWS * VOCAB / TILE_ROWS);
    open_markov(b);
    CHECK(cudaDeviceSynchronize());
    all(b);
    CHECK(cudaStreamSynchronize(b->stream));
}

static void measure(struct bench *b)
{
    const double gbps = (double)matrix_bytes(&b->head) / 1e3 / median_us(b, read_head);
    const uint64_t bytes[4] = { SOURCES * matrix_bytes(&b->fc[0]) + matrix_bytes(&b->keys), layer_bytes(b), matrix_bytes(&b->head),
                                dspark_markov_bytes(VOCAB, BLOCK, b->format == WEIGHT_FP8) };
    void (*const part[4])(const struct bench *) = { absorb, layers, head, markov };
    static const char *const name[4] = { "absorb", "layers", "head", "markov" };
    uint64_t total = 0;
    double sum = 0;

    printf("DSpark, %s, block of %u behind %u positions, %u absorbed; read bandwidth %.0f GB/s\n%-8s %9s %9s %9s %7s\n", b->format == WEIGHT_FP8 ? "FP8" : "BF16", BLOCK, b->context, b->absorb,
           gbps, "part", "MB", "floor us", "us", "share");
    for (int p = 0; p < 4; p++) {
        const double us = median_us(b, part[p]), least = (double)bytes[p] / gbps / 1e3;

        printf("%-8s %9.1f %9.1f %9.1f %6.0f%%\n", name[p], (double)bytes[p] / 1e6, least, us, 100 * least / us);
        total += bytes[p];
        sum += us;
    }
    b->markov.temperature = 1.0f;
    const double sampled = median_us(b, markov);
    b->markov.temperature = 0.0f;
    const double round = median_us(b, all), least = (double)total / gbps / 1e3;
    printf("%-8s %9.1f %9.1f %9.1f %6.0f%%   (parts together %.1f; markov at temperature 1: %.1f)\n", "all", (double)total / 1e6, least, round, 100 * least / round, sum, sampled);
}

int main(int argc, char **argv)
{
    struct bench b = {};

    b.format = WEIGHT_FP8, b.context = 1100, b.absorb = 5;
    for (int i = 1; i < argc; i++) {
        if (i + 1 < argc && !strcmp(argv[i], "--format")) b.format = !strcmp(argv[++i], "bf16") ? WEIGHT_BF16 : WEIGHT_FP8;
        else if (i + 1 < argc && !strcmp(argv[i], "--context")) b.context = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--absorb")) b.absorb = (uint32_t)atoi(argv[++i]);
        else { fprintf(stderr, "unknown option %s\n", argv[i]); return 2; }
    }
    if (b.absorb == 0 || b.absorb > ROWS || b.context < ROWS) { fprintf(stderr, "--absorb: 1 to 8; --context: at least 8\n"); return 2; }
    open_bench(&b);
    if (!check_attention(&b) || !check_markov(&b, 1.0f) || !check_markov(&b, 0.0f)) return 1;
    measure(&b);
    return 0;
}
