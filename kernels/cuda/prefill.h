/* kernels/cuda/prefill.h - the prefill handle's insides, and one run as a chain of kernels: for prefill.cu, its bench and its tests. */
#ifndef SLUICE_CUDA_PREFILL_INSIDE_H
#define SLUICE_CUDA_PREFILL_INSIDE_H

#include "arena.h"
#include "cuda_prefill.h"
#include "plain.h"
#include "prefill_attn.h"
#include "prefill_ops.h"
#include <cuda_runtime.h>

struct cuda_prefill {
    struct plain_prefill *plain;      /* owned; shapes of plain.h: it does everything, and the rest is unused */
    struct cuda_model_spec spec;
    struct cuda_options options;      /* pointers in it are borrowed from the caller */
    struct arena arena;
    uint32_t rows_max;
    uint32_t pages_stride[2];         /* entries of a page table, per layer type */
    struct prefill_attn_maps *maps;   /* host, owned: [layers] */
    bool whole;                       /* the last layer is computed to its end: somebody reads the residual */
    cudaStream_t stream;
    cudaEvent_t done;                 /* recorded behind each run */
    uint8_t *slab;                    /* device, owned: all of the following lie in it */
    uint8_t *job;                     /* rows, tiles of sliding layers, joins, tiles of full layers, as the host laid them out */
    float *residual;                  /* [rows_max][hidden] */
    float *sum;                       /* [rows_max][hidden] of o and down */
    float *qkv;                       /* [rows_max][largest qkv rows] */
    __nv_bfloat16 *q;                 /* [rows_max][largest q rows] */
    __nv_bfloat16 *x;                 /* [rows_max][hidden] permuted */
    __nv_bfloat16 *attn_out;          /* [rows_max][largest q rows] permuted */
    __nv_bfloat16 *act;               /* [rows_max][intermediate] permuted */
    float4 *part;                     /* PREFILL_SLOTS partial results; 0 bytes where no text is longer than a segment */
    float2 *rope;                     /* [rows_max][turned of both types] */
    float *inv_freq;                  /* [turned of both types] */
    uint32_t *pages[2];               /* [seqs_max][pages_stride] */
    uint8_t *job_host;                /* pinned, job_bytes; read by the copy that begins a run */
    uint64_t job_bytes;
    struct prefill_tile *cut;         /* host, owned: [tiles of a run in full layers], to lay out a job */
    /* of the last run */
    uint32_t rows;
    uint64_t tile_at[2], join_at;     /* bytes from the start of job */
    uint32_t tile_count[2], join_count;
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
