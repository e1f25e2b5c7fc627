/* model/engine_draft_dspark.c - a DSpark head (model/dspark.h) as the draft stage's drafter, computed on the CPU beside a target on the CPU.
 *
 * Reads    the drafter's files and the target's (its embedding table is usually the drafter's, too), arena.features
 * Writes   counter DRAFT_SOURCES of the draft role: which layers' outputs prefill and verify shall leave in arena.features
 * Owns     the drafter's keys and values, draft.context positions a slot. They die with the process: its successor takes them from arena.features again
 * Fails    a head that cannot draft for this model: exit 100 with the reason. Positions whose outputs are gone (nobody wanted them when they were
 *          computed, or the drafter lagged too far behind): the head looks back as far as the ones behind them, and not at all for a while. */
#include "model/dspark.h"
#include "model/engine_draft.h"
#include "model/features.h"
#include "schemas/counters.h"
#include "shm/atomic.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/must.h"

#include <stdlib.h>
#include <string.h>

#define ABSORB_ROWS 64u               /* positions that go into the cache together; the heart beats in between */
#define CATCH_UP_ROWS 512u            /* positions absorbed in one round: a long prompt takes several, so that the others' drafts are not late for it */
#define CONTEXT_MIN 8u                /* a head that sees fewer positions is not asked: it was never trained for that, but for a short prompt */

struct memory {                       /* of one slot */
    uint32_t generation;              /* 0: no sequence */
    uint32_t low, filled;             /* positions low .. filled - 1 are in the cache */
    uint8_t *cache;                   /* part of device.caches */
};

struct device {
    struct model_weights target;      /* its tables are used, nothing else */
    struct dspark_weights weights;
    struct dspark_cache cache;
    struct dspark *head;
    struct sampler *sampler;
    struct features features;         /* read only */
    uint64_t layers;
    struct memory *memory;            /* [slot_count] */
    uint8_t *caches;                  /* [slot_count][slot_bytes] */
    float *taken;                     /* [ABSORB_ROWS][floats of a row] */
    float *logits;                    /* [rows_max, vocab] */
    /* the round in hand, [rows_max] each */
    struct dspark_row *rows;
    struct dspark_guess *guesses;
    uint32_t *question;               /* of a row */
    uint32_t *asking;                 /* of a guess: its row */
    uint32_t *newest;                 /* of a row: the token before the next guess */
    bool *open;                       /* of a row */
};

static void dspark_admit(struct engine_draft *d, uint32_t slot, const struct engine_sequence *seq)
{
    struct memory *m = &((struct device *)d->state)->memory[slot];

    m->generation = seq->generation;
    m->low = m->filled = 0;
}

static void dspark_leave(struct engine_draft *d, uint32_t slot)
{
    ((struct device *)d->state)->memory[slot].generation = 0;
}

/* Positions first .. first + count - 1, whose outputs are in v->taken. */
static int absorb(struct device *v, struct memory *m, uint32_t first, uint32_t count)
{
    const uint32_t floats = dspark_feature_floats(&v->weights.config);
    struct dspark_feature rows[ABSORB_ROWS];

    for (uint32_t i = 0; i < count; i++) rows[i] = (struct dspark_feature){v->taken + (uint64_t)i * floats, m->cache, first + i};
    return count ? dspark_absorb(v->head, rows, count) : 0;
}

/* Outputs of positions first .. first + most - 1 into v->taken, as far as they are there; returns how many. */
static uint32_t take(struct device *v, uint32_t slot, uint32_t generation, uint32_t first, uint32_t most)
{
    const struct features *f = &v->features;
    const uint32_t floats = features_floats(f, v->layers);
    uint32_t n = 0;

    while (n < most && features_take(f, slot, generation, first + n, v->layers, v->taken + (uint64_t)n * floats)) n++;
    return n;
}

