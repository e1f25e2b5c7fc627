/* prefill_attn: one layer's attention for the rows of a prefill, flash style: softmax(q k) v over K and V in the pages, the rows' own included.
 *   q    [rows][16 * d] bf16, normed, rotated and scaled
 *   K, V bf16 pages of 32 positions as model/kv.h lays them out (of E4M3: as prefill_expand.h makes them)
 *   out  [rows][16 * d] bf16, k permuted as prefill_mm.h wants it
 * Full layers of 8 heads of 256 (Gemma 3 12B) have blocks enough without segments: theirs are one each.
 * A tile is up to 64 (d = 256) or 4 (d = 512) consecutive positions of one sequence; one block works on one tile and kv head: 128 rows (64 positions
 * x 2 heads) or 64 (4 positions x 16 heads) against key blocks of 64 or 32 keys, ascending.
 * Key blocks begin at multiples of their size, counted from the start of the text, and a block of which a row sees nothing leaves that row's
 * sums exactly as they were: so a row's bits depend neither on its tile nor on the cut of the prompt. For the same reason the full layers' keys
 * are cut into segments at fixed positions, always; the segments of a tile are worked on at the same time (a short span behind a long text
 * has few tiles) and a second kernel adds them in ascending order. The partial results are bounded: a run goes in rounds.
 * With `last`, rows see beyond themselves (the rest of their picture): a kernel of its own, so that text pays nothing for it.
 * Needs     d = 256 with 8 kv heads, or d = 512 with 1 and no window; K and V of all positions up to each tile's end written by
 *           earlier kernels; a ring of at least window - 1 + (rows of the tile's sequence in the run) tokens. A link of a chain. Never synchronizes.
 * Checked   tests/gpu/prefill.py: against transformers, and bit by bit in any cut of a text.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_PREFILL_ATTN_H
#define SLUICE_CUDA_PREFILL_ATTN_H

#include "prefill_ops.h"
#include <cuda.h>

#define PREFILL_SEGMENT 4096          /* keys */
#define PREFILL_SLOTS 512             /* partial results of a round, 132 KB each; also the longest text in segments */
#define PREFILL_SLOT_BYTES (33 * 256 * 16)

/* One block's work: a tile, or in full layers one segment of a tile's keys. */
struct prefill_tile {
    uint32_t first_row, rows, first_position, seq;    /* seq with a cache of E4M3: prefill_expand_shift */
    uint32_t segment, segments;       /* d = 256: 0 and 1 */
    uint32_t slot;                    /* d = 256, with pictures: behind the last position that a row of the tile sees. d = 512: of this segment's partial result; segments == 1: none. In joins: of the first segment's */
    uint32_t round;                   /* tiles of one round stand together */
};

struct prefill_attn_args {
    const struct prefill_tile *tiles; /* device; of one round */
    const struct prefill_tile *joins; /* device; the tiles of more than one segment */
    uint32_t tile_count, join_count;
    uint32_t window;                  /* 0: full layer */
    struct prefill_kv kv;
    const __nv_bfloat16 *q;
    const uint32_t *last;             /* [rows]: last position that a row sees, at or behind its own (pictures); NULL: its own. d = 256 only */
    float4 *part;                     /* PREFILL_SLOTS * PREFILL_SLOT_BYTES; NULL when nothing is to be joined */
    __nv_bfloat16 *out;
};

/* Positions of a tile. */
static inline uint32_t prefill_tile_rows(uint32_t head_dim) { return head_dim == 256 ? 64 : 4; }

/* How the copies find a layer's K and V; made once (prefill_attn_map). */
struct prefill_attn_maps { CUtensorMap k, v; };

/* Once per process and device. 0, -E_IO or -E_UNSUPPORTED (the driver has no tensor maps). */
int prefill_attn_init(void);
/* 0, or -E_RANGE: a stride or an address that is not a multiple of 16 bytes. */
int prefill_attn_map(struct prefill_attn_maps *maps, const struct prefill_kv *kv, uint32_t head_dim);
/* 0, -E_UNSUPPORTED, -E_RANGE, -E_IO. */
int prefill_attn_launch(const struct prefill_attn_args *args, const struct prefill_attn_maps *maps, uint32_t head_dim, void *stream);

#endif
