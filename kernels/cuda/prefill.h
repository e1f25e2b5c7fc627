/* kernels/cuda/prefill.h - the prefill handle's insides, and one run as a chain of kernels: for prefill.cu, its bench and its tests. */
#ifndef SLUICE_CUDA_PREFILL_INSIDE_H
#define SLUICE_CUDA_PREFILL_INSIDE_H

#include "arena.h"
#include "cuda_prefill.h"
#include "outputs.h"
#include "plain.h"
#include "prefill_attn.h"
#include "prefill_expand.h"
#include "soft.h"
#include "prefill_ops.h"
#include "states.h"
#include <cuda_runtime.h>

/* Attention's work in layers of one type, in the job. */
struct prefill_work {
    uint64_t tile_at, join_at;        /* bytes from the start of the job */
    uint32_t tile_count, join_count;
};

/* The rows that a kernel works on: all of a run, or the packed last rows of prompts. */
struct prefill_view {
    const struct prefill_row *row;    /* device */
    uint32_t rows;
    float *residual;                  /* [rows][hidden] */
    __nv_bfloat16 *x;                 /* [rows][hidden] permuted */
    float2 *rope;                     /* [rows][turned of both types] */
    const struct prefill_work *work;  /* [per layer type]; of the last rows only that of the last layer's type */
};

struct cuda_prefill {
    struct plain_prefill *plain;      /* owned; shapes of plain.h: it does everything, and the rest is unused */
    struct cuda_model_spec spec;
    struct cuda_options options;      /* pointers in it are borrowed from the caller */
    struct arena arena;
    void *kv_device[2];               /* borrowed; with plain, too */
    uint64_t page_bytes[2];
    uint32_t rows_max;
    uint32_t pages_stride[2];         /* entries of a page table, per layer type */
    struct prefill_attn_maps *maps;   /* host, owned: [layers] */
    struct prefill_expand *expand;    /* host, owned: [per layer type]; NULL: the cache is bf16 */
    bool whole;                       /* the last layer is computed to its end: somebody reads the residual */
    cudaStream_t stream;
    cudaEvent_t done;                 /* recorded behind each run */
    uint8_t *slab;                    /* device, owned: all of the following lie in it */
    uint8_t *job;                     /* rows, then attention's work of both layer types, then last rows and theirs, as the host laid them out */
    float *residual;                  /* [rows_max][hidden] */
    float *sum;                       /* [rows_max][hidden] of o and down */
    float *qkv;                       /* [rows_max][largest qkv rows] */
    __nv_bfloat16 *q;                 /* [rows_max][largest q rows] */
    __nv_bfloat16 *x;                 /* [rows_max][hidden] permuted */
    __nv_bfloat16 *attn_out;          /* [rows_max][largest q rows] permuted */
    __nv_bfloat16 *act;               /* [rows_max][intermediate] permuted */
    uint8_t *codes;                   /* [rows_max][largest k with an activation rule] E4M3 of what is multiplied next; 0 bytes without rules */
    float *codes_scale;               /* [rows_max] */
    float4 *part;                     /* PREFILL_SLOTS partial results; 0 bytes where no text is longer than a segment */
    float2 *rope;                     /* [rows_max][turned of both types] */
    float *last_residual;             /* [CUDA_PREFILL_SPANS_MAX][hidden]: of the packed last rows, and so are the next two */
    __nv_bfloat16 *last_x;
    float2 *last_rope;
    float *inv_freq;                  /* [turned of both types] */
    uint32_t *pages[2];               /* [seqs_max][pages_stride] */
    struct outputs_keep keep;         /* what runs leave for a drafter; generation in the slab */
    uint8_t *pool[2];                 /* of expand; 0 bytes without */
    uint8_t *job_host;                /* pinned, job_bytes; read by the copy that begins a run */
    uint64_t job_bytes;
    struct prefill_tile *cut;         /* host, owned: [tiles of a run in full layers], to lay out a job */
    struct soft_input soft;           /* pictures and sound of the run in hand, or the next */
    /* of the last run */
    uint32_t rows, last_rows;         /* last_rows: spans that leave their state */
    uint64_t last_at;                 /* bytes from the start of job */
    struct prefill_work work[2], last_work[2];
    uint32_t launched;                /* layers */
};

enum prefill_part { PREFILL_EMBED, PREFILL_PRODUCTS, PREFILL_ROTARY, PREFILL_ATTENTION, PREFILL_NORM, PREFILL_PARTS };
#define PREFILL_ALL ((1u << PREFILL_PARTS) - 1)

/* Where K and V of a layer lie. */
struct prefill_kv prefill_kv_of(const struct cuda_prefill *p, uint32_t layer);

/* Launches the chosen parts (bits of enum prefill_part) for the rows of the last run's job. 0 or -E_. Benches measure parts with it. */
int prefill_launch(struct cuda_prefill *p, uint32_t parts);
/* Only the layers [first, end); the embedding goes with layer 0. */
int prefill_launch_layers(struct cuda_prefill *p, uint32_t parts, uint32_t first, uint32_t end);

#endif
