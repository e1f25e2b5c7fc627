/* kernels/cuda/plain_prefill.cu - cuda_prefill.h for the shapes of plain.h: rows of spans through all layers, K and V into the pages. */
#include "cuda_prefill.h"
#include "await.h"
#include "launch.h"
#include "outputs.h"
#include "plain.h"
#include "soft.h"
#include "shm/error.h"
#include "states.h"
#include <cuda_runtime.h>
#include <new>


struct plain_prefill {
    struct plain *plain;              /* owned */
    uint32_t rows_max, seqs_max, context_max, vocab, window, layers;
    uint32_t pages_stride[2];
    bool whole;                       /* somebody reads the residual */
    uint32_t *pages[2];               /* device, owned */
    struct plain_row *rows_host;      /* pinned, owned: [rows_max]; free again when the event has passed */
    struct plain_row *rows;           /* device, owned */
    struct prefill_row *ends_host;    /* pinned, owned: [CUDA_PREFILL_SPANS_MAX] rows that leave their state */
    struct prefill_row *ends;         /* device, owned */
    uint32_t end_count;               /* of the run in hand */
    struct states_args states;
    struct outputs_keep keep;         /* generation is owned */
    struct soft_input soft;           /* pictures and sound of the run in hand, or the next */
    uint32_t row_count, launched;     /* of the run in hand: its rows, and the layers that were launched */
    cudaStream_t stream;
    cudaEvent_t done;
};

static int make(struct plain_prefill *p, const struct cuda_model_spec *spec, const struct cuda_options *options)
{
    struct plain_options plain = { options->weights_device, { options->kv_device[0], options->kv_device[1] }, {}, { p->pages_stride[0], p->pages_stride[1] }, p->rows_max, p->context_max, NULL, &p->keep };
    int rc = launch_check(cudaStreamCreateWithFlags(&p->stream, cudaStreamNonBlocking), "stream");

    if (rc == 0) rc = launch_check(cudaEventCreateWithFlags(&p->done, cudaEventDisableTiming), "event");
    for (int type = 0; type < 2 && rc == 0; type++) {
        const uint64_t bytes = 4ull * p->seqs_max * p->pages_stride[type];

        rc = launch_check(cudaMalloc((void **)&p->pages[type], bytes), "page tables");
        if (rc == 0) rc = launch_check(cudaMemset(p->pages[type], 0, bytes), "page tables");
        plain.pages[type] = p->pages[type];
    }
    if (rc == 0) rc = launch_check(cudaMallocHost((void **)&p->rows_host, p->rows_max * sizeof *p->rows_host), "pinned memory");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&p->rows, p->rows_max * sizeof *p->rows), "rows");
    if (rc == 0) rc = launch_check(cudaMallocHost((void **)&p->ends_host, CUDA_PREFILL_SPANS_MAX * sizeof *p->ends_host), "pinned memory");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&p->ends, CUDA_PREFILL_SPANS_MAX * sizeof *p->ends), "rows");
    if (rc == 0) rc = states_init();
    if (rc == 0) rc = outputs_init();
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&p->keep.generation, 4ull * p->seqs_max), "generations");
    p->keep.memory = options->features, p->keep.hidden = spec->hidden;
    if (rc == 0) rc = soft_input_open(&p->soft, p->rows_max, spec->hidden, options->soft_rows);
    plain.soft = p->soft.device;
    if (rc == 0) rc = plain_open(&p->plain, spec, &plain);
    if (rc == 0) p->states = { options->states_device, plain_hidden(p->plain), spec->hidden, STATES_F32 };
    return rc ? rc : launch_check(cudaDeviceSynchronize(), "open");
}

