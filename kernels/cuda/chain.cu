/* kernels/cuda/chain.cu - one step as a chain of kernels, and as a graph.
 *
 *   embed, then per layer: qkv, attn + combine, o, norm, gate_up, down, norm, then head, sample
 *   activations go from kernel to kernel as f16 times a power of two that the weights fix (powers.h), in front of BF16 weights as bf16;
 *   where the checkpoint wants its activations in FP8 (round.h), norms round what they make, and by a fixed scale attention and gate_up do, too; by a row's largest element o and down do
 *   themselves with one row; with up to 16 attention with heads of 256 does; else they have a kernel in front of them
 *
 * Every kernel lets its successor start at once and itself waits for its predecessor after fetching what does not depend on it; with up to 32 rows
 * norms and attention do not wait but ask for their input until its words say that they are there (tags.cuh). Two exceptions: layer 0's qkv lets attention start only when embed is
 * complete, so that rotation tables may be read before a wait, and down lets the norm start only when gate_up is, which tags.cuh needs. */
#include "chain.h"
#include "launch.h"
#include "kernels/stored.h"
#include "shm/error.h"

#define MANY_SLOTS 11                 /* of 20 KB: a block of rowmm_many takes all registers of its SM: nobody would use what it left of the shared memory */

/* Buffers whose words carry tags (tags.cuh); of those in front of the MLP one for each layer type. */
enum tagged { TAGGED_QKV, TAGGED_PART = TAGGED_QKV + 2, TAGGED_O = TAGGED_PART + 2, TAGGED_DOWN = TAGGED_O + 2, TAGGED_RESIDUAL,
              TAGGED_BUFFERS = TAGGED_RESIDUAL + 2 };

#define LAYER_PARTS ((2u << CUDA_PART_DOWN) - (1u << CUDA_PART_QKV))      /* all parts of a layer */

struct chain {
    struct cuda_backend *b;
    uint32_t rows, parts;
    bool first;                       /* the next product is the first kernel behind embed */
    bool rounded;                     /* what the next product takes was rounded by who made it */
    bool tells;                       /* the blocks that add up attention with heads of 256 tell each other a row's largest element: some rows */
    uint32_t traced;                  /* kernels that have got their trace words */
    uint32_t flip;                    /* residual[flip] is the current one */
    bool polls;                       /* readers of tagged buffers may poll: a whole step of up to CHAIN_WIDE_ROWS rows */
    uint32_t written[TAGGED_BUFFERS]; /* how often in this step */
};

/* The tag of what is written into a buffer next; of what was written last; whether its reader may poll for that. */
static uint32_t tag_next(struct chain *c, uint32_t buffer) { return c->written[buffer]++ & 1; }
static uint32_t tag_last(const struct chain *c, uint32_t buffer) { return (c->written[buffer] - 1) & 1; }
static bool may_poll(const struct chain *c, uint32_t buffer) { return c->polls && c->written[buffer] > 1; }

static bool has(const struct chain *c, enum cuda_part part) { return c->parts >> part & 1; }

static const __nv_bfloat16 *vector(const struct cuda_backend *b, uint64_t offset)
{
    return (const __nv_bfloat16 *)((const uint8_t *)b->options.weights_device + offset);
}

/* The power of two of what a layer's product takes, or NULL: bf16 weights take bf16; values that a rule has rounded are f16 as they are. */
static const struct row_power *power(const struct cuda_backend *b, uint32_t layer, enum power_place place, const struct arena_matrix *m)
{
    if (m->format == WEIGHT_BF16 || m->activation != STORED_AS_IS) return NULL;
    return (const struct row_power *)((const uint8_t *)b->options.weights_device + b->arena.layer[layer].powers) + place;
}

/* Where activations lie in front of a layer's product: tiled when rowmm takes them. */
static struct row_places places(const struct chain *c)
{
    const struct row_places plain = {};

    return c->rows <= ROWMM_ROWS_MAX ? places_tiled(c->rows) : plain;
}

static struct packed_matrix matrix(const struct cuda_backend *b, const struct arena_matrix *m)
{
    const struct packed_matrix p = { (const uint8_t *)b->options.weights_device + m->offset, m->rows, m->k, m->slice_k, m->format };

    return p;
}

/* What the makers of a product's activations need who can round them by a fixed scale as they store them; 0: nothing is to be rounded so. */
static float fixed_inverse(const struct arena_matrix *m) { return m->activation == STORED_STATIC ? 1.0f / m->input_scale : 0.0f; }

