/* schemas/responses.c - log records in, Responses events out. */
#include "schemas/responses.h"

#include "shm/error.h"

#include <string.h>

/* ---- items ------------------------------------------------------------------- */

/* All payload bytes of one kind between two offsets, as the inside of a JSON string. Records cut between characters. */
static void joined(const struct view *v, uint64_t from, uint64_t to, uint32_t type, struct wire *out)
{
    struct log_record r;
    const char *payload;
    uint64_t next;

    for (uint64_t at = from; at < to && view_record(v, at, &r, &payload, &next) == 1; at = next)
        if (r.type == type) wire_escape(out, payload, r.bytes);
}

static const char *item_prefix(uint32_t item)
{
    return item == LOG_REASONING ? "rs" : item == LOG_TEXT ? "msg" : "fc";
}

static void item_id(const struct view *v, uint32_t item, uint32_t index, struct wire *out)
{
    wire_format(out, "\"%s_%s%02x\"", item_prefix(item), v->key, index);
}

/* Log probabilities of the text between two offsets: what its deltas carry, one after the other. A delta has the tokens since the delta before it. */
static void text_logprobs(const struct view *v, uint64_t from, uint64_t to, struct wire *out)
{
    uint32_t first = 0, last = 0;
    struct log_record r;
    const char *payload;
    uint64_t next;

    if (!v->want_logprobs) {
        wire_text(out, "[]");
        return;
    }
    for (uint64_t at = 0; at < to && view_record(v, at, &r, &payload, &next) == 1; at = next) {
        if (r.type == LOG_TOOL_BEGIN || r.type == LOG_TOOL_END) continue;
        if (at < from) first = r.tokens;
        last = r.tokens;
    }
    view_logprobs(v, first, last, out);
}

static void part(const struct view *v, uint32_t item, uint64_t from, uint64_t to, struct wire *out)
{
    wire_text(out, item == LOG_REASONING ? "{\"type\":\"reasoning_text\",\"text\":\"" : "{\"type\":\"output_text\",\"text\":\"");
    joined(v, from, to, item, out);
    wire_add(out, "\"", 1);
    if (item == LOG_TEXT) {
        wire_text(out, ",\"annotations\":[],\"logprobs\":");
        text_logprobs(v, from, to, out);
    }
    wire_add(out, "}", 1);
}

/* The item whose records lie in [from, to); from == to: as it is when it opens (a call needs its first record even then). */
static void item_object(const struct view *v, uint32_t item, uint32_t index, uint64_t from, uint64_t to, const char *status, struct wire *out)
{
    const bool opening = strcmp(status, "in_progress") == 0;
    struct log_record r;
    const char *name;
    uint64_t next;

    wire_text(out, "{\"id\":");
    item_id(v, item, index, out);
    if (item == LOG_TEXT) {
        wire_format(out, ",\"type\":\"message\",\"status\":\"%s\",\"role\":\"assistant\",\"content\":[", status);
        if (!opening) part(v, item, from, to, out);
        wire_text(out, "]}");
    } else if (item == LOG_REASONING) {
        wire_text(out, ",\"type\":\"reasoning\",\"summary\":[],\"content\":[");
        if (!opening) part(v, item, from, to, out);
        wire_format(out, "],\"status\":\"%s\"}", status);
    } else {
        wire_format(out, ",\"type\":\"function_call\",\"status\":\"%s\",\"call_id\":\"call_%s%02x\",\"name\":", status, v->key, index);
        if (view_record(v, from, &r, &name, &next) == 1) wire_string_bytes(out, name, r.bytes);
        else wire_text(out, "\"\"");
        wire_text(out, ",\"arguments\":\"");
        if (!opening) joined(v, from, to, LOG_TOOL_ARGS, out);
        wire_text(out, "\"}");
    }
}

/* ---- the response object ------------------------------------------------------ */

struct ending {
    const char *status;     /* completed, incomplete, failed, in_progress */
    const char *incomplete; /* reason, or NULL */
    struct fault fault;     /* failed */
    struct log_end end;
    bool has_end;
    uint64_t log_end_offset; /* items lie before this */
};

static const char *item_status(const struct ending *e, bool last)
{
    return last && strcmp(e->status, "completed") != 0 ? "incomplete" : "completed";
}