/* Brings the slot's cache up to `position`, as far as outputs are there and *budget goes. Are enough positions before it in the cache to draft? */
static bool catch_up(struct engine_draft *d, uint32_t slot, uint32_t position, uint32_t *budget)
{
    struct device *v = d->state;
    struct memory *m = &v->memory[slot];

    if (m->generation == 0 || position > v->cache.max_context) return false;
    if (m->filled > position) m->low = m->filled = 0; /* the text is shorter than it was: a question of a predecessor's time */
    if (position - m->filled > v->cache.window) m->low = m->filled = position - v->cache.window;
    while (m->filled < position && *budget > 0) {
        const uint32_t left = position - m->filled < *budget ? position - m->filled : *budget, most = left < ABSORB_ROWS ? left : ABSORB_ROWS;
        const uint32_t n = take(v, slot, m->generation, m->filled, most);
        must(absorb(v, m, m->filled, n) == 0);
        m->filled += n;
        *budget -= n;
        if (n < most) m->low = ++m->filled; /* a gap: what lies before it is not seen any more */
        stage_beat(d->stage);
    }
    const uint32_t seen = position - m->low, all = position < CONTEXT_MIN ? position : CONTEXT_MIN;
    return m->filled == position && seen > 0 && seen >= all;
}

/* One guess for every row that still wants one. False: none does. */
static bool guess(struct engine_draft *d, uint32_t index, uint32_t row_count, const struct engine_draft_question *questions, struct engine_draft_answer *answers,
                  engine_draft_go_on_fn *go_on, void *context)
{
    struct device *v = d->state;
    const uint64_t vocab = d->target.config.vocab;
    uint32_t count = 0;

    for (uint32_t r = 0; r < row_count; r++) {
        const uint32_t q = v->question[r];
        v->open[r] = v->open[r] && index < questions[q].tokens_max && (index == 0 || go_on(context, q, &answers[q]));
        if (!v->open[r]) continue;
        v->asking[count] = r;
        v->guesses[count++] = (struct dspark_guess){.row = r, .index = index, .previous = v->newest[r]};
    }
    if (count == 0) return false;
    must(dspark_logits(v->head, v->guesses, count, v->logits) == 0);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t r = v->asking[i], q = v->question[r];
        struct engine_draft_answer *a = &answers[q];
        float lead;
        v->open[r] = sampler_guess(v->sampler, questions[q].sampling, v->logits + i * vocab, (uint64_t)questions[q].position + 1 + index, questions[q].counts, &v->newest[r], &lead) == 0;
        if (!v->open[r]) continue;
        a->token[a->count] = v->newest[r];
        a->confidence[a->count++] = dspark_confidence(v->head, &v->guesses[i]);
    }
    return true;
}

static int dspark_round(struct engine_draft *d, const struct engine_draft_question *questions, uint32_t count, struct engine_draft_answer *answers,
                        engine_draft_go_on_fn *go_on, void *context)
{
    struct device *v = d->state;
    uint32_t rows = 0, wanted = 0, budget = CATCH_UP_ROWS;

    d->fixed_ns = 0;
    if (count > d->rows_max) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++) {
        const struct engine_draft_question *q = &questions[i];
        answers[i].count = 0;
        if (q->tokens_max == 0 || q->position > v->cache.max_context - v->weights.config.block || !catch_up(d, q->slot, q->position, &budget)) continue;
        v->rows[rows] = (struct dspark_row){.cache = v->memory[q->slot].cache, .token = q->token, .position = q->position, .low = v->memory[q->slot].low};
        v->question[rows] = i;
        v->newest[rows] = q->token;
        v->open[rows++] = true;
        if (q->tokens_max > wanted) wanted = q->tokens_max;
    }
    if (rows == 0) return 0;
    if (wanted > d->tokens_max) wanted = d->tokens_max;
    const uint64_t begin_ns = clock_ns(); /* catching up on a prompt comes once */
    const int rc = dspark_block(v->head, v->rows, rows, wanted);
    if (rc != 0) return rc;
    d->fixed_ns = clock_ns() - begin_ns;
    for (uint32_t i = 0; i < wanted && guess(d, i, rows, questions, answers, go_on, context); i++) stage_beat(d->stage);
    return 0;
}

static const struct engine_draft_device dspark_device = {dspark_admit, dspark_leave, dspark_round, NULL, NULL, NULL, NULL};

/* ---- opening ------------------------------------------------------------------------------------------ */

