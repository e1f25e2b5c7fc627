/* kernels/cuda/handover.h - how streams wait for each other's words (cuda_handover.h). Verify's: until a drafter has left its word, and a kernel that then takes its drafts.
 *
 *   wait     a wait of the stream (no kernel: the drafter's round needs every SM) until record.word >= tag
 *   take     one warp: the drafts of this tag, as many as the state has rows for and up to the first that is no token of the vocabulary, into the state's rows in
 *            pinned host memory, whence the step's graph reads them; rows and the first group shrink to what there is; then `seen` = tag, for the host
 *   release  the word, by another stream: whoever waits for this tag waits no longer
 * The drafter's:
 *   follow   a wait of the stream until record.next_word >= tag: the step of this tag has sampled
 *   skip     next_word, by another stream: the follower waits no longer
 * Never synchronize. Needs the driver's 64-bit stream memory operations: -E_UNSUPPORTED without. */
#ifndef SLUICE_CUDA_HANDOVER_IN_H
#define SLUICE_CUDA_HANDOVER_IN_H

#include "cuda_handover.h"
#include "state.h"

struct handover {
    struct cuda_handover_record *record;      /* device, borrowed; NULL: there is none */
    uint64_t *seen;                           /* pinned, owned */
    uint64_t tag;                             /* waited for last */
    void *side;                               /* stream, owned */
    void *wait, *write;                       /* the driver's functions */
};

/* 0, -E_UNSUPPORTED, -E_NOMEM, -E_IO. */
int handover_open(struct handover *h, struct cuda_handover_record *record);
void handover_close(struct handover *h);
/* state: pinned. What comes later in the stream runs behind both. 0, -E_IO. */
int handover_await(struct handover *h, struct step_state *state, uint32_t vocab, uint64_t tag, void *stream);
int handover_release(struct handover *h);

/* The drafter's side: as handover_open, but touches nothing of the record. */
int handover_open_follower(struct handover *h, struct cuda_handover_record *record);
int handover_follow(struct handover *h, uint64_t tag, void *stream);
int handover_skip(struct handover *h);

#endif
