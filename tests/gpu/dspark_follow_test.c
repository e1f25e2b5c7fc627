/* tests/gpu/dspark_follow_test.c - rounds of a DSpark head that begin behind a step (cuda_dspark_follow) and absorb what it commits, against rounds that are asked for.
 *
 * The step is the host here: it leaves token, position, tag and word as a step does (cuda_handover.h). Before that the round waits; then its guesses and confidences are, bit by bit, those of a
 * handle that has absorbed all and is asked; what it has absorbed serves the next one. Skipped, or told what cannot be, it gives nothing and changes nothing. Exit 0 pass, 1 fail, 77 no GPU. */
#include "tests/gpu/dspark_rig.h"

/* The guesses of one question on a handle that has absorbed up to `from`; 0: whose place begins anew. */
static void guesses_at(struct rig *r, struct cuda_dspark *gpu, const struct cuda_dspark_question *q, uint32_t from, struct cuda_dspark_answer *a)
{
    struct cuda_dspark *const own = r->gpu;

    if (from == 0) ok(cuda_dspark_place(gpu, q->place, 0), "place");
    for (; from < q->position;) {
        const uint32_t left = q->position - from, n = left < 40 ? left : 40;
        const struct cuda_dspark_absorb item = {q->place, GENERATION + q->place, from, n};
        ok(cuda_dspark_absorb(gpu, &item, 1, SOURCE_LAYERS), "GPU absorbs");
        from += n;
    }
    ok(cuda_dspark_round(gpu, q, 1), "round");
    r->gpu = gpu;
    wait_for(r, a);
    r->gpu = own;
}

#define STEP_WAIT_US 20000u           /* a stream that waits for nothing would be done by then */

/* As a step does: the newest token under its tag, then the word. */
static void tell(struct cuda_handover_record *record, uint64_t tag, uint32_t token, uint32_t position)
{
    struct cuda_handover_record r = {.next_tag = tag, .next_token = token, .next_position = position};

    cuda_ok(cudaMemcpy(&record->next_tag, &r.next_tag, sizeof r.next_tag + 2 * sizeof r.next_token, cudaMemcpyHostToDevice), "record");
    cuda_ok(cudaMemcpy(&record->next_word, &tag, sizeof tag, cudaMemcpyHostToDevice), "record");
}

/* Its position is where the handle has absorbed to; hands over under tag + 1. Does it wait? */
static bool begin_following(struct cuda_dspark *gpu, const struct cuda_dspark_question *q, uint64_t tag)
{
    struct cuda_handover hand = {.tag = tag + 1};
    struct cuda_dspark_answer a;

    for (uint32_t i = 0; i < CUDA_HANDOVER_CLASSES; i++) hand.rate[i] = 1;
    ok(cuda_dspark_hand_over(gpu, &hand), "hand over");
    ok(cuda_dspark_follow(gpu, tag, GENERATION + q->place, SOURCE_LAYERS), "follow");
    ok(cuda_dspark_round(gpu, q, 1), "round");
    return cuda_dspark_wait(gpu, STEP_WAIT_US, &a) == -E_TIMEOUT;
}

static void ended(struct rig *r, struct cuda_dspark *gpu, struct cuda_dspark_answer *a)
{
    struct cuda_dspark *const own = r->gpu;

    r->gpu = gpu;
    wait_for(r, a);
    r->gpu = own;
}

static bool same_guesses(const struct cuda_dspark_answer *a, const struct cuda_dspark_answer *b)
{
    return a->low == b->low && memcmp(a->token, b->token, BLOCK * sizeof *a->token) == 0 && memcmp(a->confidence, b->confidence, BLOCK * sizeof *a->confidence) == 0;
}

/* From `position` on, behind steps that commit 1, 4, a whole block and one more, .. positions, against rounds that are asked for when all is absorbed. */
static void test_following(struct rig *r, struct cuda_dspark *gpu, struct cuda_handover_record *record, uint32_t place, uint32_t position, float temperature)
{
    const uint32_t steps[] = {1, 4, BLOCK + 1, 2, 3};
    struct cuda_dspark_question q = ask(place, position, temperature);
    struct cuda_dspark_answer wanted, got, again;
    struct cuda_handover_record left;
    uint64_t tag = 1000 * (uint64_t)position;
    uint32_t right = 0, handed = 0, count = sizeof steps / sizeof *steps;

    guesses_at(r, gpu, &q, 0, &got);
    for (uint32_t i = 0; i < count; i++, tag += 2) {
        const bool waited = begin_following(gpu, &q, tag);
        q.position += steps[i], q.token = (q.token * 7 + 5) % VOCAB;
        tell(record, tag, q.token, q.position);
        ended(r, gpu, &got);
        guesses_at(r, r->gpu, &q, 0, &wanted);
        guesses_at(r, gpu, &q, q.position, &again); /* what it absorbed is there */
        cuda_ok(cudaMemcpy(&left, record, sizeof left, cudaMemcpyDeviceToHost), "record");
        right += waited && got.position == q.position && got.ns > 0 && same_guesses(&got, &wanted) && same_guesses(&again, &wanted);
        handed += left.word == tag + 1 && left.tag == tag + 1 && left.count == BLOCK && memcmp(left.token, wanted.token, sizeof left.token[0] * BLOCK) == 0;
    }
    expect(right == count && handed == count, "place %u from %u on, temperature %.0f: %u of %u rounds behind a step guess as those that are asked for, %u leave their guesses", place, position,
           (double)temperature, right, count, handed);
}

