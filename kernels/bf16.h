/* kernels/bf16.h - the bf16 nearest to a float, ties to even: of numbers, not of NaN. The way back is stored_from_bf16 (kernels/stored.h).
 *
 * Plain C, for hosts. Kernels have instructions for it. */
#ifndef SLUICE_KERNELS_BF16_H
#define SLUICE_KERNELS_BF16_H

#include <stdint.h>
#include <string.h>

static inline uint16_t bf16_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* A float that a bf16 holds. */
static inline float bf16_round(float value)
{
    const uint32_t bits = (uint32_t)bf16_of(value) << 16;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

#endif
