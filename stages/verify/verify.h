/* stages/verify/verify.h - what the parts of the verify stage share: its private view of the sequences. */
#ifndef SLUICE_STAGES_VERIFY_H
#define SLUICE_STAGES_VERIFY_H

#include "model/engine.h"
#include "model/pace.h"
#include "schemas/counters.h"
#include "schemas/table.h"
#include "schemas/turns.h"
#include "shm/stage.h"

struct sequence { /* private view of one slot, rebuilt from the table at start */
    uint32_t generation; /* 0: not in work */
    uint32_t known;      /* output tokens decided; the newest may not be committed yet */
    uint32_t committed;
    uint32_t steps;      /* that this process has run it: a suspect runs alone for its first ones */
    uint32_t finish;     /* enum finish_reason, once decided; said together with the last commit */
    uint32_t draft_base, draft_count; /* the newest proposal: follows draft_base committed tokens; NOT_ASKED: there is none */
    uint32_t judged;     /* drafts of it that have been compared with what came out; UINT32_MAX: one was wrong */
    uint32_t asked;      /* draft_base of the answer that a round may wait for; NOT_ASKED: none */
    uint32_t quiet;      /* tokens since the drafter was last asked */
    bool wants;          /* its drafts pay: ask, wait, score */
    uint32_t most;       /* drafts to ask for, ... */
    float least, worth;  /* ... and the least chance that one should have to be drafted, to be scored */
    uint32_t told_most;  /* `most`, as the drafter was told it last */
    struct pace_sequence pace;
    uint32_t draft[RING_TOKENS_MAX];
};
#define NOT_ASKED UINT32_MAX

#define ANSWER_SIZES 8u

struct handed {          /* a lone sequence's drafts that go from the drafter to the step on the device */
    uint64_t tag;        /* of the question; 0: none is open */
    bool coming;         /* the drafter says so: the step may wait for them */
    uint32_t slot;
    uint64_t asked_ns, until_ns; /* when the step goes without */
    uint64_t answered_ns;        /* the host's answer, which comes as well; 0: not yet */
};

struct verify {
    struct stage stage;
    struct table table;
    struct engine engine;
    struct pace pace;
    struct turns turns;
    struct sequence *seq; /* [slot_count] */
    uint32_t *active;     /* slots in work, in no order */
    uint32_t active_count, next_active;
    uint32_t draft_tokens;
    bool draft_always;    /* score what is proposed, whether it pays or not */
    bool drafting;        /* somebody's drafts pay: this round waits for proposals */
    bool exploring;       /* they do not, but prices must be known: one sequence is drafted for all the same */
    bool sparing;         /* they do, but fewer are scored in this round, for the same reason */
    bool drafted;         /* what was decided for the round before, exploring apart */
    uint32_t unexplored;  /* rounds of this kind in a row */
    uint32_t late, skip_waits;
    struct { uint64_t asked_ns; uint32_t slot, base, size; } timed; /* a question whose answer is timed; asked_ns 0: none */
    struct handed behind; /* drafts that come over the device */
    uint64_t stepped_tag; /* of the drafts that the last step waited for, if it did: the drafter may follow that step before it is asked; 0: none */
    uint64_t ahead_tag;   /* of the drafts that it then leaves, stepped_tag + 1, once it has said so; 0: it has not */
    uint64_t answer_ns[ANSWER_SIZES]; /* how long answers took lately, by how many were asked for: 1, 2, 3 to 4, 5 to 8 ...; late ones too, for one waits so long */
    double seen_us[ANSWER_SIZES]; /* the same as a price: what a slow one was slow for need not come again */
    struct pace_asker *asker; /* [slot_count]; scratch of drafts_decide */
    uint32_t longest_asked; /* drafts that the longest question of this round asks for */
    uint32_t block_count, row_count; /* of the step in hand */
    bool begins;          /* it is of sequences without a token */
    struct engine_span span[ENGINE_ROWS_MAX];
    uint32_t tokens[ENGINE_ROWS_MAX];
    uint32_t pending[ENGINE_ROWS_MAX], pending_count; /* slots with decided tokens that nobody has been told of */
    bool first_tokens;               /* one of them is the first of its output: somebody waits for it more than for others */
};

static inline uint32_t newest_token(const struct verify *k, uint32_t slot)
{
    const struct sequence *q = &k->seq[slot];

    return q->known ? table_output(&k->table, slot)[q->known - 1] : table_prompt(&k->table, slot)[table_tokenize(&k->table, slot)->prompt_count - 1];
}

/* Publishes a message about the slot: what is committed of it. */
void verify_tell(struct verify *k, int ring, uint32_t slot);

/* ---- drafts.c ---- */

/* Takes what the drafter has said; compares it with what has come out since. */
void drafts_take(struct verify *k);
/* New tokens of this slot are known: judges its newest proposal. */
void drafts_judge(struct verify *k, uint32_t slot);
/* Decides for every sequence in work whether its drafts pay; sets k->drafting. */
void drafts_decide(struct verify *k);
/* A sequence is new to this process. */
void drafts_begin(struct verify *k, struct sequence *q);
/* After a commit: asks the drafter about a slot whose drafts do not pay, if that is due. */
void drafts_peek(struct verify *k, uint32_t slot);
/* Asks about those whose drafts pay and waits for the answers, with a limit. All that is decided must be committed. */
void drafts_wait(struct verify *k);
/* Behind engine_step_behind: until its rows are settled, or it is told to go on without drafts. Returns when that was. */
uint64_t drafts_await(struct verify *k);
/* Drafts of this slot that may be scored now: they follow the known tokens. */
uint32_t drafts_usable(const struct verify *k, uint32_t slot, const uint32_t **drafts);

#endif
