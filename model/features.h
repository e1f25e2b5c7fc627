/* model/features.h - where the outputs of the target's layers lie for drafters that read them (model/dspark.h): the allocation arena.features,
 * which the keeper makes beside the KV cache.
 *
 *   arena.features = per place: `rows` rows; slot s has place s % place_count, position p of its sequence is in row p % rows
 *   row            = struct feature_row, then [count of layers][hidden], ascending: the residual stream behind each layer named by `layers`
 *
 * On the CPU every slot has a place, and elements are f32. On a GPU it is device memory, which is taken whether it is used or not: it is made only for a server that
 * begins with a drafter that reads it, for that drafter's number of layers and for as many slots as a share of the memory holds; slots of one place push each
 * other's rows out. Elements are BF16 there for shapes that have kernels of their own (kernels/cuda/outputs.h writes them), else f32.
 *
 * Which layers are wanted says the drafter, in one word of its own segment (counter DRAFT_SOURCES, bit i: layer i; 0: none): prefill and
 * verify look at it before each call and write the rows of all positions that the call computes, before the words that commit them.
 * Nothing is written while nobody wants any; host memory is sparse, so none is used then.
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
    uint8_t *base;                    /* [place_count][rows][row_bytes]; borrowed from the mapping; readers never write */
    uint32_t place_count, rows, hidden;
    uint32_t source_max, element_bytes;  /* layers that a row has room for */
    uint64_t row_bytes;
};

/* Geometry for drafters that look back on `context` positions of at most context_max; a place for each slot, f32. base is the caller's to set. */
void features_init(struct features *f, uint32_t slot_count, uint32_t context, uint32_t context_max, uint32_t hidden);
/* The same for a GPU: source_max layers in a row, elements of 2 or 4 bytes. place_count is the caller's to choose. */
void features_init_device(struct features *f, uint32_t place_count, uint32_t context, uint32_t context_max, uint32_t hidden, uint32_t source_max, uint32_t element_bytes);
uint64_t features_bytes(const struct features *f);

/* May these layers be wanted: at most FEATURES_SOURCES_MAX, of the first 64, and of the model's? */
bool features_layers_ok(uint64_t layers, uint32_t layer_count);

/* What `of` of a row says. */
static inline uint64_t features_whose(uint32_t generation, uint32_t position) { return (uint64_t)generation << 32 | position; }

/* Byte offset of a position's row. */
static inline uint64_t features_offset(const struct features *f, uint32_t slot, uint32_t position)
{
    return ((uint64_t)(slot % f->place_count) * f->rows + position % f->rows) * f->row_bytes;
}

/* Floats of a row with these layers. */
uint32_t features_floats(const struct features *f, uint64_t layers);

/* On the CPU. Writer: where the floats of this position go; the row is invalid until features_end. */
float *features_begin(const struct features *f, uint32_t slot, uint32_t position);
void features_end(const struct features *f, uint32_t slot, uint32_t generation, uint32_t position, uint64_t layers);

/* Reader: copies the position's floats; false: they are not there. */
bool features_take(const struct features *f, uint32_t slot, uint32_t generation, uint32_t position, uint64_t layers, float *out);

/* Writer: takes over the row of a position whose output is the same, from another sequence that began with the same text; without it when it is not there. */
void features_copy(const struct features *f, uint32_t from_slot, uint32_t from_generation, uint32_t slot, uint32_t generation, uint32_t position, uint64_t layers);

#endif
