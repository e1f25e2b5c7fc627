/* kernels/cuda/attn_many.cu - sliding attention for many sequences (contract in attn_many.h).
 *
 * One row and kv head need 2 query heads only, so keys are the 16-row operand of the tensor cores and queries the 8-column one: scores come out as
 * [key][head], p v as [d][head]. F8: E4M3 in shared memory, f16 at the tensor cores. Products and their order are those of attn.cu: which operand is which changes no bit. */
#include "attn_many.h"
#include "attn_many_prepare.cuh"
#include "kv_element.cuh"
#include "launch.h"
#include "shm/error.h"

#define D 256                         /* head size */
#define WINDOW 1024
#define CHUNKS 16
#define CHUNK_KEYS 64
#define NEVER (-3.0e38f)              /* as in attn.cu: below every score, and finite */

#define WARPS 4
#define PIECE_KEYS 8                  /* keys that are waited for together */
#define K_PIECES (CHUNK_KEYS / PIECE_KEYS)
#define STEP_KEYS 16                  /* of one mma in p v: two pieces */
#define RING 4                        /* pieces of a warp in flight or in use */
#define PIECE_BYTES (PIECE_KEYS * (2 * D + 64))
#define PAGES_MAX (WINDOW / ATTN_PAGE_TOKENS + 1)

/* Rows of K 64 bytes apart modulo the banks (F8: 32), rows of V 16: neither 16-byte loads (F8: 8-byte) nor ldmatrix collide. A piece has room for either. */
template <bool F8> struct row_of {
    static constexpr uint32_t BYTES = F8 ? D : 2 * D;
    static constexpr uint32_t K_STRIDE = F8 ? BYTES + 32 : BYTES + 64, V_STRIDE = BYTES + 16;
};

struct many_shared {
    uint8_t ring[WARPS][RING][PIECE_BYTES];
    float out[CHUNKS][2][D];          /* p v of each chunk, not yet divided */
    float2 ml[CHUNKS][2];             /* (largest score, sum of weights) */
    float score[WARPS][2][CHUNK_KEYS];
    __nv_bfloat16 p[WARPS][2][CHUNK_KEYS];
    uint32_t page[PAGES_MAX];         /* of the window's pages, oldest first */
};

/* ---- keys on their way ---- */

/* What a block answers, and what every warp knows of it. */
struct many_row {
    uint32_t row, head, seq, position;
    uint32_t first_fresh;             /* keys from here on are written by this step */
    uint32_t first_page;              /* number of the oldest page in the window: position / 32 */
};

/* The key that the row sees at a place of a chunk; negative: none. */
__device__ __forceinline__ int key_of(const many_row &r, uint32_t chunk, uint32_t place)
{
    const uint32_t span = r.position / CHUNK_KEYS, newest = span - (span - chunk) % CHUNKS;     /* may wrap below 0: then negative */
    const int key = (int)(newest * CHUNK_KEYS + place);

    return key <= (int)r.position ? key : key - WINDOW;
}

/* The chunks of a warp in the order in which it works: those that hold keys of this step come last. */
__device__ __forceinline__ uint32_t chunk_of(const many_row &r, uint32_t warp, uint32_t turn) { return (r.position / CHUNK_KEYS + 1 + warp + turn * WARPS) % CHUNKS; }

/* Does the row see any key of this chunk? */
__device__ __forceinline__ bool sees_chunk(const many_row &r, uint32_t chunk) { return r.position >= WINDOW || chunk * CHUNK_KEYS <= r.position; }

/* Places below it show their newer key (this text's end lies in the chunk), the others the one of 1024 before. */
__device__ __forceinline__ uint32_t newer_places(const many_row &r, uint32_t chunk) { return r.position / CHUNK_KEYS % CHUNKS == chunk ? r.position % CHUNK_KEYS + 1 : CHUNK_KEYS; }

/* p v in steps of 16 places: attn.cu's chain runs over all older keys first, then over the newer ones. So it begins where they end, and a step
 * that holds both is taken twice: first its older keys, last its newer ones. */