/* Skipped, or behind a step that cannot be: no guesses, and nothing is absorbed. */
static void test_not_told(struct rig *r, struct cuda_dspark *gpu, struct cuda_handover_record *record, uint32_t position)
{
    const struct cuda_dspark_question q = ask(2, position, 0);
    struct cuda_dspark_answer before, got, after;
    struct cuda_handover_record left;
    uint64_t tag = 1u << 30;
    uint32_t nothing = 0;

    guesses_at(r, gpu, &q, 0, &before);
    for (uint32_t i = 0; i < 4; i++, tag += 10) {
        const bool waited = begin_following(gpu, &q, tag);
        if (i == 0) ok(cuda_dspark_skip(gpu), "skip");
        else if (i == 1) tell(record, tag + 5, 3, position + 1);
        else tell(record, tag, i == 2 ? 3 : VOCAB, i == 2 ? position + BLOCK + 2 : position + 1);
        ended(r, gpu, &got);
        cuda_ok(cudaMemcpy(&left, record, sizeof left, cudaMemcpyDeviceToHost), "record");
        guesses_at(r, gpu, &q, position, &after);
        nothing += waited && got.position == 0 && left.tag == tag + 1 && left.count == 0 && same_guesses(&before, &after);
    }
    expect(nothing == 4, "%u of 4 rounds (skipped; behind a later step; a position, a token that cannot be) give nothing, and change nothing", nothing);
}

static void test_following_refusals(struct rig *r, struct cuda_dspark *gpu)
{
    const struct cuda_dspark_question twice[2] = {ask(0, 10, 0), ask(1, 10, 0)}, late = ask(0, CONTEXT - 2 * BLOCK, 0);
    uint32_t refused = cuda_dspark_follow(r->gpu, 1, GENERATION, SOURCE_LAYERS) == -E_UNSUPPORTED;

    refused += cuda_dspark_follow(gpu, 0, GENERATION, SOURCE_LAYERS) == -E_RANGE;
    refused += cuda_dspark_follow(gpu, 1, GENERATION, 1) == -E_RANGE;
    ok(cuda_dspark_follow(gpu, 1, GENERATION, SOURCE_LAYERS), "follow");
    refused += cuda_dspark_round(gpu, twice, 2) == -E_RANGE;
    ok(cuda_dspark_follow(gpu, 1, GENERATION, SOURCE_LAYERS), "follow");
    refused += cuda_dspark_round(gpu, &late, 1) == -E_RANGE;
    expect(refused == 5, "%u of 5 rounds that cannot follow a step are refused", refused);
}

static void test_all(struct rig *r)
{
    struct cuda_handover_record *record;

    cuda_ok(cudaMalloc((void **)&record, sizeof *record), "memory");
    cuda_ok(cudaMemset(record, 0, sizeof *record), "memory");
    struct cuda_dspark *gpu = open_gpu(r, NULL, record);
    test_following(r, gpu, record, 0, 20, 0);
    test_following(r, gpu, record, 1, 85, 1); /* the window becomes full, and then the ring goes round */
    test_following(r, gpu, record, 3, 190, 0);
    test_not_told(r, gpu, record, 120);
    test_following_refusals(r, gpu);
    cuda_dspark_close(gpu);
    cuda_ok(cudaFree(record), "memory");
}

int main(void)
{
    static struct rig r;
    struct cuda_device_facts facts;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (cuda_device_open(&facts) != 0) {
        printf("SKIP: %s\n", cuda_backend_error());
        return 77;
    }
    open_rig(&r);
    test_all(&r);
    cuda_dspark_close(r.gpu);
    printf(failures ? "%d failed\n" : "dspark_follow: passed\n", failures);
    return failures != 0;
}
