/* kernels/cuda/draft_plain.cu - the MTP assistant on the kernels of plain.h (contract in cuda_draft_plain.h).
 *
 * As model/assistant.c, operation for operation: pre_projection, per layer norm, q, heads, attention on the target's keys, o, norms, gate and up, down,
 * norms; then head and post_projection. A row attends from position key_count - 1 and turns by the angles of its own position. */
#include "cuda_draft_plain.h"
#include "launch.h"
#include "setup.h"
#include "plain_attn.cuh"
#include "plain_linear.cuh"
#include "plain_ops.cuh"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <new>
#include <string.h>
#include <vector>

extern "C" {
#include "model/forward_rope.h"
}

#define ALIGN 256
#define PART_BYTES_MAX (64ull << 20)
#define ROWS_LIMIT 1024u

struct placed { uint64_t offset, bytes; };

struct plan {
    uint64_t bytes;
    struct placed pre, post, head, norm;
    struct placed layer[CUDA_DRAFT_LAYERS_MAX][CUDA_DRAFT_TENSORS];   /* those of a layer */
};

struct cuda_draft_plain {
    struct cuda_draft_spec spec;
    struct cuda_model_spec target;
    struct cuda_draft_options options;
    struct plan plan;
    struct rope_table rope[2];
    uint32_t source[2];               /* the target's layer whose keys are read, per type */
    uint32_t rows_max, pages_stride[2], segments_max[2], batch_rows[2];
    cudaStream_t stream;              /* owned */
    uint8_t *slab;                    /* owned; what follows lies in it */
    float *joined, *h, *x, *y, *q, *attended, *gate, *hidden, *logits, *tile_top, *part;
    float2 *part_top, *angle[2];
    struct plain_row *turn, *see;     /* [rows_max] */
    uint32_t *pages[2];               /* [seqs_max][pages_stride] */
};

/* ---- where everything lies ---- */

static uint32_t dim_of(const struct cuda_draft_spec *s, const struct cuda_model_spec *t, uint32_t layer) { return t->head_dim[s->layer_type[layer]]; }

