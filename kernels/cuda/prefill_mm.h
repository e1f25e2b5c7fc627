/* prefill_mm: out[m, r] = sum_k w[r, k] x[m, k], a packed weight matrix times any number of activation rows.
 *   w   packed_matrix (layout.h), every format but F32: read as it lies, there is no second copy of the weights
 *   x   [m, k] bf16, row-major with row stride k, 16-byte aligned, the elements of a row permuted: element k of the row stands at
 *       prefill_k(k). Rows from m on are never read.
 *   out PREFILL_F32    [m, rows] f32, row stride out_stride >= rows; plain order
 *       PREFILL_GEGLU  [m, rows / 2] bf16, row stride out_stride >= rows / 2; gelu_tanh(gate) * up, permuted by prefill_k: it is
 *                      the x of the next product. w holds 8 gate rows, then their 8 up rows in each tile of 16.
 *   sums in f32 on the tensor cores (wgmma m64nNk16, bf16 inputs; an E4M3 weight is a bf16 exactly, and so is an FP4 code times its group's scale): one chain
 *       of products per element and k slice of 3840 or 4096 (FP8_BLOCK: per 128 of k, times their scale), slices added in order.
 * The bits of out[m, :] depend on x[m, :] and w alone: not on the other rows, their number, or the row's place.
 * Needs     rows % 16 == 0 (GEGLU: rows % 64 == 0), k a multiple of 3840 or 4096 (GEGLU: equal), m >= 1. A persistent grid of one block per SM.
 *           Never synchronizes. A link of a chain of programmatic dependent launches: x is read and out is written only
 *           after everything earlier in the stream is complete; a successor launched by launch_chained must chain_wait.
 * Checked   tests/gpu/prefill_mm_test.cu against f64 sums on the same bf16 inputs.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_PREFILL_MM_H
#define SLUICE_CUDA_PREFILL_MM_H

#include "layout.h"
#include <cuda_bf16.h>

enum prefill_out { PREFILL_F32 = 0, PREFILL_GEGLU = 1 };

/* Place of element k in a permuted activation row. Inside each block of 32 the lane that owns the 8 elements 8t..8t+7 of the
 * packed weights meets them two at a time: places 2t + {0, 1, 8, 9, 16, 17, 24, 25}. Pairs (2i, 2i + 1) stay neighbours. */
LAYOUT_FN uint32_t prefill_k(uint32_t k)
{
    return (k & ~31u) | (k & 4) << 2 | (k & 2) << 2 | (k >> 3 & 3) << 1 | (k & 1);
}

/* Bytes that must cross HBM at least once. */
static inline uint64_t prefill_mm_bytes(const struct packed_matrix *w, uint32_t m, enum prefill_out kind)
{
    return packed_bytes(w->format, w->rows, w->k) + 2ull * m * w->k + (kind == PREFILL_F32 ? 4ull * m * w->rows : 1ull * m * w->rows);
}

/* Launches on `stream`. 0, -E_RANGE (shape, alignment or stride), -E_IO (CUDA refused; launch_error has the text). */
int prefill_mm_launch(const struct packed_matrix *w, const __nv_bfloat16 *x, uint32_t m, void *out, enum prefill_out kind,
                      uint64_t out_stride, cudaStream_t stream);

/* FP8 weights (WEIGHT_FP8) times FP8 activations on the FP8 tensor cores: codes [m, k] E4M3, element k of a row at round_k(k) (round.h), 16-byte aligned; the scale of
 * a row multiplies its sums. Products of 128 of k begin at zero, their sums are added in f32 in the order of k: the bits of a row depend on it and w alone here, too.
 * columns as below. */
int prefill_mm_launch_codes(const struct packed_matrix *w, const uint8_t *codes, const float *x_scale, uint32_t m, void *out, enum prefill_out kind,
                            uint64_t out_stride, uint32_t columns, cudaStream_t stream);

/* For tests and benches: with tiles of `columns` activation rows, one of prefill_mm_columns[] (0 ends it), or that with PREFILL_MM_SPLIT: the
 * k slices of a tile on different SMs (needs 2 to 8 slices); 0: as prefill_mm_launch chooses. */
#define PREFILL_MM_SPLIT 0x1000u
int prefill_mm_launch_columns(const struct packed_matrix *w, const __nv_bfloat16 *x, uint32_t m, void *out, enum prefill_out kind,
                              uint64_t out_stride, uint32_t columns, cudaStream_t stream);
extern const uint32_t prefill_mm_columns[];
/* What prefill_mm_launch chooses. */
uint32_t prefill_mm_choice(const struct packed_matrix *w, uint32_t m);

/* Once per process and device, before the first launch: shared-memory limits, the number of SMs, the driver's encoder of tensor maps.
 * 0, -E_IO or -E_UNSUPPORTED (the driver has no tensor maps). */
int prefill_mm_init(void);

#endif
