/* schemas/view.c - reads a slot on behalf of its event stream. */
#include "schemas/view.h"

#include "model/detok.h"
#include "schemas/field.h"
#include "schemas/pack.h"
#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *quoted(const char *before, const char *text)
{
    struct wire w = {0};

    wire_text(&w, before);
    if (text) wire_string(&w, text);
    return w.data ? w.data : strdup("");
}

static int read_meta(struct view *v, const char *meta, size_t bytes)
{
    json_error_t error;
    json_t *m = json_loadb(meta, bytes, 0, &error);
    const char *model, *echo, *stream_id, *prompt;

    if (!json_is_object(m)) {
        json_decref(m);
        return -E_FORMAT;
    }
    model = json_string_value(json_object_get(m, "model"));
    echo = json_string_value(json_object_get(m, "echo"));
    stream_id = json_string_value(json_object_get(m, "stream_id"));
    prompt = json_string_value(json_object_get(m, "prompt_text"));
    v->api = (enum api)json_integer_value(json_object_get(m, "api"));
    v->choice = (uint32_t)json_integer_value(json_object_get(m, "choice"));
    v->instructions = (uint32_t)json_integer_value(json_object_get(m, "instructions"));
    v->stored = json_is_true(json_object_get(m, "store"));
    v->want_logprobs = json_is_true(json_object_get(m, "logprobs"));
    v->want_token_ids = json_is_true(json_object_get(m, "token_ids"));
    v->model = quoted("", model ? model : "");
    v->echo = strdup(echo ? echo : "");
    v->stream_id = stream_id ? quoted(",\"stream_id\":", stream_id) : strdup("");
    v->prompt_text = prompt ? strdup(prompt) : NULL;
    json_decref(m);
    return v->model && v->echo && v->stream_id ? 0 : -E_NOMEM;
}

int view_open(struct view *v, const struct table *table, uint32_t slot, uint32_t generation)
{
    const struct gateway_slot *g = table_gateway(table, slot);
    const uint64_t bytes = g->request_bytes;
    const char *meta, *dash;
    size_t meta_bytes;

    memset(v, 0, sizeof *v);
    if (word_generation(shm_load_acquire(&g->commit)) != generation) return -E_STALE;
    v->table = table;
    v->slot = slot;
    v->generation = generation;
    v->created_s = g->created_s;
    v->top_logprobs = g->params.sampling.top_logprob_count;
    snprintf(v->id, sizeof v->id, "%.*s", (int)sizeof v->id - 1, g->id);
    v->id[strcspn(v->id, ".")] = '\0'; /* choices of one request share an id; their slots have ".1", ".2" behind it */
    dash = strpbrk(v->id, "_-");
    snprintf(v->key, sizeof v->key, "%.32s", dash ? dash + 1 : v->id);
    int rc = pack_meta(table_request(table, slot), table->limits.request_bytes_max, bytes, &meta, &meta_bytes);
    if (rc == 0) rc = read_meta(v, meta, meta_bytes);
    if (rc != 0) view_close(v);
    return rc;
}

void view_close(struct view *v)
{
    free(v->model);
    free(v->echo);
    free(v->stream_id);
    free(v->prompt_text);
    memset(v, 0, sizeof *v);
}

void view_quarantine(const struct view *v, struct fault *f)
{
    const uint32_t verdict = word_for(&table_launcher(v->table, v->slot)->verdict, v->generation);
    const char *stage = verdict ? role_name((int)verdict - 1) : NULL;

    fault_set(f, 500, "quarantined", NULL, "This request was stopped because it made the %s stage fail repeatedly. Other requests are not affected.",
              stage ? stage : "same");
}