static void place(struct plan *p, struct placed *at, uint64_t bytes)
{
    at->offset = p->bytes, at->bytes = bytes;
    p->bytes += (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static bool fits(const struct cuda_draft_spec *s, const struct cuda_model_spec *t)
{
    if (s->layers == 0 || s->layers > CUDA_DRAFT_LAYERS_MAX || (s->format != WEIGHT_BF16 && s->format != WEIGHT_F32)) return false;
    if (s->hidden == 0 || s->hidden % 16 || s->intermediate == 0 || s->intermediate % 16 || s->vocab == 0 || s->vocab % 16) return false;
    if (s->backbone_hidden == 0 || s->backbone_hidden % 16 || s->backbone_hidden != t->hidden || s->q_heads == 0) return false;
    for (uint32_t i = 0; i < s->layers; i++) {
        if (s->layer_type[i] > CUDA_FULL) return false;
        const uint32_t kv = t->kv_heads[s->layer_type[i]], dim = dim_of(s, t, i);

        if (dim % 32 || dim == 0 || dim > PLAIN_HEAD_DIM_MAX || kv == 0 || s->q_heads % kv) return false;
    }
    return true;
}

static bool make_plan(struct plan *p, const struct cuda_draft_spec *s, const struct cuda_model_spec *t)
{
    const uint64_t element = s->format == WEIGHT_F32 ? 4 : 2;

    memset(p, 0, sizeof *p);
    if (!fits(s, t)) return false;
    place(p, &p->pre, element * s->hidden * 2 * s->backbone_hidden);
    place(p, &p->post, element * s->hidden * s->backbone_hidden);
    place(p, &p->head, element * s->hidden * s->vocab);
    place(p, &p->norm, 4ull * s->hidden);
    for (uint32_t i = 0; i < s->layers; i++) {
        struct placed *l = p->layer[i];
        const uint64_t q = element * s->q_heads * dim_of(s, t, i) * s->hidden, wide = element * s->intermediate * s->hidden;

        place(p, &l[CUDA_DRAFT_Q], q), place(p, &l[CUDA_DRAFT_O], q);
        place(p, &l[CUDA_DRAFT_GATE], wide), place(p, &l[CUDA_DRAFT_UP], wide), place(p, &l[CUDA_DRAFT_DOWN], wide);
        for (int v = CUDA_DRAFT_INPUT_NORM; v <= CUDA_DRAFT_POST_FF_NORM; v++) place(p, &l[v], 4ull * s->hidden);
        place(p, &l[CUDA_DRAFT_Q_NORM], 4ull * dim_of(s, t, i));
        place(p, &l[CUDA_DRAFT_LAYER_SCALAR], 4);
    }
    return true;
}

extern "C" uint64_t cuda_draft_plain_bytes(const struct cuda_draft_spec *spec, const struct cuda_model_spec *target)
{
    struct plan p;

    return make_plan(&p, spec, target) ? p.bytes : 0;
}

extern "C" int cuda_draft_plain_put(const struct cuda_draft_spec *spec, const struct cuda_model_spec *target, void *weights_device, enum cuda_draft_tensor tensor, uint32_t layer,
                                    const void *source, uint64_t bytes)
{
    struct plan p;
    const struct placed *to;

    if (!make_plan(&p, spec, target)) return -E_UNSUPPORTED;
    if (tensor >= CUDA_DRAFT_TENSORS || layer >= spec->layers) return -E_RANGE;
    to = tensor == CUDA_DRAFT_PRE ? &p.pre : tensor == CUDA_DRAFT_POST ? &p.post : tensor == CUDA_DRAFT_HEAD ? &p.head : tensor == CUDA_DRAFT_FINAL_NORM ? &p.norm : &p.layer[layer][tensor];
    if (bytes != to->bytes) return -E_RANGE;
    return launch_check(cudaMemcpy((uint8_t *)weights_device + to->offset, source, bytes, cudaMemcpyHostToDevice), "the drafter's weights");
}

/* ---- the handle ---- */

static void size_attention(struct cuda_draft_plain *d, uint64_t *part, uint64_t *tops)
{
    for (uint32_t i = 0; i < d->spec.layers; i++) {
        const uint32_t type = d->spec.layer_type[i];
        const uint64_t of_row = (uint64_t)d->spec.q_heads * (d->segments_max[type] = plain_attn_segments(d->options.context_max, type == CUDA_FULL ? 0 : d->target.window));
        const uint64_t rows = PART_BYTES_MAX / (4 * of_row * d->target.head_dim[type]);

        d->batch_rows[type] = rows == 0 ? 1 : rows < d->rows_max ? (uint32_t)rows : d->rows_max;
        if (4 * of_row * d->target.head_dim[type] * d->batch_rows[type] > *part) *part = 4 * of_row * d->target.head_dim[type] * d->batch_rows[type];
        if (8 * of_row * d->batch_rows[type] > *tops) *tops = 8 * of_row * d->batch_rows[type];
    }
}

static int make_scratch(struct cuda_draft_plain *d)
{
    const struct cuda_draft_spec *s = &d->spec;
    const uint64_t rows = d->rows_max;
    uint64_t widest = 0, part = 0, tops = 0;

    for (uint32_t i = 0; i < s->layers; i++)
        if (s->q_heads * dim_of(s, &d->target, i) > widest) widest = s->q_heads * dim_of(s, &d->target, i);
    size_attention(d, &part, &tops);
    const struct setup_part want[] = {
        { (void **)&d->joined, 8 * rows * s->backbone_hidden }, { (void **)&d->h, 4 * rows * s->hidden }, { (void **)&d->x, 4 * rows * s->hidden }, { (void **)&d->y, 4 * rows * s->hidden },
        { (void **)&d->q, 4 * rows * widest }, { (void **)&d->attended, 4 * rows * widest }, { (void **)&d->gate, 4 * rows * s->intermediate },
        { (void **)&d->hidden, 4 * rows * s->backbone_hidden }, { (void **)&d->logits, 4 * rows * s->vocab }, { (void **)&d->tile_top, 4 * rows * (s->vocab / 16) },
        { (void **)&d->part, part }, { (void **)&d->part_top, tops }, { (void **)&d->angle[0], 8 * rows * ROPE_PAIRS_MAX }, { (void **)&d->angle[1], 8 * rows * ROPE_PAIRS_MAX },
        { (void **)&d->turn, rows * sizeof *d->turn }, { (void **)&d->see, rows * sizeof *d->see },
        { (void **)&d->pages[0], 4ull * d->options.seqs_max * d->pages_stride[0] }, { (void **)&d->pages[1], 4ull * d->options.seqs_max * d->pages_stride[1] },
    };

    return setup_slab(&d->slab, want, sizeof want / sizeof *want, "the drafter's scratch memory");
}

/* As plain.cu: half a pair more than `turned`, so that the cut to whole pairs gives it back whatever the head size. */
static void make_rope(struct cuda_draft_plain *d, uint32_t type)
{
    const uint32_t dim = d->target.head_dim[type];
    const struct rope_config config = { ROPE_PROPORTIONAL, d->spec.rope_theta[type], (d->spec.rope_turned[type] + 0.5) * 2.0 / dim, 1.0 };

    rope_table_init(&d->rope[type], &config, dim);
    for (uint32_t i = 0; i < d->target.layers; i++)
        if (d->target.layer[i].type == type) d->source[type] = i;
}

extern "C" int cuda_draft_plain_open(struct cuda_draft_plain **draft, const struct cuda_draft_spec *spec, const struct cuda_model_spec *target, const struct cuda_draft_options *options,
                                     uint32_t rows_max)
{
    struct cuda_draft_plain *d = new (std::nothrow) cuda_draft_plain();

    *draft = NULL;
    if (d == NULL) return -E_NOMEM;
    d->spec = *spec, d->target = *target, d->options = *options, d->rows_max = rows_max;
    d->pages_stride[CUDA_SLIDING] = options->ring_pages;
    d->pages_stride[CUDA_FULL] = (options->context_max + PLAIN_PAGE_TOKENS - 1) / PLAIN_PAGE_TOKENS;
    int rc = !make_plan(&d->plan, spec, target) ? -E_UNSUPPORTED : rows_max == 0 || rows_max > ROWS_LIMIT || options->seqs_max == 0 || options->context_max == 0 ? -E_RANGE : 0;
    for (uint32_t i = 0; i < spec->layers && rc == 0; i++) make_rope(d, spec->layer_type[i]);
    if (rc == 0) rc = plain_linear_init();
    if (rc == 0) rc = plain_ops_init();
    if (rc == 0) rc = plain_attn_init();
    if (rc == 0) rc = make_scratch(d);
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "stream");
    if (rc == 0) rc = launch_check(cudaDeviceSynchronize(), "opening the drafter");
    if (rc) cuda_draft_plain_close(d);
    else *draft = d;
    return rc;
}

extern "C" void cuda_draft_plain_close(struct cuda_draft_plain *d)
{
    if (d == NULL) return;
    if (d->stream) cudaStreamSynchronize(d->stream), cudaStreamDestroy(d->stream);
    cudaFree(d->slab);
    delete d;
}

/* ---- a step ---- */

static const float *vector(const struct cuda_draft_plain *d, const struct placed &at) { return (const float *)((const uint8_t *)d->options.weights_device + at.offset); }

/* out [rows, n] = in [rows, k] w^T; with `up` the gated product. */
static int product(const struct cuda_draft_plain *d, float *out, const float *in, const struct placed &w, const struct placed *up, uint32_t n, uint32_t k, uint32_t rows)
{
    const uint8_t *weights = (const uint8_t *)d->options.weights_device;
    const struct plain_codes codes = { weights + w.offset, NULL, NULL }, up_codes = { up ? weights + up->offset : NULL, NULL, NULL };
    const struct plain_linear a = { in, NULL, codes, up_codes, out, k, n, rows, n, k, d->spec.format };

    return plain_linear_launch(&a, d->stream);
}

static int norms(const struct cuda_draft_plain *d, const struct placed *post, const float *scalar, const struct placed &next, uint32_t rows)
{
    const struct plain_norm a = { post ? d->y : NULL, post ? vector(d, *post) : NULL, scalar, d->h, vector(d, next), d->x, NULL, d->spec.hidden, d->spec.norm_eps };

    return plain_norm_launch(&a, rows, d->stream);
}

static uint32_t kv_bytes(const struct cuda_draft_plain *d, uint32_t type)
{
    const struct cuda_layer_spec *l = &d->target.layer[d->source[type]];

    return (uint32_t)((l->v_offset - l->k_offset) / ((uint64_t)d->target.kv_heads[type] * d->target.head_dim[type] * PLAIN_PAGE_TOKENS));
}

static int attend(const struct cuda_draft_plain *d, uint32_t i, uint32_t rows)
{
    const uint32_t type = d->spec.layer_type[i], dim = d->target.head_dim[type];
    const struct cuda_layer_spec *l = &d->target.layer[d->source[type]];
    struct plain_heads h = {};
    struct plain_attn a = {};

    h.row = d->turn, h.qkv = d->q, h.stride = (uint64_t)d->spec.q_heads * dim;
    h.q_norm = vector(d, d->plan.layer[i][CUDA_DRAFT_Q_NORM]);
    h.angle = d->angle[type];
    h.q_heads = d->spec.q_heads, h.kv_heads = 0, h.dim = dim, h.turned = d->rope[type].turned, h.eps = d->spec.norm_eps;
    const int rc = plain_heads_launch(&h, rows, d->stream);

    if (rc) return rc;
    a.row = d->see, a.q = d->q, a.out = d->attended, a.part = d->part, a.part_top = d->part_top;
    a.pool = (const uint8_t *)d->options.kv_device[type];
    a.pages = d->pages[type], a.pages_stride = a.ring_pages = d->pages_stride[type];
    a.q_stride = h.stride, a.page_bytes = d->target.page_bytes[type], a.k_offset = l->k_offset, a.v_offset = l->v_offset;
    a.q_heads = d->spec.q_heads, a.kv_heads = d->target.kv_heads[type], a.dim = dim, a.kv_bytes = kv_bytes(d, type);
    a.window = type == CUDA_FULL ? 0 : d->target.window;
    a.segments_max = d->segments_max[type], a.batch_rows = d->batch_rows[type], a.scale = d->spec.attention_scale;
    return plain_attn_launch(&a, rows, d->stream);
}

static int run_layers(const struct cuda_draft_plain *d, uint32_t rows)
{
    const struct cuda_draft_spec *s = &d->spec;
    int rc = product(d, d->h, d->joined, d->plan.pre, NULL, s->hidden, 2 * s->backbone_hidden, rows);

    if (rc == 0) rc = norms(d, NULL, NULL, d->plan.layer[0][CUDA_DRAFT_INPUT_NORM], rows);
    for (uint32_t i = 0; i < s->layers && rc == 0; i++) {
        const struct placed *l = d->plan.layer[i];
        const uint32_t q_rows = s->q_heads * dim_of(s, &d->target, i);

        rc = product(d, d->q, d->x, l[CUDA_DRAFT_Q], NULL, q_rows, s->hidden, rows);
        if (rc == 0) rc = attend(d, i, rows);
        if (rc == 0) rc = product(d, d->y, d->attended, l[CUDA_DRAFT_O], NULL, s->hidden, q_rows, rows);
        if (rc == 0) rc = norms(d, &l[CUDA_DRAFT_POST_ATTENTION_NORM], NULL, l[CUDA_DRAFT_PRE_FF_NORM], rows);
        if (rc == 0) rc = product(d, d->gate, d->x, l[CUDA_DRAFT_GATE], &l[CUDA_DRAFT_UP], s->intermediate, s->hidden, rows);
        if (rc == 0) rc = product(d, d->y, d->gate, l[CUDA_DRAFT_DOWN], NULL, s->hidden, s->intermediate, rows);
        if (rc == 0) rc = norms(d, &l[CUDA_DRAFT_POST_FF_NORM], vector(d, l[CUDA_DRAFT_LAYER_SCALAR]), i + 1 == s->layers ? d->plan.norm : d->plan.layer[i + 1][CUDA_DRAFT_INPUT_NORM], rows);
    }
    const struct plain_logits cap = { d->logits, d->tile_top, s->vocab, s->softcap };

    if (rc == 0) rc = product(d, d->logits, d->x, d->plan.head, NULL, s->vocab, s->hidden, rows);
    if (rc == 0) rc = plain_logits_launch(&cap, rows, d->stream);
    return rc ? rc : product(d, d->hidden, d->x, d->plan.post, NULL, s->backbone_hidden, s->hidden, rows);
}

static bool row_is_sound(const struct cuda_draft_plain *d, const struct cuda_draft_plain_row *r, const struct cuda_draft_plain_seq *seqs, uint32_t seq_count)
{
    if (r->seq >= seq_count || r->key_count == 0 || r->key_count > r->position || r->position >= d->options.context_max) return false;
    const uint32_t pages = (r->key_count + PLAIN_PAGE_TOKENS - 1) / PLAIN_PAGE_TOKENS, ring = pages < d->pages_stride[CUDA_SLIDING] ? pages : d->pages_stride[CUDA_SLIDING];

    return seqs[r->seq].page_count[CUDA_FULL] >= pages && seqs[r->seq].page_count[CUDA_SLIDING] >= ring;
}

/* From pageable memory: each copy has read its source when the call returns. */
static int send(const struct cuda_draft_plain *d, void *to, const void *from, uint64_t bytes)
{
    return bytes ? launch_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, d->stream), "the drafter's input") : 0;
}