/* Trace words of the next `kernels` kernels, or NULL. */
static unsigned long long *trace_words(struct chain *c, uint32_t kernels)
{
    unsigned long long *words = c->b->trace ? c->b->trace + (uint64_t)c->traced * TRACE_WORDS : NULL;

    c->traced += kernels;
    return words;
}

/* Where a product's activations come from and its result goes: powers of both, or NULL. */
struct product_io { __nv_bfloat16 *x; void *out; uint32_t out_stride; const struct row_power *x_power, *out_power; struct row_places x_places, out_places; uint32_t out_tag; bool late_trigger; float out_inverse; };

/* Copies in flight, of 20 KB each and SM: fewer cost bandwidth, more everybody's latency. Measured (bench/RESULTS_cuda.md): 5 with few rows; a kernel that rounds each row beside them, and many rows, want 3. */
static uint32_t window_slots(const struct chain *c, const struct arena_matrix *m)
{
    if (c->b->tuning.window_slots) return c->b->tuning.window_slots;
    return c->rows <= ROWMM_ROWS_MAX && m->activation != STORED_TOKEN ? 5 : 3;
}

/* out = w x; x is rounded where the matrix says so and nobody has done it, in place, or one row on its way in. next: the matrix that the L2 may take a part of. */
static int product(struct chain *c, const struct arena_matrix *m, struct product_io io, enum rowmm_out kind, uint32_t ring_slots, const struct arena_matrix *next)
{
    struct cuda_backend *b = c->b;
    const struct packed_matrix w = matrix(b, m);
    struct rowmm_tuning tuning = b->tuning;
    struct rowmm_args a = {};

    tuning.window_slots = window_slots(c, m);
    if (ring_slots < tuning.ring_slots) tuning.ring_slots = ring_slots;
    if (m->activation == STORED_TOKEN && !c->rounded && c->rows == 1) a.rounds = 1;
    else if (m->activation != STORED_AS_IS && !c->rounded) {
        const struct round_args round = { io.x, io.x, b->x_scale, m->k, m->input_scale, io.x_places };
        const int rc = round_launch(&round, ROUND_VALUES, c->rows, b->stream);

        if (rc) return rc;
    }
    if (m->activation == STORED_TOKEN && !a.rounds) a.x_scale = b->x_scale;
    if (m->activation == STORED_STATIC) a.x_fixed = m->input_scale;
    c->rounded = (a.out_inverse = io.out_inverse) != 0.0f;
    a.x = io.x;
    a.x_power = io.x_power ? &io.x_power->down : NULL;
    a.out_power = io.out_power ? &io.out_power->up : NULL;
    a.x_places = io.x_places, a.out_places = io.out_places;
    a.room = ring_slots < 11 && (next == NULL || w.format != WEIGHT_FP4);      /* qkv and o run beside attention, which wants registers; o of FP4 was measured with its own */
    a.late_trigger = c->first || io.late_trigger;
    a.out_tag = io.out_tag;
    c->first = false;
    if (next && b->tuning_l2.count) {
        const struct packed_matrix behind = matrix(b, next);

        a.next = b->tuning_l2;
        rowmm_next_of(&a.next, &behind, &b->tuning);
        if (a.next.pace_ns == 0) a.next.pace_ns = c->rows > 1 ? 50 : 150;    /* measured */
    }
    a.out = io.out;
    a.out_slice_stride = (uint64_t)b->rows_max * io.out_stride;
    a.out_stride = io.out_stride;
    a.m = c->rows;
    a.trace = trace_words(c, 1);
    a.out_kind = kind;
    if (kind == ROWMM_LOGITS) {
        a.softcap = b->spec.softcap;
        a.tile_top = b->tile_top;
    }
    if (c->rows <= ROWMM_ROWS_MAX) return rowmm_launch(&w, a, &tuning, b->stream);
    if (c->rows > CHAIN_WIDE_ROWS && rowmm_many_takes(w.format)) {
        tuning.ring_slots = MANY_SLOTS;
        return rowmm_many_launch(&w, a, &b->ready, &tuning, b->stream);
    }
    return rowmm_wide_launch(&w, a, &tuning, b->stream);
}

/* The norms behind matrix `from` (whose partial sums they add); flips the residual. */
static struct norm_args norms(struct chain *c, uint32_t layer, const struct arena_matrix *from, uint64_t w_post, uint64_t w_next, const float *scalar)
{
    struct cuda_backend *b = c->b;
    const bool is_o = from == &b->arena.layer[layer].o;
    const uint32_t type = b->spec.layer[layer].type, buffer = is_o ? (uint32_t)TAGGED_O + type : (uint32_t)TAGGED_DOWN, residual = TAGGED_RESIDUAL + c->flip;
    struct norm_args n = {};

