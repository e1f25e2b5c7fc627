/* schemas/counters.h - meaning of stage_status.counters[] per role: totals since the server started.
 * Counters live in the role's segment and so survive its restarts. */
#ifndef SLUICE_SCHEMAS_COUNTERS_H
#define SLUICE_SCHEMAS_COUNTERS_H

enum tokenize_counter { TOKENIZE_REQUESTS = 0, TOKENIZE_REFUSED, TOKENIZE_TOKENS, TOKENIZE_WORK_NS };
enum prefill_counter { PREFILL_SEQUENCES = 0, PREFILL_TOKENS, PREFILL_CHUNKS, PREFILL_WORK_NS, PREFILL_FULL_PAGES_USED, PREFILL_FULL_PAGES_TOTAL,
                       PREFILL_SLIDING_PAGES_USED, PREFILL_SLIDING_PAGES_TOTAL, PREFILL_WAITING,
                       PREFILL_TURN_ASKED, PREFILL_TURN_ENDED /* schemas/turns.h */,
                       PREFILL_PROMPT_TOKENS /* of prompts that were given pages */, PREFILL_CACHED_TOKENS /* of them, found in the cache */,
                       PREFILL_FULL_PAGES_KEPT, PREFILL_SLIDING_PAGES_KEPT /* pages that are free for whoever needs them, but hold prompts of the past */ };
enum draft_counter { DRAFT_PROPOSALS = 0, DRAFT_TOKENS, DRAFT_WORK_NS, DRAFT_KIND /* enum draft_kind of model/engine_draft.h */,
                     DRAFT_STEP_NS /* of one more neural draft for all that ask, newest rounds; 0: not known, or free */,
                     DRAFT_NEURAL /* questions that the neural drafter answered */, DRAFT_STEPS, DRAFT_FAILED /* rounds without advice */,
                     DRAFT_ROUND_NS /* of a round before its first draft, as DRAFT_STEP_NS */,
                     DRAFT_SOURCES = 16 /* not a total: bit i: the output of the model's layer i is wanted (model/features.h) */ };
enum verify_counter { VERIFY_ROUNDS = 0, VERIFY_ROWS, VERIFY_TOKENS, VERIFY_WORK_NS, VERIFY_RUNNING, VERIFY_FINISHED, VERIFY_DRAFTED, VERIFY_ACCEPTED,
                      VERIFY_DRAFT_LATE, VERIFY_DRAFT_WAIT_NS, VERIFY_UNPAID /* blocks without drafts because drafts did not pay */,
                      VERIFY_TURN_GIVEN, VERIFY_STEPPING, VERIFY_STEP_NS, VERIFY_TURN_NS /* schemas/turns.h */,
                      VERIFY_THINKING_ROUNDS /* of the drafts scored and accepted, and their blocks, those inside reasoning */ = 48, VERIFY_THINKING_DRAFTED, VERIFY_THINKING_ACCEPTED,
                      VERIFY_HANDED /* steps that waited for their drafts on the device */, VERIFY_AHEAD /* and whose round was begun behind the step before, without a question */,
                      VERIFY_DRAFTED_AT = 16 /* 16 positions */, VERIFY_ACCEPTED_AT = 32 /* 16 positions */ };
enum detokenize_counter { DETOKENIZE_TOKENS = 0, DETOKENIZE_RECORDS, DETOKENIZE_BYTES, DETOKENIZE_WORK_NS, DETOKENIZE_STOPS };
enum vision_counter { VISION_REQUESTS = 0, VISION_REFUSED, VISION_FILES, VISION_CACHED, VISION_TOKENS, VISION_WORK_NS, VISION_WORKER_DEATHS,
                      VISION_HELD_BYTES /* data that prefill has not read yet */, VISION_FETCHED /* pictures asked for by their address */ };
enum keeper_counter { KEEPER_BYTES_TOTAL = 0, KEEPER_BYTES_DONE, KEEPER_ARENA_BYTES, KEEPER_LOADED /* 1, stored with release: the weights are in place */,
                      KEEPER_LOAD_BEGIN_NS /* CLOCK_MONOTONIC */, KEEPER_LOAD_NS /* how long it took; 0: it still goes on */ };

#endif