static int send_rows(const struct cuda_draft_plain *d, const struct cuda_draft_plain_row *rows, uint32_t count)
{
    const uint64_t width = d->spec.backbone_hidden;
    std::vector<struct plain_row> turn(count), see(count);
    std::vector<float2> angle[2];
    float cosine[ROPE_PAIRS_MAX], sine[ROPE_PAIRS_MAX];
    int rc = 0;

    for (uint32_t i = 0; i < count && rc == 0; i++) {
        turn[i] = plain_row{ 0, i, rows[i].seq, 1 };           /* `position` finds the row's own angles */
        see[i] = plain_row{ 0, rows[i].key_count - 1, rows[i].seq, 1 };
        rc = send(d, d->joined + 2 * width * i, rows[i].embedding, 4 * width);
        if (rc == 0) rc = send(d, d->joined + 2 * width * i + width, rows[i].hidden, 4 * width);
        for (uint32_t type = 0; type < 2; type++) {
            rope_table_angles(&d->rope[type], rows[i].position, cosine, sine);
            for (uint32_t j = 0; j < d->rope[type].turned; j++) angle[type].push_back(make_float2(cosine[j], sine[j]));
        }
    }
    for (uint32_t type = 0; type < 2 && rc == 0; type++) rc = send(d, d->angle[type], angle[type].data(), sizeof(float2) * angle[type].size());
    if (rc == 0) rc = send(d, d->turn, turn.data(), count * sizeof turn[0]);
    return rc ? rc : send(d, d->see, see.data(), count * sizeof see[0]);
}