__device__ __forceinline__ uint32_t value_steps(uint32_t newer) { return CHUNK_KEYS / STEP_KEYS + (newer % STEP_KEYS != 0); }
__device__ __forceinline__ uint32_t value_place(uint32_t newer, uint32_t step) { return (newer / STEP_KEYS + step) % (CHUNK_KEYS / STEP_KEYS) * STEP_KEYS; }

/* Where a warp's stream stands. */
struct stream { uint32_t turn, piece; };

struct piece { uint32_t chunk, place; bool value; };

__device__ __forceinline__ piece piece_of(const many_row &r, uint32_t warp, const stream &s)
{
    const uint32_t chunk = chunk_of(r, warp, s.turn), value = s.piece - K_PIECES;

    if (s.piece < K_PIECES) return piece{ chunk, s.piece * PIECE_KEYS, false };
    return piece{ chunk, value_place(newer_places(r, chunk), value / 2) + value % 2 * PIECE_KEYS, true };
}

__device__ __forceinline__ void skip_unseen(const many_row &r, uint32_t warp, stream &s)
{
    while (s.turn < CHUNKS / WARPS && !sees_chunk(r, chunk_of(r, warp, s.turn))) s.turn++;
}

__device__ __forceinline__ bool holds_fresh(const many_row &r, uint32_t warp, const stream &s)
{
    bool fresh = false;

    if (s.turn == CHUNKS / WARPS) return false;
    const piece p = piece_of(r, warp, s);
#pragma unroll
    for (uint32_t i = 0; i < PIECE_KEYS; i++) fresh |= key_of(r, p.chunk, p.place + i) >= (int)r.first_fresh;
    return fresh;
}

/* Asks for the stream's next piece: one key per instruction (F8: two), zeros for a key that the row does not see. Always commits a group, so that waiting can count. */
template <bool F8>
__device__ __forceinline__ void ask(const attn_args &a, const many_row &r, many_shared &sh, uint32_t warp, uint32_t lane, stream &s, uint32_t &slot)
{
    if (s.turn < CHUNKS / WARPS) {
        const piece p = piece_of(r, warp, s);
        constexpr uint32_t ROW = row_of<F8>::BYTES, AT_ONCE = 32 * 16 / ROW;
        const uint32_t stride = p.value ? row_of<F8>::V_STRIDE : row_of<F8>::K_STRIDE, own = lane * 16 / ROW;
        const uint32_t to = smem_address(sh.ring[warp][slot]) + own * stride + lane * 16 % ROW;
        const uint8_t *base = a.arena + (p.value ? a.v_offset : a.k_offset) + (uint64_t)r.head * ATTN_PAGE_TOKENS * ROW + lane * 16 % ROW;

#pragma unroll
        for (uint32_t i = 0; i < PIECE_KEYS; i += AT_ONCE) {
            const int key = key_of(r, p.chunk, p.place + i + own);
            const uint8_t *from = base;

            if (key >= 0) from += sh.page[key / ATTN_PAGE_TOKENS - r.first_page] * a.page_bytes + key % ATTN_PAGE_TOKENS * ROW;
            copy_async(to + i * stride, from, key >= 0 ? 16 : 0);
        }
        if (++slot == RING) slot = 0;
        if (++s.piece == K_PIECES + 2 * value_steps(newer_places(r, p.chunk))) s.piece = 0, s.turn++, skip_unseen(r, warp, s);
    }
    copies_commit();
}

/* ---- one chunk by one warp ---- */

/* Scores of 16 keys in two pieces: column pair 0 of each quad's first lane holds both heads. */
template <bool F8>
__device__ __forceinline__ void score_keys(float (&s)[4], const uint8_t *low, const uint8_t *high, const uint4 (&q)[8], uint32_t lane)
{
    using words = typename kv_eight<F8>::words;
    const uint32_t at = lane / 4 * row_of<F8>::K_STRIDE + lane % 4 * sizeof(words);
    float other[4] = {};

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint4 x = widen8(*(const words *)(low + at + i * 4 * sizeof(words))), y = widen8(*(const words *)(high + at + i * 4 * sizeof(words)));

        mma_kv<F8>(s, x.x, y.x, x.y, y.y, q[i].x, q[i].y);
        mma_kv<F8>(other, x.z, y.z, x.w, y.w, q[i].z, q[i].w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] += other[i];
}

