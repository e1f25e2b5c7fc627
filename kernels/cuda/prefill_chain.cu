/* kernels/cuda/prefill_chain.cu - one run of a prefill as a chain of kernels.
 *
 *   embed, then per layer: qkv, rotary, attention, o, norm, gate_up, down, norm
 *
 * The last layer ends after rotary for all rows but those that leave a state (the last ones of prompts): nobody reads more of it than K and V (there
 * is no LM head here), so only the rows of k and v of its qkv matrix are multiplied. Those that leave a state are packed and go on alone. */
#include "launch.h"
#include "prefill.h"
#include "prefill_mm.h"
#include "round.h"
#include "kernels/stored.h"
#include "shm/error.h"

struct chain {
    struct cuda_prefill *p;
    uint32_t parts;
    struct prefill_view view;
};

static bool has(const struct chain *c, enum prefill_part part) { return c->parts >> part & 1; }

static const __nv_bfloat16 *vector(const struct cuda_prefill *p, uint64_t offset)
{
    return (const __nv_bfloat16 *)((const uint8_t *)p->options.weights_device + offset);
}

/* Rows [first, end) of a packed matrix: tiles lie one after the other. Where the matrix wants activations in FP8, they are rounded first and both sides meet on the FP8 tensor
 * cores. */
static int product_of(const struct chain *c, const struct arena_matrix *m, uint32_t first, uint32_t end, const __nv_bfloat16 *x, void *out, uint64_t out_stride, enum prefill_out kind)
{
    const uint64_t skipped = packed_bytes(m->format, first, m->k);
    const struct packed_matrix w = { (const uint8_t *)c->p->options.weights_device + m->offset + skipped, end - first, m->k, m->slice_k, m->format };

    if (!has(c, PREFILL_PRODUCTS)) return 0;
    if (m->activation == STORED_AS_IS) return prefill_mm_launch(&w, x, c->view.rows, out, kind, out_stride, c->p->stream);
    const struct round_args round = { x, c->p->codes, c->p->codes_scale, m->k, m->input_scale, {} };
    const int rc = round_launch(&round, ROUND_CODES, c->view.rows, c->p->stream);

    return rc ? rc : prefill_mm_launch_codes(&w, c->p->codes, c->p->codes_scale, c->view.rows, out, kind, out_stride, 0, c->p->stream);
}

static int product(const struct chain *c, const struct arena_matrix *m, const __nv_bfloat16 *x, void *out, uint64_t out_stride, enum prefill_out kind)
{
    return product_of(c, m, 0, m->rows, x, out, out_stride, kind);
}

struct prefill_kv prefill_kv_of(const struct cuda_prefill *p, uint32_t layer)
{
    const struct cuda_layer_spec *l = &p->spec.layer[layer];
    const struct prefill_kv kv = { (uint8_t *)p->options.kv_device[l->type], p->spec.page_bytes[l->type], l->k_offset, l->v_offset,
                                   p->pages[l->type], p->pages_stride[l->type], spec_kv_heads(&p->spec, layer), spec_kv_bytes(&p->spec, layer) == 1 };

    return kv;
}

