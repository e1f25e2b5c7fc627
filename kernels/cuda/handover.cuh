/* kernels/cuda/handover.cuh - the end of a round of drafts: one thread leaves them where verify's step waits (cuda_handover.h). */
#ifndef SLUICE_CUDA_HANDOVER_CUH
#define SLUICE_CUDA_HANDOVER_CUH

#include "cuda_handover.h"

__device__ __forceinline__ void handover_leave(cuda_handover_record *to, const cuda_handover &h, uint32_t count, const uint32_t *token, const float *confidence)
{
    const bool instead = h.instead_count > 0;
    float chance = 1.0f;
    uint32_t n = 0;

    count = min(instead ? min(h.instead_count, count) : count, (uint32_t)CUDA_HANDOVER_TOKENS_MAX);
    for (; n < count; n++) {
        const float left = 1.0f - confidence[n];

        chance *= h.rate[!(confidence[n] > 0.0f) ? 0 : cuda_handover_class(left > 0.0f ? -__log2f(left) : 1e9f)];
        if (!(chance >= h.least)) break;
        to->token[n] = instead ? h.instead[n] : token[n];
    }
    to->count = n;
    __threadfence_system();
    *(volatile uint64_t *)&to->tag = h.tag;
    __threadfence_system();
    *(volatile uint64_t *)&to->word = h.tag;       /* -> the wait of cuda_backend_step_behind */
}

#endif