/* Lane 16 h + i holds keys 4 i .. 4 i + 3 of head h: weights into p, largest score and sum into ml. */
template <bool F8>
__device__ __forceinline__ void weigh_chunk(const many_row &r, many_shared &sh, uint32_t chunk, uint32_t warp, uint32_t lane)
{
    const uint32_t h = lane / 16, i = lane % 16;
    const float4 x = *(const float4 *)&sh.score[warp][h][i * 4];
    float s[4] = { x.x, x.y, x.z, x.w }, top = NEVER, part, sum = 0.0f;

#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (key_of(r, chunk, i * 4 + e) < 0) s[e] = NEVER;
        top = fmaxf(top, s[e]);
    }
#pragma unroll
    for (int d = 8; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
#pragma unroll
    for (int e = 0; e < 4; e++) s[e] = s[e] == NEVER ? 0.0f : __expf(s[e] - top);
    part = (s[0] + s[1]) + (s[2] + s[3]);
    part += __shfl_xor_sync(0xffffffffu, part, 1);      /* of 8 keys */
#pragma unroll
    for (int t = 0; t < CHUNK_KEYS / 8; t++) sum += __shfl_sync(0xffffffffu, part, h * 16 + t * 2);
    *(uint2 *)&sh.p[warp][h][i * 4] = make_uint2(pack_weights<F8>(s[0], s[1]), pack_weights<F8>(s[2], s[3]));
    if (i == 0) sh.ml[chunk][h] = make_float2(top, sum);
}

/* Weights of places from `first` to `end` of a pair, the others 0. */
__device__ __forceinline__ uint32_t keep_places(uint32_t pair, int place, int first, int end)
{
    return pair & ((place >= first && place < end ? 0xffffu : 0) | (place + 1 >= first && place + 1 < end ? 0xffff0000u : 0));
}

/* acc += V of 16 keys, in two pieces, times their weights. k runs over keys 4 t, 4 t + 1, then 4 t + 2, 4 t + 3 of the quads, as in attn.cu. */
template <bool F8>
__device__ __forceinline__ void add_values(float (&acc)[D / 16][4], const uint8_t *low, const uint8_t *high, uint2 p, uint32_t lane)
{
    /* ldmatrix: lanes 8 m .. 8 m + 7 give the rows of matrix m. 0: the first keys, d 0..7 (F8: 0..15); 1: the same, d 8..15 (16..31); 2 and 3: the second keys. */
    const uint32_t m = lane / 8, key = lane % 8 / 2 * 4 + lane % 2 + m / 2 * 2;
    const uint32_t from = smem_address((key < PIECE_KEYS ? low : high) + key % PIECE_KEYS * row_of<F8>::V_STRIDE) + m % 2 * 16;

#pragma unroll
    for (int j = 0; j < D / 16; j += F8 ? 2 : 1) {
        uint32_t v[4];

        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(from + j * (row_of<F8>::BYTES / 16)) : "memory");
        if constexpr (F8) {           /* an element of a matrix is two neighbours of d, which become rows g and g + 8 */
#pragma unroll
            for (int h = 0; h < 2; h++) {      /* d 0..15, d 16..31 */
                const uint32_t x = __byte_perm(v[h], 0, 0x3120), y = __byte_perm(v[h + 2], 0, 0x3120);

                mma_f16(acc[j + h], e4m3x2_to_f16x2((uint16_t)x), e4m3x2_to_f16x2((uint16_t)(x >> 16)), e4m3x2_to_f16x2((uint16_t)y), e4m3x2_to_f16x2((uint16_t)(y >> 16)), p.x, p.y);
            }
        } else {
            mma_bf16(acc[j], v[0], v[1], v[2], v[3], p.x, p.y);
        }
    }
}

/* The warp's place in its ring. */
struct ring_place { stream asked; uint32_t ask_slot, use_slot; };

/* Waits for the two oldest pieces, hands them to `use`, asks for the next two in their place. */
template <bool F8, typename USE>
__device__ __forceinline__ void use_two(const attn_args &a, const many_row &r, many_shared &sh, uint32_t warp, uint32_t lane, ring_place &at, USE use)
{
    copies_wait<RING - 2>();
    __syncwarp();                     /* everybody's copies are there */
    use(sh.ring[warp][at.use_slot], sh.ring[warp][at.use_slot + 1]);
    at.use_slot = (at.use_slot + 2) % RING;
    __syncwarp();                     /* and everybody has read them */
    ask<F8>(a, r, sh, warp, lane, at.asked, at.ask_slot);
    ask<F8>(a, r, sh, warp, lane, at.asked, at.ask_slot);
}

