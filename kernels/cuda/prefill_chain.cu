/* kernels/cuda/prefill_chain.cu - one run of a prefill as a chain of kernels.
 *
 *   embed, then per layer: qkv, rotary, attention, o, norm, gate_up, down, norm
 *
 * The last layer ends after rotary: nobody reads more of it than its K and V (there is no LM head here), so only the rows of k and v of its qkv
 * matrix are multiplied. */
#include "launch.h"
#include "prefill.h"
#include "prefill_mm.h"
#include "shm/error.h"

struct chain {
    struct cuda_prefill *p;
    uint32_t parts;
};

static bool has(const struct chain *c, enum prefill_part part) { return c->parts >> part & 1; }

static const __nv_bfloat16 *vector(const struct cuda_prefill *p, uint64_t offset)
{
    return (const __nv_bfloat16 *)((const uint8_t *)p->options.weights_device + offset);
}

/* Rows [first_row, rows) of a packed matrix: tiles lie one after the other. */
static struct packed_matrix matrix(const struct cuda_prefill *p, const struct arena_matrix *m, uint32_t first_row)
{
    const uint64_t skipped = packed_bytes(m->format, first_row, m->k);
    const struct packed_matrix w = { (const uint8_t *)p->options.weights_device + m->offset + skipped, m->rows - first_row, m->k, m->slice_k, m->format };

    return w;
}

static int product(const struct chain *c, const struct arena_matrix *m, uint32_t first_row, const __nv_bfloat16 *x, void *out, uint64_t out_stride, enum prefill_out kind)
{
    const struct packed_matrix w = matrix(c->p, m, first_row);

    return has(c, PREFILL_PRODUCTS) ? prefill_mm_launch(&w, x, c->p->rows, out, kind, out_stride, c->p->stream) : 0;
}

struct prefill_kv prefill_kv_of(const struct cuda_prefill *p, uint32_t layer)
{
    const struct cuda_layer_spec *l = &p->spec.layer[layer];
    const struct prefill_kv kv = { (uint8_t *)p->options.kv_device[l->type], p->spec.page_bytes[l->type], l->k_offset, l->v_offset,
                                   p->pages[l->type], p->pages_stride[l->type], spec_kv_heads(&p->spec, layer) };

    return kv;
}

static int rotary(const struct chain *c, uint32_t layer, uint32_t qkv_stride, uint32_t q_heads)
{
    const struct cuda_prefill *p = c->p;
    const uint32_t type = p->spec.layer[layer].type;
    struct prefill_rotary_args a = {};

    if (!has(c, PREFILL_ROTARY)) return 0;
    a.row = (const struct prefill_row *)p->job;
    a.qkv = p->qkv;
    a.qkv_stride = qkv_stride;
    a.q_heads = q_heads;
    a.has_v = p->spec.layer[layer].has_v;
    a.q_norm = vector(p, p->arena.layer[layer].q_norm);
    a.k_norm = vector(p, p->arena.layer[layer].k_norm);
    a.rope = p->rope + (type == CUDA_FULL ? p->spec.rope_turned[CUDA_SLIDING] : 0);
    a.rope_stride = p->spec.rope_turned[0] + p->spec.rope_turned[1];
    a.turned = p->spec.rope_turned[type];
    a.kv = prefill_kv_of(p, layer);
    a.q = p->q;
    a.eps = p->spec.norm_eps;
    a.scale = p->spec.attention_scale;
    return prefill_rotary_launch(&a, spec_head_dim(&p->spec, layer), p->rows, p->stream);
}

/* Tiles [first, ...) of one round. */
static uint32_t round_count(const struct prefill_tile *tiles, uint32_t count, uint32_t first, uint32_t round)
{
    uint32_t n = 0;

    while (first + n < count && tiles[first + n].round == round) n++;
    return n;
}

