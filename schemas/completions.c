/* schemas/completions.c - text completions: the older API, here for measurements and identity checks. */
#include "schemas/chat_completions.h"

#include "shm/error.h"

#include <string.h>

/* The logprobs of this API are four parallel lists. text_offset counts bytes of the completion. */
static void logprobs(const struct view *v, uint32_t from, uint32_t to, uint32_t *text_bytes, struct wire *out)
{
    const uint32_t committed = word_for(&table_verify(v->table, v->slot)->commit, v->generation);
    const struct token_logprobs *list = table_logprobs(v->table, v->slot);
    const uint32_t *tokens = table_output(v->table, v->slot);
    struct wire names = {0}, values = {0}, tops = {0}, offsets = {0}, raw = {0};

    if (to > committed) to = committed;
    for (uint32_t i = from; i < to; i++) {
        const char *comma = i > from ? "," : "";
        wire_clear(&raw);
        view_token_text(v, tokens[i], &raw);
        wire_text(&names, comma);
        wire_string_bytes(&names, raw.data ? raw.data : "", raw.bytes);
        wire_text(&values, comma);
        wire_float(&values, list[i].logprob < -9999.0f ? -9999.0f : list[i].logprob);
        wire_format(&offsets, "%s%u", comma, *text_bytes);
        *text_bytes += (uint32_t)raw.bytes;
        wire_format(&tops, "%s{", comma);
        for (uint32_t k = 0; k < list[i].top_count && k < v->top_logprobs && k < LOGPROBS_TOP_MAX; k++) {
            wire_clear(&raw);
            view_token_text(v, list[i].top_token[k], &raw);
            wire_text(&tops, k ? "," : "");
            wire_string_bytes(&tops, raw.data ? raw.data : "", raw.bytes);
            wire_text(&tops, ":");
            wire_float(&tops, list[i].top_logprob[k]);
        }
        wire_text(&tops, "}");
    }
    wire_format(out, "{\"tokens\":[%s],\"token_logprobs\":[%s],\"top_logprobs\":[%s],\"text_offset\":[%s]}", names.data ? names.data : "",
                values.data ? values.data : "", tops.data ? tops.data : "", offsets.data ? offsets.data : "");
    wire_free(&names);
    wire_free(&values);
    wire_free(&tops);
    wire_free(&offsets);
    wire_free(&raw);
}

static void choice_begin(const struct view *v, struct wire *out)
{
    chat_head(v, "text_completion", out);
    wire_format(out, ",\"choices\":[{\"index\":%u,\"text\":\"", v->choice);
}

/* After the text: closes it and the choice. */
static void choice_finish(const struct view *v, uint32_t from, uint32_t to, uint32_t *text_bytes, const char *reason, struct wire *out)
{
    wire_text(out, "\",\"logprobs\":");
    if (v->want_logprobs) logprobs(v, from, to, text_bytes, out);
    else wire_text(out, "null");
    if (v->want_token_ids) {
        wire_text(out, ",\"token_ids\":");
        view_output_ids(v, from, to, out);
    }
    if (reason) wire_format(out, ",\"finish_reason\":\"%s\"}", reason);
    else wire_text(out, ",\"finish_reason\":null}");
}

static int failed(struct chat_fold *fold, const struct fault *f, struct wire *out)
{
    fold->done = 1;
    fault_body(out, f);
    out->bytes--; /* a chunk has no line end of its own */
    return 1;
}

static int begin(const struct view *v, struct chat_fold *fold, struct wire *out)
{
    fold->begun = 1;
    choice_begin(v, out);
    wire_escape(out, v->prompt_text, strlen(v->prompt_text));
    choice_finish(v, 0, 0, &fold->text_bytes, NULL, out);
    fold->text_bytes = (uint32_t)strlen(v->prompt_text);
    wire_text(out, "]}");
    return 1;
}

int completions_next(const struct view *v, struct chat_fold *fold, struct wire *out)
{
    struct log_record r;
    struct log_end end = {0};
    struct fault f;
    const char *payload;
    uint64_t next;

    if (fold->done) return 0;
    const int rc = view_record(v, fold->offset, &r, &payload, &next);
    if (rc == 0 || !fold->begun) {
        const enum outcome outcome = view_outcome(v, &f);
        if (outcome == OUTCOME_REFUSED || outcome == OUTCOME_CONVICTED) return failed(fold, &f, out);
    }
    if (view_waits_for_tokenizer(v)) return 0;
    if (!fold->begun && v->prompt_text) return begin(v, fold, out);
    fold->begun = 1;
    if (rc == 0) return 0;
    if (rc < 0 || (r.type == LOG_END && view_end(&r, payload, &end) != 0)) {
        fault_set(&f, 500, "server_error", NULL, "The output of this request cannot be read.");
        return failed(fold, &f, out);
    }
    fold->offset = next;
    if (r.type == LOG_END) {
        fold->done = 1;
        if (end.finish == FINISH_FAILED) {
            view_quarantine(v, &f);
            return failed(fold, &f, out);
        }
        r.tokens = end.output_tokens;
    }
    choice_begin(v, out);
    if (r.type != LOG_END) wire_escape(out, payload, r.bytes);
    choice_finish(v, fold->tokens, r.tokens, &fold->text_bytes, r.type == LOG_END ? chat_finish(&end) : NULL, out);
    fold->tokens = r.tokens;
    wire_text(out, "]}");
    return 1;
}

bool completions_body(const struct view *views, uint32_t count, uint32_t prompts, struct wire *out, struct fault *f)
{
    struct log_end end;

    chat_head(&views[0], "text_completion", out);
    wire_text(out, ",\"choices\":[");
    for (uint32_t i = 0; i < count; i++) {
        const struct view *v = &views[i];
        uint32_t text_bytes = v->prompt_text ? (uint32_t)strlen(v->prompt_text) : 0;
        struct log_record r;
        const char *payload;
        uint64_t at = 0, next;

        if (!chat_end(v, &end, f)) return false;
        wire_format(out, "%s{\"index\":%u,\"text\":\"", i ? "," : "", v->choice);
        if (v->prompt_text) wire_escape(out, v->prompt_text, strlen(v->prompt_text));
        for (; view_record(v, at, &r, &payload, &next) == 1 && r.type != LOG_END; at = next) wire_escape(out, payload, r.bytes);
        choice_finish(v, 0, end.output_tokens, &text_bytes, chat_finish(&end), out);
        if (v->want_token_ids) {
            out->bytes--; /* into the choice, before its brace */
            wire_text(out, ",\"prompt_token_ids\":");
            view_prompt_ids(v, out);
            wire_text(out, "}");
        }
    }
    wire_text(out, "],\"usage\":");
    chat_usage(views, count, prompts, out);
    wire_text(out, "}\n");
    return true;
}