    n.part = is_o ? b->part_o[type] : b->part_down;
    n.part_stride = (uint64_t)b->rows_max * b->spec.hidden;
    n.split = from->k / from->slice_k;
    n.hidden = b->spec.hidden;
    n.residual = b->residual[c->flip];
    n.residual_out = b->residual[c->flip ^ 1];
    n.w_post = vector(b, w_post);
    n.w_next = vector(b, w_next);
    n.scalar = scalar;
    n.eps = b->spec.norm_eps;
    n.bias = spec_norm_bias(&b->spec);
    n.y = b->x;
    n.poll = may_poll(c, buffer) && may_poll(c, residual);
    n.part_tag = tag_last(c, buffer), n.residual_tag = tag_last(c, residual);
    n.early = b->tuning.sm_count * TILE_ROWS / n.split;        /* what all blocks together make of a row at once */
    c->flip ^= 1;
    n.out_tag = tag_next(c, TAGGED_RESIDUAL + c->flip);
    return n;
}

static int attention(struct chain *c, uint32_t layer)
{
    struct cuda_backend *b = c->b;
    const uint32_t type = b->spec.layer[layer].type, d = spec_head_dim(&b->spec, layer);
    const struct arena_layer *l = &b->arena.layer[layer];
    struct attn_args a = {};

    a.state = b->state;
    a.qkv = b->qkv[type];
    a.qkv_tag = tag_last(c, TAGGED_QKV + type);
    a.qkv_poll = may_poll(c, TAGGED_QKV + type);
    a.qkv_stride = l->qkv.rows;
    a.kv_heads = spec_kv_heads(&b->spec, layer);
    a.has_v = b->spec.layer[layer].has_v;
    a.kv_fp8 = spec_kv_bytes(&b->spec, layer) == 1;
    a.window = type == CUDA_SLIDING ? b->spec.window : 0;
    a.arena = (uint8_t *)b->options.kv_device[type];
    a.page_bytes = b->spec.page_bytes[type];
    a.k_offset = b->spec.layer[layer].k_offset;
    a.v_offset = b->spec.layer[layer].v_offset;
    a.pages = b->pages[type];
    a.pages_stride = a.ring_pages = b->pages_stride[type];
    a.q_norm = vector(b, l->q_norm);
    a.k_norm = vector(b, l->k_norm);
    a.norm_bias = spec_norm_bias(&b->spec);
    a.has_v_norm = b->spec.has_v_norm;
    a.rope = b->rope + (type == CUDA_FULL ? b->spec.rope_turned[CUDA_SLIDING] : 0);
    a.rope_stride = b->spec.rope_turned[0] + b->spec.rope_turned[1];
    a.turned = b->spec.rope_turned[type];
    a.eps = b->spec.norm_eps;
    a.scale = b->spec.attention_scale;
    a.part = b->attn_part[type];
    a.part_ml = b->attn_ml[type];
    a.part_tag = tag_next(c, TAGGED_PART + type);
    a.part_poll = may_poll(c, TAGGED_PART + type);
    a.spans_max = b->spans_max[type];
    a.out = b->attn_out;
    a.out_places = places(c);
    const struct row_power *out = power(b, layer, POWER_O, &l->o);
    a.out_power = out ? &out->up : NULL;
    c->rounded = (a.out_inverse = fixed_inverse(&l->o)) != 0.0f;
    if (c->tells && l->o.activation == STORED_TOKEN && d == 256) a.out_scale = b->x_scale, c->rounded = true;
    a.trace = trace_words(c, 2);
    if (type == CUDA_FULL && d == 256) return attn_long_launch(&a, c->rows, b->tuning.sm_count, b->stream);
    if (b->kind != GRAPH_BLOCKS && type == CUDA_SLIDING) return attn_many_launch(&a, c->rows, b->stream);
    if (b->kind != GRAPH_BLOCKS) return attn_many_full_launch(&a, c->rows, b->tuning.sm_count, b->kind == GRAPH_MANY_SHORT, b->stream);
    return attn_launch(&a, d, c->rows, b->tuning.sm_count, b->stream);
}

/* next: what takes its result, with its power; NULL: the LM head. */
static int norm(struct chain *c, uint32_t layer, const struct arena_matrix *from, uint64_t w_post, uint64_t w_next, const float *scalar, const struct arena_matrix *next, const struct row_power *next_power)
{
    struct norm_args n = norms(c, layer, from, w_post, w_next, scalar);

    if (!has(c, CUDA_PART_NORM)) return 0;
    if ((c->rounded = next && next->activation != STORED_AS_IS)) n.y_scale = next->activation == STORED_TOKEN ? c->b->x_scale : NULL, n.y_fixed = next->input_scale;
    n.y_power = next_power ? &next_power->up : NULL;
    if (next) n.y_places = places(c);
    n.trace = trace_words(c, 1);
    return norm_launch(&n, c->rows, c->b->stream);
}

