/* kernels/cuda/prefill.cu - the prefill handle: memory, page tables, turning spans into rows and tiles, awaiting a run (contract in cuda_prefill.h).
 * Models of other shapes than Gemma 4 12B's are passed on to plain_prefill.cu. */
#include "prefill.h"
#include "await.h"
#include "launch.h"
#include "kernels/stored.h"
#include "prefill_mm.h"
#include "round.h"
#include "setup.h"
#include "shm/error.h"
extern "C" {
#include "shm/must.h"
}
#include <string.h>
#include <algorithm>
#include <new>

#define ROWS_LIMIT 65536              /* of a run: what the kernels' grids and 32-bit indices were written for */
#define CONTEXT_LIMIT (1u << 20)

static_assert(CONTEXT_LIMIT / PREFILL_SEGMENT <= PREFILL_SLOTS, "the segments of a tile belong to one round");


/* Segments of the longest text, and tiles of the largest run. */
static uint32_t segments_max(const struct cuda_prefill *p) { return (p->options.context_max + PREFILL_SEGMENT - 1) / PREFILL_SEGMENT; }
static uint64_t tiles_max(const struct cuda_prefill *p, uint32_t type) { return p->rows_max / prefill_tile_rows(p->spec.head_dim[type]) + CUDA_PREFILL_SPANS_MAX; }

static uint32_t window_of(const struct cuda_prefill *p, uint32_t type) { return type == CUDA_SLIDING ? p->spec.window : 0; }

/* Where K and V of E4M3 become bf16. */
static uint32_t pool_pages(const struct cuda_prefill *p, uint32_t type)
{
    return prefill_expand_pages(p->spec.kv_heads[type], p->spec.head_dim[type], window_of(p, type), p->rows_max, p->options.context_max);
}
static uint64_t pool_bytes(const struct cuda_prefill *p, uint32_t type)
{
    return p->expand ? pool_pages(p, type) * prefill_expand_page_bytes(p->spec.kv_heads[type], p->spec.head_dim[type]) : 0;
}

/* ---- open and close ---- */

/* The longest rows that are rounded to FP8; 0: none. */
static uint64_t codes_max(const struct cuda_prefill *p)
{
    uint64_t k = 0;

    for (uint32_t i = 0; i < p->spec.layers; i++) {
        const struct arena_layer *l = &p->arena.layer[i];

        for (const struct arena_matrix *m : { &l->qkv, &l->o, &l->gate_up, &l->down })
            if (m->activation != STORED_AS_IS && m->k > k) k = m->k;
    }
    return k;
}

static int make_memory(struct cuda_prefill *p)
{
    const struct cuda_model_spec *s = &p->spec;
    const uint64_t turned = s->rope_turned[0] + s->rope_turned[1], rows = p->rows_max;
    uint64_t qkv_rows = 0, q_rows = 0;

    for (uint32_t i = 0; i < s->layers; i++) {
        if (p->arena.layer[i].qkv.rows > qkv_rows) qkv_rows = p->arena.layer[i].qkv.rows;
        if (spec_q_rows(s, i) > q_rows) q_rows = spec_q_rows(s, i);
    }
    const struct setup_part want[] = {
        { (void **)&p->job, p->job_bytes },
        { (void **)&p->residual, 4 * rows * s->hidden },
        { (void **)&p->sum, 4 * rows * s->hidden },
        { (void **)&p->qkv, 4 * rows * qkv_rows },
        { (void **)&p->q, 2 * rows * q_rows },
        { (void **)&p->x, 2 * rows * s->hidden },
        { (void **)&p->attn_out, 2 * rows * q_rows },
        { (void **)&p->act, 2 * rows * s->intermediate },
        { (void **)&p->codes, rows * codes_max(p) },
        { (void **)&p->codes_scale, 4 * rows },
        { (void **)&p->part, segments_max(p) > 1 && s->head_dim[CUDA_FULL] == 512 ? (uint64_t)PREFILL_SLOTS * PREFILL_SLOT_BYTES : 0 },
        { (void **)&p->rope, 8 * rows * turned },
        { (void **)&p->last_residual, 4ull * CUDA_PREFILL_SPANS_MAX * s->hidden },
        { (void **)&p->last_x, 2ull * CUDA_PREFILL_SPANS_MAX * s->hidden },
        { (void **)&p->last_rope, 8 * CUDA_PREFILL_SPANS_MAX * turned },
        { (void **)&p->inv_freq, 4 * turned },
        { (void **)&p->pages[0], 4ull * p->options.seqs_max * p->pages_stride[0] },
        { (void **)&p->pages[1], 4ull * p->options.seqs_max * p->pages_stride[1] },
        { (void **)&p->keep.generation, 4ull * p->options.seqs_max },
        { (void **)&p->pool[0], pool_bytes(p, CUDA_SLIDING) },
        { (void **)&p->pool[1], pool_bytes(p, CUDA_FULL) },
    };

    int rc = setup_slab(&p->slab, want, sizeof want / sizeof *want, "prefill memory");
    if (rc == 0) rc = launch_check(cudaMallocHost((void **)&p->job_host, p->job_bytes), "pinned memory");
    p->cut = new (std::nothrow) prefill_tile[tiles_max(p, CUDA_FULL)];
    return rc ? rc : p->cut ? 0 : -E_NOMEM;
}

