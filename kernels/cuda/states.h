/* states: hidden states between the kernels' own buffers and the rows of model/states.h, f32 [slots][STATES_ROWS][hidden].
 *   load   x[r] = state of row r's position (a step that begins with states: only LM head and sampling follow)
 *   store  state of each place = x[place.row], or of place number i = x[i] where the rows stand packed
 *   gather rows of the residual, of x and of the rotation table, packed: the last positions of prompts go on alone
 * x is f32 (kernels of plain.h), or bf16 in plain or in prefill_mm.h's order: an exact f32. Links of a chain, one block per row. The decode step stores
 * its states in sample.cu.
 * Needs     hidden % 4 == 0. Never synchronize.
 * Checked   tests/gpu/prefill.py (states against the step's), tests/gpu/plain_test.c (bits). */
#ifndef SLUICE_CUDA_STATES_H
#define SLUICE_CUDA_STATES_H

#include "prefill_ops.h"
#include "state.h"

enum states_form { STATES_F32 = 0, STATES_BF16 = 1, STATES_BF16_PERMUTED = 2 };      /* of x */

struct states_args {
    float *states;
    void *x;                          /* [rows][hidden] */
    uint32_t hidden, form;            /* enum states_form */
};

/* The row of a state, in elements. */
#ifdef __CUDACC__
__host__ __device__
#endif
static inline uint64_t states_at(uint32_t slot, uint32_t position, uint32_t hidden) { return ((uint64_t)slot * STEP_STATES_ROWS + position % STEP_STATES_ROWS) * hidden; }

/* 0, -E_RANGE, -E_IO. Rows beyond the step's are left alone. */
int states_load_launch(const struct states_args *args, const struct step_state *state, uint32_t rows, void *stream);

/* place: device; seq is the slot, row says which row of x, unless they are packed. */
int states_store_launch(const struct states_args *args, const struct prefill_row *place, bool packed, uint32_t rows, void *stream);

struct states_gather {
    const struct prefill_row *place;
    const float *residual;            /* [][hidden] */
    const __nv_bfloat16 *x;           /* [][hidden] */
    const float2 *rope;               /* [][turned] */
    float *residual_out;
    __nv_bfloat16 *x_out;
    float2 *rope_out;
    uint32_t hidden, turned;
};
int states_gather_launch(const struct states_gather *args, uint32_t rows, void *stream);

int states_init(void);

#endif
