/* kernels/cuda/setup.h - what every owner of GPU scratch does when it opens: one allocation cut into parts, a mapped result, rotary frequencies.
 *
 * One allocation, the hot buffers first in its list: they share a few large pages of the GPU's address translation. All of it is zeros at first.
 * Host functions without state; a failure leaves nothing behind but what the owner's close frees anyway. */
#ifndef SLUICE_CUDA_SETUP_H
#define SLUICE_CUDA_SETUP_H

#include <stdint.h>

#define SETUP_ALIGN 1024u                   /* of each part */

struct setup_part { void **at; uint64_t bytes; };     /* at: where its address is written; it belongs to the slab */

static inline uint64_t setup_aligned(uint64_t bytes) { return (bytes + SETUP_ALIGN - 1) / SETUP_ALIGN * SETUP_ALIGN; }

/* Makes *slab (owned by the caller, cudaFree) and writes where each part lies. 0, -E_NOMEM, -E_IO; `what` names it in launch_error. */
int setup_slab(uint8_t **slab, const struct setup_part *parts, uint32_t count, const char *what);

/* Host memory that the device writes (owned by the caller, cudaFreeHost), zeros at first, and its address there. 0, -E_NOMEM, -E_IO. */
int setup_mapped(void **host, void **device, uint64_t bytes);

/* Frequencies of the first `turned` pairs of a head of `dim` elements, to device memory: in f32, in the order in which the reference computes
 * them, because at far positions one unit in the last place of a frequency shows. 0 or -E_IO. */
int setup_frequencies(float *device, double theta, double divisor, uint32_t dim, uint32_t turned);

#endif