static int make_frequencies(struct cuda_prefill *p)
{
    const struct cuda_model_spec *s = &p->spec;
    const int rc = setup_frequencies(p->inv_freq, s->rope_theta[0], s->rope_divisor[0], s->head_dim[0], s->rope_turned[0]);

    return rc ? rc : setup_frequencies(p->inv_freq + s->rope_turned[0], s->rope_theta[1], s->rope_divisor[1], s->head_dim[1], s->rope_turned[1]);
}

static int make_maps(struct cuda_prefill *p)
{
    int rc = 0;

    for (uint32_t type = 0; type < 2 && p->expand && rc == 0; type++)
        rc = prefill_expand_open(&p->expand[type], p->pool[type], pool_pages(p, type), p->spec.kv_heads[type], p->spec.head_dim[type], window_of(p, type));
    if (p->expand) return rc;
    p->maps = new (std::nothrow) prefill_attn_maps[p->spec.layers];
    if (p->maps == NULL) return -E_NOMEM;
    for (uint32_t i = 0; i < p->spec.layers && rc == 0; i++) {
        const struct prefill_kv kv = prefill_kv_of(p, i);

        rc = prefill_attn_map(&p->maps[i], &kv, spec_head_dim(&p->spec, i));
    }
    return rc;
}

static int check_device(void)
{
    int device, major, rc = launch_check(cudaGetDevice(&device), "device");

    if (rc == 0) rc = launch_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    return rc ? rc : major == 9 ? 0 : -E_UNSUPPORTED;
}

static int open_all(struct cuda_prefill *p)
{
    int rc = check_device();

    if (rc == 0) rc = prefill_mm_init();
    if (rc == 0) rc = prefill_ops_init();
    if (rc == 0) rc = round_init();
    if (rc == 0) rc = prefill_attn_init();
    if (rc == 0) rc = prefill_expand_init();
    if (rc == 0) rc = states_init();
    if (rc == 0) rc = outputs_init();
    if (rc == 0) rc = make_memory(p);
    if (rc == 0) rc = soft_input_open(&p->soft, p->rows_max, p->spec.hidden, p->options.soft_rows);
    if (rc == 0) rc = make_maps(p);
    if (rc == 0) rc = make_frequencies(p);
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&p->stream, cudaStreamNonBlocking), "stream");
    if (rc == 0) rc = launch_check(cudaEventCreateWithFlags(&p->done, cudaEventDisableTiming), "event");
    return rc ? rc : launch_check(cudaDeviceSynchronize(), "open");
}

/* A ring must hold the window of a run's first row beside the run's last row. */
static int check_options(const struct cuda_model_spec *spec, const struct cuda_options *o, uint32_t rows_max)
{
    const uint64_t ring_tokens = (uint64_t)o->ring_pages * PREFILL_PAGE_TOKENS;

    if (!o->weights_device || !o->kv_device[0] || !o->kv_device[1] || o->seqs_max == 0) return -E_RANGE;
    if (o->context_max == 0 || o->context_max > CONTEXT_LIMIT || rows_max == 0 || rows_max > ROWS_LIMIT) return -E_RANGE;
    return ring_tokens < spec->window - 1 + rows_max && ring_tokens < o->context_max ? -E_RANGE : 0;
}

