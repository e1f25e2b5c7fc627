/* tests/faults/fake_gpu.c - a libsluice_cuda.so without a GPU: tests of the keeper, the launcher and the stages' GPU paths run anywhere.
 *
 * Does      "GPU memory" is a memfd. A "KV cache" holds the tokens themselves, in both pools, at the places that pages and positions say, a hidden state a mark of token and
 *           position, without which a step from states fails; the next token is a hash of the last 16, of the seed and the position: wrong pages, lost or repeated work show as other bytes.
 *           Weights: counts rows and checks that every tensor is put once and whole; a step on incomplete weights fails.
 *           The drafter knows the next tokens (it reads cache and states as the real one does), but every fifth of its guesses is wrong.
 * Faults    a page number that leads nowhere "loses the context": alone when CUDA_MPS_PIPE_DIRECTORY is no directory, else that of every client of
 *           tests/faults/fake_mps.py, which lives there: it is told our pid in the file `fault` and moves the number in `epoch`.
 * Options   FAKE_GPU_LOAD_US: how long a put takes; FAKE_GPU_STEP_US: a step (1000); FAKE_GPU_MISSING: no driver; FAKE_GPU_FREE_MIB: free memory. */
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_draft.h"
#include "kernels/cuda/cuda_draft_plain.h"
#include "kernels/cuda/cuda_dspark.h"
#include "kernels/cuda/cuda_dspark_plain.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/cuda_prefill.h"
#include "kernels/cuda/cuda_weights.h"
#include "shm/error.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE_TOKENS 32u
#define SEEN 16u                      /* tokens that the next one depends on */
#define PAGE_LIMIT (1u << 24)
#define FAKE_LAYERS 4u                /* pieces of a prefill */
#define FIRST_TOKEN 300u              /* plain words of the demo model's vocabulary */
#define TOKENS 1500u
#define MEMORY_BYTES (16ull << 30)
#define WEIGHTS_MAGIC 0x7374686769657740ull

struct arena_head { uint64_t magic, rows_put; };      /* at the start of the weight arena */

struct handle {                       /* what decode and prefill share */
    struct cuda_model_spec spec;
    struct cuda_options options;
    uint32_t *pages[2], stride[2];    /* [seqs][stride], per layer type */
};
struct cuda_backend { struct handle h; struct step_result result; struct cuda_handover_record *record; struct step_state behind; uint64_t tag, told; };   /* tag: waited for, told: that the step tells at its end; 0: none */
struct cuda_prefill { struct handle h; uint32_t rows, launched, piece; };
struct cuda_weights { struct cuda_model_spec spec; struct arena_head *arena; uint8_t *buffer; int given; };

static char error_text_of_last[256] = "no error";
static int mps_dir = -1, epoch_fd = -1;
static uint64_t epoch;
static int lost;

static int fail(int code, const char *text)
{
    snprintf(error_text_of_last, sizeof error_text_of_last, "%s", text);
    return code;
}

static long option(const char *name, long otherwise) { return getenv(name) ? atol(getenv(name)) : otherwise; }

/* ---- the device and its context ---- */

const char *cuda_backend_error(void) { return error_text_of_last; }
uint32_t cuda_backend_version(void) { return CUDA_BACKEND_VERSION; }

