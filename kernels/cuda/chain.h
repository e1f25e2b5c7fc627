/* kernels/cuda/chain.h - the handle's insides, and the order of kernels in a step. */
#ifndef SLUICE_CUDA_CHAIN_H
#define SLUICE_CUDA_CHAIN_H

#include "arena.h"
#include "attn_long.h"
#include "attn_many.h"
#include "embed.h"
#include "handover.h"
#include "norm.h"
#include "outputs.h"
#include "plain.h"
#include "round.h"
#include "rowmm_many.h"
#include "rowmm_wide.h"
#include "sample.h"
#include "states.h"
#include <cuda_runtime.h>

#define GRAPHS 8                      /* 1, 2, 4, 8, 16, 32, 64, 128 rows */
#define STATE_SLOTS 2
#define CHAIN_WIDE_ROWS 32            /* more: rowmm_many in place of rowmm_wide, where the format has it */

enum graph_kind {
    GRAPH_BLOCKS,                     /* blocks of rows of a few sequences */
    GRAPH_MANY,                       /* single rows of many sequences (attn_many.h) */
    GRAPH_MANY_SHORT,                 /* none of whose texts is long */
    GRAPH_KINDS
};

struct cuda_backend {
    struct cuda_model_spec spec;
    struct cuda_options options;      /* pointers in it are borrowed from the caller */
    struct arena arena;               /* unused when plain */
    bool is_plain;                    /* a shape that the kernels of this chain are not made for */
    struct plain *plain;              /* owned; computes then everything before sampling */
    struct rowmm_tuning tuning;
    struct rowmm_next tuning_l2;      /* how much of gate_up goes to the L2, and how; no weights yet; pace 0: the measured best */
    cudaStream_t stream;
    cudaGraphExec_t graph[GRAPH_KINDS][GRAPHS];      /* all kinds give the same bits */
    cudaGraphExec_t first[GRAPHS];    /* for rows whose states are there already; all NULL without states */
    enum graph_kind kind;             /* of the graphs that are made now */
    uint64_t launched;                /* step number of the last launch */
    uint32_t rows_max;                /* of the largest graph: rows in the scratch buffers, written [rows] below */
    uint32_t spans_max[2];            /* partial attention results per row and head, per layer type */
    uint32_t pages_stride[2];         /* entries of a page table */
    uint8_t *slab;                    /* device, owned: all of the following lie in it */
    struct step_state *state;
    float *residual[2];               /* [rows][hidden]: the two ends of a norm */
    float *part_o[2], *part_down;     /* [NORM_SPLIT_MAX][rows][hidden]; of o per layer type, as all with [2] below: tags (tags.cuh) want one shape in a buffer */
    float *qkv[2];                    /* [rows][largest qkv rows] */
    /* The next three are f16 where the product behind them takes f16 (powers.h), and tiled in steps of up to 16 rows (row_places.h), but for what the head takes. */
    __nv_bfloat16 *x;                 /* [rows][hidden] normed input of qkv, gate_up and head */
    __nv_bfloat16 *attn_out;          /* [rows][largest q rows] */
    __nv_bfloat16 *act;               /* [rows][intermediate] */
    float *x_scale;                   /* [rows] of what was rounded for the next product */
    struct rowmm_ready ready;         /* what a product of many rows takes; in handles for more than CHAIN_WIDE_ROWS rows */
    float *attn_part[2];
    float2 *attn_ml[2];
    float2 *rope;                     /* [rows][turned of both types] */
    float *inv_freq;                  /* [turned of both types] */
    float *logits, *tile_top;
    uint32_t *last_token, *done;
    struct step_bias *bias;           /* [seqs_max][STEP_BIAS_MAX] */
    struct outputs_keep keep;         /* what steps leave for a drafter; generation in the slab */
    uint32_t *history;                /* [seqs_max][context_max] tokens by position, for penalties */
    uint32_t *pages[2];               /* [seqs_max][pages_stride] */
    unsigned long long *trace;        /* bench only: TRACE_WORDS words per kernel, borrowed; NULL: off */
    /* host */
    struct step_state *state_host;    /* pinned; read by the graph's first node */
    struct step_result *result;       /* mapped; written by its last kernel */
    struct step_result *result_device;
    struct handover handover;         /* drafts that come over the device; record NULL: none do */
};

/* Launches the chosen parts (bits of enum cuda_part) of a step for `rows` rows on the handle's stream. 0 or -E_. */
int chain_launch(struct cuda_backend *b, uint32_t rows, uint32_t parts);

/* What the sampling kernels work on. */
struct sample_args chain_sample_args(const struct cuda_backend *b);

/* The step of rows whose hidden states are in memory: LM head and sampling. */
int chain_launch_first(struct cuda_backend *b, uint32_t rows);

/* Captures them as a graph; parts == CHAIN_FIRST: chain_launch_first. */
int chain_graph(struct cuda_backend *b, uint32_t rows, uint32_t parts, cudaGraphExec_t *graph);

#define CHAIN_ALL ((1u << CUDA_PARTS) - 1)
#define CHAIN_FIRST (1u << CUDA_PARTS)

#endif