/* Shapes that these kernels are made for. */
static int open_own(struct cuda_prefill *p, const struct cuda_model_spec *spec, const struct cuda_options *options, uint32_t rows_max)
{
    const int rc = check_options(spec, options, rows_max);

    if (rc) return rc;
    p->spec = *spec;
    p->options = *options;
    p->rows_max = rows_max;
    p->keep.memory = options->features, p->keep.hidden = spec->hidden;
    p->pages_stride[CUDA_SLIDING] = options->ring_pages;
    p->pages_stride[CUDA_FULL] = (options->context_max + PREFILL_PAGE_TOKENS - 1) / PREFILL_PAGE_TOKENS;
    if (spec_kv_bytes(spec, 0) == 1 && (p->expand = new (std::nothrow) prefill_expand[2]()) == NULL) return -E_NOMEM;
    p->job_bytes = (rows_max + CUDA_PREFILL_SPANS_MAX) * sizeof(struct prefill_row) + 2 * CUDA_PREFILL_SPANS_MAX * sizeof(struct prefill_expand_span);
    p->job_bytes += (tiles_max(p, CUDA_SLIDING) + (tiles_max(p, CUDA_FULL) + CUDA_PREFILL_SPANS_MAX) * (segments_max(p) + 1)) * sizeof(struct prefill_tile);
    return open_all(p);
}

extern "C" int cuda_prefill_open(struct cuda_prefill **prefill, const struct cuda_model_spec *spec, const struct cuda_options *options, uint32_t rows_max)
{
    struct cuda_prefill *p = new (std::nothrow) cuda_prefill();
    int rc;

    *prefill = NULL;
    if (p == NULL) return -E_NOMEM;
    for (int type = 0; type < 2; type++) p->kv_device[type] = options->kv_device[type], p->page_bytes[type] = spec->page_bytes[type];
    rc = arena_plan(&p->arena, spec);
    if (rc == 0) rc = open_own(p, spec, options, rows_max);
    else if (rc == -E_UNSUPPORTED) rc = plain_prefill_open(&p->plain, spec, options, rows_max);
    if (rc) cuda_prefill_close(p), p = NULL;
    *prefill = p;
    return rc;
}

extern "C" void cuda_prefill_close(struct cuda_prefill *p)
{
    if (p->plain) plain_prefill_close(p->plain);
    cudaDeviceSynchronize();
    cudaFree(p->slab);
    if (p->job_host) cudaFreeHost(p->job_host);
    soft_input_close(&p->soft);
    delete[] p->cut;
    delete[] p->maps;
    delete[] p->expand;
    if (p->done) cudaEventDestroy(p->done);
    if (p->stream) cudaStreamDestroy(p->stream);
    delete p;
}

extern "C" int cuda_prefill_pages(struct cuda_prefill *p, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count)
{
    if (p->plain) return plain_prefill_pages(p->plain, seq, type, first, pages, count);
    if (type > CUDA_FULL || seq >= p->options.seqs_max || first > p->pages_stride[type] || count > p->pages_stride[type] - first) return -E_RANGE;
    /* From pageable memory: the call returns when the entries have been taken, the stream orders them before later runs. */
    return launch_check(cudaMemcpyAsync(p->pages[type] + (uint64_t)seq * p->pages_stride[type] + first, pages, 4ull * count, cudaMemcpyHostToDevice, p->stream), "pages");
}

extern "C" int cuda_prefill_outputs(struct cuda_prefill *p, uint64_t layers)
{
    if (p->plain) return plain_prefill_outputs(p->plain, layers);
    const bool fits = layers == 0 || (p->keep.memory.device && outputs_fit(&p->keep.memory, layers, p->spec.layers));

    p->keep.layers = fits ? layers : 0;
    return fits ? 0 : -E_RANGE;
}

extern "C" int cuda_prefill_outputs_copy(struct cuda_prefill *p, uint32_t from_seq, uint32_t from_generation, uint32_t seq, uint32_t first, uint32_t count)
{
    if (p->plain) return plain_prefill_outputs_copy(p->plain, from_seq, from_generation, seq, first, count);
    if (from_seq >= p->options.seqs_max || seq >= p->options.seqs_max || first > p->options.context_max || count > p->options.context_max - first) return -E_RANGE;
    return outputs_copy(&p->keep, from_seq, from_generation, seq, first, count, p->stream);
}

extern "C" int cuda_prefill_generation(struct cuda_prefill *p, uint32_t seq, uint32_t generation)
{
    if (p->plain) return plain_prefill_generation(p->plain, seq, generation);
    if (seq >= p->options.seqs_max) return -E_RANGE;
    return launch_check(cudaMemcpyAsync((void *)(p->keep.generation + seq), &generation, sizeof generation, cudaMemcpyHostToDevice, p->stream), "generation");
}

