/* kernels/cuda/draft_block.cuh - what the parts of draft_round.cu share: a block's shared memory, the stream of weights, the barrier over all blocks. */
#ifndef SLUICE_CUDA_DRAFT_BLOCK_CUH
#define SLUICE_CUDA_DRAFT_BLOCK_CUH

#include "device.cuh"
#include "draft_round.h"

#define DRAFT_WARPS 8                 /* that compute; one more streams */
#define DRAFT_COMPUTE (DRAFT_WARPS * 32)
#define DRAFT_THREADS (DRAFT_COMPUTE + 128)     /* a whole warp group, so that its registers can go to those that compute */
#define DRAFT_REGISTERS 232           /* of a computing thread: 2 * 128 * 232 + 128 * 40 <= 65536 */
#define DRAFT_REGISTERS_STREAM 40
#define DRAFT_RING_MAX 12
#define DRAFT_BATCH 8                 /* units whose partial sums lie side by side */
#define DRAFT_X_STRIDE (DRAFT_HIDDEN + 32)      /* of a normed row: rows fall into different banks */
#define DRAFT_KEYS 16                 /* of a full layer, in shared memory at once */
#define DRAFT_NEVER (-3.0e38f)
#define SLOT_DATA_BYTES 16384u

template <bool FP8> struct draft_shape {
    static constexpr uint32_t HEADER = FP8 ? UNIT_HEADER_BYTES : 0;
    static constexpr uint32_t SLOTS = FP8 ? 1 : 2;              /* of a unit */
    static constexpr uint32_t SLOT_BYTES = SLOT_DATA_BYTES + HEADER;
    static constexpr uint32_t UNIT_BYTES = SLOTS * SLOT_DATA_BYTES + HEADER;
};

/* Scratch that no two parts use at once. */
union draft_scratch {
    float4 partial[DRAFT_BATCH][DRAFT_WARPS][32];               /* products */
    struct { float out[DRAFT_WARPS][2][256]; float2 ml[DRAFT_WARPS][2]; } attend;
    struct { uint4 key[2][DRAFT_KEYS][2][64]; } full;           /* two buffers of K and V of a full layer */
    struct { float out[DRAFT_WARPS][64]; float sum[DRAFT_WARPS]; } combine;
    struct { uint64_t key[DRAFT_FOUND_MAX]; float sorted[DRAFT_FOUND_MAX]; uint32_t sorted_token[DRAFT_FOUND_MAX]; float mass[DRAFT_FOUND_MAX]; double noisy[DRAFT_WARPS]; uint32_t best[DRAFT_WARPS]; } pick;
    draft_top top[DRAFT_WARPS][8];
};

struct draft_shared {                 /* in front of the ring */
    draft_scratch u;
    uint16_t x[CUDA_DRAFT_ROWS_MAX][DRAFT_X_STRIDE];            /* normed rows, f16 or bf16 */
    float scale[DRAFT_BATCH][TILE_ROWS];
    float red[2][DRAFT_WARPS];
    uint64_t full[DRAFT_RING_MAX], empty[DRAFT_RING_MAX];
    uint32_t token[CUDA_DRAFT_ROWS_MAX], count[CUDA_DRAFT_ROWS_MAX], position[CUDA_DRAFT_ROWS_MAX];   /* position: of the newest token; 0: no row is drafted for */
    float product[CUDA_DRAFT_ROWS_MAX];
    uint32_t bound[CUDA_DRAFT_ROWS_MAX];        /* of a sampled row's candidates; 0: a greedy row */
    uint32_t drafted[CUDA_DRAFT_STEPS_MAX];   /* the first row's tokens so far, for the hand-over */
    float confidence[CUDA_DRAFT_STEPS_MAX];
    uint32_t page[DRAFT_WARPS][8];    /* one row: of the block's keys of sliding layers */
    uint64_t begun_ns;
    uint32_t stop;                    /* 1: no more weights are wanted */
    uint32_t together;                /* 0: a peer did not come */
};

#define DRAFT_SHARED_BYTES ((uint32_t)((sizeof(draft_shared) + 127) / 128 * 128))

/* A warp's place in the block and the next slot of the ring. */
struct draft_thread {
    uint8_t *ring;
    draft_shared *sh;
    uint32_t warp, lane, stage, phase;   /* of the ring */
    uint32_t barriers;                /* passed so far */
    uint32_t base;                    /* of their numbers (draft_lone.cuh) */
    uint32_t marks;                   /* times noted so far */
};

/* What is computed from a thread's place is computed again behind this: the compiler would keep all of it over the round's loops, in more registers than there are. */
__device__ __forceinline__ void forget_place(draft_thread &t) { asm volatile("" : "+r"(t.warp), "+r"(t.lane)); }

/* Among the computing ones. */
__device__ __forceinline__ uint32_t place_of(const draft_thread &t) { return t.warp * 32 + t.lane; }