static uint32_t item_of(uint32_t type)
{
    return type == LOG_TOOL_ARGS || type == LOG_TOOL_END ? LOG_TOOL_BEGIN : type;
}

/* Does a record of `type` go on with the open item, or does that end first? */
static bool belongs(uint32_t item, uint32_t type)
{
    if (item == LOG_TOOL_BEGIN) return type == LOG_TOOL_ARGS || type == LOG_TOOL_END;
    return item == type;
}

static void output_array(const struct view *v, const struct ending *e, struct wire *out)
{
    uint32_t item = 0, index = 0;
    uint64_t start = 0, at = 0, next;
    struct log_record r;
    const char *payload;

    wire_add(out, "[", 1);
    while (at < e->log_end_offset && view_record(v, at, &r, &payload, &next) == 1 && r.type != LOG_END) {
        if (item && !belongs(item, r.type)) {
            item_object(v, item, index++, start, at, "completed", out);
            wire_add(out, ",", 1);
            item = 0;
        }
        if (!item) {
            item = item_of(r.type);
            start = at;
        }
        at = next;
        if (r.type == LOG_TOOL_END) { /* two calls in a row are two items */
            item_object(v, item, index++, start, at, "completed", out);
            wire_add(out, ",", 1);
            item = 0;
        }
    }
    if (item) item_object(v, item, index, start, at, item_status(e, true), out);
    else if (index) out->bytes--; /* the comma after the last one */
    wire_add(out, "]", 1);
}

static void usage(const struct view *v, const struct log_end *end, struct wire *out)
{
    const uint32_t input = view_prompt_tokens(v);

    wire_format(out,
                "{\"input_tokens\":%u,\"input_tokens_details\":{\"cached_tokens\":%u},\"output_tokens\":%u,"
                "\"output_tokens_details\":{\"reasoning_tokens\":%u},\"total_tokens\":%u}",
                input, view_cached_tokens(v), end->output_tokens, end->reasoning_tokens, input + end->output_tokens);
}

static void response_object(const struct view *v, const struct ending *e, struct wire *out)
{
    wire_format(out, "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%llu,\"status\":\"%s\",\"background\":false,\"error\":", v->id,
                (unsigned long long)v->created_s, e->status);
    if (e->fault.status) {
        wire_format(out, "{\"code\":\"%s\",\"message\":", e->fault.code);
        wire_string(out, e->fault.message);
        wire_add(out, "}", 1);
    } else wire_text(out, "null");
    if (e->incomplete) wire_format(out, ",\"incomplete_details\":{\"reason\":\"%s\"}", e->incomplete);
    else wire_text(out, ",\"incomplete_details\":null");
    wire_format(out, ",\"model\":%s,%s%s\"output\":", v->model, v->echo, v->echo[0] ? "," : "");
    output_array(v, e, out);
    wire_text(out, ",\"usage\":");
    if (e->has_end) usage(v, &e->end, out);
    else wire_text(out, "null");
    if (e->has_end && v->want_token_ids) {
        wire_text(out, ",\"prompt_token_ids\":");
        view_prompt_ids(v, out);
        wire_text(out, ",\"token_ids\":");
        view_output_ids(v, 0, e->end.output_tokens, out);
    }
    if (e->has_end) {
        wire_text(out, ",\"sluice\":");
        view_sluice(v, &e->end, out);
    }
    wire_add(out, "}", 1);
}

static void ending_from(const struct view *v, const struct log_end *end, struct ending *e)
{
    e->end = *end;
    e->has_end = true;
    e->status = "completed";
    if (end->finish == FINISH_LENGTH) e->incomplete = "max_output_tokens";
    if (end->finish == FINISH_CANCELLED) e->incomplete = "cancelled";
    if (e->incomplete) e->status = "incomplete";
    if (end->finish == FINISH_FAILED) {
        e->status = "failed";
        view_quarantine(v, &e->fault);
    }
}

/* ---- events -------------------------------------------------------------------- */

static void begin(struct responses_fold *fold, const char *type, struct wire *out)
{
    wire_format(out, "{\"type\":\"%s\",\"sequence_number\":%u", type, fold->sequence++);
}

static int finish(const struct view *v, struct wire *out)
{
    wire_text(out, v->stream_id);
    wire_add(out, "}", 1);
    return 1;
}