template <bool F8>
__device__ __forceinline__ void work_chunk(const attn_args &a, const many_row &r, many_shared &sh, const uint4 (&q)[8], uint32_t chunk, uint32_t warp, uint32_t lane, ring_place &at)
{
    const uint32_t newer = newer_places(r, chunk), steps = value_steps(newer);
    float acc[D / 16][4] = {};

#pragma unroll 1
    for (uint32_t step = 0; step < CHUNK_KEYS / STEP_KEYS; step++) {
        float s[4] = {};

        use_two<F8>(a, r, sh, warp, lane, at, [&](const uint8_t *low, const uint8_t *high) { score_keys<F8>(s, low, high, q, lane); });
        if (lane % 4 == 0) {
            const uint32_t key = step * STEP_KEYS + lane / 4;

            sh.score[warp][0][key] = s[0], sh.score[warp][1][key] = s[1];
            sh.score[warp][0][key + 8] = s[2], sh.score[warp][1][key + 8] = s[3];
        }
    }
    __syncwarp();
    weigh_chunk<F8>(r, sh, chunk, warp, lane);
    __syncwarp();
#pragma unroll 1
    for (uint32_t step = 0; step < steps; step++) {
        const uint32_t place = value_place(newer, step) + lane % 4 * 4;
        const int first = steps > CHUNK_KEYS / STEP_KEYS && step == 0 ? (int)newer : 0;
        const int end = steps > CHUNK_KEYS / STEP_KEYS && step == steps - 1 ? (int)newer : CHUNK_KEYS;
        uint2 p = lane / 4 < 2 ? *(const uint2 *)&sh.p[warp][lane / 4][place] : make_uint2(0, 0);

        p.x = keep_places(p.x, place, first, end), p.y = keep_places(p.y, place + 2, first, end);
        use_two<F8>(a, r, sh, warp, lane, at, [&](const uint8_t *low, const uint8_t *high) { add_values<F8>(acc, low, high, p, lane); });
    }
    if (lane % 4) return;
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
        const uint32_t d = j * 16 + (F8 ? lane / 4 * 2 : lane / 4), next = F8 ? d + 1 : d + 8;

        sh.out[chunk][0][d] = acc[j][0], sh.out[chunk][1][d] = acc[j][1];
        sh.out[chunk][0][next] = acc[j][2], sh.out[chunk][1][next] = acc[j][3];
    }
}

/* ---- the row's result ---- */

/* x[0] becomes the sum of all in the tree of attn.cu. */
__device__ __forceinline__ float chunk_sum(float (&x)[CHUNKS])
{
#pragma unroll
    for (int half = CHUNKS / 2; half; half /= 2)
#pragma unroll
        for (int c = 0; c < CHUNKS / 2; c++)
            if (c < half) x[c] += x[c + half];
    return x[0];
}

/* Thread t adds 4 elements of one head over the chunks. */
__device__ __forceinline__ void join_chunks(const attn_args &a, const many_row &r, const many_shared &sh)
{
    const uint32_t h = threadIdx.x / (D / 4), d = threadIdx.x % (D / 4) * 4;
    float top = NEVER, weight[CHUNKS], x[CHUNKS], y[4];

#pragma unroll
    for (int c = 0; c < CHUNKS; c++) top = fmaxf(top, sh.ml[c][h].x);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const float2 ml = sh.ml[c][h];

        weight[c] = ml.x == NEVER ? 0.0f : __expf(ml.x - top);
        x[c] = __fmul_rn(weight[c], ml.y);
    }
    const float inv = 1.0f / chunk_sum(x);

#pragma unroll
    for (int e = 0; e < 4; e++) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) x[c] = weight[c] == 0.0f ? 0.0f : __fmul_rn(weight[c], sh.out[c][h][d + e]);
        y[e] = chunk_sum(x) * inv;
    }
    *(uint2 *)(a.out + ((uint64_t)r.row * ATTN_HEADS + r.head * 2 + h) * D + d) = make_uint2(pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]));
}