static void refusal(const struct view *v, uint32_t status, struct fault *f)
{
    const char *words = table_tokenize(v->table, v->slot)->error_text;
    char text[ERROR_TEXT_BYTES];
    const char *param = v->api == API_RESPONSES ? "input" : v->api == API_CHAT ? "messages" : "prompt";

    snprintf(text, sizeof text, "%.*s", (int)ERROR_TEXT_BYTES - 1, words);
    if (!text[0]) snprintf(text, sizeof text, "the prompt was refused");
    switch (status) {
    case PROMPT_TEMPLATE_ERROR: fault_set(f, 400, "invalid_prompt", param, "%.480s", text); break;
    case PROMPT_TOO_LONG: fault_set(f, 400, "context_length_exceeded", param, "%.480s", text); break;
    case PROMPT_EMPTY: fault_set(f, 400, "invalid_prompt", param, "The prompt is empty."); break;
    case PROMPT_BAD_TOKEN: fault_set(f, 400, "invalid_prompt", param, "%.480s", text); break;
    case PROMPT_FAILED: view_quarantine(v, f); break;
    case PROMPT_MEDIA_BAD: fault_set(f, 400, "invalid_media", param, "%.480s", text); break;
    case PROMPT_MEDIA_LARGE: fault_set(f, 413, "media_too_large", param, "%.480s", text); break;
    default: fault_set(f, 500, "server_error", NULL, "%.480s", text);
    }
}

enum outcome view_outcome(const struct view *v, struct fault *f)
{
    const uint32_t prompt = word_for(&table_tokenize(v->table, v->slot)->commit, v->generation);
    const uint32_t verdict = word_for(&table_launcher(v->table, v->slot)->verdict, v->generation);

    if (prompt > PROMPT_READY) {
        refusal(v, prompt, f);
        return OUTCOME_REFUSED;
    }
    if (word_for(&table_detokenize(v->table, v->slot)->over, v->generation)) return OUTCOME_ENDED;
    if (verdict == 1 + ROLE_GATEWAY) { /* its log is not looked at again: that may be what killed us. Other verdicts show as PROMPT_FAILED or in the log */
        view_quarantine(v, f);
        return OUTCOME_CONVICTED;
    }
    return OUTCOME_RUNNING;
}

int view_record(const struct view *v, uint64_t offset, struct log_record *record, const char **payload, uint64_t *next)
{
    const uint32_t committed = word_for(&table_detokenize(v->table, v->slot)->commit, v->generation);
    const uint8_t *log = table_log(v->table, v->slot);

    if (committed > v->table->limits.log_bytes_max || offset > committed) return -E_FORMAT;
    if (offset == committed) return 0;
    if (committed - offset < sizeof *record) return -E_FORMAT;
    memcpy(record, log + offset, sizeof *record);
    if (record->bytes > committed - offset - sizeof *record || record->type < LOG_REASONING || record->type > LOG_END) return -E_FORMAT;
    if (record->tokens > v->table->limits.context_max) return -E_FORMAT;
    *payload = (const char *)log + offset + sizeof *record;
    *next = offset + ((sizeof *record + record->bytes + 7) & ~(uint64_t)7);
    if (*next > committed) *next = committed;
    return 1;
}

int view_end(const struct log_record *record, const char *payload, struct log_end *end)
{
    if (record->bytes != sizeof *end) return -E_FORMAT;
    memcpy(end, payload, sizeof *end);
    return 0;
}

uint32_t view_prompt_tokens(const struct view *v)
{
    if (word_for(&table_tokenize(v->table, v->slot)->commit, v->generation) != PROMPT_READY) return 0;
    const uint32_t count = table_tokenize(v->table, v->slot)->prompt_count;
    return count <= v->table->limits.context_max ? count : 0;
}

uint32_t view_cached_tokens(const struct view *v)
{
    const struct prefill_slot *p = table_prefill(v->table, v->slot);
    const uint32_t cached = word_for(&p->pages, v->generation) ? p->cached_tokens : 0, prompt = view_prompt_tokens(v);

    return cached < prompt ? cached : prompt;
}

/* Milliseconds between two marks that other processes set; 0 when one is missing or they are out of order. */
static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return from_ns && to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