static int lifecycle(const struct view *v, struct responses_fold *fold, const char *type, const struct ending *e, struct wire *out)
{
    begin(fold, type, out);
    wire_text(out, ",\"response\":");
    response_object(v, e, out);
    return finish(v, out);
}

static int terminal(const struct view *v, struct responses_fold *fold, struct ending *e, struct wire *out)
{
    fold->done = 1;
    e->log_end_offset = fold->offset;
    return lifecycle(v, fold, strcmp(e->status, "completed") == 0    ? "response.completed"
                              : strcmp(e->status, "incomplete") == 0 ? "response.incomplete"
                                                                     : "response.failed", e, out);
}

static void where(const struct view *v, const struct responses_fold *fold, bool in_part, struct wire *out)
{
    wire_text(out, ",\"item_id\":");
    item_id(v, fold->item, fold->item_index, out);
    wire_format(out, ",\"output_index\":%u", fold->item_index);
    if (in_part) wire_text(out, ",\"content_index\":0");
}

static int item_event(const struct view *v, struct responses_fold *fold, const char *type, const char *status, struct wire *out)
{
    begin(fold, type, out);
    wire_format(out, ",\"output_index\":%u,\"item\":", fold->item_index);
    item_object(v, fold->item, fold->item_index, fold->item_offset, fold->offset, status, out);
    return finish(v, out);
}

static int part_event(const struct view *v, struct responses_fold *fold, const char *type, struct wire *out)
{
    begin(fold, type, out);
    where(v, fold, true, out);
    wire_text(out, ",\"part\":");
    part(v, fold->item, fold->item_offset, fold->offset, out);
    return finish(v, out);
}

/* "*.done" with the whole text of the item. */
static int text_done(const struct view *v, struct responses_fold *fold, struct wire *out)
{
    const bool call = fold->item == LOG_TOOL_BEGIN;
    struct log_record r;
    const char *name;
    uint64_t next;

    begin(fold, call ? "response.function_call_arguments.done" : fold->item == LOG_TEXT ? "response.output_text.done" : "response.reasoning_text.done", out);
    where(v, fold, !call, out);
    if (call && view_record(v, fold->item_offset, &r, &name, &next) == 1) {
        wire_text(out, ",\"name\":");
        wire_string_bytes(out, name, r.bytes);
    }
    wire_text(out, call ? ",\"arguments\":\"" : ",\"text\":\"");
    joined(v, fold->item_offset, fold->offset, call ? LOG_TOOL_ARGS : fold->item, out);
    wire_add(out, "\"", 1);
    if (fold->item == LOG_TEXT) {
        wire_text(out, ",\"logprobs\":");
        text_logprobs(v, fold->item_offset, fold->offset, out);
    }
    return finish(v, out);
}

/* The next event of closing the open item. After the last one no item is open. */
static int close_item(const struct view *v, struct responses_fold *fold, const char *status, struct wire *out)
{
    if (fold->step == 0) {
        fold->step = fold->item == LOG_TOOL_BEGIN ? 2 : 1;
        return text_done(v, fold, out);
    }
    if (fold->step == 1) {
        fold->step = 2;
        return part_event(v, fold, "response.content_part.done", out);
    }
    item_event(v, fold, "response.output_item.done", status, out);
    fold->step = 0;
    fold->item = 0;
    fold->item_index++;
    return 1;
}

static int delta(const struct view *v, struct responses_fold *fold, const struct log_record *r, const char *payload, uint64_t next, struct wire *out)
{
    const bool call = fold->item == LOG_TOOL_BEGIN;

    begin(fold, call ? "response.function_call_arguments.delta" : fold->item == LOG_TEXT ? "response.output_text.delta" : "response.reasoning_text.delta", out);
    where(v, fold, !call, out);
    wire_text(out, ",\"delta\":");
    wire_string_bytes(out, payload, r->bytes);
    if (fold->item == LOG_TEXT) {
        wire_text(out, ",\"logprobs\":");
        if (v->want_logprobs) view_logprobs(v, fold->tokens, r->tokens, out);
        else wire_text(out, "[]");
    }
    if (v->want_token_ids) {
        wire_text(out, ",\"token_ids\":");
        view_output_ids(v, fold->tokens, r->tokens, out);
    }
    fold->offset = next;
    fold->tokens = r->tokens;
    return finish(v, out);
}

