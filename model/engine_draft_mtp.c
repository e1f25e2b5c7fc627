/* model/engine_draft_mtp.c - the MTP assistant on the CPU, step by step: model/assistant.h computes, model/sampler.h picks.
 *
 * Reads    the drafter's checkpoint, the target's embedding table, its KV arena and state rows, all mapped read-only
 * Owns     logits and hidden states of one step
 * Fails    a checkpoint that does not fit the target: exit 100; out of memory: exit 111. A page table that another process is just changing is caught
 *          by assistant_step's checks: no advice for that round. */
#include "model/engine_draft.h"

#include "model/assistant.h"
#include "model/states.h"
#include "shm/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct mtp {
    struct model_weights target;         /* its embedding table is used, nothing else */
    struct assistant_weights weights;
    struct assistant *assistant;
    const struct kernels *kernels;
    struct sampler *sampler;
    const uint8_t *states;               /* arena.states */
    struct forward_seq *pages;           /* [slot_count], borrowed from whoever admitted */
    /* of one round, [rows_max] */
    struct assistant_row *row;
    struct forward_seq *seq;
    uint32_t *asked;                     /* question of each row that still drafts */
    float *embedding, *hidden, *logits;  /* [rows_max][backbone_hidden], the same, [rows_max][vocab] */
};

static void mtp_admit(struct engine_draft *d, uint32_t slot, const struct engine_sequence *seq)
{
    struct mtp *m = d->state;

    m->pages[slot] = (struct forward_seq){.full_pages = seq->full_pages, .sliding_pages = seq->sliding_pages,
                                          .full_page_count = seq->full_page_count, .sliding_page_count = seq->sliding_page_count};
}

static void mtp_leave(struct engine_draft *d, uint32_t slot)
{
    struct mtp *m = d->state;

    memset(&m->pages[slot], 0, sizeof m->pages[slot]);
}

/* The target's input for a token: its table row, scaled. */
static void embed(const struct engine_draft *d, uint32_t token, float *out)
{
    const struct mtp *m = d->state;
    const uint32_t hidden = d->target.config.hidden;
    const bool wide = m->target.dtype == DTYPE_F32;

    m->kernels->widen(out, (const uint8_t *)m->target.embed + (uint64_t)token * hidden * (wide ? 4 : 2), wide ? KERNELS_F32 : KERNELS_BF16, m->target.embed_scale, hidden);
}

static void lay_questions(struct engine_draft *d, const struct engine_draft_question *q, uint32_t count)
{
    struct mtp *m = d->state;
    const uint32_t hidden = d->target.config.hidden;

    for (uint32_t i = 0; i < count; i++) {
        m->asked[i] = i;
        m->seq[i] = m->pages[q[i].slot];
        m->row[i] = (struct assistant_row){.position = q[i].position, .key_count = q[i].position, .seq = i};
        memcpy(m->hidden + (uint64_t)i * hidden, m->states + states_offset(q[i].slot, q[i].position - 1, hidden), hidden * sizeof(float));
        embed(d, q[i].token, m->embedding + (uint64_t)i * hidden);
    }
}

/* Of the rows that were just computed those that go on move to the front, each with its newest draft as input. Returns how many. */
static uint32_t advance(struct engine_draft *d, const struct engine_draft_question *q, uint32_t rows, struct engine_draft_answer *answers, engine_draft_go_on_fn *go_on, void *context)
{
    struct mtp *m = d->state;
    const uint32_t hidden = d->target.config.hidden, vocab = d->target.config.vocab;
    uint32_t kept = 0;

    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t i = m->asked[r];
        struct engine_draft_answer *a = &answers[i];
        float lead;
        if (sampler_guess(m->sampler, q[i].sampling, m->logits + (uint64_t)r * vocab, (uint64_t)q[i].position + 1 + a->count, q[i].counts, &a->token[a->count], &lead) != 0) continue;
        a->confidence[a->count] = 1.0f - expf(-lead);
        a->count++;
        if (a->count >= q[i].tokens_max || a->count >= d->tokens_max || !go_on(context, i, a)) continue;
        embed(d, a->token[a->count - 1], m->embedding + (uint64_t)kept * hidden);
        memmove(m->hidden + (uint64_t)kept * hidden, m->hidden + (uint64_t)r * hidden, hidden * sizeof(float));
        m->row[kept] = m->row[r];
        m->asked[kept++] = i;
    }
    return kept;
}