extern "C" int cuda_prefill_copy(struct cuda_prefill *p, enum cuda_layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count)
{
    const cudaStream_t stream = (cudaStream_t)cuda_prefill_stream(p);
    int rc = cuda_prefill_wait(p, 0);

    if (rc) return rc == -E_TIMEOUT ? -E_BUSY : rc;
    if (type > CUDA_FULL) return -E_RANGE;
    for (uint32_t i = 0; i < count && rc == 0; i++) {
        uint8_t *pool = (uint8_t *)p->kv_device[type];

        rc = launch_check(cudaMemcpyAsync(pool + to[i] * p->page_bytes[type], pool + from[i] * p->page_bytes[type], p->page_bytes[type], cudaMemcpyDeviceToDevice, stream), "copying pages");
    }
    return rc ? rc : launch_check(cudaEventRecord(p->plain ? plain_prefill_done(p->plain) : p->done, stream), "event");
}

/* ---- a run ---- */

static int check_spans(const struct cuda_prefill *p, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    uint32_t rows = 0;

    if (span_count == 0 || span_count > CUDA_PREFILL_SPANS_MAX) return -E_RANGE;
    for (uint32_t i = 0; i < span_count; i++) {
        const struct cuda_prefill_span *s = &spans[i];

        if (s->first_row != rows || s->rows == 0 || s->rows > p->rows_max - rows || s->seq >= p->options.seqs_max) return -E_RANGE;
        if (s->leaves_state && !p->options.states_device) return -E_RANGE;
        if (s->first_position >= p->options.context_max || s->rows > p->options.context_max - s->first_position) return -E_RANGE;
        for (uint32_t j = 0; j < i; j++)
            if (spans[j].seq == s->seq) return -E_RANGE;
        rows += s->rows;
    }
    for (uint32_t i = 0; i < rows; i++)
        if (tokens[i] >= p->spec.vocab) return -E_RANGE;
    return 0;
}

/* The last position is what a tile costs: the longest go first, so that the last blocks to be started are short ones. */
static bool tile_goes_first(const struct prefill_tile &a, const struct prefill_tile &b)
{
    return a.round != b.round ? a.round < b.round : a.first_position + a.rows > b.first_position + b.rows;
}

static uint32_t piece_keys(const struct prefill_tile &t)
{
    const uint32_t end = t.first_position + t.rows - t.segment * PREFILL_SEGMENT;

    return end < PREFILL_SEGMENT ? end : PREFILL_SEGMENT;
}

static bool piece_goes_first(const struct prefill_tile &a, const struct prefill_tile &b)
{
    return a.round != b.round ? a.round < b.round : piece_keys(a) > piece_keys(b);
}

/* Spans of a run, or the last rows of some. expand NULL: the cache is bf16. of: which spans of the run they are; NULL: all. */
struct cut { const struct cuda_prefill_span *spans; uint32_t span_count; const struct prefill_expand *expand; const uint32_t *of; };

/* Tiles of spans whose rows stand one after the other. soft: what those rows see ahead; NULL: nothing. What a row sees ends never before what the one
 * before it sees, so a tile's last row sees farthest. */
static uint32_t cut_tiles(struct prefill_tile *tiles, const struct cut *c, uint32_t tile_rows, const struct soft_input *soft)
{
    const struct cuda_prefill_span *spans = c->spans;
    uint32_t n = 0;

    for (uint32_t i = 0; i < c->span_count; i++) {
        const uint32_t own = c->of ? c->of[i] : i, seq = c->expand ? prefill_expand_shift(c->expand, own) : spans[i].seq;
        const uint32_t round = c->expand ? c->expand->group_of[own] * PREFILL_GROUP_ROUNDS : 0;

        for (uint32_t at = 0; at < spans[i].rows; at += tile_rows) {
            const uint32_t left = spans[i].rows - at, rows = left < tile_rows ? left : tile_rows, last = at + rows - 1;
            const uint32_t end = spans[i].first_position + last + (soft ? soft_input_ahead(soft, spans[i].first_row + last) : 0) + 1;
            const struct prefill_tile t = { spans[i].first_row + at, rows, spans[i].first_position + at, seq, 0, 1, end, round };

            tiles[n++] = t;
        }
    }
    std::sort(tiles, tiles + n, tile_goes_first);
    return n;
}

