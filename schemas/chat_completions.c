/* schemas/chat_completions.c - log records in, chat completion chunks out. */
#include "schemas/chat_completions.h"

#include "shm/error.h"

#include <string.h>

void chat_head(const struct view *v, const char *object, struct wire *out)
{
    wire_format(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%llu,\"model\":%s", v->id, object, (unsigned long long)v->created_s, v->model);
}

const char *chat_finish(const struct log_end *end)
{
    switch (end->finish) {
    case FINISH_LENGTH: return "length";
    case FINISH_FAILED: return NULL;
    case FINISH_CANCELLED: return "cancelled";
    default: return end->tool_calls ? "tool_calls" : "stop";
    }
}

static bool find_end(const struct view *v, uint64_t at, struct log_end *end)
{
    struct log_record r;
    const char *payload;
    uint64_t next;

    while (view_record(v, at, &r, &payload, &next) == 1) {
        if (r.type == LOG_END) return view_end(&r, payload, end) == 0;
        at = next;
    }
    return false;
}

bool chat_end(const struct view *v, struct log_end *end, struct fault *f)
{
    const enum outcome outcome = view_outcome(v, f);

    memset(end, 0, sizeof *end);
    if (outcome == OUTCOME_REFUSED || outcome == OUTCOME_CONVICTED) return false;
    if (!find_end(v, 0, end)) {
        fault_set(f, 500, "server_error", NULL, "The output of this request cannot be read.");
        return false;
    }
    if (end->finish == FINISH_FAILED) {
        view_quarantine(v, f);
        return false;
    }
    return true;
}

void chat_usage(const struct view *views, uint32_t count, uint32_t prompts, struct wire *out)
{
    uint64_t input = 0, cached = 0, output = 0, reasoning = 0;
    struct log_end end;

    for (uint32_t i = 0; i < count; i++) {
        if (i % (count / prompts) == 0) { /* choices of one prompt share it */
            input += view_prompt_tokens(&views[i]);
            cached += view_cached_tokens(&views[i]);
        }
        if (!find_end(&views[i], 0, &end)) continue;
        output += end.output_tokens;
        reasoning += end.reasoning_tokens;
    }
    wire_format(out,
                "{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,\"prompt_tokens_details\":{\"cached_tokens\":%llu},"
                "\"completion_tokens_details\":{\"reasoning_tokens\":%llu}}",
                (unsigned long long)input, (unsigned long long)output, (unsigned long long)(input + output), (unsigned long long)cached, (unsigned long long)reasoning);
}

void chat_usage_chunk(const struct view *views, uint32_t count, uint32_t prompts, struct wire *out)
{
    chat_head(&views[0], views[0].api == API_CHAT ? "chat.completion.chunk" : "text_completion", out);
    wire_text(out, ",\"choices\":[],\"usage\":");
    chat_usage(views, count, prompts, out);
    wire_text(out, "}");
}

/* ---- chunks ------------------------------------------------------------------- */

static void chunk_begin(const struct view *v, struct wire *out)
{
    chat_head(v, "chat.completion.chunk", out);
    wire_format(out, ",\"choices\":[{\"index\":%u,\"delta\":{", v->choice);
}

/* Closes delta and choice; tokens [from, to) belong to this chunk. */
static int chunk_finish(const struct view *v, uint32_t from, uint32_t to, bool logprobs, const char *reason, struct wire *out)
{
    wire_text(out, "},\"logprobs\":");
    if (v->want_logprobs && logprobs) {
        wire_text(out, "{\"content\":");
        view_logprobs(v, from, to, out);
        wire_text(out, ",\"refusal\":null}");
    } else wire_text(out, "null");
    if (v->want_token_ids) {
        wire_text(out, ",\"token_ids\":");
        view_output_ids(v, from, to, out);
    }
    if (reason) wire_format(out, ",\"finish_reason\":\"%s\"}]", reason);
    else wire_text(out, ",\"finish_reason\":null}]");
    return 1;
}

