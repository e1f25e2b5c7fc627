/* kernels/cuda/plain_attn.cuh - softmax(q k^T * scale) v over paged keys in the CPU's order (kernels/cpu/attention.h): launcher of plain_attn.cu.
 *
 * A block reduces one segment of 256 absolute positions for one head of one row: largest score, sum of exponentials, weighted sum of
 * values in order of position; a second kernel joins the segments in ascending order. The order is a function of positions alone. */
#ifndef SLUICE_CUDA_PLAIN_ATTN_CUH
#define SLUICE_CUDA_PLAIN_ATTN_CUH

#include "plain.h"

struct plain_attn {
    const struct plain_row *row;
    const float *q;                   /* [rows, q_stride]: normed and turned heads */
    float *out;                       /* [rows, q_heads * dim] */
    float *part;                      /* [batch rows, q_heads, segments_max, dim] */
    float2 *part_top;                 /* the same without dim: largest score, sum of exponentials */
    const uint8_t *pool;
    const uint32_t *pages;
    uint64_t q_stride, page_bytes, k_offset, v_offset;
    uint32_t pages_stride, ring_pages;
    uint32_t q_heads, kv_heads, dim, kv_bytes;
    uint32_t window;                  /* keys that a row sees, own included; 0: all */
    uint32_t looks_ahead;             /* 1: rows see the rest of their picture */
    const uint32_t *first;            /* device, [rows]: the first position that each row sees, instead of what `window` says; NULL: it says */
    uint32_t segments_max;            /* of one row */
    uint32_t batch_rows;              /* rows whose parts there is room for */
    float scale;
};

/* Segments that a row can see: all of the context, or what a window touches. */
static inline uint32_t plain_attn_segments(uint32_t context_max, uint32_t window)
{
    const uint32_t all = context_max / 256 + 1;

    return window != 0 && window < context_max && (window + 254) / 256 + 1 < all ? (window + 254) / 256 + 1 : all;
}

/* Once per process, before the first launch. 0 or -E_IO. */
int plain_attn_init(void);
/* 0 or -E_IO. */
int plain_attn_launch(const struct plain_attn *args, uint32_t rows, void *stream);

#endif