extern "C" int cuda_draft_plain_step(struct cuda_draft_plain *d, const struct cuda_draft_plain_row *rows, uint32_t count, const struct cuda_draft_plain_seq *seqs, uint32_t seq_count,
                                     float *logits, float *hidden)
{
    int rc = 0;

    if (count == 0 || count > d->rows_max || seq_count > d->options.seqs_max) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++)
        if (!row_is_sound(d, &rows[i], seqs, seq_count)) return -E_RANGE;
    for (uint32_t s = 0; s < seq_count && rc == 0; s++)
        for (uint32_t type = 0; type < 2 && rc == 0; type++) {
            const uint32_t n = seqs[s].page_count[type] < d->pages_stride[type] ? seqs[s].page_count[type] : d->pages_stride[type];

            rc = send(d, d->pages[type] + (uint64_t)s * d->pages_stride[type], seqs[s].pages[type], 4ull * n);
        }
    if (rc == 0) rc = send_rows(d, rows, count);
    if (rc == 0) rc = run_layers(d, count);
    if (rc == 0) rc = launch_check(cudaMemcpyAsync(logits, d->logits, 4ull * count * d->spec.vocab, cudaMemcpyDeviceToHost, d->stream), "the drafter's logits");
    if (rc == 0) rc = launch_check(cudaMemcpyAsync(hidden, d->hidden, 4ull * count * d->spec.backbone_hidden, cudaMemcpyDeviceToHost, d->stream), "the drafter's states");
    return rc ? rc : launch_check(cudaStreamSynchronize(d->stream), "draft step");
}

extern "C" int cuda_draft_plain_read(struct cuda_draft_plain *d, const float *from_device, float *to, uint32_t count)
{
    const int rc = launch_check(cudaMemcpyAsync(to, from_device, 4ull * count, cudaMemcpyDeviceToHost, d->stream), "a state");

    return rc ? rc : launch_check(cudaStreamSynchronize(d->stream), "a state");
}