void view_sluice(const struct view *v, const struct log_end *end, struct wire *out)
{
    const struct gateway_slot *g = table_gateway(v->table, v->slot);
    const struct tokenize_slot *t = table_tokenize(v->table, v->slot);
    const struct prefill_slot *p = table_prefill(v->table, v->slot);
    const struct verify_slot *y = table_verify(v->table, v->slot);

    wire_format(out, "{\"accept_length\":%.3f,\"draft_tokens\":%u,\"accepted_tokens\":%u,\"rounds\":%u,\"ttft_ms\":%.3f,",
                y->rounds ? (double)end->output_tokens / y->rounds : 0, y->drafted, y->accepted, y->rounds, ms_between(g->accepted_ns, y->first_ns));
    wire_format(out, "\"stage_ms\":{\"tokenize\":%.3f,\"queue\":%.3f,\"prefill\":%.3f,\"decode\":%.3f},\"resumed\":%u}",
                ms_between(g->accepted_ns, t->done_ns), ms_between(t->done_ns, p->started_ns), ms_between(p->started_ns, p->done_ns),
                ms_between(y->first_ns, y->last_ns), v->resumed);
}

static void ids(const uint32_t *tokens, uint32_t count, struct wire *out)
{
    wire_add(out, "[", 1);
    for (uint32_t i = 0; i < count; i++) wire_format(out, "%s%u", i ? "," : "", tokens[i]);
    wire_add(out, "]", 1);
}

void view_output_ids(const struct view *v, uint32_t from, uint32_t to, struct wire *out)
{
    const uint32_t committed = word_for(&table_verify(v->table, v->slot)->commit, v->generation);

    if (to > committed) to = committed;
    if (to > v->table->limits.context_max) to = v->table->limits.context_max;
    ids(table_output(v->table, v->slot) + (from < to ? from : to), from < to ? to - from : 0, out);
}

void view_prompt_ids(const struct view *v, struct wire *out)
{
    ids(table_prompt(v->table, v->slot), view_prompt_tokens(v), out);
}

void view_token_text(const struct view *v, uint32_t token, struct wire *raw)
{
    char text[DETOK_BYTES_MAX];
    const int n = v->tokenizer ? tokenizer_token_bytes(v->tokenizer, token, text, sizeof text, 0) : 0;

    if (n > 0) wire_add(raw, text, (size_t)n);
}

static void one_logprob(const struct view *v, uint32_t token, float logprob, struct wire *raw, struct wire *out)
{
    wire_clear(raw);
    view_token_text(v, token, raw);
    wire_text(out, "{\"token\":");
    wire_string_bytes(out, raw->data ? raw->data : "", raw->bytes);
    wire_text(out, ",\"logprob\":");
    wire_float(out, logprob < -9999.0f ? -9999.0f : logprob); /* JSON has no minus infinity; this is what clients expect for it */
    wire_text(out, ",\"bytes\":[");
    for (size_t i = 0; i < raw->bytes; i++) wire_format(out, "%s%u", i ? "," : "", (unsigned)(uint8_t)raw->data[i]);
    wire_text(out, "]");
}

void view_logprobs(const struct view *v, uint32_t from, uint32_t to, struct wire *out)
{
    const uint32_t committed = word_for(&table_verify(v->table, v->slot)->commit, v->generation);
    const struct token_logprobs *list = table_logprobs(v->table, v->slot);
    const uint32_t *tokens = table_output(v->table, v->slot);
    struct wire raw = {0};

    if (to > committed) to = committed;
    if (to > v->table->limits.context_max) to = v->table->limits.context_max;
    wire_add(out, "[", 1);
    for (uint32_t i = from; i < to; i++) {
        const uint32_t top = list[i].top_count < v->top_logprobs ? list[i].top_count : v->top_logprobs;
        if (i > from) wire_add(out, ",", 1);
        one_logprob(v, tokens[i], list[i].logprob, &raw, out);
        wire_text(out, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < top && k < LOGPROBS_TOP_MAX; k++) {
            if (k) wire_add(out, ",", 1);
            one_logprob(v, list[i].top_token[k], list[i].top_logprob[k], &raw, out);
            wire_add(out, "}", 1);
        }
        wire_text(out, "]}");
    }
    wire_add(out, "]", 1);
    wire_free(&raw);
}