__device__ __forceinline__ void compute_sync() { asm volatile("bar.sync 1, %0;" ::"n"(DRAFT_COMPUTE) : "memory"); }

/* How many of the computing threads say yes. */
__device__ __forceinline__ uint32_t compute_count(bool yes)
{
    uint32_t n;

    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %1, 0;\nbarrier.cta.red.popc.aligned.u32 %0, 1, %2, p;\n}\n" : "=r"(n) : "r"((uint32_t)yes), "n"(DRAFT_COMPUTE) : "memory");
    return n;
}

__device__ __forceinline__ bool mbar_is_over(uint64_t *bar, uint32_t parity)
{
    uint32_t done;

    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n" : "=r"(done) : "r"(smem_address(bar)), "r"(parity) : "memory");
    return done;
}

/* ---- the stream of weights: one lane ---- */

template <bool FP8>
__device__ void draft_stream(const draft_round_args &a, uint8_t *ring, draft_shared *sh)
{
    using S = draft_shape<FP8>;
    const uint64_t policy = policy_evict_first();
    uint32_t stage = 0, phase = 0, issued = 0;
    bool stopped = false;

    for (uint32_t step = 0; step < a.steps && !stopped; step++)
        for (uint32_t i = 0; i < a.phases && !stopped; i++) {
            const draft_phase &p = a.phase[i];
            const uint32_t blocks = gridDim.x - gridDim.x % p.slices;

            for (uint32_t unit = blockIdx.x; unit < p.units && blockIdx.x < blocks && !stopped; unit += blocks) {
                const uint8_t *from = a.weights + p.offset + (uint64_t)unit * S::UNIT_BYTES;

                for (uint32_t slot = 0; slot < S::SLOTS && !stopped; slot++) {
                    const uint32_t bytes = SLOT_DATA_BYTES + (slot == 0 ? S::HEADER : 0);

                    while (!mbar_is_over(&sh->empty[stage], phase ^ 1))
                        if (*(volatile uint32_t *)&sh->stop) { stopped = true; break; }
                    if (stopped) break;
                    mbar_arrive_expect(&sh->full[stage], bytes);
                    bulk_load(ring + stage * S::SLOT_BYTES, from, bytes, &sh->full[stage], policy);
                    from += bytes;
                    issued++;
                    if (++stage == a.ring_slots) stage = 0, phase ^= 1;
                }
            }
        }
    /* Nothing may still be under way into the shared memory of a block that is gone. */
    for (uint32_t i = 0; i < a.ring_slots && i < issued; i++) {
        if (stage == 0) stage = a.ring_slots, phase ^= 1;
        stage--;
        mbar_wait(&sh->full[stage], phase);
    }
}

/* ---- the barrier over all blocks ---- */

__device__ __forceinline__ uint64_t now_ns()
{
    uint64_t t;

    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

/* Benches: notes the time; the parts of a step are named in bench/cuda/draft_bench.cu. */
__device__ __forceinline__ void mark(const draft_round_args &a, draft_thread &t)
{
    if (a.trace && blockIdx.x == 0 && threadIdx.x == 0) a.trace[t.marks++] = now_ns();
}

/* What this block has stored is there for everybody who has passed the barrier. */
__device__ __forceinline__ void grid_arrive(const draft_round_args &a)
{
    compute_sync();
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(&a.control->arrived) : "memory");
}

/* False: a peer did not come in time; every block finds that out. Marks the end of the part before and the end of the wait. */
__device__ __forceinline__ bool grid_wait(const draft_round_args &a, draft_thread &t)
{
    mark(a, t);
    const uint32_t wanted = ++t.barriers * gridDim.x;

    if (threadIdx.x == 0) {
        uint64_t since = 0;
        uint32_t seen, spins = 0;

        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(&a.control->arrived) : "memory");
            if (seen >= wanted || ++spins % 256) continue;
            if (since == 0) since = now_ns();
            if (*(volatile uint32_t *)&a.control->gave_up || now_ns() - since > DRAFT_WAIT_NS) {
                *(volatile uint32_t *)&a.control->gave_up = 1;
                t.sh->together = 0;
                break;
            }
        } while (seen < wanted);
    }
    compute_sync();
    mark(a, t);
    return *(volatile uint32_t *)&t.sh->together;
}

/* ---- numbers: f16 with FP8 weights (cut at its largest), bf16 with BF16 ones ---- */

template <bool FP8> __device__ __forceinline__ uint32_t draft_pack(float low, float high)
{
    if (!FP8) return pack_bf16(low, high);
    return pack_f16(fminf(fmaxf(low, -65504.0f), 65504.0f), fminf(fmaxf(high, -65504.0f), 65504.0f));
}

template <bool FP8> __device__ __forceinline__ uint16_t draft_pack1(float x) { return (uint16_t)draft_pack<FP8>(x, 0.0f); }

__device__ __forceinline__ float warp_top(float x)
{
#pragma unroll
    for (int d = 16; d >= 1; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

#endif
