/* kernels/cuda/draft_lone.cuh - how the blocks of draft_round.cu hand a lone row's numbers on within a layer.
 *
 * A barrier whose arrival makes all of a block's stores visible first waits until they are: 1.2 to 2 us of a part that takes 3 to 5. With one row the sums of q, o and down, the activations and
 * the joined attention are words that say themselves whose they are: f32 whose lowest 8 bits are the number of the barrier behind which they are read (16 bits stay of the fraction; activations
 * are rounded to 11 afterwards). The arrival then only says that the stores are issued, and who reads a word of another number reads it again.
 *
 * Why nothing old is taken for new: every word here is written once at least in each step, so what lies there has the number of one of the last barriers, fewer than 255 of them; numbers go on from
 * round to round (draft_control.base), and leave a gap behind a round that was given up. Why nothing new covers what is still read: between two writings of a buffer there is at least one barrier
 * at which every block arrives behind what it computed from the first. */
#ifndef SLUICE_CUDA_DRAFT_LONE_CUH
#define SLUICE_CUDA_DRAFT_LONE_CUH

#include "draft_block.cuh"

#define LONE_TAGS 255u                /* 0 is nobody's: memory begins with it */
#define LONE_GAP 64u                  /* barriers by which blocks of a round that was given up differ at most, and many more */
#define LONE_TRIES 65536u             /* of a word, 0.7 us each: it does not come */

__device__ __forceinline__ uint32_t lone_tag(const draft_thread &t, uint32_t barrier) { return 1 + (t.base + barrier) % LONE_TAGS; }

/* Read behind the next barrier. */
__device__ __forceinline__ void lone_store(const draft_thread &t, float *to, float x)
{
    const float tagged = __uint_as_float((__float_as_uint(x) & ~0xffu) | lone_tag(t, t.barriers + 1));

    asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(tagged) : "memory");
}

/* N times four words, of at(0), at(1), ...: written in front of the last barrier. */
template <int N, typename F> __device__ __forceinline__ void lone_load(const draft_round_args &a, const draft_thread &t, float4 (&v)[N], F at)
{
    const uint32_t tag = lone_tag(t, t.barriers);
    uint32_t wrong, tries = 0;

#pragma unroll 1
    do {
        wrong = 0;
#pragma unroll
        for (int i = 0; i < N; i++) asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v[i].x), "=f"(v[i].y), "=f"(v[i].z), "=f"(v[i].w) : "l"(at(i)) : "memory");
#pragma unroll
        for (int i = 0; i < N; i++) wrong |= (__float_as_uint(v[i].x) ^ tag) | (__float_as_uint(v[i].y) ^ tag) | (__float_as_uint(v[i].z) ^ tag) | (__float_as_uint(v[i].w) ^ tag);
    } while ((wrong & 0xff) && ++tries < LONE_TRIES);
    if (!(wrong & 0xff)) return;
    *(volatile uint32_t *)&a.control->gave_up = 1;
    *(volatile uint32_t *)&t.sh->together = 0;    /* seen at the next barrier */
}

/* The block's stores are issued; its peers need not see them yet. */
__device__ __forceinline__ void lone_arrive(const draft_round_args &a)
{
    compute_sync();
    if (threadIdx.x == 0) asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(&a.control->arrived) : "memory");
}

#endif
