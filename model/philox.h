/* model/philox.h - Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw (SC 2011).
 *
 * A pure function of key and counter: no state, so that noise for (seed, position, token) is the same in
 * every process, batch and retry. Checked against the published known answers. */
#ifndef SLUICE_MODEL_PHILOX_H
#define SLUICE_MODEL_PHILOX_H

#include <stdint.h>

struct philox_block { uint32_t word[4]; };

struct philox_block philox4x32_10(struct philox_block counter, uint32_t key0, uint32_t key1);

#endif
