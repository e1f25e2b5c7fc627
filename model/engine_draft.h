/* model/engine_draft.h - the draft stage's view of a neural drafter: a checkpoint of its own beside the target's table, keys and states, and
 * rounds of drafts on the CPU or on a GPU behind one interface.
 *
 * What a drafter is given (descriptors draft.NAME) says what it is: an MTP assistant (model/assistant.h) or a DSpark head. It reads the
 * target's embedding table, KV arena and state rows (model/states.h), all read-only, and writes none of them. Between rounds it keeps only
 * what admit told it: a drafter that was killed goes on with the next question.
 *
 * Drafts are picked with the target's own noise: draft i of a question is the sampler's choice for position + 1 + i, so that a good
 * drafter's choice is the target's at any temperature. Advice only: no token depends on it.
 *
 * Fails: a checkpoint that cannot be used, or not with this target: the process exits with the reason. For the stage's main thread. */
#ifndef SLUICE_MODEL_ENGINE_DRAFT_H
#define SLUICE_MODEL_ENGINE_DRAFT_H

#include "model/draft_vocab.h"
#include "model/engine.h"

enum draft_kind { DRAFT_KIND_NONE = 0, DRAFT_KIND_NGRAM = 1, DRAFT_KIND_MTP = 2, DRAFT_KIND_DSPARK = 3, DRAFT_KIND_COUNT = 4 };

struct engine_draft_question {
    uint32_t slot;
    uint32_t token, position;        /* the newest token and its position: 0 .. position - 1 are in the KV cache, the state of position - 1 in its row */
    uint32_t tokens_max;             /* drafts wanted, 1 .. tokens_max of the engine */
    const struct sampling_params *sampling; /* checked */
    const struct penalty_counts *counts;    /* of the text up to the newest token; NULL: none are needed. A device may ignore them */
};

struct engine_draft_answer {
    uint32_t count;
    uint32_t position;               /* of a round that was begun ahead: of the newest token, which the drafts follow; 0: the step that it waited for told nothing */
    uint32_t ns;                     /* of such a round: what it took */
    uint32_t token[RING_TOKENS_MAX];
    float confidence[RING_TOKENS_MAX]; /* in [0, 1], larger is surer; what one is worth learns the stage from what is accepted */
};

/* Shall question `index` get another draft behind so_far->count of them? Asked after every step by a device that computes step by step. */
typedef bool engine_draft_go_on_fn(void *context, uint32_t index, const struct engine_draft_answer *so_far);

struct cuda_handover;
struct engine_draft;
struct engine_draft_device {
    void (*admit)(struct engine_draft *d, uint32_t slot, const struct engine_sequence *seq);
    void (*leave)(struct engine_draft *d, uint32_t slot);
    int (*round)(struct engine_draft *d, const struct engine_draft_question *questions, uint32_t count, struct engine_draft_answer *answers,
                 engine_draft_go_on_fn *go_on, void *context);
    void (*hand_over)(struct engine_draft *d, const struct cuda_handover *hand); /* NULL: its drafts go over the host */
    /* NULL: rounds begin when they are asked for */
    int (*ahead)(struct engine_draft *d, const struct engine_draft_question *question, uint64_t behind);
    int (*ahead_done)(struct engine_draft *d, struct engine_draft_answer *answer);
    void (*skip)(struct engine_draft *d);
};

struct engine_draft {
    struct engine target;            /* files, configuration and page geometry of the model that is drafted for; it has no device */
    struct stage *stage;             /* borrowed: its heart beats while we compute */
    struct model_files files;        /* of the drafter */
    struct draft_vocab vocab;        /* what it may propose */
    uint32_t kind;                   /* enum draft_kind */
    uint32_t slot_count, rows_max;   /* questions of one round */
    uint32_t tokens_max;             /* drafts of one question */
    uint64_t fixed_ns;               /* of the last round: what it took before the first draft, however many follow; 0: every draft is a step of its own */
    bool hands_over;                 /* drafts may go to verify's step over the device */
    bool goes_ahead;                 /* a round may begin behind verify's step, before it is asked for */
    const struct engine_draft_device *device;
    void *state;                     /* the device's own; lives as long as the process */
};

