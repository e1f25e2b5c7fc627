/* kernels/cuda/handover.cuh - the end of a round of drafts, and of a step: one thread leaves what the other waits for (cuda_handover.h). */
#ifndef SLUICE_CUDA_HANDOVER_CUH
#define SLUICE_CUDA_HANDOVER_CUH

#include "cuda_handover.h"
#include "state.h"

/* position: of the newest token, which the drafts follow. */
__device__ __forceinline__ void handover_leave(cuda_handover_record *to, const cuda_handover &h, uint32_t position, uint32_t count, const uint32_t *token, const float *confidence)
{
    const uint32_t skipped = h.instead_position ? min(position + 1 - h.instead_position, h.instead_count) : 0;
    const bool instead = h.instead_count > 0;
    float chance = 1.0f;
    uint32_t n = 0;

    count = min(instead ? min(h.instead_count - skipped, count) : count, (uint32_t)CUDA_HANDOVER_TOKENS_MAX);
    for (; n < count; n++) {
        const float left = 1.0f - confidence[n];

        chance *= h.rate[!(confidence[n] > 0.0f) ? 0 : cuda_handover_class(left > 0.0f ? -__log2f(left) : 1e9f)];
        if (!(chance >= h.least)) break;
        to->token[n] = instead ? h.instead[skipped + n] : token[n];
    }
    to->count = n;
    __threadfence_system();
    *(volatile uint64_t *)&to->tag = h.tag;
    __threadfence_system();
    *(volatile uint64_t *)&to->word = h.tag;       /* -> the wait of cuda_backend_step_behind */
}

/* The step has sampled: what its first group's text ends with now. Drafts count as far as they are what was sampled in front of them. */
__device__ __forceinline__ void handover_tell(const step_state *s, const uint32_t *sampled)
{
    cuda_handover_record *to = (cuda_handover_record *)s->handed;
    uint32_t n = 0;

#pragma unroll 1
    while (n + 1 < s->group[0].rows && *(const volatile uint32_t *)(sampled + n) == s->row[n + 1].token) n++;
    to->next_token = *(const volatile uint32_t *)(sampled + n);
    to->next_position = s->row[n].position + 1;
    __threadfence_system();
    *(volatile uint64_t *)&to->next_tag = s->handed_tag;
    __threadfence_system();
    *(volatile uint64_t *)&to->next_word = s->handed_tag;      /* -> the wait of handover_follow */
}

/* By one thread behind handover_follow: the newest token and its position. False: that step has not told anything. */
__device__ __forceinline__ bool handover_told(const cuda_handover_record *from, uint64_t tag, uint32_t *token, uint32_t *position)
{
    if (*(const volatile uint64_t *)&from->next_tag != tag) return false;
    __threadfence();                  /* the tag before the token */
    *token = *(const volatile uint32_t *)&from->next_token, *position = *(const volatile uint32_t *)&from->next_position;
    return true;
}

#endif
