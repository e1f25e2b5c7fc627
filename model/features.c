/* model/features.c - see features.h. */
#include "model/features.h"

#include "shm/atomic.h"
#include "shm/must.h"

#include <string.h>

void features_init_device(struct features *f, uint32_t place_count, uint32_t context, uint32_t context_max, uint32_t hidden, uint32_t source_max, uint32_t element_bytes)
{
    const uint64_t wanted = (uint64_t)context + FEATURES_SLACK_ROWS;

    memset(f, 0, sizeof *f);
    f->place_count = place_count;
    f->rows = wanted < context_max ? (uint32_t)wanted : context_max;
    f->hidden = hidden;
    f->source_max = source_max;
    f->element_bytes = element_bytes;
    f->row_bytes = (sizeof(struct feature_row) + (uint64_t)source_max * hidden * element_bytes + 63) / 64 * 64;
}

void features_init(struct features *f, uint32_t slot_count, uint32_t context, uint32_t context_max, uint32_t hidden)
{
    features_init_device(f, slot_count, context, context_max, hidden, FEATURES_SOURCES_MAX, sizeof(float));
}

uint64_t features_bytes(const struct features *f)
{
    return f->place_count * (uint64_t)f->rows * f->row_bytes;
}

bool features_layers_ok(uint64_t layers, uint32_t layer_count)
{
    return (uint32_t)__builtin_popcountll(layers) <= FEATURES_SOURCES_MAX && (layer_count >= 64 || layers >> layer_count == 0);
}

uint32_t features_floats(const struct features *f, uint64_t layers)
{
    return (uint32_t)__builtin_popcountll(layers) * f->hidden;
}

static struct feature_row *row_of(const struct features *f, uint32_t slot, uint32_t position)
{
    must(f->element_bytes == sizeof(float));
    return (struct feature_row *)(f->base + features_offset(f, slot, position));
}

float *features_begin(const struct features *f, uint32_t slot, uint32_t position)
{
    struct feature_row *row = row_of(f, slot, position);

    shm_store_relaxed(&row->layers, 0);
    shm_fence_release(); /* F1: whoever sees one of our floats finds the row invalid when he looks again */
    return (float *)(row + 1);
}

void features_end(const struct features *f, uint32_t slot, uint32_t generation, uint32_t position, uint64_t layers)
{
    struct feature_row *row = row_of(f, slot, position);

    shm_store_relaxed(&row->of, features_whose(generation, position));
    shm_store_release(&row->layers, layers); /* F2: the floats and what they are of */
}

static bool is_there(const struct feature_row *row, uint32_t generation, uint32_t position, uint64_t layers)
{
    return shm_load_acquire(&row->layers) == layers /* F2 */ && shm_load_relaxed(&row->of) == features_whose(generation, position);
}

void features_copy(const struct features *f, uint32_t from_slot, uint32_t from_generation, uint32_t slot, uint32_t generation, uint32_t position, uint64_t layers)
{
    const struct feature_row *from = row_of(f, from_slot, position);

    if (!is_there(from, from_generation, position, layers)) return;
    const bool moves = from != row_of(f, slot, position); /* else the slot had that sequence, too: the row changes hands */
    float *to = features_begin(f, slot, position);
    if (moves) memcpy(to, from + 1, features_floats(f, layers) * sizeof *to);
    shm_fence_acquire(); /* F1: verify may go on in the other sequence */
    if (!moves || is_there(from, from_generation, position, layers)) features_end(f, slot, generation, position, layers);
}

bool features_take(const struct features *f, uint32_t slot, uint32_t generation, uint32_t position, uint64_t layers, float *out)
{
    const struct feature_row *row = row_of(f, slot, position);

    if (layers == 0 || !is_there(row, generation, position, layers)) return false;
    memcpy(out, row + 1, features_floats(f, layers) * sizeof *out);
    shm_fence_acquire(); /* F1 */
    return is_there(row, generation, position, layers);
}