/* Pieces of the tiles in p->cut: one per segment; joins for tiles of several. Sets both counts. */
static void cut_segments(const struct cuda_prefill *p, uint32_t tiles, struct prefill_tile *pieces, struct prefill_tile *joins, struct prefill_work *work)
{
    uint32_t slot = 0, round = 0, n = 0;

    work->join_count = 0;
    for (uint32_t i = 0; i < tiles; i++) {
        struct prefill_tile t = p->cut[i];

        t.segments = (t.first_position + t.rows + PREFILL_SEGMENT - 1) / PREFILL_SEGMENT;
        if (t.round > round) slot = 0, round = t.round;            /* the next group's */
        const uint32_t slots = t.segments > 1 ? t.segments : 0;
        if (slots > PREFILL_SLOTS - slot) slot = 0, round++;
        t.slot = slot, t.round = round;
        if (slots) joins[work->join_count++] = t;
        for (; t.segment < t.segments; t.segment++, t.slot++) pieces[n++] = t;
        slot += slots;
    }
    std::sort(pieces, pieces + n, piece_goes_first);
    work->tile_count = n;
}

static void lay_out_rows(struct cuda_prefill *p, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    struct prefill_row *row = (struct prefill_row *)p->job_host;

    for (uint32_t i = 0; i < span_count; i++)
        for (uint32_t j = 0; j < spans[i].rows; j++) {
            const uint32_t at = spans[i].first_row + j, position = spans[i].first_position + j;
            const struct prefill_row r = { soft_input_token(&p->soft, at, *tokens++), position, spans[i].seq, at };

            *row++ = r;
            if (p->soft.any_ahead) p->soft.last_host[at] = position + soft_input_ahead(&p->soft, at);
        }
    p->rows = (uint32_t)(row - (struct prefill_row *)p->job_host);
}

/* Attention's work for these spans in layers of one type, from byte `at` of the job. Returns where it ends. */
static uint64_t lay_out_work(const struct cuda_prefill *p, enum cuda_layer_type type, const struct cut *c, uint64_t at, const struct soft_input *soft, struct prefill_work *work)
{
    const uint32_t tile_rows = prefill_tile_rows(p->spec.head_dim[type]);
    uint8_t *host = p->job_host;

    work->tile_at = work->join_at = at;
    work->join_count = 0;
    if (p->spec.head_dim[type] == 256) {
        work->tile_count = cut_tiles((struct prefill_tile *)(host + at), c, tile_rows, soft);
    } else {
        const uint32_t tiles = cut_tiles(p->cut, c, tile_rows, NULL);

        work->tile_at += tiles * sizeof(struct prefill_tile);
        cut_segments(p, tiles, (struct prefill_tile *)(host + work->tile_at), (struct prefill_tile *)(host + at), work);
    }
    return work->tile_at + work->tile_count * sizeof(struct prefill_tile);
}

/* The last rows of spans that leave their state go through the last layer alone, packed. Returns where the job ends. */
static uint64_t lay_out_last(struct cuda_prefill *p, const struct cuda_prefill_span *spans, uint32_t span_count, uint64_t at)
{
    struct prefill_row *row = (struct prefill_row *)(p->job_host + at);
    struct cuda_prefill_span last[CUDA_PREFILL_SPANS_MAX];
    uint32_t of[CUDA_PREFILL_SPANS_MAX];
    const enum cuda_layer_type type = (enum cuda_layer_type)p->spec.layer[p->spec.layers - 1].type;

    p->last_at = at;
    p->last_rows = 0;
    for (uint32_t i = 0; i < span_count; i++) {
        const uint32_t end = spans[i].rows - 1;
        const struct prefill_row r = { 0, spans[i].first_position + end, spans[i].seq, spans[i].first_row + end };
        const struct cuda_prefill_span s = { spans[i].seq, spans[i].first_position + end, p->last_rows, 1, 1 };

        if (!spans[i].leaves_state) continue;
        last[p->last_rows] = s;
        of[p->last_rows] = i;
        row[p->last_rows++] = r;
    }
    at += p->last_rows * sizeof *row;
    const struct cut c = { last, p->last_rows, p->expand ? &p->expand[type] : NULL, of };

    return p->last_rows ? lay_out_work(p, type, &c, at, NULL, &p->last_work[type]) : at;
}

/* The pages that become bf16 for attention. Returns where they end in the job. */
static uint64_t lay_out_expand(const struct cuda_prefill *p, struct prefill_expand *e, const struct cuda_prefill_span *spans, uint32_t span_count, uint64_t at)
{
    prefill_expand_plan(e, spans, span_count);
    e->spans_at = at;
    memcpy(p->job_host + at, e->span, span_count * sizeof *e->span);
    return at + span_count * sizeof *e->span;
}

