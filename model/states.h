/* model/states.h - where the hidden states of sequences lie: the allocation arena.states, which the keeper makes beside the KV cache.
 *
 *   arena.states = per slot: STATES_ROWS rows of f32[hidden]; the state of position p is in row p % STATES_ROWS
 *
 * A state is what the LM head gets: the residual behind the last layer, after the final norm (kernels that give the head BF16 leave that value
 * as f32). On the GPU it is device memory, else a memfd. Prefill writes the state of a prompt's last position before it hands over, verify
 * those of all rows of a step before the commit word that covers them. A drafter may read the rows of the three newest committed positions at
 * any time: a step in flight writes behind them (STATES_HISTORY). What it reads too late is another position's state: that costs
 * accepted drafts, nothing else. Redone work writes the same bytes.
 * This header is arithmetic only. */
#ifndef SLUICE_MODEL_STATES_H
#define SLUICE_MODEL_STATES_H

#include <stdint.h>

#define STATES_ROWS 16u               /* a power of two */
#define STATES_HISTORY 3u             /* a step's rows of one sequence are at most STATES_ROWS - STATES_HISTORY */

/* Bytes of the allocation. */
static inline uint64_t states_bytes(uint32_t slot_count, uint32_t hidden) { return (uint64_t)slot_count * STATES_ROWS * hidden * sizeof(float); }

/* Byte offset of the state of a position. */
static inline uint64_t states_offset(uint32_t slot, uint32_t position, uint32_t hidden)
{
    return ((uint64_t)slot * STATES_ROWS + position % STATES_ROWS) * hidden * sizeof(float);
}

#endif
