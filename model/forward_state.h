/* model/forward_state.h - private to forward.c and forward_layer.c: the buffers of one forward pass. */
#ifndef SLUICE_MODEL_FORWARD_STATE_H
#define SLUICE_MODEL_FORWARD_STATE_H

#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "model/forward.h"
#include "model/forward_rope.h"

struct row_run {                      /* rows of one sequence that stand together in the call */
    uint32_t first, count;            /* rows */
    uint32_t seq;
};

struct row_block { uint32_t row, count, seq; };   /* rows whose attention is one task */

#define FORWARD_PARTS 3               /* matrices that read one input: q, k, v */

struct forward_input {                /* rows [rows, k] as a matrix takes them */
    const float *x;
    const float *scale;               /* [rows], NULL: x is not rounded */
};

struct forward {
    const struct model_weights *weights;          /* borrowed until close, as geo and kv */
    const struct model_config *config;
    const struct kv_geometry *geo;
    uint8_t *kv;
    const struct kernels *kernels;
    enum kernels_dtype table_dtype, kv_dtype;         /* of the embedding table and the cache */
    struct pool *pool;                            /* owned */
    struct rope_table rope[LAYER_TYPES];
    uint32_t rows_max, q_dim_max, kv_dim_max;
    bool rounds;                      /* some matrix wants rounded activations and they are not switched off */
    forward_progress_fn *progress;
    void *progress_context;
    forward_hidden_fn *hidden_hook;
    void *hidden_context;
    forward_input_fn *input_hook;
    void *input_context;
    const float *soft;                            /* [soft_count, hidden], borrowed */
    uint32_t soft_count;

    /* buffers, one allocation each, owned; all f32, rows packed */
    float *h;                         /* [rows_max, hidden]     the residual stream */
    float *x;                         /* [rows_max, hidden]     a normed copy of it */
    float *y;                         /* [rows_max, hidden]     what a block adds to it */
    float *q;                         /* [rows_max, q_dim_max] */
    float *k, *v;                     /* [rows_max, kv_dim_max] */
    float *attended;                  /* [rows_max, q_dim_max] */
    float *gate, *up;                 /* [rows_max, intermediate] */
    float *cosine[LAYER_TYPES], *sine[LAYER_TYPES];   /* [rows_max, turned] */
    float *rounded[FORWARD_PARTS];    /* [rows_max, longest input] for the first, [rows_max, hidden] for the others; NULL: no format rounds */
    float *rounded_scale[FORWARD_PARTS];              /* [rows_max] */
    struct attention_scratch *scratch;                /* [threads] */
    struct row_run *runs;                             /* [rows_max] */
    struct row_block *blocks[LAYER_TYPES];            /* [rows_max] */

    /* the call in hand */
    const struct forward_row *rows;
    const struct forward_seq *seqs;
    uint32_t row_count, run_count, block_count[LAYER_TYPES];
    float *logits;
    uint32_t wanted;                  /* rows of logits; their normed hidden states are the first rows of x */
};

#define FORWARD_MACS_PARALLEL (1u << 20)  /* below this many multiply-adds (some 20 us) a loop is not worth waking threads */
#define FORWARD_CHUNK 32              /* columns of a matrix in a task are a multiple of this: whole tiles of every instruction set */

/* Columns per task such that every thread gets several. */
uint32_t forward_chunk(const struct forward *f, uint32_t columns);

/* Runs the tasks on all threads if `macs` is worth it, else here. */
void forward_tasks(struct forward *f, pool_task_fn *fn, void *context, uint32_t task_count, uint64_t macs);

/* Query heads that one attention task takes of a kv head's group, and the rows of a task. */
uint32_t forward_task_heads(const struct forward *f, uint32_t group);

/* One decoder layer over the rows of the call; h in, h out. */
void forward_layer(struct forward *f, uint32_t layer);

#endif
