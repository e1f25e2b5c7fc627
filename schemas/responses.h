/* schemas/responses.h - the event stream of the Responses API, folded over a log.
 *
 * A fold is a few words: where it stands in the log and which item is open. Each call
 * of responses_next gives the one event that follows. Two folds over the same view
 * give the same bytes, in any process: this is what response.resume rests on. Only the
 * `sluice` object of the terminal event (measurements) may differ.
 *
 * Order: response.created, response.in_progress, then for each item of the output
 *   reasoning      output_item.added, content_part.added, reasoning_text.delta*, .done, content_part.done, output_item.done
 *   message        output_item.added, content_part.added, output_text.delta*, .done, content_part.done, output_item.done
 *   function_call  output_item.added, function_call_arguments.delta*, .done, output_item.done
 * then response.completed, response.incomplete or response.failed. One log record makes one delta. */
#ifndef SLUICE_SCHEMAS_RESPONSES_H
#define SLUICE_SCHEMAS_RESPONSES_H

#include "schemas/view.h"

struct responses_fold {   /* zero-initialised: before the first event */
    uint64_t offset;      /* log bytes behind us */
    uint64_t item_offset; /* where the open item's first record lies */
    uint32_t tokens;      /* output tokens behind us */
    uint32_t sequence;    /* sequence_number of the next event */
    uint32_t item_index;  /* output_index of the open item, or of the next one */
    uint8_t item;         /* enum log_type of the open item: LOG_REASONING, LOG_TEXT, LOG_TOOL_BEGIN; 0: none */
    uint8_t step;         /* progress inside the opening or closing of an item */
    uint8_t prelude;      /* 0, 1: created, in_progress still to come */
    uint8_t done;         /* the terminal event was given */
};

/* Appends the JSON text of the next event to out. 1: done so; 0: nothing more yet, or ever (fold->done).
 * A log that cannot be read ends in response.failed: there is no error return. */
int responses_next(const struct view *v, struct responses_fold *fold, struct wire *out);

/* The response object after its terminal event, as a body for clients that do not stream. False: not over yet.
 * *fault_out is filled (status != 0) when the request was refused before it began. */
bool responses_body(const struct view *v, struct wire *out, struct fault *fault_out);

#endif
