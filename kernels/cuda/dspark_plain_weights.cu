/* kernels/cuda/dspark_plain_weights.cu - see dspark_plain_weights.cuh. */
#include "dspark_plain_weights.cuh"
#include "dspark_plain_ops.cuh"
#include "launch.h"
#include "shm/error.h"
#include <cuda_runtime.h>

extern "C" {
#include "model/dspark.h"
}

static int put_layer(struct dspark_plain_weights *w, const struct dspark_weights *from, uint32_t i)
{
    const uint32_t dim = from->config.layers.layer[i].head_dim;
    int rc = plain_held_put_layer(&w->held, &from->layer[i].shared, from->config.layers.hidden, dim, &w->layer[i].shared);

    if (rc == 0) rc = plain_held_put(&w->held, &from->layer[i].k, &w->layer[i].k);
    return rc ? rc : plain_held_vector(&w->held, from->layer[i].k_norm, dim, &w->layer[i].k_norm);
}

static int put_table(struct dspark_plain_weights *w, const void *rows, enum tensor_dtype dtype, uint64_t elements, struct plain_table *table)
{
    *table = {};
    table->element_bytes = dtype == DTYPE_BF16 ? 2 : 4;
    return plain_held_bytes(&w->held, rows, elements * table->element_bytes, &table->rows);
}

/* The output matrix that is the target's table. */
static int share_head(struct dspark_plain_weights *w, const struct plain_table *table, uint32_t vocab, uint32_t hidden)
{
    void *own = NULL;

    w->head = { { table->rows, NULL, NULL }, vocab, hidden, (uint32_t)(table->element_bytes == 4 ? WEIGHT_F32 : WEIGHT_BF16) };
    if (table->rows) return 0;
    int rc = plain_held_take(&w->held, 2ull * vocab * hidden, &own);
    if (rc == 0) rc = dspark_plain_unpack_launch(table, (uint16_t *)own, vocab, hidden, NULL);
    w->head.codes.codes = own, w->head.format = WEIGHT_BF16;
    return rc ? rc : launch_check(cudaDeviceSynchronize(), "the drafter's output matrix");
}

int dspark_plain_weights_load(struct dspark_plain_weights *w, const struct dspark_weights *from, const struct cuda_model_spec *target, const void *target_device)
{
    const struct dspark_config *c = &from->config;
    const uint32_t vocab = c->layers.vocab, hidden = c->layers.hidden;
    struct plain_table shared = {};
    int rc = from->embed_is_shared || from->head_is_shared ? plain_table_of(target, target_device, &shared) : 0;

    w->layer.resize(c->layers.layer_count);
    for (uint32_t i = 0; i < c->layers.layer_count && rc == 0; i++) rc = put_layer(w, from, i);
    if (rc == 0) rc = plain_held_put(&w->held, &from->fc, &w->fc);
    if (rc == 0) rc = plain_held_vector(&w->held, from->hidden_norm, hidden, &w->hidden_norm);
    if (rc == 0) rc = plain_held_vector(&w->held, from->norm, hidden, &w->norm);
    w->embed = shared;
    if (rc == 0 && !from->embed_is_shared) rc = put_table(w, from->embed, from->embed_dtype, (uint64_t)vocab * hidden, &w->embed);
    if (rc == 0) rc = from->head_is_shared ? share_head(w, &shared, vocab, hidden) : plain_held_put(&w->held, &from->head, &w->head);
    if (rc == 0 && c->markov_rank) rc = put_table(w, from->markov_in, from->markov_dtype, (uint64_t)vocab * c->markov_rank, &w->markov_in);
    if (rc == 0 && c->markov_rank) rc = plain_held_put(&w->held, &from->markov_out, &w->markov_out);
    if (rc == 0 && from->confidence) rc = plain_held_vector(&w->held, from->confidence, hidden + (c->confidence_sees_token ? c->markov_rank : 0), &w->confidence);
    return rc;
}
