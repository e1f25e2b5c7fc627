/* rowmm: out[m, r] = sum_k w[r, k] x[m, k], a packed weight matrix times 1 to 16 activation rows.
 *   w   packed_matrix (layout.h), every format but F32; read once, streamed by bulk copies
 *   x   [m, k] in the places that x_places names (row_places.h), 16-byte aligned: BF16 weights take bf16, all others f16, which were multiplied by a power of two (powers.h): x_power undoes it
 *       or the values of E4M3 codes with a scale for each row, which multiplies the sums before anything else happens to them (x_scale)
 *   out ROWMM_PARTIAL  [slices][rows_max][rows] f32, one partial sum per k slice: the reader adds them in order; tagged
 *       ROWMM_GEGLU    [m, rows / 2] bf16, or f16 times out_power: gelu_tanh(gate) * up, in the places that out_places names; a tile holds 8 gate rows, then their 8 up rows
 *       ROWMM_LOGITS   [m, rows] f32: cap * tanh(sum / cap), -inf for suppressed rows; and the largest of each tile of 16 rows
 *   sums in f32 on the tensor cores (mma.m16n8k16). FP8 weights, and FP4 with their group's scale, become f16 exactly;
 *   scales of 128 x 128 multiply the sums of 32 columns.
 * The bits of out[m, :] depend on x[m, :] only: the same instruction and the same split for every m <= 16 and every place.
 * Needs     rows % 16 == 0, k a multiple of 3840 or 4096, slices in {1, 2, 4}, 1 <= m <= 16. One block per SM. Never synchronizes.
 *           Part of a chain of programmatic dependent launches: weights are fetched before the predecessor has ended.
 * Checked   tests/gpu/rowmm_test.cu against a plain kernel with f64 sums on the same inputs.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ROWMM_H
#define SLUICE_CUDA_ROWMM_H

#include "layout.h"
#include "device.cuh"
#include "row_places.h"

enum rowmm_out { ROWMM_PARTIAL = 0, ROWMM_GEGLU = 1, ROWMM_LOGITS = 2 };

#define ROWMM_ROWS_MAX 16
#define ROWMM_SUPPRESS_MAX 8

/* Slots of the next product's weights that a block brings into the L2: every stride-th of those that the block of the same number will
 * stream. Not in one run: that would be read at the L2's pace with the memory idle beside it. */
struct rowmm_next {
    const uint8_t *w;                 /* NULL: leave the memory idle */
    uint32_t blocks, units, unit_bytes, unit_slots, slot_bytes, header_bytes;   /* how the next product cuts its weights */
    uint32_t stride, count;
    uint32_t pace_ns;                 /* pause between two half slots */
};

struct rowmm_args {
    const uint8_t *w;
    const void *x;
    void *out;
    uint64_t out_slice_stride;        /* elements between slices, ROWMM_PARTIAL */
    uint32_t out_stride;              /* elements between rows of out */
    uint32_t k;                       /* elements of a row of x */
    struct row_places x_places;       /* zeros: plain, as the products of more rows want them */
    struct row_places out_places;     /* ROWMM_GEGLU, of out_stride elements: the same */
    uint32_t units;                   /* rows / 16 * slices */
    uint32_t slices;
    uint32_t m;
    uint32_t out_kind;                /* enum rowmm_out */
    uint32_t ring_slots;              /* slots of the ring in shared memory */
    uint32_t window_slots;            /* copies in flight: more harms everybody else's latency */
    uint32_t wait_slots;              /* the same while the predecessor runs */
    struct rowmm_next next;           /* what goes to the L2 once our own weights have landed */
    uint32_t room;                    /* 1: attention runs beside it: registers are left for its warps, which costs FP4 and FP8_BLOCK some speed */
    uint32_t late_trigger;            /* 1: the successor starts only when our predecessor is complete */
    uint32_t out_tag;                 /* ROWMM_PARTIAL: 0 or 1, lowest bit of all words of out (tags.cuh) */
    uint32_t rounds;                  /* 1, one row and FP8 weights: x is bf16 and rounded on its way in by its largest element, as round.h says (ROUND_VALUES); not with x_scale, x_power, out_inverse */
    const float *x_scale;             /* [m] written by the kernel in front of us: multiplies the sums of each row of x, whose elements are then E4M3's numbers (round.h); NULL: 1 */
    float x_fixed;                    /* the same of all rows, where their scale is fixed: x_power is NULL then; 0: none */
    float out_inverse;                /* ROWMM_GEGLU of FP8 weights: what takes out wants it rounded by a fixed scale (round.h): the scale's inverse; 0: not */
    const float *x_power;             /* one number in constant memory: multiplies all sums, the inverse of what x was multiplied by; NULL: 1 */
    const float *out_power;           /* ROWMM_GEGLU: the same for what takes out: out is f16, multiplied by it; NULL: bf16 */
    float softcap;                    /* ROWMM_LOGITS; 0: none */
    float *tile_top;                  /* ROWMM_LOGITS: [m, rows / 16] */
    uint32_t suppress[ROWMM_SUPPRESS_MAX], suppress_count;
    unsigned long long *trace;        /* device.cuh; NULL outside benches */
    uint32_t zero;                    /* always 0 (see the arrival in rowmm.cu) */
};

/* Units, items and blocks number the slices of k first; there are 1, 2 or 4: no division. */
LAYOUT_FN uint32_t slice_of(uint32_t slices, uint32_t unit) { return unit & (slices - 1); }
LAYOUT_FN uint32_t tile_of(uint32_t slices, uint32_t unit) { return unit >> (slices >> 1); }

struct rowmm_tuning { uint32_t ring_slots, window_slots, wait_slots, sm_count; };

/* Bytes that must cross HBM. */
static inline uint64_t rowmm_bytes(const struct packed_matrix *w, uint32_t m)
{
    return packed_bytes(w->format, w->rows, w->k) + 2ull * m * w->k + 4ull * m * w->rows;
}

/* Launches on `stream` with the programmatic attribute. 0, -E_RANGE, -E_UNSUPPORTED, -E_IO (CUDA refused). */
int rowmm_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, void *stream);

/* How a later rowmm_launch of `w` will cut it: fills the geometry of `next`, and w. */
void rowmm_next_of(struct rowmm_next *next, const struct packed_matrix *w, const struct rowmm_tuning *tuning);

/* Once per process and device: raises the shared-memory limits. 0 or -E_IO. */
int rowmm_init(void);

#endif