/* q_heads 0: only k and v; kv_heads 0: only q. */
static int rotary(const struct chain *c, uint32_t layer, uint32_t qkv_stride, uint32_t q_heads, uint32_t kv_heads)
{
    const struct cuda_prefill *p = c->p;
    const uint32_t type = p->spec.layer[layer].type;
    struct prefill_rotary_args a = {};

    if (!has(c, PREFILL_ROTARY)) return 0;
    a.row = c->view.row;
    a.qkv = p->qkv;
    a.qkv_stride = qkv_stride;
    a.q_heads = q_heads;
    a.has_v = p->spec.layer[layer].has_v;
    a.q_norm = vector(p, p->arena.layer[layer].q_norm);
    a.k_norm = vector(p, p->arena.layer[layer].k_norm);
    a.bias = spec_norm_bias(&p->spec);
    a.has_v_norm = p->spec.has_v_norm;
    a.rope = c->view.rope + (type == CUDA_FULL ? p->spec.rope_turned[CUDA_SLIDING] : 0);
    a.rope_stride = p->spec.rope_turned[0] + p->spec.rope_turned[1];
    a.turned = p->spec.rope_turned[type];
    a.kv = prefill_kv_of(p, layer);
    a.kv.kv_heads = kv_heads;
    a.q = p->q;
    a.eps = p->spec.norm_eps;
    a.scale = p->spec.attention_scale;
    return prefill_rotary_launch(&a, spec_head_dim(&p->spec, layer), c->view.rows, p->stream);
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
    const uint32_t type = p->spec.layer[layer].type;
    const struct prefill_work *work = &c->view.work[type];
    const struct prefill_tile *tile = (const struct prefill_tile *)(p->job_host + work->tile_at), *join = (const struct prefill_tile *)(p->job_host + work->join_at);
    struct prefill_attn_args a = {};
    int rc = 0;

    if (!has(c, PREFILL_ATTENTION)) return 0;
    a.window = type == CUDA_SLIDING ? p->spec.window : 0;
    const struct prefill_kv cache = prefill_kv_of(p, layer);
    const struct prefill_expand *expand = p->expand ? &p->expand[type] : NULL;
    uint32_t expanded = UINT32_MAX;

    a.kv = expand ? prefill_expand_kv(expand) : cache;
    a.q = p->q;
    a.last = (type == CUDA_SLIDING || p->spec.full_ahead) && work == &p->work[type] && p->soft.any_ahead ? p->soft.last : NULL; /* the packed last rows of prompts are text */
    a.part = p->part;
    a.out = p->attn_out;
    for (uint32_t i = 0, j = 0; i < work->tile_count && rc == 0; i += a.tile_count, j += a.join_count) {
        a.tiles = (const struct prefill_tile *)(p->job + work->tile_at) + i;
        a.joins = (const struct prefill_tile *)(p->job + work->join_at) + j;
        a.tile_count = round_count(tile, work->tile_count, i, tile[i].round);
        a.join_count = round_count(join, work->join_count, j, tile[i].round);
        if (expand && tile[i].round / PREFILL_GROUP_ROUNDS != expanded) {
            expanded = tile[i].round / PREFILL_GROUP_ROUNDS;
            rc = prefill_expand_launch(expand, expanded, (const struct prefill_expand_span *)(p->job + expand->spans_at), &cache, p->stream);
        }
        if (rc == 0) rc = prefill_attn_launch(&a, expand ? &expand->maps : &p->maps[layer], spec_head_dim(&p->spec, layer), p->stream);
    }
    return rc;
}

static int norm(const struct chain *c, uint64_t w_post, uint64_t w_next, const float *scalar)
{
    const struct cuda_prefill *p = c->p;
    const struct prefill_norm_args a = { p->sum, c->view.residual, vector(p, w_post), vector(p, w_next), scalar, c->view.x, p->spec.hidden, p->spec.norm_eps, spec_norm_bias(&p->spec) };

    return has(c, PREFILL_NORM) ? prefill_norm_launch(&a, c->view.rows, p->stream) : 0;
}

static int embed(const struct chain *c)
{
    const struct cuda_prefill *p = c->p;
    const struct arena_matrix *head = &p->arena.head;
    const struct prefill_embed_args a = { (const struct prefill_row *)p->job, (const uint8_t *)p->options.weights_device + head->offset,
                                          vector(p, p->arena.layer[0].input_norm), p->inv_freq, p->soft.device, p->residual, p->x, p->rope, p->spec.hidden, head->slice_k,
                                          head->k / head->slice_k, p->spec.rope_turned[0] + p->spec.rope_turned[1], p->spec.embed_scale, p->spec.norm_eps, spec_norm_bias(&p->spec) };

    return has(c, PREFILL_EMBED) ? prefill_embed_launch(&a, p->rows, p->stream) : 0;
}

/* What follows K and V of a layer, with q in p->qkv. */
static int layer_behind_keys(const struct chain *c, uint32_t i)
{
    const struct cuda_prefill *p = c->p;
    const struct arena_layer *l = &p->arena.layer[i];
    const uint64_t next_norm = i + 1 == p->spec.layers ? p->arena.final_norm : p->arena.layer[i + 1].input_norm;
    const float *scalar = (const float *)((const uint8_t *)p->options.weights_device + l->scalar);
    int rc = attention(c, i);

    if (rc == 0) rc = product(c, &l->o, p->attn_out, p->sum, p->spec.hidden, PREFILL_F32);
    if (rc == 0) rc = norm(c, l->post_attention_norm, l->pre_ff_norm, NULL);
    if (rc == 0) rc = product(c, &l->gate_up, c->view.x, p->act, p->spec.intermediate, PREFILL_GEGLU);
    if (rc == 0) rc = product(c, &l->down, p->act, p->sum, p->spec.hidden, PREFILL_F32);
    return rc ? rc : norm(c, l->post_ff_norm, next_norm, scalar);
}

