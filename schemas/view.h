/* schemas/view.h - one request in a slot, as its event stream sees it.
 *
 * Everything a client is sent about a response is a function of what a view shows:
 * the request record (gateway), the verdict on the prompt (tokenize), the log
 * (detokenize) and the figures of verify. A view can be opened by any gateway
 * process at any time while the slot keeps this generation; folds over it
 * (schemas/responses.h, schemas/chat_completions.h, ...) give the same bytes each
 * time. The figures in `sluice` objects are measurements and outside that promise.
 *
 * The log is written by another process: record headers are copied and checked
 * before use, payloads are escaped when printed. */
#ifndef SLUICE_SCHEMAS_VIEW_H
#define SLUICE_SCHEMAS_VIEW_H

#include "schemas/fault.h"
#include "schemas/table.h"

struct tokenizer;

enum api { API_RESPONSES = 0, API_CHAT = 1, API_COMPLETIONS = 2 };

struct view {
    const struct table *table; /* borrowed */
    uint32_t slot, generation;
    enum api api;
    uint32_t choice;           /* chat, completions: index of this choice */
    uint32_t instructions;     /* messages in front that previous_response_id does not inherit: 0 or 1 */
    uint64_t created_s;
    char id[RESPONSE_ID_BYTES];
    char key[40];              /* id without its prefix: item ids are made of it */
    char *model;               /* owned, JSON string with its quotes */
    char *echo;                /* owned, JSON members of a response object that repeat the request */
    char *stream_id;           /* owned, `,"stream_id":"..."` or "" */
    char *prompt_text;         /* owned or NULL: completions with echo */
    bool stored;               /* previous_response_id may name it */
    bool want_logprobs, want_token_ids;
    uint32_t top_logprobs;
    uint32_t resumed;          /* times a client came back for it, as far as this process knows */
    const struct tokenizer *tokenizer; /* borrowed; NULL until loaded. Only logprobs need it */
};

/* How a request ended. */
enum outcome { OUTCOME_RUNNING = 0, OUTCOME_ENDED, OUTCOME_REFUSED, OUTCOME_CONVICTED };

/* Reads the record of slot `slot`, whose generation must be `generation`. 0: the caller owns *v (view_close).
 * -E_STALE, -E_FORMAT: the record is not one of ours. */
int view_open(struct view *v, const struct table *table, uint32_t slot, uint32_t generation);
void view_close(struct view *v);

/* Has the request ended, and without a log record that says so? REFUSED and CONVICTED fill f. */
enum outcome view_outcome(const struct view *v, struct fault *f);

/* The record at `offset` of the log. 1: header copied, payload borrowed from shared memory (committed bytes do not
 * change), *next is the offset of the following record; 0: not written yet; -E_FORMAT: broken log. */
int view_record(const struct view *v, uint64_t offset, struct log_record *record, const char **payload, uint64_t *next);

/* Copies the payload of a LOG_END record; -E_FORMAT when it has another size. */
int view_end(const struct log_record *record, const char *payload, struct log_end *end);

uint32_t view_prompt_tokens(const struct view *v);
/* Of them, those that the KV cache had already. */
uint32_t view_cached_tokens(const struct view *v);

/* "input_tokens" and so on are named differently by each API; these are the shared pieces. */
void view_sluice(const struct view *v, const struct log_end *end, struct wire *out); /* {"accept_length":...} */
void view_output_ids(const struct view *v, uint32_t from, uint32_t to, struct wire *out); /* [1,2,3] */
void view_prompt_ids(const struct view *v, struct wire *out);

/* True when token texts are needed and the tokenizer is not there yet. */
static inline bool view_waits_for_tokenizer(const struct view *v) { return v->want_logprobs && !v->tokenizer; }

/* Logprobs of output tokens [from, to): [{"token","logprob","bytes","top_logprobs":[...]},...] */
void view_logprobs(const struct view *v, uint32_t from, uint32_t to, struct wire *out);
/* The text of one token, U+FFFD for what is no character on its own. */
void view_token_text(const struct view *v, uint32_t token, struct wire *raw);

/* The sentence for FINISH_FAILED and for a verdict. */
void view_quarantine(const struct view *v, struct fault *f);

#endif
