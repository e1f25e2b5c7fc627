/* stages/draft.c - proposes tokens by looking the text up in itself (prompt lookup, n-gram drafting).
 *
 * Reads    tokenize slots (prompt), verify slots (committed tokens)
 * Writes   nothing but its ring: a proposal is advice
 * Rings    in: verify-draft; out: draft-verify (every message is answered, with no tokens if there is no guess)
 * Owns     nothing
 * Fails    cannot: a missing, dead, slow or wrong drafter changes how fast text appears, never which text.
 *
 * The guess: find the latest earlier place where the last tokens stood before; what followed there follows here.
 * (Prompt lookup decoding, Saxena 2023; the n-gram drafter of vLLM.) */
#include "schemas/counters.h"
#include "schemas/table.h"
#include "shm/clock.h"
#include "shm/stage.h"

#include <string.h>

#define MATCH_MAX 8u /* longest suffix compared */
#define MATCH_MIN 2u /* a shorter match is chance */

struct draft {
    struct stage stage;
    struct table table;
    uint32_t tokens_max;
};

struct text { /* prompt and output as one sequence */
    const uint32_t *prompt, *output;
    uint32_t prompt_count, count;
};

static uint32_t at(const struct text *t, uint32_t i)
{
    return i < t->prompt_count ? t->prompt[i] : t->output[i - t->prompt_count];
}

/* End (exclusive) of the best earlier match of the text's last tokens, 0 if there is none: the longest, of those the latest. */
static uint32_t find_match(const struct text *t)
{
    uint32_t best = 0, best_tokens = MATCH_MIN - 1;

    for (uint32_t end = t->count ? t->count - 1 : 0; end >= MATCH_MIN && best_tokens < MATCH_MAX; end--) {
        uint32_t same = 0;
        while (same < MATCH_MAX && same < end && at(t, end - 1 - same) == at(t, t->count - 1 - same)) same++;
        if (same > best_tokens) {
            best_tokens = same;
            best = end;
        }
    }
    return best;
}

static void propose(struct draft *k, const struct ring_msg *in)
{
    const uint32_t generation = slot_live(&k->table, in->slot);
    const struct tokenize_slot *p = table_tokenize(&k->table, in->slot);
    struct ring_msg out = {.slot = in->slot, .generation = generation};
    const uint64_t begin = clock_ns();

    if (!generation || generation != in->generation) return;
    const bool convicted = word_for(&table_launcher(&k->table, in->slot)->verdict, generation) != 0;
    const struct text t = {.prompt = table_prompt(&k->table, in->slot), .output = table_output(&k->table, in->slot), .prompt_count = p->prompt_count,
                           .count = p->prompt_count + word_for(&table_verify(&k->table, in->slot)->commit, generation)};
    if (p->prompt_count > k->table.limits.context_max || t.count > k->table.limits.context_max) return;
    if (!convicted) stage_busy(&k->stage, &in->slot, &generation, 1);
    out.base = t.count - t.prompt_count;
    for (uint32_t from = convicted ? 0 : find_match(&t); from && out.count < k->tokens_max; from++)
        out.tokens[out.count++] = from < t.count ? at(&t, from) : out.tokens[from - t.count]; /* a text in circles goes round again */
    ring_publish(&k->stage.ring[RING_DRAFT_VERIFY], &out);
    stage_idle(&k->stage);
    stage_count(&k->stage, DRAFT_PROPOSALS, 1);
    stage_count(&k->stage, DRAFT_TOKENS, out.count);
    stage_count(&k->stage, DRAFT_WORK_NS, clock_ns() - begin);
}

int main(int argc, char **argv)
{
    static struct draft k;
    struct ring *in;
    struct ring_msg msg;

    stage_attach(&k.stage, ROLE_DRAFT, "proposes tokens by n-gram lookup", argc, argv);
    table_attach(&k.table, &k.stage);
    k.tokens_max = (uint32_t)wiring_u64(&k.stage.wiring, "draft.tokens", 7);
    if (k.tokens_max > RING_TOKENS_MAX) k.tokens_max = RING_TOKENS_MAX;
    in = &k.stage.ring[RING_VERIFY_DRAFT];
    stage_ready(&k.stage);
    while (stage_running(&k.stage)) {
        ring_overran(in); /* a lost question is a round without drafts */
        if (ring_take(in, &msg) == 1) {
            if (msg.slot < k.table.limits.slot_count) propose(&k, &msg);
        } else stage_wait(&k.stage, 1000);
    }
    return 0;
}
