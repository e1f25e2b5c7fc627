/* outputs: outputs of layers from the residual stream into the memory of model/features.h, for a drafter that reads them.
 *   row of a position = 64 bytes (struct feature_row: layers, of), then [layers][hidden] bf16 or f32
 *   store_step  of the rows of a step's state; store_rows: of rows that a prefill describes
 * One launch for each wanted layer, behind the norm that ends it. The first invalidates a row before it writes, the last validates it behind all data: a reader that finds
 * the same words before and after its copy has a whole row. Rows whose position is overwritten by a later row of the same call are left out. Links of a chain, one block
 * for each row.
 * Needs     hidden % 4 == 0, element_bytes 2 or 4. Never synchronize.
 * Checked   tests/gpu/outputs_test.cu; in the product by tests/gpu/drafters.py. */
#ifndef SLUICE_CUDA_OUTPUTS_H
#define SLUICE_CUDA_OUTPUTS_H

#include "cuda_backend.h"

struct outputs_keep {
    struct cuda_features memory;
    const uint32_t *generation;       /* device, [seqs]: of the sequence in each slot */
    uint64_t layers;                  /* bit i: the output of layer i is wanted; 0: nobody wants any */
    uint32_t hidden;
};

static inline int outputs_wanted(const struct outputs_keep *k, uint32_t layer) { return layer < 64 && (k->layers >> layer & 1); }

/* May these layers be kept: room in a row, and none beyond the model's last but one? */
int outputs_fit(const struct cuda_features *memory, uint64_t layers, uint32_t layer_count);

/* residual [rows][hidden] f32. 0 or -E_IO. */
int outputs_store_step(const struct outputs_keep *keep, uint32_t layer, const float *residual, const struct step_state *state, uint32_t rows, void *stream);

/* rows: device, records of four words whose second is the position and whose third the slot (struct prefill_row, struct plain_row); live: the fourth is 0 in rows that
 * nobody reads. */
int outputs_store_rows(const struct outputs_keep *keep, uint32_t layer, const float *residual, const void *rows, bool live, uint32_t count, void *stream);

/* Rows of positions first .. first + count - 1 of one sequence become rows of another, as far as they are there, and those alone that no later one of them overwrites. Whole rows
 * only: a source that changes meanwhile leaves an invalid one. Nothing while nobody wants any. 0 or -E_IO. */
int outputs_copy(const struct outputs_keep *keep, uint32_t from_seq, uint32_t from_generation, uint32_t seq, uint32_t first, uint32_t count, void *stream);

int outputs_init(void);

#endif