static int first_chunk(const struct view *v, struct chat_fold *fold, struct wire *out)
{
    fold->begun = 1;
    chunk_begin(v, out);
    wire_text(out, "\"role\":\"assistant\",\"content\":\"\"");
    chunk_finish(v, 0, 0, false, NULL, out);
    if (v->want_token_ids) {
        wire_text(out, ",\"prompt_token_ids\":");
        view_prompt_ids(v, out);
    }
    wire_text(out, "}");
    return 1;
}

static void delta(const struct view *v, const struct chat_fold *fold, const struct log_record *r, const char *payload, struct wire *out)
{
    if (r->type == LOG_REASONING) { /* two names are in use for it */
        wire_text(out, "\"reasoning_content\":");
        wire_string_bytes(out, payload, r->bytes);
        wire_text(out, ",\"reasoning\":");
        wire_string_bytes(out, payload, r->bytes);
    } else if (r->type == LOG_TEXT) {
        wire_text(out, "\"content\":");
        wire_string_bytes(out, payload, r->bytes);
    } else if (r->type == LOG_TOOL_BEGIN) {
        wire_format(out, "\"tool_calls\":[{\"index\":%u,\"id\":\"call_%s%02x%02x\",\"type\":\"function\",\"function\":{\"name\":", fold->tool_index, v->key,
                    v->choice, fold->tool_index);
        wire_string_bytes(out, payload, r->bytes);
        wire_text(out, ",\"arguments\":\"\"}}]");
    } else {
        wire_format(out, "\"tool_calls\":[{\"index\":%u,\"function\":{\"arguments\":", fold->tool_index);
        wire_string_bytes(out, payload, r->bytes);
        wire_text(out, "}}]");
    }
}

static int failed(struct chat_fold *fold, const struct fault *f, struct wire *out)
{
    fold->done = 1;
    wire_text(out, "{\"error\":");
    fault_object(out, f);
    wire_text(out, "}");
    return 1;
}

static int without_record(const struct view *v, struct chat_fold *fold, struct wire *out)
{
    struct fault f;
    const enum outcome outcome = view_outcome(v, &f);

    return outcome == OUTCOME_REFUSED || outcome == OUTCOME_CONVICTED ? failed(fold, &f, out) : 0;
}

int chat_next(const struct view *v, struct chat_fold *fold, struct wire *out)
{
    struct log_record r;
    struct log_end end;
    struct fault f;
    const char *payload;
    uint64_t next;
    int rc;

    if (fold->done) return 0;
    if (view_waits_for_tokenizer(v)) return without_record(v, fold, out);
    if (!fold->begun) {
        const enum outcome outcome = view_outcome(v, &f);
        return outcome == OUTCOME_REFUSED || outcome == OUTCOME_CONVICTED ? failed(fold, &f, out) : first_chunk(v, fold, out);
    }
    for (;;) {
        if ((rc = view_record(v, fold->offset, &r, &payload, &next)) == 0) return without_record(v, fold, out);
        if (rc < 0 || (r.type == LOG_END && view_end(&r, payload, &end) != 0)) {
            fault_set(&f, 500, "server_error", NULL, "The output of this request cannot be read.");
            return failed(fold, &f, out);
        }
        fold->offset = next;
        if (r.type != LOG_TOOL_END) break;
        fold->tool_index++; /* says nothing to these clients */
    }
    if (r.type == LOG_END) {
        fold->done = 1;
        if (end.finish == FINISH_FAILED) {
            view_quarantine(v, &f);
            return failed(fold, &f, out);
        }
        r.tokens = end.output_tokens;
    }
    chunk_begin(v, out);
    if (r.type != LOG_END) delta(v, fold, &r, payload, out);
    chunk_finish(v, fold->tokens, r.tokens, true, r.type == LOG_END ? chat_finish(&end) : NULL, out);
    fold->tokens = r.tokens;
    if (r.type == LOG_END) {
        wire_text(out, ",\"sluice\":");
        view_sluice(v, &end, out);
    }
    wire_text(out, "}");
    return 1;
}

/* ---- bodies ------------------------------------------------------------------- */

