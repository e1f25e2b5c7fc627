/* plain_table: rows of an embedding table, wherever they lie: row-major (a checkpoint's, the arena of plain.h), or packed for the kernels of arena.h. */
#ifndef SLUICE_CUDA_PLAIN_TABLE_CUH
#define SLUICE_CUDA_PLAIN_TABLE_CUH

#include "cuda_backend.h"
#include "plain_math.cuh"

struct plain_table {
    const void *rows;                 /* row-major, elements of element_bytes (2: bf16, 4: f32); NULL: `packed` */
    const uint8_t *packed;            /* layout.h, WEIGHT_BF16 */
    uint32_t element_bytes, slice_k, slices;
};

/* Where a target's own table lies; borrowed. 0, -E_RANGE (no target_device), -E_UNSUPPORTED. In plain_held.cu. */
int plain_table_of(const struct cuda_model_spec *target, const void *target_device, struct plain_table *table);

#ifdef __CUDACC__
__device__ __forceinline__ float plain_table_value(const plain_table &t, uint32_t row, uint32_t columns, uint32_t i)
{
    const uint64_t at = (uint64_t)row * columns + i;

    if (t.rows) return t.element_bytes == 2 ? plain_widen(__ldg((const uint16_t *)t.rows + at)) : __ldg((const float *)t.rows + at);
    const uint64_t unit = (uint64_t)(row / TILE_ROWS) * t.slices + i / t.slice_k;

    return plain_widen(*(const uint16_t *)(t.packed + unit * packed_unit_bytes(WEIGHT_BF16, t.slice_k) + packed_element_offset(WEIGHT_BF16, t.slice_k, row % TILE_ROWS, i % t.slice_k)));
}
#endif

#endif