/* One event of the record at hand: opens an item, adds to it, or closes the one before. */
static int on_record(const struct view *v, struct responses_fold *fold, const struct log_record *r, const char *payload, uint64_t next, struct wire *out)
{
    if (fold->item == 0) {
        fold->item = (uint8_t)item_of(r->type);
        fold->item_offset = fold->offset;
        if (fold->item == LOG_TOOL_BEGIN) { /* its record is the opening itself */
            item_event(v, fold, "response.output_item.added", "in_progress", out);
            fold->offset = next;
            return 1;
        }
        fold->step = 3; /* content_part.added is still to come */
        return item_event(v, fold, "response.output_item.added", "in_progress", out);
    }
    if (fold->step == 3) {
        fold->step = 0;
        return part_event(v, fold, "response.content_part.added", out);
    }
    if (r->type == LOG_TOOL_END) {
        const int rc = close_item(v, fold, "completed", out);
        if (fold->item == 0) fold->offset = next;
        return rc;
    }
    if (!belongs(fold->item, r->type)) return close_item(v, fold, "completed", out);
    return delta(v, fold, r, payload, next, out);
}

static int end_with(const struct view *v, struct responses_fold *fold, struct ending *e, struct wire *out)
{
    if (fold->step == 3) { /* an opened item has its part before it is closed */
        fold->step = 0;
        return part_event(v, fold, "response.content_part.added", out);
    }
    if (fold->item) return close_item(v, fold, item_status(e, true), out);
    return terminal(v, fold, e, out);
}

int responses_next(const struct view *v, struct responses_fold *fold, struct wire *out)
{
    struct ending e = {.status = "in_progress"};
    struct log_record r;
    struct log_end end;
    const char *payload;
    uint64_t next;

    if (fold->done) return 0;
    if (fold->prelude < 2) return lifecycle(v, fold, fold->prelude++ == 0 ? "response.created" : "response.in_progress", &e, out);
    if (view_waits_for_tokenizer(v)) return 0;
    const int rc = view_record(v, fold->offset, &r, &payload, &next);
    if (rc == 0) {
        const enum outcome outcome = view_outcome(v, &e.fault);
        if (outcome == OUTCOME_RUNNING) return 0;
        if (outcome == OUTCOME_ENDED) { /* the end was committed between our two looks */
            memset(&e.fault, 0, sizeof e.fault);
            if (view_record(v, fold->offset, &r, &payload, &next) == 1) return responses_next(v, fold, out);
            fault_set(&e.fault, 500, "server_error", NULL, "The output of this response has no end record.");
        }
        e.status = "failed";
        return end_with(v, fold, &e, out);
    }
    if (rc < 0 || (r.type == LOG_END && view_end(&r, payload, &end) != 0) ||
        ((r.type == LOG_TOOL_ARGS || r.type == LOG_TOOL_END) && fold->item != LOG_TOOL_BEGIN)) {
        fault_set(&e.fault, 500, "server_error", NULL, "The output of this response cannot be read.");
        e.status = "failed";
        return end_with(v, fold, &e, out);
    }
    if (r.type != LOG_END) return on_record(v, fold, &r, payload, next, out);
    ending_from(v, &end, &e);
    return end_with(v, fold, &e, out);
}

bool responses_body(const struct view *v, struct wire *out, struct fault *fault_out)
{
    struct ending e = {.status = "failed"};
    const enum outcome outcome = view_outcome(v, &e.fault);
    struct log_record r;
    struct log_end end;
    const char *payload;
    uint64_t at = 0, next;

    memset(fault_out, 0, sizeof *fault_out);
    if (outcome == OUTCOME_RUNNING) return false;
    if (outcome != OUTCOME_ENDED) {
        *fault_out = e.fault;
        return true;
    }
    while (view_record(v, at, &r, &payload, &next) == 1 && r.type != LOG_END) at = next;
    e.log_end_offset = at;
    if (view_record(v, at, &r, &payload, &next) == 1 && r.type == LOG_END && view_end(&r, payload, &end) == 0) ending_from(v, &end, &e);
    else fault_set(&e.fault, 500, "server_error", NULL, "The output of this response cannot be read.");
    response_object(v, &e, out);
    return true;
}