static int mtp_round(struct engine_draft *d, const struct engine_draft_question *q, uint32_t count, struct engine_draft_answer *answers, engine_draft_go_on_fn *go_on, void *context)
{
    struct mtp *m = d->state;
    const uint32_t hidden = d->target.config.hidden;
    uint32_t rows = count;

    if (count > d->rows_max) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++) {
        if (q[i].slot >= d->slot_count || q[i].position == 0 || q[i].token >= d->target.config.vocab) return -E_RANGE;
        answers[i].count = 0;
    }
    lay_questions(d, q, count);
    while (rows > 0) {
        for (uint32_t r = 0; r < rows; r++) {
            m->row[r].embedding = m->embedding + (uint64_t)r * hidden;
            m->row[r].hidden = m->hidden + (uint64_t)r * hidden;
        }
        const int rc = assistant_step(m->assistant, m->row, rows, m->seq, count, m->logits, m->hidden);
        if (rc != 0) return rc;
        stage_beat(d->stage);
        rows = advance(d, q, rows, answers, go_on, context);
    }
    return 0;
}

static const struct engine_draft_device mtp_device = {mtp_admit, mtp_leave, mtp_round, NULL, NULL, NULL, NULL};

/* ---- setting up ---- */

static const void *map(struct engine_draft *d, const char *name, uint64_t bytes)
{
    uint64_t mapped = 0;
    const void *at = stage_map(d->stage, name, false, &mapped);

    if (!at || mapped < bytes) stage_exit(d->stage, EXIT_MISSING, "%s has %llu bytes, the drafter needs %llu", name, (unsigned long long)mapped, (unsigned long long)bytes);
    return at;
}

static int open_assistant(struct engine_draft *d)
{
    const struct forward_options options = {.threads = (uint32_t)wiring_u64(&d->stage->wiring, "threads", 1), .rows_max = d->rows_max};
    struct mtp *m = d->state;

    m->states = map(d, "arena.states", states_bytes(d->slot_count, d->target.config.hidden));
    return assistant_open(&m->assistant, &m->weights, &d->target.config, &d->target.geometry, map(d, "arena.kv", d->target.geometry.arena_bytes), &options);
}

static void load(struct engine_draft *d, struct mtp *m)
{
    struct model_error err = {""};
    int rc = model_load(&d->target.config, &d->target.generation, &m->target, &d->target.files, &err);

    if (rc == 0) rc = assistant_load(&m->weights, &d->files, &err);
    if (rc == 0) rc = assistant_check(&m->weights, &d->target.config, &err);
    if (rc == 0 && strcmp(wiring_text(&d->stage->wiring, "draft.dtype", "auto"), "fp8") == 0) rc = assistant_to_fp8(&m->weights, (uint32_t)wiring_u64(&d->stage->wiring, "threads", 1));
    if (rc != 0) stage_exit(d->stage, EXIT_CONFIG, "the drafter cannot be used: %s", err.text[0] ? err.text : error_text(rc));
}

void engine_draft_open_mtp(struct engine_draft *d)
{
    const uint64_t rows = d->rows_max, hidden = d->target.config.hidden;
    struct mtp *m = calloc(1, sizeof *m);

    if (!m) stage_exit(d->stage, EXIT_MISSING, "out of memory");
    d->state = m;
    d->device = &mtp_device;
    d->tokens_max = RING_TOKENS_MAX;
    load(d, m);
    m->kernels = kernels_get(KERNELS_BEST);
    int rc = open_assistant(d);
    if (rc == 0) rc = sampler_open(&m->sampler, d->target.config.vocab, d->vocab.left_out, d->vocab.left_out_count);
    m->pages = calloc(d->slot_count, sizeof *m->pages);
    m->row = calloc(rows, sizeof *m->row);
    m->seq = calloc(rows, sizeof *m->seq);
    m->asked = calloc(rows, sizeof *m->asked);
    m->embedding = malloc(rows * hidden * sizeof(float));
    m->hidden = malloc(rows * hidden * sizeof(float));
    m->logits = malloc(rows * d->target.config.vocab * sizeof(float));
    if (rc != 0 || !m->pages || !m->row || !m->seq || !m->asked || !m->embedding || !m->hidden || !m->logits)
        stage_exit(d->stage, EXIT_MISSING, "the drafter cannot be set up: %s", rc ? error_text(rc) : "out of memory");
}