static int layer_launch(struct chain *c, uint32_t i)
{
    struct cuda_backend *b = c->b;
    const struct arena_layer *l = &b->arena.layer[i];
    const uint64_t next_norm = i + 1 == b->spec.layers ? b->arena.final_norm : b->arena.layer[i + 1].input_norm;
    const float *scalar = (const float *)((const uint8_t *)b->options.weights_device + l->scalar);
    /* Attention needs more shared memory for more rows, for wide heads and where K lies in it (attn_full.cuh): a smaller ring here lets it start beside qkv and read
     * old keys early. */
    const bool full = b->spec.layer[i].type == CUDA_FULL, shared_k = full && b->kind == GRAPH_BLOCKS && spec_head_dim(&b->spec, i) == 512 && spec_kv_bytes(&b->spec, i) == 2;
    const uint32_t qkv_slots = shared_k ? 7 : 10 - (c->rows > 1) - full;
    const uint32_t type = b->spec.layer[i].type;
    const bool last = i + 1 == b->spec.layers;
    const struct row_power *into_o = power(b, i, POWER_O, &l->o), *into_gate_up = power(b, i, POWER_GATE_UP, &l->gate_up), *into_down = power(b, i, POWER_DOWN, &l->down);
    const struct product_io qkv = { b->x, b->qkv[type], l->qkv.rows, power(b, i, POWER_QKV, &l->qkv), NULL, places(c), {}, tag_next(c, TAGGED_QKV + type), false, 0.0f };
    const struct product_io o = { b->attn_out, b->part_o[type], b->spec.hidden, into_o, NULL, places(c), {}, tag_next(c, TAGGED_O + type), false, 0.0f };
    const struct product_io gate_up = { b->x, b->act, b->spec.intermediate, into_gate_up, into_down, places(c), places(c), 0, false, l->gate_up.format == WEIGHT_FP8 ? fixed_inverse(&l->down) : 0.0f };
    const struct product_io down = { b->act, b->part_down, b->spec.hidden, into_down, NULL, places(c), {}, tag_next(c, TAGGED_DOWN), c->polls, 0.0f };
    int rc = 0;

    if (has(c, CUDA_PART_QKV)) rc = product(c, &l->qkv, qkv, ROWMM_PARTIAL, qkv_slots, NULL);
    if (rc == 0 && has(c, CUDA_PART_ATTN)) rc = attention(c, i);
    if (rc == 0 && has(c, CUDA_PART_O)) rc = product(c, &l->o, o, ROWMM_PARTIAL, 10, &l->gate_up);
    if (rc == 0) rc = norm(c, i, &l->o, l->post_attention_norm, l->pre_ff_norm, NULL, &l->gate_up, into_gate_up);
    if (rc == 0 && has(c, CUDA_PART_GATE_UP)) rc = product(c, &l->gate_up, gate_up, ROWMM_GEGLU, 11, NULL);
    if (rc == 0 && has(c, CUDA_PART_DOWN)) rc = product(c, &l->down, down, ROWMM_PARTIAL, 11, NULL);
    if (rc == 0) rc = norm(c, i, &l->down, l->post_ff_norm, next_norm, scalar, last ? NULL : &l[1].qkv, last ? NULL : power(b, i + 1, POWER_QKV, &l[1].qkv));
    if (rc == 0 && outputs_wanted(&b->keep, i)) rc = outputs_store_step(&b->keep, i, b->residual[c->flip], b->state, c->rows, b->stream);
    return rc;
}

static struct product_io head_io(const struct cuda_backend *b) { return { b->x, b->logits, b->spec.vocab, NULL, NULL, {}, {}, 0, false, 0.0f }; }

/* Where the rows' hidden states are, as the LM head takes them. */
static struct states_args states_of(const struct cuda_backend *b)
{
    struct states_args a = { b->options.states_device, b->x, b->spec.hidden, STATES_BF16 };

    if (b->is_plain) a.x = plain_hidden(b->plain), a.form = STATES_F32;
    return a;
}

struct sample_args chain_sample_args(const struct cuda_backend *b)
{
    const struct states_args states = states_of(b);
    struct sample_args s = { b->state, b->logits, b->tile_top, b->spec.vocab, b->last_token, b->done, b->result_device, b->bias, b->history, b->options.context_max,
                             b->spec.suppress_count, {}, states.states, states.x, states.hidden, states.form };