/* All payloads of one kind as the inside of a JSON string. Returns how many records there were. */
static unsigned joined(const struct view *v, uint32_t type, struct wire *out)
{
    struct log_record r;
    const char *payload;
    uint64_t at = 0, next;
    unsigned count = 0;

    for (; view_record(v, at, &r, &payload, &next) == 1 && r.type != LOG_END; at = next)
        if (r.type == type) {
            wire_escape(out, payload, r.bytes);
            count++;
        }
    return count;
}

static void tool_calls(const struct view *v, struct wire *out)
{
    struct chat_fold fold = {0};
    struct log_record r;
    const char *payload;
    uint64_t next;
    bool open = false;

    for (; view_record(v, fold.offset, &r, &payload, &next) == 1 && r.type != LOG_END; fold.offset = next) {
        if (r.type == LOG_TOOL_BEGIN) {
            if (open) wire_text(out, "\"}},");
            else if (fold.tool_index) wire_text(out, ",");
            wire_format(out, "{\"id\":\"call_%s%02x%02x\",\"type\":\"function\",\"function\":{\"name\":", v->key, v->choice, fold.tool_index);
            wire_string_bytes(out, payload, r.bytes);
            wire_text(out, ",\"arguments\":\"");
            open = true;
        } else if (r.type == LOG_TOOL_ARGS && open) wire_escape(out, payload, r.bytes);
        else if (r.type == LOG_TOOL_END && open) {
            wire_text(out, "\"}}");
            open = false;
            fold.tool_index++;
        }
    }
    if (open) wire_text(out, "\"}}");
}

static void message(const struct view *v, struct wire *out)
{
    struct wire text = {0};

    if (joined(v, LOG_TEXT, &text) || !joined(v, LOG_TOOL_BEGIN, &text)) {
        wire_text(out, "{\"role\":\"assistant\",\"content\":\"");
        wire_add(out, text.data ? text.data : "", text.bytes);
        wire_text(out, "\"");
    } else wire_text(out, "{\"role\":\"assistant\",\"content\":null");
    wire_clear(&text);
    if (joined(v, LOG_REASONING, &text)) wire_format(out, ",\"reasoning_content\":\"%s\",\"reasoning\":\"%s\"", text.data, text.data);
    wire_clear(&text);
    tool_calls(v, &text);
    if (text.bytes) {
        wire_text(out, ",\"tool_calls\":[");
        wire_add(out, text.data, text.bytes);
        wire_text(out, "]");
    }
    wire_text(out, ",\"refusal\":null}");
    wire_free(&text);
}

bool chat_body(const struct view *views, uint32_t count, struct wire *out, struct fault *f)
{
    struct log_end end;

    chat_head(&views[0], "chat.completion", out);
    wire_text(out, ",\"choices\":[");
    for (uint32_t i = 0; i < count; i++) {
        const struct view *v = &views[i];
        if (!chat_end(v, &end, f)) return false;
        wire_format(out, "%s{\"index\":%u,\"message\":", i ? "," : "", v->choice);
        message(v, out);
        wire_text(out, ",\"logprobs\":");
        if (v->want_logprobs) {
            wire_text(out, "{\"content\":");
            view_logprobs(v, 0, end.output_tokens, out);
            wire_text(out, ",\"refusal\":null}");
        } else wire_text(out, "null");
        if (v->want_token_ids) {
            wire_text(out, ",\"token_ids\":");
            view_output_ids(v, 0, end.output_tokens, out);
        }
        wire_format(out, ",\"finish_reason\":\"%s\"}", chat_finish(&end));
    }
    wire_text(out, "],\"usage\":");
    chat_usage(views, count, 1, out);
    if (views[0].want_token_ids) {
        wire_text(out, ",\"prompt_token_ids\":");
        view_prompt_ids(&views[0], out);
    }
    wire_text(out, ",\"sluice\":");
    chat_end(&views[0], &end, f);
    view_sluice(&views[0], &end, out);
    wire_text(out, "}\n");
    return true;
}