int cuda_device_open(struct cuda_device_facts *facts)
{
    const char *dir = getenv("CUDA_MPS_PIPE_DIRECTORY");

    *facts = (struct cuda_device_facts){.name = "fake GPU", .memory_total = MEMORY_BYTES, .memory_free = MEMORY_BYTES, .sm_count = 1, .major = 9, .driver_version = 13000};
    facts->memory_free = (uint64_t)option("FAKE_GPU_FREE_MIB", (long)(MEMORY_BYTES >> 20)) << 20;
    if (getenv("FAKE_GPU_MISSING")) return fail(-E_NOT_FOUND, "there is no NVIDIA driver on this machine");
    if (dir && (mps_dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0) {
        epoch_fd = openat(mps_dir, "epoch", O_RDONLY | O_CLOEXEC);
        if (epoch_fd < 0 || pread(epoch_fd, &epoch, sizeof epoch, 0) != (ssize_t)sizeof epoch) return fail(-E_IO, "the MPS daemon does not answer");
    }
    return 0;
}

int cuda_device_close(void) { return 0; }

/* Is our context still there? The daemon holds a lock as long as it lives. */
static int check_context(void)
{
    uint64_t now = 0;

    if (lost) return fail(-E_IO, "the context is lost");
    if (epoch_fd < 0) return 0;
    if (flock(epoch_fd, LOCK_SH | LOCK_NB) == 0) {
        flock(epoch_fd, LOCK_UN);
        lost = 1;
    }
    if (pread(epoch_fd, &now, sizeof now, 0) != (ssize_t)sizeof now || now != epoch) lost = 1;
    return lost ? fail(-E_IO, "the context went with another client's") : 0;
}

static int fault(void)
{
    lost = 1;
    if (mps_dir >= 0) {
        const int fd = openat(mps_dir, "fault.new", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        dprintf(fd, "%d\n", (int)getpid());
        close(fd);
        renameat(mps_dir, "fault.new", mps_dir, "fault");
        for (int i = 0; i < 200 && faccessat(mps_dir, "fault", F_OK, 0) == 0; i++) usleep(5000);
    }
    return fail(-E_IO, "an illegal memory access was encountered");
}

int cuda_memory_create(uint64_t bytes, int *fd)
{
    *fd = memfd_create("fake-gpu", MFD_CLOEXEC);
    return *fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0 ? 0 : fail(-E_NOMEM, "out of memory");
}

int cuda_memory_map(int fd, uint64_t bytes, int writable, void **device)
{
    *device = mmap(NULL, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    return *device == MAP_FAILED ? fail(-E_IO, "not mapped") : 0;
}

/* ---- weights ---- */

static uint64_t rows_wanted(const struct cuda_model_spec *s)
{
    uint64_t rows = s->vocab + s->hidden;

    for (uint32_t i = 0; i < s->layers; i++) {
        const uint32_t type = s->layer[i].type, dim = s->head_dim[type];
        rows += s->q_heads * dim + (s->layer[i].has_v ? 2 : 1) * s->kv_heads[type] * dim + 2 * s->hidden + 2 * s->intermediate + 4 * s->hidden + 2 * dim + 1;
    }
    return rows;
}

uint64_t cuda_weights_bytes(const struct cuda_model_spec *spec) { return spec->format == WEIGHT_FP8 ? 2 << 20 : 1 << 20; }

int cuda_weights_open(struct cuda_weights **weights, const struct cuda_model_spec *spec, void *device)
{
    struct cuda_weights *w = calloc(1, sizeof *w);

    w->spec = *spec;
    w->arena = device;
    w->buffer = malloc(CUDA_WEIGHTS_BUFFER_BYTES);
    *w->arena = (struct arena_head){0, 0};
    *weights = w;
    return 0;
}

void cuda_weights_close(struct cuda_weights *w)
{
    free(w->buffer);
    free(w);
}

int cuda_weights_buffer(struct cuda_weights *w, void **host, uint64_t *bytes)
{
    *host = w->buffer;
    *bytes = CUDA_WEIGHTS_BUFFER_BYTES;
    return w->given++ ? fail(-E_BUSY, "a buffer was not put") : 0;
}

int cuda_weights_put(struct cuda_weights *w, enum cuda_tensor tensor, uint32_t layer, uint32_t first_row, uint32_t rows, uint32_t format, const float *scale, uint32_t stride)
{
    (void)scale, (void)stride, (void)format;
    if (!w->given || tensor >= CUDA_TENSORS || layer >= w->spec.layers || first_row % TILE_ROWS) return fail(-E_RANGE, "a wrong put");
    w->given = 0;
    usleep((useconds_t)option("FAKE_GPU_LOAD_US", 0));
    w->arena->rows_put += rows;
    return 0;
}

int cuda_weights_finish(struct cuda_weights *w)
{
    if (w->arena->rows_put != rows_wanted(&w->spec)) return fail(-E_RANGE, "not every tensor was put once");
    w->arena->magic = WEIGHTS_MAGIC;
    return 0;
}

int cuda_weights_fill_random(struct cuda_weights *w, uint64_t seed)
{
    (void)seed;
    w->arena->rows_put = rows_wanted(&w->spec);
    return 0;
}

/* ---- pages ---- */

static int open_handle(struct handle *h, const struct cuda_model_spec *spec, const struct cuda_options *options)
{
    h->spec = *spec;
    h->options = *options;
    h->stride[CUDA_SLIDING] = options->ring_pages;
    h->stride[CUDA_FULL] = (options->context_max + PAGE_TOKENS - 1) / PAGE_TOKENS;
    for (int t = 0; t < 2; t++) h->pages[t] = calloc((size_t)options->seqs_max * h->stride[t], sizeof *h->pages[t]);
    return h->pages[0] && h->pages[1] ? 0 : fail(-E_NOMEM, "out of memory");
}

static int set_pages(struct handle *h, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count)
{
    if (seq >= h->options.seqs_max || first > h->stride[type] || count > h->stride[type] - first) return fail(-E_RANGE, "pages out of range");
    memcpy(h->pages[type] + (uint64_t)seq * h->stride[type] + first, pages, count * sizeof *pages);
    return 0;
}

/* Where the token of a position is kept in the pool of a layer type; NULL: the page leads nowhere. */
static uint32_t *place(const struct handle *h, uint32_t type, uint32_t seq, uint32_t position)
{
    const uint32_t entry = type == CUDA_FULL ? position / PAGE_TOKENS : position / PAGE_TOKENS % h->stride[CUDA_SLIDING];
    const uint32_t page = h->pages[type][(uint64_t)seq * h->stride[type] + entry];

    if (page >= PAGE_LIMIT) return NULL;
    return (uint32_t *)((uint8_t *)h->options.kv_device[type] + page * h->spec.page_bytes[type]) + position % PAGE_TOKENS;
}

static int keep(const struct handle *h, uint32_t seq, uint32_t position, uint32_t token)
{
    for (uint32_t type = 0; type < 2; type++) {
        uint32_t *at = place(h, type, seq, position);
        if (!at) return fault();
        *at = token + 1;
    }
    return 0;
}

/* The next token, from both pools in turn; 0 when a position was never written. */
static uint32_t next(const struct handle *h, uint32_t seq, uint32_t position, const struct step_sampling *sampling)
{
    uint64_t hash = 14695981039346656037ull ^ (sampling->temperature > 0 ? sampling->seed : 0);

    for (uint32_t p = position + 1 > SEEN ? position + 1 - SEEN : 0; p <= position; p++) {
        const uint32_t *at = place(h, p % 2 ? CUDA_FULL : CUDA_SLIDING, seq, p);
        if (!at || *at == 0) return 0;
        hash = (hash ^ *at) * 1099511628211ull;
    }
    hash = (hash ^ position) * 1099511628211ull;
    return FIRST_TOKEN + (uint32_t)(hash >> 32) % TOKENS;
}

/* What the hidden state of a position begins with. */
static uint32_t *state_mark(const struct handle *h, uint32_t seq, uint32_t position) { return (uint32_t *)(h->options.states_device + ((uint64_t)seq * STEP_STATES_ROWS + position % STEP_STATES_ROWS) * h->spec.hidden); }
static uint32_t mark_of(uint32_t token, uint32_t position) { return (token + 1) * 2654435761u ^ position; }

/* The row's K and V, and its state; of a row that begins with its state, nothing but that. 0, or a code. */
static int run_row(const struct handle *h, int from_states, uint32_t seq, uint32_t position, uint32_t token)
{
    if (from_states) return *state_mark(h, seq, position) == mark_of(token, position) ? 0 : fail(-E_RANGE, "a step from a state that is not there");
    const int rc = keep(h, seq, position, token);
    if (rc == 0) *state_mark(h, seq, position) = mark_of(token, position);
    return rc;
}

static int weights_are_there(const struct handle *h) { return ((const struct arena_head *)h->options.weights_device)->magic == WEIGHTS_MAGIC; }

/* ---- decode ---- */

int cuda_backend_open(struct cuda_backend **backend, const struct cuda_model_spec *spec, const struct cuda_options *options)
{
    *backend = calloc(1, sizeof **backend);
    return open_handle(&(*backend)->h, spec, options);
}

void cuda_backend_close(struct cuda_backend *b) { free(b); }
int cuda_backend_pages(struct cuda_backend *b, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count) { return set_pages(&b->h, seq, type, first, pages, count); }

int cuda_backend_bias(struct cuda_backend *b, uint32_t seq, const struct step_bias *bias, uint32_t count)
{
    (void)b, (void)seq, (void)bias, (void)count;
    return 0;
}

int cuda_backend_history(struct cuda_backend *b, uint32_t seq, uint32_t first, const uint32_t *tokens, uint32_t count)
{
    (void)b, (void)seq, (void)first, (void)tokens, (void)count;
    return 0;
}

int cuda_backend_step(struct cuda_backend *b, const struct step_state *s)
{
    int rc = check_context();

    if (rc == 0 && !weights_are_there(&b->h)) rc = fail(-E_RANGE, "a step before the weights were in place");
    for (uint32_t g = 0; g < s->groups && rc == 0; g++)
        for (uint32_t i = 0; i < s->group[g].rows && rc == 0; i++) {
            const uint32_t r = s->group[g].first_row + i, position = s->group[g].first_position + i;
            if ((rc = run_row(&b->h, (int)s->from_states, s->group[g].seq, position, s->row[r].token)) != 0) break;
            if (!place(&b->h, CUDA_FULL, s->group[g].seq, 0)) rc = fault(); /* attention reads from the beginning */
            b->result.token[r] = next(&b->h, s->group[g].seq, position, &s->sampling[r]);
            b->result.bad[r] = b->result.token[r] == 0;
        }
    b->result.step = s->step;
    return rc;
}

/* ---- drafts that come over the device: its stream waits while the host asks whether it still does ---- */

int cuda_backend_hand_over(struct cuda_backend *b, struct cuda_handover_record *record)
{
    memset(record, 0, sizeof *record);
    b->record = record;
    return 0;
}

int cuda_backend_step_behind(struct cuda_backend *b, const struct step_state *s, uint64_t tag)
{
    if (s->groups != 1 || s->from_states || tag == 0) return fail(-E_RANGE, "a step of one sequence waits for drafts");
    b->behind = *s;
    b->tag = b->told = tag;
    return check_context();
}

int cuda_backend_begun(const struct cuda_backend *of)
{
    struct cuda_backend *b = (struct cuda_backend *)of;
    const struct cuda_handover_record *from = b->record;
    uint32_t drafts = 0;

    if (b->tag == 0) return 1;
    if (__atomic_load_n(&from->word, __ATOMIC_ACQUIRE) < b->tag) return 0;
    const uint32_t count = from->tag == b->tag ? from->count : 0;
    for (; drafts < count && drafts + 1 < b->behind.rows; drafts++) b->behind.row[1 + drafts].token = from->token[drafts];
    b->behind.rows = b->behind.group[0].rows = 1 + drafts;
    b->tag = 0;
    cuda_backend_step(b, &b->behind);
    return 1;
}

int cuda_backend_release(struct cuda_backend *b)
{
    __atomic_store_n(&b->record->word, b->tag, __ATOMIC_RELEASE);
    return 0;
}

uint32_t cuda_backend_scored(const struct cuda_backend *b, uint32_t *tokens)
{
    for (uint32_t i = 0; i < b->behind.rows; i++) tokens[i] = b->behind.row[i].token;
    return b->behind.rows;
}

/* What the drafter may follow: the newest token behind the step that waited for drafts. */
static void tell(struct cuda_backend *b)
{
    uint32_t n = 0;

    while (n + 1 < b->behind.rows && b->result.token[n] == b->behind.row[n + 1].token) n++;
    b->record->next_token = b->result.token[n];
    b->record->next_position = b->behind.group[0].first_position + n + 1;
    b->record->next_tag = b->told;
    __atomic_store_n(&b->record->next_word, b->told, __ATOMIC_RELEASE);
    b->told = 0;
}

int cuda_backend_wait(struct cuda_backend *b, uint64_t step, uint32_t timeout_us, struct step_result *result)
{
    (void)timeout_us;
    usleep((useconds_t)option("FAKE_GPU_STEP_US", 1000));
    *result = b->result;
    if (b->told && b->result.step == step) tell(b);
    return b->result.step == step ? check_context() : fail(-E_RANGE, "another step");
}

/* ---- prefill ---- */

int cuda_prefill_open(struct cuda_prefill **prefill, const struct cuda_model_spec *spec, const struct cuda_options *options, uint32_t rows_max)
{
    (void)rows_max;
    *prefill = calloc(1, sizeof **prefill);
    return open_handle(&(*prefill)->h, spec, options);
}

void cuda_prefill_close(struct cuda_prefill *p) { free(p); }
int cuda_prefill_pages(struct cuda_prefill *p, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count) { return set_pages(&p->h, seq, type, first, pages, count); }

/* It has no layers whose outputs a drafter could want. */
int cuda_backend_outputs(struct cuda_backend *b, uint64_t layers) { (void)b; return layers ? -E_RANGE : 0; }
int cuda_backend_generation(struct cuda_backend *b, uint32_t seq, uint32_t generation) { (void)b, (void)seq, (void)generation; return 0; }
int cuda_prefill_outputs_copy(struct cuda_prefill *p, uint32_t from_seq, uint32_t from_generation, uint32_t seq, uint32_t first, uint32_t count) { (void)p, (void)from_seq, (void)from_generation, (void)seq, (void)first, (void)count; return 0; }
int cuda_prefill_outputs(struct cuda_prefill *p, uint64_t layers) { (void)p; return layers ? -E_RANGE : 0; }
int cuda_prefill_generation(struct cuda_prefill *p, uint32_t seq, uint32_t generation) { (void)p, (void)seq, (void)generation; return 0; }

int cuda_prefill_copy(struct cuda_prefill *p, enum cuda_layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count)
{
    const uint64_t bytes = p->h.spec.page_bytes[type];

    p->rows = p->piece = 0;
    for (uint32_t i = 0; i < count; i++) memcpy((uint8_t *)p->h.options.kv_device[type] + to[i] * bytes, (uint8_t *)p->h.options.kv_device[type] + from[i] * bytes, bytes);
    return check_context();
}

int cuda_prefill_soft(struct cuda_prefill *p, const struct cuda_prefill_piece *pieces, uint32_t piece_count)
{
    (void)p, (void)pieces, (void)piece_count;
    return check_context();
}

int cuda_prefill_soft_weights(struct cuda_prefill *p, const struct cuda_soft_weights *weights)
{
    return weights->hidden == p->h.spec.hidden ? check_context() : fail(-E_RANGE, "soft tokens of another size");
}

int cuda_prefill_soft_go(struct cuda_prefill *p)
{
    (void)p;
    return check_context();
}

int cuda_prefill_begin(struct cuda_prefill *p, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    int rc = check_context();

    if (rc == 0 && !weights_are_there(&p->h)) rc = fail(-E_RANGE, "a prefill before the weights were in place");
    p->rows = p->launched = 0;
    for (uint32_t i = 0; i < span_count && rc == 0; i++) {
        for (uint32_t r = 0; r < spans[i].rows && rc == 0; r++) rc = keep(&p->h, spans[i].seq, spans[i].first_position + r, tokens[spans[i].first_row + r]);
        const uint32_t end = spans[i].first_position + spans[i].rows - 1;
        if (rc == 0 && spans[i].leaves_state) *state_mark(&p->h, spans[i].seq, end) = mark_of(tokens[spans[i].first_row + spans[i].rows - 1], end);
        p->rows += spans[i].rows;
    }
    return rc;
}

/* All is kept in begin; the pieces only take their time. */
int cuda_prefill_go(struct cuda_prefill *p, uint32_t layers)
{
    p->piece = layers < FAKE_LAYERS - p->launched ? layers : FAKE_LAYERS - p->launched;
    p->launched += p->piece;
    return p->launched < FAKE_LAYERS;
}

int cuda_prefill_wait(struct cuda_prefill *p, uint32_t timeout_us)
{
    (void)timeout_us;
    usleep(10 * p->rows * p->piece / FAKE_LAYERS);
    return check_context();
}

/* ---- the drafter ---- */

#define DRAFT_MAGIC 0x7374666172644077ull
#define DRAFT_WRONG 5u                /* every so many-th position's guess */

struct draft_head { uint64_t magic, rows_put; };

struct cuda_draft {
    struct handle h;                  /* of the target */
    struct cuda_draft_answer answer[CUDA_DRAFT_ROWS_MAX];
    uint32_t rows;
    struct cuda_handover_record *record;
    struct cuda_handover hand;        /* tag 0: this round hands nothing over */
    uint64_t follows;                 /* the step that the round waits for; 0: none */
    struct cuda_draft_question question;
};

static uint64_t draft_rows_wanted(const struct cuda_draft_spec *s, const struct cuda_model_spec *target)
{
    uint64_t rows = s->vocab + 2 * s->hidden + s->backbone_hidden;

    for (uint32_t i = 0; i < s->layers; i++) rows += s->q_heads * target->head_dim[s->layer_type[i]] + 6 * s->hidden + 2 * s->intermediate + target->head_dim[s->layer_type[i]] + 1;
    return rows;
}

uint64_t cuda_draft_weights_bytes(const struct cuda_draft_spec *spec) { return spec->layers ? 4096 : 0; }

int cuda_draft_weights_put(const struct cuda_draft_spec *spec, void *weights_device, enum cuda_draft_tensor tensor, uint32_t layer, uint32_t rows, uint32_t k, const void *source,
                           uint32_t source_format, const float *scale, uint32_t scale_stride)
{
    struct draft_head *head = weights_device;

    (void)spec, (void)tensor, (void)layer, (void)k, (void)source, (void)source_format, (void)scale, (void)scale_stride;
    head->magic = DRAFT_MAGIC;
    head->rows_put += rows;
    return check_context();
}

int cuda_draft_open(struct cuda_draft **draft, const struct cuda_draft_spec *spec, const struct cuda_model_spec *target, const struct cuda_draft_options *o)
{
    const struct draft_head *head = o->weights_device;
    const struct cuda_options options = {.weights_device = (void *)o->target_device, .kv_device = {(void *)o->kv_device[0], (void *)o->kv_device[1]}, .states_device = (void *)o->states_device,
                                         .seqs_max = o->seqs_max, .context_max = o->context_max, .ring_pages = o->ring_pages};

    if (head->magic != DRAFT_MAGIC || head->rows_put != draft_rows_wanted(spec, target)) return fail(-E_RANGE, "the drafter's weights were not put once and whole");
    *draft = calloc(1, sizeof **draft);
    (*draft)->record = o->handover;
    return open_handle(&(*draft)->h, target, &options);
}

void cuda_draft_close(struct cuda_draft *d) { free(d); }
int cuda_draft_pages(struct cuda_draft *d, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count) { return set_pages(&d->h, seq, type, first, pages, count); }

/* The real next tokens, from the cache before `position`, the state before it and the newest token; a wrong one now and then. */
static int guess(const struct handle *h, const struct cuda_draft_question *q, struct cuda_draft_answer *a)
{
    uint32_t text[SEEN + CUDA_DRAFT_STEPS_MAX + 1], count = 0;

    a->count = 0;
    for (uint32_t p = q->position > SEEN ? q->position - SEEN : 0; p < q->position; p++) {
        const uint32_t *at = place(h, p % 2 ? CUDA_FULL : CUDA_SLIDING, q->seq, p);
        if (!at) return fault();
        if (*at == 0) return 0; /* a restarted drafter may look before the pages are there: no advice */
        text[count++] = *at;
    }
    if (*state_mark(h, q->seq, q->position - 1) != mark_of(text[count - 1] - 1, q->position - 1)) return 0;
    text[count++] = q->token + 1;
    for (uint32_t p = q->position; a->count < q->steps; p++) {
        uint64_t hash = 14695981039346656037ull ^ (q->temperature > 0 ? q->seed : 0);
        for (uint32_t i = count > SEEN ? count - SEEN : 0; i < count; i++) hash = (hash ^ text[i]) * 1099511628211ull;
        hash = (hash ^ p) * 1099511628211ull;
        a->confidence[a->count] = p % DRAFT_WRONG ? 0.9f : 0.3f;
        a->token[a->count] = FIRST_TOKEN + (uint32_t)(hash >> 32) % TOKENS + (p % DRAFT_WRONG ? 0 : 1);
        text[count++] = a->token[a->count++] + 1;
    }
    return 0;
}

int cuda_draft_round(struct cuda_draft *d, const struct cuda_draft_question *questions, uint32_t count)
{
    int rc = check_context();

    d->rows = count;
    d->question = questions[0];
    if (d->follows) return count == 1 ? rc : fail(-E_RANGE, "a round of one question follows a step");
    for (uint32_t i = 0; i < count && rc == 0; i++) {
        rc = guess(&d->h, &questions[i], &d->answer[i]);
        d->answer[i].position = questions[i].position, d->answer[i].ns = 1000;
    }
    return rc;
}

int cuda_draft_follow(struct cuda_draft *d, uint64_t tag)
{
    d->follows = tag;
    return d->record && tag ? 0 : -E_RANGE;
}

int cuda_draft_skip(struct cuda_draft *d)
{
    if (d->follows) __atomic_store_n(&d->record->next_word, d->follows, __ATOMIC_RELEASE);
    return 0;
}

/* 0, or -E_TIMEOUT: the step has not sampled. */
static int follow(struct cuda_draft *d)
{
    struct cuda_draft_question q = d->question;

    if (__atomic_load_n(&d->record->next_word, __ATOMIC_ACQUIRE) < d->follows) return -E_TIMEOUT;
    q.token = d->record->next_token, q.position = d->record->next_position;
    d->answer[0] = (struct cuda_draft_answer){.ns = 1000};
    const int told = d->record->next_tag == d->follows;
    d->follows = 0;
    d->answer[0].position = told ? q.position : 0;
    return told ? guess(&d->h, &q, &d->answer[0]) : 0;
}

int cuda_draft_hand_over(struct cuda_draft *d, const struct cuda_handover *hand)
{
    d->hand = *hand;
    return d->record && hand->tag ? 0 : -E_RANGE;
}

int cuda_draft_wait(struct cuda_draft *d, uint32_t timeout_us, struct cuda_draft_answer *answers)
{
    const int rc = d->follows ? follow(d) : 0;

    (void)timeout_us;
    if (rc) return rc;
    usleep((useconds_t)option("FAKE_GPU_DRAFT_US", 200));
    if (d->hand.tag && d->rows == 1) {
        d->record->count = d->answer[0].count;
        memcpy(d->record->token, d->answer[0].token, d->record->count * sizeof *d->record->token);
        d->record->tag = d->hand.tag;
        __atomic_store_n(&d->record->word, d->hand.tag, __ATOMIC_RELEASE);
    }
    d->hand.tag = 0;
    memcpy(answers, d->answer, d->rows * sizeof *answers);
    return check_context();
}

/* Every shape has the drafter above: nobody is sent here. */
int cuda_draft_plain_open(struct cuda_draft **draft, const struct assistant_weights *weights, const struct cuda_model_spec *target, const struct cuda_draft_options *options, struct cuda_left_out left_out)
{
    (void)draft, (void)weights, (void)target, (void)options, (void)left_out;
    return fail(-E_UNSUPPORTED, "no such drafter");
}

/* ---- no DSpark head is of its shapes ---- */

uint64_t cuda_dspark_weights_bytes(const struct cuda_dspark_spec *spec) { (void)spec; return 0; }
int cuda_dspark_weights_put(const struct cuda_dspark_spec *spec, void *weights_device, enum cuda_dspark_tensor tensor, uint32_t layer, const void *source, uint64_t elements)
{
    (void)spec, (void)weights_device, (void)tensor, (void)layer, (void)source, (void)elements;
    return -E_UNSUPPORTED;
}
int cuda_dspark_weights_head(const struct cuda_dspark_spec *spec, void *weights_device, const struct cuda_model_spec *target, const void *target_device)
{
    (void)spec, (void)weights_device, (void)target, (void)target_device;
    return -E_UNSUPPORTED;
}
int cuda_dspark_open(struct cuda_dspark **dspark, const struct cuda_dspark_spec *spec, const struct cuda_model_spec *target, const struct cuda_dspark_options *options, float confidence_bias)
{
    (void)dspark, (void)spec, (void)target, (void)options, (void)confidence_bias;
    return -E_UNSUPPORTED;
}
int cuda_dspark_plain_open(struct cuda_dspark **dspark, const struct dspark_weights *weights, const struct cuda_model_spec *target, const struct cuda_dspark_options *options, struct cuda_left_out left_out,
                           uint64_t *own_bytes)
{
    (void)dspark, (void)weights, (void)target, (void)options, (void)left_out, (void)own_bytes;
    return -E_UNSUPPORTED;
}
int cuda_dspark_place(struct cuda_dspark *d, uint32_t place, uint32_t low) { (void)d, (void)place, (void)low; return -E_UNSUPPORTED; }
int cuda_dspark_absorb(struct cuda_dspark *d, const struct cuda_dspark_absorb *items, uint32_t count, uint64_t layers) { (void)d, (void)items, (void)count, (void)layers; return -E_UNSUPPORTED; }
int cuda_dspark_follow(struct cuda_dspark *d, uint64_t tag, uint32_t generation, uint64_t layers) { (void)d, (void)tag, (void)generation, (void)layers; return -E_UNSUPPORTED; }
int cuda_dspark_skip(struct cuda_dspark *d) { (void)d; return -E_UNSUPPORTED; }
int cuda_dspark_round(struct cuda_dspark *d, const struct cuda_dspark_question *questions, uint32_t count) { (void)d, (void)questions, (void)count; return -E_UNSUPPORTED; }
int cuda_dspark_hand_over(struct cuda_dspark *d, const struct cuda_handover *hand) { (void)d, (void)hand; return -E_UNSUPPORTED; }
int cuda_dspark_wait(struct cuda_dspark *d, uint32_t timeout_us, struct cuda_dspark_answer *answers) { (void)d, (void)timeout_us, (void)answers; return -E_UNSUPPORTED; }