static void load(struct engine_draft *d, struct device *v)
{
    struct model_error err = {""};
    int rc = model_load(&d->target.config, &d->target.generation, &v->target, &d->target.files, &err);

    if (rc == 0) rc = dspark_load(&v->weights, &d->files, &v->target, &err);
    if (rc == 0) rc = dspark_check(&v->weights.config, &d->target.config, &err);
    if (rc == 0 && strcmp(wiring_text(&d->stage->wiring, "draft.dtype", "auto"), "fp8") == 0) rc = dspark_to_fp8(&v->weights, (uint32_t)wiring_u64(&d->stage->wiring, "threads", 1));
    if (rc != 0) stage_exit(d->stage, EXIT_CONFIG, "the drafter cannot be used: %s", err.text[0] ? err.text : error_text(rc));
    for (uint32_t i = 0; i < v->weights.config.source_count; i++) {
        if (v->weights.config.source[i] >= 64) stage_exit(d->stage, EXIT_CONFIG, "the drafter reads layer %u; only the first 64 can be had", v->weights.config.source[i]);
        v->layers |= 1ull << v->weights.config.source[i];
    }
    stage_log(d->stage, LOG_INFO, "drafter", "kind=dspark block=%u layers=%u mib=%llu shared=%s%s", v->weights.config.block, v->weights.config.layers.layer_count,
              (unsigned long long)(v->weights.own_bytes >> 20), v->weights.embed_is_shared ? "embeddings," : "", v->weights.head_is_shared ? "output" : "");
}

static void map_features(struct engine_draft *d, struct device *v)
{
    const uint32_t context = (uint32_t)wiring_u64(&d->stage->wiring, "draft.context", 0);
    uint64_t bytes = 0;

    features_init(&v->features, d->slot_count, context, d->target.geometry.max_context, d->target.config.hidden);
    v->features.base = stage_map(d->stage, "arena.features", false, &bytes);
    if (!v->features.base || bytes < features_bytes(&v->features))
        stage_exit(d->stage, EXIT_MISSING, "arena.features has %llu bytes, %llu are needed", (unsigned long long)bytes, (unsigned long long)features_bytes(&v->features));
    const int rc = dspark_cache_init(&v->cache, &v->weights.config, KV_BF16, context ? context : 1, d->target.geometry.max_context);
    must(rc == 0);
}

static bool make_room(struct engine_draft *d, struct device *v)
{
    const uint32_t rows = d->rows_max;

    v->memory = calloc(d->slot_count, sizeof *v->memory);
    v->caches = aligned_alloc(4096, (d->slot_count * v->cache.slot_bytes + 4095) / 4096 * 4096); /* untouched pages take no memory */
    v->taken = malloc(sizeof(float) * ABSORB_ROWS * dspark_feature_floats(&v->weights.config));
    v->logits = malloc(sizeof(float) * rows * (uint64_t)d->target.config.vocab);
    v->rows = calloc(rows, sizeof *v->rows);
    v->guesses = calloc(rows, sizeof *v->guesses);
    v->question = calloc(rows, sizeof *v->question);
    v->asking = calloc(rows, sizeof *v->asking);
    v->newest = calloc(rows, sizeof *v->newest);
    v->open = calloc(rows, sizeof *v->open);
    if (!v->memory || !v->caches || !v->taken || !v->logits || !v->rows || !v->guesses || !v->question || !v->asking || !v->newest || !v->open) return false;
    for (uint32_t i = 0; i < d->slot_count; i++) v->memory[i].cache = v->caches + i * v->cache.slot_bytes;
    return true;
}

void engine_draft_open_dspark(struct engine_draft *d)
{
    struct device *v = calloc(1, sizeof *v);

    if (!v) stage_exit(d->stage, EXIT_MISSING, "out of memory");
    load(d, v);
    if (d->rows_max > DSPARK_BLOCKS_MAX) d->rows_max = DSPARK_BLOCKS_MAX;
    map_features(d, v);
    const struct forward_options options = {.threads = (uint32_t)wiring_u64(&d->stage->wiring, "threads", 1), .rows_max = d->rows_max};
    int rc = dspark_open(&v->head, &v->weights, &v->cache, &options);
    if (rc == 0) rc = sampler_open(&v->sampler, d->target.config.vocab, d->vocab.left_out, d->vocab.left_out_count);
    if (rc != 0) stage_exit(d->stage, EXIT_MISSING, "the drafter cannot be set up: %s", error_text(rc));
    if (!make_room(d, v)) stage_exit(d->stage, EXIT_MISSING, "out of memory for the drafter");
    d->device = &dspark_device;
    d->state = v;
    d->tokens_max = v->weights.config.block < RING_TOKENS_MAX ? v->weights.config.block : RING_TOKENS_MAX;
    shm_store_release(&d->stage->status->counters[DRAFT_SOURCES], v->layers);
}
