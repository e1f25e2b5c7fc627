/* kernels/cuda/dspark_newest.h - what a round of a DSpark head that follows a step of verify's (cuda_handover.h) learns only when it begins: where the text stands.
 *
 * One in the handle's memory, written by the first kernel of such a round and read by all behind it; NULL in their arguments: what they need is there. */
#ifndef SLUICE_CUDA_DSPARK_NEWEST_H
#define SLUICE_CUDA_DSPARK_NEWEST_H

#include <stdint.h>

struct dspark_newest {
    uint32_t told;                    /* 0: the step told nothing, and nobody gets these guesses; what follows is sound all the same */
    uint32_t token, position;         /* newest token of the text and its position */
    uint32_t low;                     /* first position of its window */
    uint32_t absorb;                  /* positions that the step committed */
    uint32_t pad;
    uint64_t begun_ns;                /* by the device's clock */
};

#endif