/* Opens the drafter that the wiring names, for the device on which the target runs. Exits through stage_exit() with the reason on failure. */
void engine_draft_open(struct engine_draft *d, struct stage *s, uint32_t slot_count, uint32_t rows_max);

/* A sequence begins in this slot; its pages are borrowed until engine_draft_leave. */
static inline void engine_draft_admit(struct engine_draft *d, uint32_t slot, const struct engine_sequence *seq) { d->device->admit(d, slot, seq); }
static inline void engine_draft_leave(struct engine_draft *d, uint32_t slot) { d->device->leave(d, slot); }

/* One round, no slot twice; count <= rows_max. 0, or -E_RANGE / -E_TIMEOUT: no advice this round. */
static inline int engine_draft_round(struct engine_draft *d, const struct engine_draft_question *questions, uint32_t count,
                                     struct engine_draft_answer *answers, engine_draft_go_on_fn *go_on, void *context)
{
    return d->device->round(d, questions, count, answers, go_on, context);
}

/* The next round, of one question, leaves its drafts where verify's step waits on the device as well (kernels/cuda/cuda_handover.h). Only where d->hands_over. */
static inline void engine_draft_hand_over(struct engine_draft *d, const struct cuda_handover *hand) { d->device->hand_over(d, hand); }

/* A round that begins when the step of tag `behind` has sampled, with the token and the position that the step leaves on the device; those of the question must be sound and count for
 * nothing. Only where d->goes_ahead, behind engine_draft_hand_over. 0, or -E_RANGE, -E_UNSUPPORTED: there is none. Until engine_draft_ahead_done says that it is over nothing else may
 * be asked: 1: it is, with its answer; 0: not yet; -E_TIMEOUT: it gave up. engine_draft_skip: it waits no longer. */
static inline int engine_draft_ahead(struct engine_draft *d, const struct engine_draft_question *question, uint64_t behind) { return d->device->ahead(d, question, behind); }
static inline int engine_draft_ahead_done(struct engine_draft *d, struct engine_draft_answer *answer) { return d->device->ahead_done(d, answer); }
static inline void engine_draft_skip(struct engine_draft *d) { d->device->skip(d); }

/* What a drafter's config.json calls itself: DRAFT_KIND_MTP or DRAFT_KIND_DSPARK, or -E_FORMAT, -E_NOT_FOUND, -E_UNSUPPORTED with the reason. */
int engine_draft_kind(const struct model_files *files, struct model_error *err);
const char *engine_draft_kind_name(uint32_t kind);

/* For the devices: each fills d->device, d->state and d->tokens_max. */
void engine_draft_open_mtp(struct engine_draft *d);
void engine_draft_open_dspark(struct engine_draft *d);
void engine_draft_open_cuda(struct engine_draft *d);   /* an MTP assistant */
void engine_draft_open_dspark_cuda(struct engine_draft *d);

/* For drafters on a GPU. The format of their weights there by option draft.dtype: WEIGHT_BF16 or WEIGHT_FP8. Exits on any other word. */
uint32_t engine_draft_format(const struct engine_draft *d);
/* What the library said when the drafter was set up; exits with the reason unless it took it. */
struct cuda_library;
void engine_draft_accepted(const struct engine_draft *d, const struct cuda_library *lib, int rc);

/* A head's shape as the GPU's kernels take it; own_table and embed_scale are its weights' to say. */
struct cuda_dspark_spec;
struct dspark_config;
void engine_draft_dspark_spec(struct cuda_dspark_spec *spec, const struct dspark_config *config, uint32_t format);

#endif
