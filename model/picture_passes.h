/* model/picture_passes.h - weights and the two passes of picture_resize and picture_stream, one table per instruction set. Integer sums: every table computes the same bytes. */
#ifndef SLUICE_MODEL_PICTURE_PASSES_H
#define SLUICE_MODEL_PICTURE_PASSES_H

#include "model/picture.h"

#include <stdbool.h>
#include <stddef.h>

#define PICTURE_CHANNELS 3u

struct picture_taps {        /* of one direction: output i is the weighted sum of inputs first[i] .. first[i] + count[i] - 1 */
    uint32_t *first, *count; /* [outputs] */
    int16_t *weight;         /* [outputs][stride], zeros behind count[i] */
    uint32_t stride;         /* multiple of 4 */
    uint32_t bits;           /* a weight of 1 is 1 << bits */
    void *plan;              /* owned, NULL: none; what the passes' `arrange` made of the weights, for its `across` alone */
};

struct picture_passes {
    /* Before the first `across` with these weights, which stay as they are from then on. NULL: nothing to do. 0, -E_NOMEM. */
    int (*arrange)(struct picture_taps *t, uint32_t out_width);
    /* `rows` rows of `width` pixels to rows of out_width pixels. */
    void (*across)(const uint8_t *in, uint32_t width, uint32_t rows, uint8_t *out, uint32_t out_width, const struct picture_taps *t);
    /* Row `row` of the result from rows of `bytes` bytes each; `first` is the one where its taps begin. */
    void (*down)(const uint8_t *first, uint32_t bytes, uint8_t *out, uint32_t row, const struct picture_taps *t);
};

/* The weights from `in` pixels to `out`. 0, -E_NOMEM (nothing to close then). */
int picture_taps_open(struct picture_taps *t, uint32_t in, uint32_t out, enum picture_filter filter);
static inline int picture_taps_arrange(struct picture_taps *t, uint32_t out, const struct picture_passes *passes) { return passes->arrange ? passes->arrange(t, out) : 0; }
void picture_taps_close(struct picture_taps *t);
const struct picture_passes *picture_passes_best(void);

static inline uint8_t picture_clamp(int32_t v) { return v < 0 ? 0 : v > 255 ? 255 : (uint8_t)v; }

/* Pixel i of one row's result. */
void picture_pixel(const uint8_t *in, uint8_t out[3], uint32_t i, const struct picture_taps *t);

extern const struct picture_passes picture_passes_portable;
#if defined(__x86_64__)
extern const struct picture_passes picture_passes_avx2, picture_passes_avx512vbmi;
bool picture_avx512vbmi_is_here(void);
#endif

#endif