extern "C" int plain_prefill_open(struct plain_prefill **prefill, const struct cuda_model_spec *spec, const struct cuda_options *options, uint32_t rows_max)
{
    struct plain_arena arena;
    const int supported = plain_plan(&arena, spec);

    *prefill = NULL;
    if (supported) return supported;
    if (!options->weights_device || !options->kv_device[0] || !options->kv_device[1] || options->seqs_max == 0) return -E_RANGE;
    if (options->context_max == 0 || options->context_max > 1u << 20 || options->ring_pages == 0 || rows_max == 0 || rows_max > PLAIN_ROWS_LIMIT) return -E_RANGE;
    struct plain_prefill *p = new (std::nothrow) plain_prefill();
    if (p == NULL) return -E_NOMEM;
    p->rows_max = rows_max;
    p->seqs_max = options->seqs_max;
    p->context_max = options->context_max;
    p->vocab = spec->vocab;
    p->window = spec->window;
    p->layers = spec->layers;
    p->pages_stride[CUDA_SLIDING] = options->ring_pages;
    p->pages_stride[CUDA_FULL] = (options->context_max + PLAIN_PAGE_TOKENS - 1) / PLAIN_PAGE_TOKENS;
    const int rc = make(p, spec, options);
    if (rc) plain_prefill_close(p), p = NULL;
    *prefill = p;
    return rc;
}

extern "C" void plain_prefill_close(struct plain_prefill *p)
{
    if (p == NULL) return;
    cudaDeviceSynchronize();
    plain_close(p->plain);
    cudaFree(p->pages[0]);
    cudaFree(p->pages[1]);
    cudaFree(p->rows);
    cudaFree(p->ends);
    cudaFree((void *)p->keep.generation);
    soft_input_close(&p->soft);
    if (p->rows_host) cudaFreeHost(p->rows_host);
    if (p->ends_host) cudaFreeHost(p->ends_host);
    if (p->done) cudaEventDestroy(p->done);
    if (p->stream) cudaStreamDestroy(p->stream);
    delete p;
}

extern "C" int plain_prefill_pages(struct plain_prefill *p, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count)
{
    if (type > CUDA_FULL || seq >= p->seqs_max || first > p->pages_stride[type] || count > p->pages_stride[type] - first) return -E_RANGE;
    /* From pageable memory: the call returns when the entries have been taken, the stream orders them before later rows. */
    return launch_check(cudaMemcpyAsync(p->pages[type] + (uint64_t)seq * p->pages_stride[type] + first, pages, 4ull * count, cudaMemcpyHostToDevice, p->stream), "pages");
}

/* The rows of a span are written before any attends: the ring must hold them and the window of the first. */
static int check_span(const struct plain_prefill *p, const struct cuda_prefill_span *spans, uint32_t i, uint32_t next_row, const uint32_t *tokens)
{
    const struct cuda_prefill_span *s = &spans[i];
    const uint64_t ring = (uint64_t)p->pages_stride[CUDA_SLIDING] * PLAIN_PAGE_TOKENS;

    if (s->leaves_state && !p->states.states) return -E_RANGE;
    if (s->seq >= p->seqs_max || s->rows == 0 || s->first_row != next_row || s->rows > p->rows_max - next_row) return -E_RANGE;
    if (s->first_position >= p->context_max || s->rows > p->context_max - s->first_position) return -E_RANGE;
    if (ring < p->context_max && (uint64_t)s->rows + p->window - 1 > ring) return -E_RANGE;
    for (uint32_t j = 0; j < i; j++)
        if (spans[j].seq == s->seq) return -E_RANGE;
    for (uint32_t j = 0; j < s->rows; j++)
        if (tokens[next_row + j] >= p->vocab) return -E_RANGE;
    return 0;
}

extern "C" int plain_prefill_outputs(struct plain_prefill *p, uint64_t layers)
{
    const bool fits = layers == 0 || (p->keep.memory.device && outputs_fit(&p->keep.memory, layers, p->layers));

    p->keep.layers = fits ? layers : 0;
    return fits ? 0 : -E_RANGE;
}

extern "C" int plain_prefill_outputs_copy(struct plain_prefill *p, uint32_t from_seq, uint32_t from_generation, uint32_t seq, uint32_t first, uint32_t count)
{
    if (from_seq >= p->seqs_max || seq >= p->seqs_max || first > p->context_max || count > p->context_max - first) return -E_RANGE;
    return outputs_copy(&p->keep, from_seq, from_generation, seq, first, count, p->stream);
}

extern "C" int plain_prefill_generation(struct plain_prefill *p, uint32_t seq, uint32_t generation)
{
    if (seq >= p->seqs_max) return -E_RANGE;
    return launch_check(cudaMemcpyAsync((void *)(p->keep.generation + seq), &generation, sizeof generation, cudaMemcpyHostToDevice, p->stream), "generation");
}

