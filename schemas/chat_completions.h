/* schemas/chat_completions.h - chat completions: chunks and bodies, folded over a log.
 *
 * The same rule as schemas/responses.h: a chunk is a function of the view and of where
 * the fold stands. A request with n choices has n views; the gateway interleaves them. */
#ifndef SLUICE_SCHEMAS_CHAT_COMPLETIONS_H
#define SLUICE_SCHEMAS_CHAT_COMPLETIONS_H

#include "schemas/view.h"

struct chat_fold {      /* zero-initialised: before the first chunk */
    uint64_t offset;    /* log bytes behind us */
    uint32_t tokens;    /* output tokens behind us */
    uint32_t tool_index; /* of the call that is open or comes next */
    uint32_t text_bytes; /* completions: text_offset of the next token */
    uint8_t begun;      /* the chunk with the role (or the echoed prompt) was given */
    uint8_t done;       /* the last chunk was given */
};

/* Appends the next chunk's JSON. 1, or 0: nothing yet, or ever (fold->done). Failures after the first chunk are a
 * last chunk {"error":...}. */
int chat_next(const struct view *v, struct chat_fold *fold, struct wire *out);
int completions_next(const struct view *v, struct chat_fold *fold, struct wire *out);

/* The last chunk of a stream that asked for include_usage: no choices, usage over all views. prompts: how many
 * different prompts the views share evenly. */
void chat_usage_chunk(const struct view *views, uint32_t count, uint32_t prompts, struct wire *out);

/* The body of a request that does not stream; all views have ended. False with a fault when one of them failed. */
bool chat_body(const struct view *views, uint32_t count, struct wire *out, struct fault *f);
bool completions_body(const struct view *views, uint32_t count, uint32_t prompts, struct wire *out, struct fault *f);

/* Shared by the two APIs (chat_completions.c). */
void chat_head(const struct view *v, const char *object, struct wire *out);    /* {"id":...,"object":...,"created":...,"model":... */
void chat_usage(const struct view *views, uint32_t count, uint32_t prompts, struct wire *out);
const char *chat_finish(const struct log_end *end);                            /* finish_reason, NULL: failed */
/* Finds the end record. False with a fault: there is none, or it says that the request failed. */
bool chat_end(const struct view *v, struct log_end *end, struct fault *f);

#endif
