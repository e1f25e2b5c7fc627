/* persist: all layers of a step for 1 to 8 rows in one kernel, whose weight stream never stops between products.
 *   x        [rows][hidden] bf16 and residual [rows][hidden] f32 as embed.h leaves them; at the end the normed input of the LM head and the residual
 *   weights  FP8, packed (layout.h); the head is a kernel of its own behind this one
 * One block per SM, all resident. 8 consumer warps and an epilogue warp do what a rowmm block does (rowmm.h), 8 auxiliary warps attention
 * (attn.h) and norms (norm.h), one lane streams the weights of the whole step through one ring. Blocks wait for each other by
 * counters in global memory, one per layer and event, which only grow: `epoch` counts finished steps, so none is ever set back.
 * The units of all products go round robin over the blocks, each product where the last one stopped.
 * The arithmetic is that of the chain of kernels, from the same text: every bit of the results equals the chain's.
 * Needs     hidden 3840, 16 query heads, k of o a multiple of 4096 and of down of 3840; one block per SM resident at the same time (a cooperative launch).
 * Fails     a counter that stands still for SPIN_CLOCKS traps: the context is lost (-E_IO from the next wait), as after any fault of the GPU. */
#ifndef SLUICE_CUDA_PERSIST_H
#define SLUICE_CUDA_PERSIST_H

#include "attn.h"
#include "cuda_backend.h"

#define PERSIST_ROWS_MAX 8
#define PERSIST_TRACE_EVENTS 16       /* per layer, two words each: first and last block */

enum persist_phase { PHASE_QKV, PHASE_O, PHASE_GATE_UP, PHASE_DOWN, PHASES };

struct persist_layer {                /* bytes from the start of the weight arena, KV offsets from the start of a page */
    uint64_t matrix[PHASES];
    uint64_t post_attention_norm, pre_ff_norm, post_ff_norm, next_norm, q_norm, k_norm, scalar;
    uint64_t k_offset, v_offset;
    uint64_t type;                    /* enum cuda_layer_type */
};

struct persist_args {
    const uint8_t *weights;
    const struct step_state *state;
    uint32_t layers, rows;            /* rows of the graph: 1, 2, 4 or 8; state->rows of them are live */
    uint32_t units[2][PHASES];        /* 16-row tiles times k slices, by layer type */
    uint32_t slices[2][PHASES];
    uint32_t hidden, intermediate, qkv_rows[2], q_rows[2];
    uint32_t rows_max;                /* of the scratch buffers */
    uint32_t ring_slots, window_slots, wait_slots;
    uint32_t l2_slots, l2_stride, l2_pace_ns;   /* of gate_up, into the L2 while o waits for attention */
    uint32_t aux_bytes;               /* shared memory of the auxiliary warps; set by persist_launch */
    uint32_t own_norms;               /* 1: every block computes the norms itself, so that nobody waits for another block to hand them out; set by persist_launch */
    uint32_t zero;                    /* always 0 (see the arrival in rowmm.cu) */
    float eps;
    struct attn_args attn[2];         /* by layer type; norms and KV offsets are the layer's */
    float *qkv, *part, *residual[2];
    __nv_bfloat16 *x, *attn_out, *act;
    uint32_t *counters;               /* persist_counter_bytes(), zeroed once */
    unsigned long long *trace;        /* [layers][PERSIST_TRACE_EVENTS][2]; NULL outside benches */
    struct persist_layer layer[CUDA_LAYERS_MAX];
};

uint64_t persist_counter_bytes(uint32_t layers);

/* Launches on `stream`, one block per SM. 0, -E_RANGE, -E_UNSUPPORTED (a shape that it is not made for), -E_IO. */
int persist_launch(const struct persist_args *args, uint32_t sm_count, void *stream);
int persist_init(void);

#endif