extern "C" int plain_prefill_soft(struct plain_prefill *p, const struct cuda_prefill_piece *pieces, uint32_t piece_count)
{
    const int rc = plain_prefill_wait(p, 0);

    return rc == -E_TIMEOUT ? -E_BUSY : rc ? rc : soft_input_take(&p->soft, pieces, piece_count, p->stream);
}

extern "C" int plain_prefill_soft_weights(struct plain_prefill *p, const struct cuda_soft_weights *weights) { return soft_input_weights(&p->soft, weights); }

extern "C" int plain_prefill_soft_go(struct plain_prefill *p)
{
    const int more = soft_input_go(&p->soft, p->stream), rc = more < 0 ? more : launch_check(cudaEventRecord(p->done, p->stream), "event");

    return rc ? rc : more;
}

extern "C" int plain_prefill_begin(struct plain_prefill *p, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    uint32_t rows = 0;
    int rc = plain_prefill_wait(p, 0);

    if (rc) return rc == -E_TIMEOUT ? -E_BUSY : rc;
    if (span_count == 0 || span_count > CUDA_PREFILL_SPANS_MAX) return -E_RANGE;
    for (uint32_t i = 0; i < span_count; rows += spans[i++].rows)
        if ((rc = check_span(p, spans, i, rows, tokens)) != 0) return rc;
    soft_input_begin(&p->soft);
    rows = 0;
    for (uint32_t i = 0; i < span_count; i++)
        for (uint32_t j = 0; j < spans[i].rows; j++, rows++)
            p->rows_host[rows] = { soft_input_token(&p->soft, rows, tokens[rows]), spans[i].first_position + j, spans[i].seq, 1 + soft_input_ahead(&p->soft, rows) };
    p->row_count = rows;
    p->launched = p->end_count = 0;
    for (uint32_t i = 0; i < span_count; i++)
        if (spans[i].leaves_state) p->ends_host[p->end_count++] = { 0, spans[i].first_position + spans[i].rows - 1, spans[i].seq, spans[i].first_row + spans[i].rows - 1 };
    if (p->end_count) rc = launch_check(cudaMemcpyAsync(p->ends, p->ends_host, p->end_count * sizeof *p->ends, cudaMemcpyHostToDevice, p->stream), "rows");
    if (rc == 0) p->soft.any_ahead = false; /* plain rows carry it themselves */
    if (rc == 0) rc = soft_input_send(&p->soft, rows, p->stream);
    if (rc == 0) rc = launch_check(cudaMemcpyAsync(p->rows, p->rows_host, rows * sizeof *p->rows, cudaMemcpyHostToDevice, p->stream), "rows");
    return rc ? rc : launch_check(cudaEventRecord(p->done, p->stream), "event");
}

extern "C" int plain_prefill_go(struct plain_prefill *p, uint32_t layers)
{
    const uint32_t left = p->layers - p->launched, count = layers == 0 ? 1 : layers < left ? layers : left;

    if (left == 0 || p->row_count == 0) return -E_RANGE;
    int rc = plain_rows_launch(p->plain, p->rows, p->row_count, p->launched, count, p->whole || p->end_count, p->stream);
    p->launched += count;
    if (rc == 0 && p->launched == p->layers && p->end_count) rc = states_store_launch(&p->states, p->ends, false, p->end_count, p->stream);
    if (rc == 0) rc = launch_check(cudaEventRecord(p->done, p->stream), "event");
    return rc ? rc : count < left;
}

extern "C" int plain_prefill_wait(struct plain_prefill *p, uint32_t timeout_us)
{
    return await_event(p->done, timeout_us, "prefill");
}

/* From now on the last layer is computed to its end. */
extern "C" void *plain_prefill_residual(struct plain_prefill *p)
{
    p->whole = true;
    return plain_residual(p->plain);
}

extern "C" void *plain_prefill_stream(struct plain_prefill *p) { return p->stream; }
extern "C" struct CUevent_st *plain_prefill_done(struct plain_prefill *p) { return p->done; }
