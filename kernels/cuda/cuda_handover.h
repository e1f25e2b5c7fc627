/* kernels/cuda/cuda_handover.h - what drafter and verify tell each other on the device: neither host is woken in between.
 *
 * One record in memory of the keeper (arena.signals), for one sequence at a time. Verify asks with a tag that no question had before, enqueues its step behind a
 * wait of its stream for `word` >= tag, and the round of drafts ends by writing the drafts, then their tag, then the word. The step begins with a kernel that takes the
 * drafts if they carry its tag, and none otherwise: whatever a late, dead or repeated drafter leaves here changes how many drafts are scored, never what comes out.
 *
 * The other way: such a step ends by leaving its newest token and position under the same tag, then next_word. A drafter that has answered a question may begin the next round behind
 * that, before it is asked: the round's drafts have the tag + 1, and verify, told that they come, waits for them without a question. What a round follows changes what it proposes only.
 *
 * Writers   first half: everything but the word: the drafter's device. The word: it, too, and verify's device where verify waits no longer (the drafter is dead or slow); both write the
 *           tag of the question. Second half: verify's device; the word also the drafter's, where it waits no longer (it is asked otherwise). Verify alone, when it opens, all 0.
 * Fails     a drafter that dies before it has written: verify's host writes the word after a limit. A verify that dies: the drafter waits until it is asked again; then its host writes
 *           next_word, and the round, which finds another tag, gives nothing. Whoever dies while its own stream waits takes the wait with it. */
#ifndef SLUICE_CUDA_HANDOVER_H
#define SLUICE_CUDA_HANDOVER_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define CUDA_HANDOVER_TOKENS_MAX 8
#define CUDA_HANDOVER_INSTEAD_MAX 16
#define CUDA_HANDOVER_CLASSES 16      /* of confidences, as the draft stage learns them */
#define CUDA_HANDOVER_BYTES sizeof(struct cuda_handover_record)

struct cuda_handover_record {
    uint64_t word;                    /* the newest tag that nobody need wait for */
    uint8_t pad[120];
    uint64_t tag;                     /* of the drafts below */
    uint32_t count;
    uint32_t token[CUDA_HANDOVER_TOKENS_MAX];
    uint8_t pad1[84];
    uint64_t next_word;               /* the newest tag whose step has sampled, or that nobody need wait for */
    uint8_t pad2[120];
    uint64_t next_tag;                /* of what follows */
    uint32_t next_token, next_position;   /* the newest token behind that step, and its position */
    uint8_t pad3[112];
};

static_assert(sizeof(struct cuda_handover_record) == 512 && offsetof(struct cuda_handover_record, tag) == 128 && offsetof(struct cuda_handover_record, next_word) == 256 &&
              offsetof(struct cuda_handover_record, next_tag) == 384, "each word has 128 bytes to itself");

/* What a round of drafts for one sequence shall leave there. */
struct cuda_handover {
    uint64_t tag;                     /* never 0 */
    float least;                      /* chance below which a draft is not worth scoring: it and all behind it stay out */
    float rate[CUDA_HANDOVER_CLASSES];/* chance of a draft of each class of confidence, those before it being right */
    uint32_t instead_count;           /* benches: these are left in place of the drafts, which are computed all the same; 0: the drafts */
    uint32_t instead_position;        /* of the first of them; 0: that behind the newest token */
    uint32_t instead[CUDA_HANDOVER_INSTEAD_MAX];
};

/* The class of a confidence in [0, 1]: by how often what it leaves to 1 can be halved, a class and a half each time. */
#ifdef __CUDACC__
__host__ __device__
#endif
static inline uint32_t cuda_handover_class(float doublings) { return doublings * 1.5f >= CUDA_HANDOVER_CLASSES - 1 ? CUDA_HANDOVER_CLASSES - 1 : (uint32_t)(doublings * 1.5f); }

#endif