static int layer(const struct chain *c, uint32_t i)
{
    const struct cuda_prefill *p = c->p;
    const struct arena_matrix *qkv = &p->arena.layer[i].qkv;
    int rc = product(c, qkv, c->view.x, p->qkv, qkv->rows, PREFILL_F32);

    if (rc == 0) rc = rotary(c, i, qkv->rows, PREFILL_HEADS, spec_kv_heads(&p->spec, i));
    return rc ? rc : layer_behind_keys(c, i);
}

static int keep_states(const struct chain *c, bool packed)
{
    const struct cuda_prefill *p = c->p;
    const struct states_args a = { p->options.states_device, c->view.x, p->spec.hidden, STATES_BF16_PERMUTED };

    return states_store_launch(&a, (const struct prefill_row *)(p->job + p->last_at), packed, p->last_rows, p->stream);
}

/* The packed last rows through the rest of the last layer. */
static int last_rows(const struct chain *c, uint32_t i)
{
    struct cuda_prefill *p = c->p;
    const struct arena_matrix *qkv = &p->arena.layer[i].qkv;
    const uint32_t q_rows = spec_q_rows(&p->spec, i);
    const struct states_gather g = { (const struct prefill_row *)(p->job + p->last_at), p->residual, p->x, p->rope, p->last_residual, p->last_x, p->last_rope,
                                     p->spec.hidden, p->spec.rope_turned[0] + p->spec.rope_turned[1] };
    const struct chain last = { p, c->parts, { g.place, p->last_rows, p->last_residual, p->last_x, p->last_rope, p->last_work } };
    int rc = states_gather_launch(&g, p->last_rows, p->stream);

    if (rc == 0) rc = product_of(&last, qkv, 0, q_rows, p->last_x, p->qkv, q_rows, PREFILL_F32);
    if (rc == 0) rc = rotary(&last, i, q_rows, PREFILL_HEADS, 0);
    if (rc == 0) rc = layer_behind_keys(&last, i);
    return rc ? rc : keep_states(&last, true);
}

/* K and V of the last layer, and the states that are wanted. */
static int last_layer(const struct chain *c, uint32_t i)
{
    struct cuda_prefill *p = c->p;
    const struct arena_matrix *qkv = &p->arena.layer[i].qkv;
    const uint32_t q_rows = spec_q_rows(&p->spec, i);
    int rc;

    if (p->whole) {
        rc = layer(c, i);
        return rc || p->last_rows == 0 ? rc : keep_states(c, false);
    }
    rc = product_of(c, qkv, q_rows, qkv->rows, p->x, p->qkv, qkv->rows - q_rows, PREFILL_F32);
    if (rc == 0) rc = rotary(c, i, qkv->rows - q_rows, 0, spec_kv_heads(&p->spec, i));
    return rc || p->last_rows == 0 ? rc : last_rows(c, i);
}

int prefill_launch_layers(struct cuda_prefill *p, uint32_t parts, uint32_t first, uint32_t end)
{
    const struct chain c = { p, parts, { (const struct prefill_row *)p->job, p->rows, p->residual, p->x, p->rope, p->work } };
    const uint32_t last = p->spec.layers - 1;
    int rc = first == 0 ? embed(&c) : 0;

    for (uint32_t i = first; i < end && rc == 0; i++) {
        rc = i == last ? last_layer(&c, i) : layer(&c, i);
        if (rc == 0 && i != last && outputs_wanted(&p->keep, i)) rc = outputs_store_rows(&p->keep, i, p->residual, p->job, false, p->rows, p->stream);
    }
    return rc;
}

int prefill_launch(struct cuda_prefill *p, uint32_t parts) { return prefill_launch_layers(p, parts, 0, p->spec.layers); }