/* Returns the job's bytes. */
static uint64_t lay_out_job(struct cuda_prefill *p, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    uint64_t at;

    lay_out_rows(p, spans, span_count, tokens);
    at = p->rows * sizeof(struct prefill_row);
    for (uint32_t type = 0; type < 2; type++) {
        const struct cut c = { spans, span_count, p->expand ? &p->expand[type] : NULL, NULL };

        if (p->expand) at = lay_out_expand(p, &p->expand[type], spans, span_count, at);
        at = lay_out_work(p, (enum cuda_layer_type)type, &c, at, type == CUDA_SLIDING || p->spec.full_ahead ? &p->soft : NULL, &p->work[type]);
    }
    return lay_out_last(p, spans, span_count, at);
}

extern "C" int cuda_prefill_soft(struct cuda_prefill *p, const struct cuda_prefill_piece *pieces, uint32_t piece_count)
{
    if (p->plain) return plain_prefill_soft(p->plain, pieces, piece_count);
    const cudaError_t status = cudaEventQuery(p->done);

    if (status == cudaErrorNotReady) return -E_BUSY;             /* the rows of the last run may still be read */
    const int rc = launch_check(status, "prefill");
    return rc ? rc : soft_input_take(&p->soft, pieces, piece_count, p->stream);
}

extern "C" int cuda_prefill_soft_weights(struct cuda_prefill *p, const struct cuda_soft_weights *weights)
{
    return p->plain ? plain_prefill_soft_weights(p->plain, weights) : soft_input_weights(&p->soft, weights);
}

extern "C" int cuda_prefill_soft_go(struct cuda_prefill *p)
{
    if (p->plain) return plain_prefill_soft_go(p->plain);
    const int more = soft_input_go(&p->soft, p->stream), rc = more < 0 ? more : launch_check(cudaEventRecord(p->done, p->stream), "prefill event");

    return rc ? rc : more;
}

extern "C" int cuda_prefill_begin(struct cuda_prefill *p, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    if (p->plain) return plain_prefill_begin(p->plain, spans, span_count, tokens);
    int rc = check_spans(p, spans, span_count, tokens);

    if (rc) return rc;
    const cudaError_t status = cudaEventQuery(p->done);          /* success before the first run, too */
    if (status == cudaErrorNotReady) return -E_BUSY;             /* job_host may still be read */
    rc = launch_check(status, "prefill");
    if (rc) return rc;
    soft_input_begin(&p->soft);
    const uint64_t bytes = lay_out_job(p, spans, span_count, tokens);

    must(bytes <= p->job_bytes);
    p->launched = 0;
    rc = launch_check(cudaMemcpyAsync(p->job, p->job_host, bytes, cudaMemcpyHostToDevice, p->stream), "prefill job");
    if (rc == 0) rc = soft_input_send(&p->soft, p->rows, p->stream);
    return rc ? rc : launch_check(cudaEventRecord(p->done, p->stream), "prefill event");
}

extern "C" int cuda_prefill_go(struct cuda_prefill *p, uint32_t layers)
{
    if (p->plain) return plain_prefill_go(p->plain, layers);
    const uint32_t left = p->spec.layers - p->launched, count = layers == 0 ? 1 : layers < left ? layers : left;

    if (left == 0) return -E_RANGE;
    int rc = prefill_launch_layers(p, PREFILL_ALL, p->launched, p->launched + count);
    p->launched += count;
    if (rc == 0) rc = launch_check(cudaEventRecord(p->done, p->stream), "prefill event");
    return rc ? rc : count < left;
}

extern "C" int cuda_prefill_run(struct cuda_prefill *p, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    const int rc = cuda_prefill_begin(p, spans, span_count, tokens);

    return rc ? rc : cuda_prefill_go(p, CUDA_LAYERS_MAX);
}

extern "C" int cuda_prefill_wait(struct cuda_prefill *p, uint32_t timeout_us)
{
    if (p->plain) return plain_prefill_wait(p->plain, timeout_us);
    return await_event(p->done, timeout_us, "prefill");
}

extern "C" void *cuda_prefill_residual(struct cuda_prefill *p)
{
    if (p->plain) return plain_prefill_residual(p->plain);
    p->whole = true;
    return p->residual;
}

extern "C" void *cuda_prefill_stream(struct cuda_prefill *p) { return p->plain ? plain_prefill_stream(p->plain) : p->stream; }