__device__ __forceinline__ many_row load_row(const attn_args &a, uint32_t row, uint32_t head)
{
    const step_row own = a.state->row[row];
    const step_group group = a.state->group[own.group];
    const uint32_t oldest = own.position < WINDOW ? 0 : own.position - (WINDOW - 1);

    return many_row{ row, head, group.seq, own.position, group.first_position, oldest / ATTN_PAGE_TOKENS };
}

template <bool F8>
__global__ void __launch_bounds__(WARPS * 32) many_kernel(const __grid_constant__ attn_args a)
{
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    many_shared &sh = *(many_shared *)shared_bytes;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, row = blockIdx.x / a.kv_heads;
    unsigned long long *trace = a.trace ? a.trace + TRACE_WORDS : NULL;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(trace, TRACE_START);
    if (row >= a.state->rows) {
        chain_wait();
        return;
    }
    const many_row r = load_row(a, row, blockIdx.x % a.kv_heads);
    ring_place at = { { 0, 0 }, 0, 0 };
    uint32_t asked = 0;
    uint4 q[8];

    for (uint32_t i = threadIdx.x; i < PAGES_MAX; i += WARPS * 32) sh.page[i] = __ldg(page_entry(a, r.seq, (r.first_page + i) * ATTN_PAGE_TOKENS));
    if (threadIdx.x < 2 * CHUNKS) sh.ml[threadIdx.x / 2][threadIdx.x % 2] = make_float2(NEVER, 0.0f);
    __syncthreads();
    skip_unseen(r, warp, at.asked);
    for (; asked < RING && !holds_fresh(r, warp, at.asked); asked++) ask<F8>(a, r, sh, warp, lane, at.asked, at.ask_slot);
    chain_wait();
    if (threadIdx.x == 0) trace_mark(trace, TRACE_PAST_WAIT);
    for (; asked < RING; asked++) ask<F8>(a, r, sh, warp, lane, at.asked, at.ask_slot);
    const uint4 *from = (const uint4 *)((const __nv_bfloat16 *)a.part + ((uint64_t)row * ATTN_HEADS + r.head * 2 + lane / 4 % 2) * D) + lane % 4;
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = lane / 4 < 2 ? ld_l2(from + i * 4) : make_uint4(0, 0, 0, 0);      /* columns of the other 6 heads are nobody's */

    for (uint32_t turn = 0; turn < CHUNKS / WARPS; turn++) {
        const uint32_t chunk = chunk_of(r, warp, turn);

        if (sees_chunk(r, chunk)) work_chunk<F8>(a, r, sh, q, chunk, warp, lane, at);
    }
    __syncthreads();
    join_chunks(a, r, sh);
    if (threadIdx.x == 0) trace_mark(trace, TRACE_END);
}

int attn_many_init(void)
{
    int rc = launch_prepare((const void *)many_prepare_kernel<D, false>, 0);

    if (rc == 0) rc = launch_prepare((const void *)many_prepare_kernel<D, true>, 0);
    if (rc == 0) rc = launch_prepare((const void *)many_kernel<false>, (uint32_t)sizeof(struct many_shared));
    return rc ? rc : launch_prepare((const void *)many_kernel<true>, (uint32_t)sizeof(struct many_shared));
}

int attn_many_launch(const struct attn_args *args, uint32_t rows, void *stream)
{
    attn_args a = *args;
    void *params[] = { &a };

    if (a.kv_heads != 8 || a.window != WINDOW) return -E_UNSUPPORTED;
    if (rows == 0 || rows > STEP_ROWS_MAX || a.turned > D / 2 || a.turned % 4) return -E_RANGE;
    const int rc = launch_chained(a.kv_fp8 ? (const void *)many_prepare_kernel<D, true> : (const void *)many_prepare_kernel<D, false>, many_prepare_blocks(a, rows), PREPARE_WARPS * 32, 0, params, stream);

    return rc ? rc : launch_chained(a.kv_fp8 ? (const void *)many_kernel<true> : (const void *)many_kernel<false>, rows * a.kv_heads, WARPS * 32, (uint32_t)sizeof(struct many_shared), params, stream);
}
