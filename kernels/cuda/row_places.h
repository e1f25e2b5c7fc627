/* kernels/cuda/row_places.h - where the elements of activation rows lie between two kernels of a step.
 *
 *   plain   row after row
 *   tiled   in tiles of 8 rows; of a tile the elements 0 .. 31 of each row, then the elements 32 .. 63 of each, and so on
 *
 * A warp of a product of few rows (rowmm.cu) takes 32 elements of 8 rows at once: 8 pieces of 64 bytes of plain rows, and 512 bytes in one of a tile. Every SM takes all of a slice's
 * activations when the kernel in front of it ends, and the memory waits: 8 rows cost 1.2 us a product less so. One row is the same either way. */
#ifndef SLUICE_CUDA_ROW_PLACES_H
#define SLUICE_CUDA_ROW_PLACES_H

#include "layout.h"

#define PLACES_TILE 8                 /* rows */
#define PLACES_BLOCK 32               /* elements of a row that stay together */

/* Elements from a row of a tile to the next, and from a block to the row's next one. Zeros: plain. */
struct row_places { uint32_t row, block; };

/* Of so many rows: a tile that is alone has no room for more. */
LAYOUT_FN struct row_places places_tiled(uint32_t rows)
{
    const struct row_places p = { PLACES_BLOCK, PLACES_BLOCK * (rows < PLACES_TILE ? rows : PLACES_TILE) };

    return p;
}

/* What launches hand to kernels: no zeros. k: elements of a row. */
LAYOUT_FN struct row_places places_known(struct row_places p, uint32_t k)
{
    const struct row_places plain = { k, PLACES_BLOCK };

    return p.block ? p : plain;
}

/* Element i of a row of k. */
LAYOUT_FN uint64_t place_of(struct row_places p, uint32_t k, uint32_t row, uint32_t i)
{
    return (uint64_t)(row / PLACES_TILE * PLACES_TILE) * k + row % PLACES_TILE * p.row + i / PLACES_BLOCK * p.block + i % PLACES_BLOCK;
}

#endif
