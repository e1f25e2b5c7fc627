/* model/picture.h - a decoded picture becomes what the model sees: size, resampling, patches.
 *
 * Gemma 4 (unified) rescales every picture, up or down, to the largest multiple of 48 x 48 pixels that its budget of soft tokens holds and
 * keeps the proportions; each block of 48 x 48 pixels is one soft token. Gemma 3 takes 896 x 896 whatever the proportions.
 *
 * Resampling is that of the reference processors: torchvision's antialiased filters on 8-bit pixels, that is 16-bit integer weights, first along
 * rows, then along columns, rounded to 8 bits in between. Equal bit for bit (tests/unit/picture_test.c).
 *
 * Pure functions of their arguments; scratch memory is theirs alone. Nothing here knows a file format. */
#ifndef SLUICE_MODEL_PICTURE_H
#define SLUICE_MODEL_PICTURE_H

#include <stdint.h>

#define PICTURE_PATCH 48u                                   /* pixels along one side of a soft token's block */
#define PICTURE_PATCH_BYTES (PICTURE_PATCH * PICTURE_PATCH * 3u)
#define PICTURE_BUDGET_DEFAULT 280u
#define PICTURE_SIDE_MAX 65535u                             /* largest width or height that is taken in */

enum picture_filter { PICTURE_BILINEAR = 1, PICTURE_BICUBIC = 2 };

/* Is this one of the budgets that the model knows: 70, 140, 280, 560, 1120 soft tokens? */
int picture_budget_is_known(uint32_t budget);

/* Size in pixels to which a picture of width x height is brought for `budget` soft tokens: multiples of PICTURE_PATCH.
 * 0, or -E_RANGE: a side is 0 or above PICTURE_SIDE_MAX, the budget is unknown, or the proportions are so extreme that
 * the reference refuses the picture, too. */
int picture_target(uint32_t width, uint32_t height, uint32_t budget, uint32_t *target_width, uint32_t *target_height);

/* Resamples rgb [height][width][3] into out [out_height][out_width][3], antialiased. 0, -E_NOMEM, -E_RANGE (a side is 0 or too large). */
int picture_resize(const uint8_t *rgb, uint32_t width, uint32_t height, uint8_t *out, uint32_t out_width, uint32_t out_height, enum picture_filter filter);

/* Cuts rgb [height][width][3] (multiples of PICTURE_PATCH) into blocks, row by row of blocks: out [height / 48 * width / 48][48][48][3].
 * Block i stands at column i % (width / 48), row i / (width / 48). */
void picture_patches(const uint8_t *rgb, uint32_t width, uint32_t height, uint8_t *out);

#endif