static int attention(const struct chain *c, uint32_t layer)
{
    const struct cuda_prefill *p = c->p;
    const uint32_t type = p->spec.layer[layer].type, tiles = p->tile_count[type], joins = type == CUDA_FULL ? p->join_count : 0;
    const struct prefill_tile *tile = (const struct prefill_tile *)(p->job_host + p->tile_at[type]), *join = (const struct prefill_tile *)(p->job_host + p->join_at);
    struct prefill_attn_args a = {};
    int rc = 0;

    if (!has(c, PREFILL_ATTENTION)) return 0;
    a.window = type == CUDA_SLIDING ? p->spec.window : 0;
    a.kv = prefill_kv_of(p, layer);
    a.q = p->q;
    a.part = p->part;
    a.out = p->attn_out;
    for (uint32_t i = 0, j = 0; i < tiles && rc == 0; i += a.tile_count, j += a.join_count) {
        a.tiles = (const struct prefill_tile *)(p->job + p->tile_at[type]) + i;
        a.joins = (const struct prefill_tile *)(p->job + p->join_at) + j;
        a.tile_count = round_count(tile, tiles, i, tile[i].round);
        a.join_count = round_count(join, joins, j, tile[i].round);
        rc = prefill_attn_launch(&a, &p->maps[layer], spec_head_dim(&p->spec, layer), p->stream);
    }
    return rc;
}

static int norm(const struct chain *c, uint64_t w_post, uint64_t w_next, const float *scalar)
{
    const struct cuda_prefill *p = c->p;
    const struct prefill_norm_args a = { p->sum, p->residual, vector(p, w_post), vector(p, w_next), scalar, p->x, p->spec.hidden, p->spec.norm_eps };

    return has(c, PREFILL_NORM) ? prefill_norm_launch(&a, p->rows, p->stream) : 0;
}

static int embed(const struct chain *c)
{
    const struct cuda_prefill *p = c->p;
    const struct arena_matrix *head = &p->arena.head;
    const struct prefill_embed_args a = { (const struct prefill_row *)p->job, (const uint8_t *)p->options.weights_device + head->offset,
                                          vector(p, p->arena.layer[0].input_norm), p->inv_freq, p->residual, p->x, p->rope, p->spec.hidden, head->slice_k,
                                          head->k / head->slice_k, p->spec.rope_turned[0] + p->spec.rope_turned[1], p->spec.embed_scale, p->spec.norm_eps };

    return has(c, PREFILL_EMBED) ? prefill_embed_launch(&a, p->rows, p->stream) : 0;
}

/* K and V of the last layer. */
static int last_layer(const struct chain *c, uint32_t i)
{
    const struct cuda_prefill *p = c->p;
    const struct arena_matrix *qkv = &p->arena.layer[i].qkv;
    const uint32_t q_rows = spec_q_rows(&p->spec, i);
    const int rc = product(c, qkv, q_rows, p->x, p->qkv, qkv->rows - q_rows, PREFILL_F32);

    return rc ? rc : rotary(c, i, qkv->rows - q_rows, 0);
}

static int layer(const struct chain *c, uint32_t i)
{
    const struct cuda_prefill *p = c->p;
    const struct arena_layer *l = &p->arena.layer[i];
    const uint64_t next_norm = i + 1 == p->spec.layers ? p->arena.final_norm : p->arena.layer[i + 1].input_norm;
    const float *scalar = (const float *)((const uint8_t *)p->options.weights_device + l->scalar);
    int rc = product(c, &l->qkv, 0, p->x, p->qkv, l->qkv.rows, PREFILL_F32);

    if (rc == 0) rc = rotary(c, i, l->qkv.rows, PREFILL_HEADS);
    if (rc == 0) rc = attention(c, i);
    if (rc == 0) rc = product(c, &l->o, 0, p->attn_out, p->sum, p->spec.hidden, PREFILL_F32);
    if (rc == 0) rc = norm(c, l->post_attention_norm, l->pre_ff_norm, NULL);
    if (rc == 0) rc = product(c, &l->gate_up, 0, p->x, p->act, p->spec.intermediate, PREFILL_GEGLU);
    if (rc == 0) rc = product(c, &l->down, 0, p->act, p->sum, p->spec.hidden, PREFILL_F32);
    if (rc == 0) rc = norm(c, l->post_ff_norm, next_norm, scalar);
    return rc;
}

int prefill_launch_layers(struct cuda_prefill *p, uint32_t parts, uint32_t first, uint32_t end)
{
    const struct chain c = { p, parts };
    const uint32_t last = p->spec.layers - 1;
    int rc = first == 0 ? embed(&c) : 0;

    for (uint32_t i = first; i < end && rc == 0; i++) rc = i == last && !p->whole ? last_layer(&c, i) : layer(&c, i);
    return rc;
}

int prefill_launch(struct cuda_prefill *p, uint32_t parts) { return prefill_launch_layers(p, parts, 0, p->spec.layers); }
