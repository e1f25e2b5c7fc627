/* model/features.h - where the outputs of the target's layers lie for drafters that read them (model/dspark.h): the allocation arena.features,
 * which the keeper makes beside the KV cache.
 *
 *   arena.features = per slot: `rows` rows; position p of the sequence is in row p % rows
 *   row            = struct feature_row, then f32[count of layers][hidden], ascending: the residual stream behind each layer named by `layers`
 *
 * Which layers are wanted says the drafter, in one word of its own segment (counter DRAFT_SOURCES, bit i: layer i; 0: none): prefill and
 * verify look at it before each call and write the rows of all positions that the call computes, before the words that commit them.
 * Nothing is written, and no memory used, while nobody wants any: the allocation is sparse.
 *
 * A row says what it holds. The writer makes it invalid, fills it, makes it valid; the reader copies it and looks again: a row of another
 * position, sequence or set of layers, or one that changed meanwhile, is not there. (Positions of a sequence only grow: a row that is again what it
 * was has never been anything else.) Redone work writes the same bytes. A writer that dies in
 * between leaves an invalid row, and whoever redoes the work writes it again. Readers own nothing and are waited for by nobody. */
#ifndef SLUICE_MODEL_FEATURES_H
#define SLUICE_MODEL_FEATURES_H

#include <stdbool.h>
#include <stdint.h>

#define FEATURES_SOURCES_MAX 8u       /* layers in a row */
#define FEATURES_SLACK_ROWS 32u       /* beyond the positions that a drafter looks back on: a step in flight, and a drafter that lags behind */

struct feature_row {
    uint64_t layers;                  /* 0: invalid */
    uint64_t of;                      /* generation of the slot << 32 | position */
    uint8_t pad[48];
};
_Static_assert(sizeof(struct feature_row) == 64, "rows of floats are aligned");

struct features {
    uint8_t *base;                    /* [slot_count][rows][row_bytes]; borrowed from the mapping; readers never write */
    uint32_t slot_count, rows, hidden;
    uint64_t row_bytes;
};

/* Geometry for drafters that look back on `context` positions of at most context_max. base is the caller's to set. */
void features_init(struct features *f, uint32_t slot_count, uint32_t context, uint32_t context_max, uint32_t hidden);
uint64_t features_bytes(const struct features *f);

/* May these layers be wanted: at most FEATURES_SOURCES_MAX, of the first 64, and of the model's? */
bool features_layers_ok(uint64_t layers, uint32_t layer_count);

/* Floats of a row with these layers. */
uint32_t features_floats(const struct features *f, uint64_t layers);

/* Writer: where the floats of this position go; the row is invalid until features_end. */
float *features_begin(const struct features *f, uint32_t slot, uint32_t position);
void features_end(const struct features *f, uint32_t slot, uint32_t generation, uint32_t position, uint64_t layers);

/* Reader: copies the position's floats; false: they are not there. */
bool features_take(const struct features *f, uint32_t slot, uint32_t generation, uint32_t position, uint64_t layers, float *out);

#endif