    for (uint32_t i = 0; i < s.suppress_count; i++) s.suppress[i] = b->spec.suppress[i];
    return s;
}

/* The shapes of plain.h: its forward pass is one part, whatever part is asked for. */
static int plain_chain(struct cuda_backend *b, uint32_t rows, uint32_t parts)
{
    const struct plain_step step = { b->state, b->last_token, b->logits, b->tile_top, b->residual[0], b->x };
    const struct sample_args s = chain_sample_args(b);
    int rc = 0;

    if (parts & ~(1u << CUDA_PART_SAMPLE)) rc = plain_step_launch(b->plain, rows, &step, b->stream);
    if (rc == 0 && parts >> CUDA_PART_SAMPLE & 1) rc = sample_launch(&s, rows, b->stream);
    return rc;
}

int chain_launch(struct cuda_backend *b, uint32_t rows, uint32_t parts)
{
    if (b->is_plain) return plain_chain(b, rows, parts);
    struct chain c = { b, rows, parts, (parts >> CUDA_PART_EMBED & 1) != 0, false, false, 0, 0, false, {} };
    c.polls = rows <= CHAIN_WIDE_ROWS && (parts & LAYER_PARTS) == LAYER_PARTS;
    c.tells = rows > 1 && rows <= ROWMM_ROWS_MAX && b->kind == GRAPH_BLOCKS;
    const struct row_power *first = power(b, 0, POWER_QKV, &b->arena.layer[0].qkv);
    const struct embed_args e = { b->state, (const uint8_t *)b->options.weights_device + b->arena.head.offset, b->last_token,
                                  vector(b, b->arena.layer[0].input_norm), b->inv_freq, b->residual[0], b->x, places(&c), first ? &first->up : NULL, b->rope, b->spec.hidden,
                                  b->arena.head.slice_k, b->arena.head.k / b->arena.head.slice_k,
                                  b->spec.rope_turned[0] + b->spec.rope_turned[1], b->spec.embed_scale, b->spec.norm_eps, spec_norm_bias(&b->spec) };
    const struct sample_args s = chain_sample_args(b);
    int rc = 0;

    if (has(&c, CUDA_PART_EMBED)) rc = embed_launch(&e, rows, b->stream);
    for (uint32_t i = 0; i < b->spec.layers && rc == 0; i++) rc = layer_launch(&c, i);
    if (rc == 0 && has(&c, CUDA_PART_HEAD)) rc = product(&c, &b->arena.head, head_io(b), ROWMM_LOGITS, 11, NULL);
    if (rc == 0 && has(&c, CUDA_PART_SAMPLE)) rc = sample_launch(&s, rows, b->stream);
    return rc;
}

int chain_launch_first(struct cuda_backend *b, uint32_t rows)
{
    struct chain c = { b, rows, CHAIN_ALL, false, false, false, 0, 0, false, {} };
    struct sample_args s = chain_sample_args(b);
    const struct states_args from = states_of(b);
    const struct plain_step step = { b->state, b->last_token, b->logits, b->tile_top, b->residual[0], b->x };
    int rc = states_load_launch(&from, b->state, rows, b->stream);

    if (rc == 0) rc = b->is_plain ? plain_head_launch(b->plain, rows, &step, b->stream) : product(&c, &b->arena.head, head_io(b), ROWMM_LOGITS, 11, NULL);
    s.states = NULL;                  /* they come from there */
    return rc ? rc : sample_launch(&s, rows, b->stream);
}

int chain_graph(struct cuda_backend *b, uint32_t rows, uint32_t parts, cudaGraphExec_t *exec)
{
    cudaGraph_t graph = NULL;
    int rc = launch_check(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal), "capture"), ended;

    if (rc) return rc;
    if (parts == CHAIN_ALL || parts == CHAIN_FIRST)
        rc = launch_check(cudaMemcpyAsync(b->state, b->state_host, sizeof *b->state, cudaMemcpyHostToDevice, b->stream), "state copy");
    if (rc == 0) rc = parts == CHAIN_FIRST ? chain_launch_first(b, rows) : chain_launch(b, rows, parts);
    ended = launch_check(cudaStreamEndCapture(b->stream, &graph), "end of capture");
    if (rc == 0) rc = ended;
    if (rc == 0) rc = launch_check(cudaGraphInstantiate(exec, graph, 0), "graph");
    if (graph) cudaGraphDestroy(graph);
    return rc;
}
