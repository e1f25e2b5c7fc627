/* schemas/request.c - the three request bodies, and the record they become. */
#include "schemas/request.h"

#include "schemas/pack.h"
#include "shm/error.h"

#include <stdio.h>
#include <string.h>

#define TRY(call) do { if ((call) < 0) return -E_FORMAT; } while (0)

/* Fields whose presence asks for something that this server cannot do; null, false and empty are harmless. */
static int refuse_unbuilt(const json_t *body, const char *const *names, struct fault *f)
{
    for (; *names; names++) {
        const json_t *value = json_object_get(body, *names);
        if (!value || json_is_null(value) || json_is_false(value) || (json_is_array(value) && json_array_size(value) == 0)) continue;
        return fault_set(f, 400, "unsupported_parameter", *names, "Unsupported parameter: '%s' is not supported by this server.", *names);
    }
    return 0;
}

/* {"type": "text"} is the only output format there is. */
static int text_format(const json_t *format, const char *param, struct fault *f)
{
    const char *type = json_string_value(json_object_get(format, "type"));

    if (!format || json_is_null(format) || (type && strcmp(type, "text") == 0)) return 0;
    return fault_set(f, 400, "unsupported_parameter", param, "Unsupported '%s': this server only writes plain text (type 'text'), it cannot enforce '%.40s'.",
                     param, type ? type : "(missing type)");
}

/* Thinking is a switch of the chat template: an effort other than none turns it on. */
static int template_kwargs(const json_t *body, const char *effort, json_t *chat, struct fault *f)
{
    static const char *const efforts[] = {"none", "minimal", "low", "medium", "high", "xhigh", "max"};
    json_t *given = NULL, *kwargs = json_object();
    size_t i;

    json_object_set_new(chat, "template_kwargs", kwargs);
    for (i = 0; effort && i < sizeof efforts / sizeof *efforts; i++)
        if (strcmp(effort, efforts[i]) == 0) break;
    if (effort && i == sizeof efforts / sizeof *efforts)
        return fault_set(f, 400, "invalid_value", "reasoning.effort", "Invalid reasoning effort '%.40s': use none, minimal, low, medium, high or xhigh.", effort);
    if (effort) json_object_set_new(kwargs, "enable_thinking", json_boolean(i != 0));
    TRY(field_object(body, "chat_template_kwargs", &given, f));
    if (given) json_object_update(kwargs, given);
    if (json_object_get(chat, "forced_call") && json_is_true(json_object_get(kwargs, "enable_thinking")))
        return fault_set(f, 400, "unsupported_parameter", "tool_choice", "Unsupported 'tool_choice' with reasoning: a call that must be made is the first thing that is written.");
    return 0;
}

static json_t *new_chat(json_t *messages, json_t *tools, const char *forced)
{
    json_t *chat = json_pack("{s:o,s:b}", "messages", messages, "add_generation_prompt", 1);

    if (tools) json_object_set_new(chat, "tools", tools);
    if (forced) json_object_set_new(chat, "forced_call", json_string(forced));
    return chat;
}

/* ---- Responses ------------------------------------------------------------------- */

static const char *const responses_names[] = {
    "input", "instructions", "max_output_tokens", "previous_response_id", "reasoning", "tools", "tool_choice", "text", "include", "parallel_tool_calls",
    "max_tool_calls", "truncation", "background", "conversation", "prompt", "context_management", "moderation", "chat_template_kwargs", "generate",
    "access_programs", "background_options", "image", "prompt_cache_options", "type", "stream_id", NULL,
};

/* What the response object repeats of the request. Null where nothing was asked for: client libraries read all of them. */
static void echo_responses(struct request *r, const json_t *body)
{
    static const char *const copied[] = {"instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt_cache_key", "safety_identifier", "user", NULL};
    const struct sampling_params *s = &r->params.sampling;
    const json_t *reasoning = json_object_get(body, "reasoning"), *tools = json_object_get(body, "tools");
    json_t *e = r->echo;

    for (const char *const *name = copied; *name; name++) {
        json_t *value = json_object_get(body, *name);
        json_object_set_new(e, *name, value ? json_incref(value) : json_null());
    }
    json_t *metadata = json_object_get(body, "metadata"), *parallel = json_object_get(body, "parallel_tool_calls");
    json_object_set_new(e, "metadata", json_is_object(metadata) ? json_incref(metadata) : json_object());
    json_object_set_new(e, "parallel_tool_calls", json_boolean(!json_is_false(parallel)));
    json_t *effort = json_object_get(reasoning, "effort");
    json_object_set_new(e, "reasoning", json_pack("{s:o,s:n}", "effort", effort ? json_incref(effort) : json_null(), "summary"));
    json_object_set_new(e, "seed", json_integer((json_int_t)s->seed));
    json_object_set_new(e, "service_tier", json_string("default"));
    json_object_set_new(e, "store", json_boolean(r->store));
    json_object_set_new(e, "temperature", json_real(s->temperature));
    json_object_set_new(e, "text", json_pack("{s:{s:s}}", "format", "type", "text"));
    json_t *choice = json_object_get(body, "tool_choice");
    json_object_set_new(e, "tool_choice", json_is_string(choice) || json_is_object(choice) ? json_incref(choice) : json_string("auto"));
    json_object_set_new(e, "tools", json_is_array(tools) ? json_incref((json_t *)tools) : json_array());
    json_object_set_new(e, "top_logprobs", json_integer(s->top_logprob_count));
    json_object_set_new(e, "top_p", json_real(s->top_p));
    json_object_set_new(e, "truncation", json_string("disabled"));
}

static int read_include(struct request *r, const json_t *body, struct fault *f)
{
    json_t *include = NULL, *one;
    int64_t top = 0;
    size_t i;

    TRY(field_array(body, "include", 16, &include, f));
    json_array_foreach(include, i, one)
    {
        const char *name = json_string_value(one);
        if (name && strcmp(name, "message.output_text.logprobs") == 0) r->params.sampling.want_logprobs = 1;
        else if (!name || strcmp(name, "reasoning.encrypted_content") != 0) /* reasoning comes back in the clear: nothing to add */
            return fault_set(f, 400, "unsupported_parameter", "include", "Unsupported 'include' value '%.60s'.", name ? name : "(not a string)");
    }
    TRY(field_integer(body, "top_logprobs", 0, LOGPROBS_TOP_MAX, &top, f));
    r->params.sampling.top_logprob_count = (uint32_t)top;
    if (top > 0) r->params.sampling.want_logprobs = 1;
    return 0;
}

static int read_lane(struct request *r, const json_t *body, bool websocket, struct fault *f)
{
    const char *stream_id = NULL, *previous = NULL;
    bool generate = true;

    if (field_string(body, "stream_id", STREAM_ID_BYTES, &stream_id, f) < 0 || field_string(body, "previous_response_id", RESPONSE_ID_BYTES - 1, &previous, f) < 0)
        return -E_FORMAT;
    if (stream_id && !websocket) return fault_set(f, 400, "unknown_parameter", "stream_id", "'stream_id' exists on WebSocket connections only.");
    if (stream_id) {
        snprintf(r->stream_id, sizeof r->stream_id, "%s", stream_id);
        r->has_stream_id = true;
        json_object_set_new(r->meta, "stream_id", json_string(stream_id));
    }
    if (previous) snprintf(r->previous_id, sizeof r->previous_id, "%s", previous);
    TRY(field_bool(body, "generate", &generate, f));
    if (!generate) r->params.flags |= REQUEST_PREFILL_ONLY;
    return 0;
}

static int read_responses(struct request *r, bool websocket, const json_t *body, const struct request_defaults *d, struct fault *f)
{
    struct request_media media = {&r->media, d};
    static const char *const unbuilt[] = {"background", "background_options", "conversation", "prompt", "context_management", "moderation", "access_programs", "image", NULL};
    const json_t *input = json_object_get(body, "input");
    const char *instructions = NULL, *effort = NULL, *truncation = "disabled";
    const char *forced;
    json_t *reasoning = NULL, *text = NULL, *tools, *messages;

    TRY(field_known(body, responses_names, request_sampling_names, "", f));
    TRY(refuse_unbuilt(body, unbuilt, f));
    TRY(read_lane(r, body, websocket, f));
    TRY(read_include(r, body, f));
    TRY(request_max_tokens(r, body, "max_output_tokens", f));
    TRY(field_string(body, "instructions", SIZE_MAX, &instructions, f));
    TRY(field_object(body, "reasoning", &reasoning, f));
    if (reasoning) TRY(field_string(reasoning, "effort", 16, &effort, f));
    TRY(field_object(body, "text", &text, f));
    TRY(text_format(json_object_get(text, "format"), "text.format", f));
    TRY(field_string(body, "truncation", 16, &truncation, f));
    if (strcmp(truncation, "disabled") != 0)
        return fault_set(f, 400, "unsupported_parameter", "truncation", "Unsupported 'truncation': only 'disabled' is supported, a too long input is refused.");
    if (!json_is_string(input) && !json_is_array(input) && !(input == NULL && r->previous_id[0]))
        return fault_set(f, 400, input ? "invalid_type" : "missing_required_parameter", "input", "'input' must be a string or an array of input items.");
    if (json_array_size(input) > REQUEST_MESSAGES_MAX)
        return fault_set(f, 400, "array_too_long", "input", "Invalid 'input': at most %u items are allowed.", REQUEST_MESSAGES_MAX);
    if (!(messages = request_input_messages(input, &media, f))) return -E_FORMAT;
    if ((!r->previous_id[0] && request_check_results(messages, "input", f) < 0) || request_tools(r, body, &tools, &forced, f) < 0) { /* else in request_continue */
        json_decref(messages);
        return -E_FORMAT;
    }
    if (instructions && *instructions) {
        json_array_insert_new(messages, 0, json_pack("{s:s,s:s}", "role", "system", "content", instructions));
        r->instructions = 1;
    }
    r->chat[r->prompt_count++] = new_chat(messages, tools, forced);
    TRY(template_kwargs(body, effort, r->chat[0], f));
    echo_responses(r, body);
    return 0;
}

int request_continue(struct request *r, const struct view *v, struct fault *f)
{
    json_t *history = request_history(v, f), *messages = json_object_get(r->chat[0], "messages"), *message;
    size_t i;

    if (!history) return -E_FORMAT;
    if (request_media_history(r, v, f) < 0) {
        json_decref(history);
        return -E_FORMAT;
    }
    json_array_foreach(messages, i, message)
    {
        if (i < r->instructions) json_array_insert(history, 0, message); /* new instructions lead; those of the past are gone */
        else json_array_append(history, message);
    }
    if (json_array_size(history) > REQUEST_MESSAGES_MAX) {
        json_decref(history);
        return fault_set(f, 400, "array_too_long", "input", "The conversation has more than %u messages.", REQUEST_MESSAGES_MAX);
    }
    if (request_check_results(history, "input", f) < 0) {
        json_decref(history);
        return -E_FORMAT;
    }
    json_object_set_new(r->chat[0], "messages", history);
    return 0;
}

/* ---- chat completions --------------------------------------------------------------- */

static const char *const chat_names[] = {
    "messages", "max_tokens", "max_completion_tokens", "n", "logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort",
    "chat_template_kwargs", "functions", "function_call", "audio", "modalities", "prediction", "web_search_options", "verbosity", "include_reasoning", NULL,
};

static int read_choices(struct request *r, const json_t *body, const struct request_defaults *d, struct fault *f)
{
    const uint32_t max = d->choices_max < REQUEST_CHOICES_MAX ? d->choices_max : REQUEST_CHOICES_MAX;
    int64_t n = 1;

    TRY(field_integer(body, "n", 1, max, &n, f));
    r->n = (uint32_t)n;
    return 0;
}

static int read_chat_logprobs(struct request *r, const json_t *body, struct fault *f)
{
    bool wanted = false;
    int64_t top = 0;

    TRY(field_bool(body, "logprobs", &wanted, f));
    TRY(field_integer(body, "top_logprobs", 0, LOGPROBS_TOP_MAX, &top, f));
    if (top > 0 && !wanted) return fault_set(f, 400, "invalid_value", "top_logprobs", "'top_logprobs' needs 'logprobs' to be true.");
    r->params.sampling.want_logprobs = wanted;
    r->params.sampling.top_logprob_count = (uint32_t)top;
    return 0;
}

static int read_chat(struct request *r, const json_t *body, const struct request_defaults *d, struct fault *f)
{
    struct request_media media = {&r->media, d};
    static const char *const unbuilt[] = {"functions", "function_call", "audio", "prediction", "web_search_options", NULL};
    json_t *messages = NULL, *modalities = NULL, *tools, *list;
    const char *effort = NULL, *forced;
    bool reasons = true;

    TRY(field_known(body, chat_names, request_sampling_names, "", f));
    TRY(refuse_unbuilt(body, unbuilt, f));
    TRY(read_choices(r, body, d, f));
    TRY(read_chat_logprobs(r, body, f));
    TRY(request_max_tokens(r, body, "max_tokens", f));
    TRY(request_max_tokens(r, body, "max_completion_tokens", f));
    TRY(field_string(body, "reasoning_effort", 16, &effort, f));
    TRY(field_array(body, "modalities", 4, &modalities, f));
    if (json_array_size(modalities) > 1 || (json_array_size(modalities) == 1 && strcmp(json_string_value(json_array_get(modalities, 0)) ?: "", "text") != 0))
        return fault_set(f, 400, "unsupported_parameter", "modalities", "Unsupported 'modalities': only [\"text\"] is supported.");
    TRY(text_format(json_object_get(body, "response_format"), "response_format", f));
    TRY(field_bool(body, "include_reasoning", &reasons, f));
    if (!reasons) return fault_set(f, 400, "unsupported_parameter", "include_reasoning", "Unsupported 'include_reasoning': reasoning is not left out of answers; 'reasoning_effort' none keeps it from being written.");
    TRY(field_array(body, "messages", REQUEST_MESSAGES_MAX, &messages, f));
    if (!json_array_size(messages)) return fault_set(f, 400, "missing_required_parameter", "messages", "'messages' must be a non-empty array.");
    if (!(list = request_chat_messages(messages, &media, f))) return -E_FORMAT;
    if (request_check_results(list, "messages", f) < 0 || request_tools(r, body, &tools, &forced, f) < 0) {
        json_decref(list);
        return -E_FORMAT;
    }
    r->chat[r->prompt_count++] = new_chat(list, tools, forced);
    return template_kwargs(body, effort, r->chat[0], f);
}

/* ---- completions ---------------------------------------------------------------------- */

static const char *const completions_names[] = {
    "prompt", "max_tokens", "n", "logprobs", "echo", "suffix", "best_of", "prompt_logprobs", "skip_special_tokens", "add_special_tokens", NULL,
};

static int add_prompt(struct request *r, const json_t *prompt, const struct request_defaults *d, struct fault *f)
{
    const json_t *token;
    size_t i;

    if (json_is_array(prompt) && json_array_size(prompt) > d->context_max)
        return fault_set(f, 400, "context_length_exceeded", "prompt", "The prompt has %zu tokens; the context holds %u.", json_array_size(prompt), d->context_max);
    json_array_foreach(prompt, i, token)
        if (!json_is_integer(token) || json_integer_value(token) < 0 || json_integer_value(token) >= d->vocab)
            return fault_set(f, 400, "out_of_range", "prompt", "Invalid 'prompt': element %zu is not a token id from 0 to %u.", i, d->vocab - 1);
    if ((json_is_array(prompt) && json_array_size(prompt) == 0) || (json_is_string(prompt) && json_string_length(prompt) == 0))
        return fault_set(f, 400, "invalid_value", "prompt", "Invalid 'prompt': it is empty.");
    r->chat[r->prompt_count++] = json_pack("{s:O}", "prompt", prompt);
    return 0;
}

static int read_prompts(struct request *r, const json_t *body, const struct request_defaults *d, struct fault *f)
{
    const uint32_t max = (d->choices_max < REQUEST_CHOICES_MAX ? d->choices_max : REQUEST_CHOICES_MAX) / r->n;
    const json_t *prompt = json_object_get(body, "prompt"), *one;
    size_t i;

    if (!prompt || json_is_null(prompt)) return fault_set(f, 400, "missing_required_parameter", "prompt", "Missing required parameter: 'prompt'.");
    if (json_is_string(prompt) || (json_is_array(prompt) && json_is_integer(json_array_get(prompt, 0)))) return add_prompt(r, prompt, d, f);
    if (!json_is_array(prompt) || json_array_size(prompt) == 0)
        return fault_set(f, 400, "invalid_type", "prompt", "'prompt' must be a string, an array of token ids, or an array of those.");
    if (json_array_size(prompt) > max)
        return fault_set(f, 400, "array_too_long", "prompt", "Invalid 'prompt': at most %u prompts with n = %u are allowed in one request.", max, r->n);
    json_array_foreach(prompt, i, one)
    {
        if (!json_is_string(one) && !json_is_array(one)) return fault_set(f, 400, "invalid_type", "prompt", "Invalid 'prompt': element %zu is neither text nor token ids.", i);
        TRY(add_prompt(r, one, d, f));
    }
    return 0;
}

static int read_completions(struct request *r, const json_t *body, const struct request_defaults *d, struct fault *f)
{
    static const char *const unbuilt[] = {"suffix", "prompt_logprobs", NULL};
    int64_t logprobs = 0, best_of = 1;
    bool skip_special = true, add_special = true;

    TRY(field_known(body, completions_names, request_sampling_names, "", f));
    TRY(refuse_unbuilt(body, unbuilt, f));
    TRY(read_choices(r, body, d, f));
    TRY(field_integer(body, "best_of", 1, INT32_MAX, &best_of, f));
    if (best_of != 1 && best_of != r->n)
        return fault_set(f, 400, "unsupported_parameter", "best_of", "Unsupported 'best_of': this server makes no more completions than it returns; leave it out, or let it be 'n'.");
    const int rc = field_integer(body, "logprobs", 0, LOGPROBS_TOP_MAX, &logprobs, f);
    if (rc < 0) return rc;
    r->params.sampling.want_logprobs = rc == 1;
    r->params.sampling.top_logprob_count = (uint32_t)logprobs;
    r->params.max_tokens = r->params.max_tokens ? r->params.max_tokens : 16; /* this API's own default */
    TRY(request_max_tokens(r, body, "max_tokens", f));
    TRY(field_bool(body, "echo", &r->echo_prompt, f));
    TRY(field_bool(body, "skip_special_tokens", &skip_special, f));
    TRY(field_bool(body, "add_special_tokens", &add_special, f));
    if (r->echo_prompt && r->params.sampling.want_logprobs)
        return fault_set(f, 400, "unsupported_parameter", "echo", "Unsupported 'echo' with 'logprobs': this server computes no log probabilities of prompts.");
    r->params.flags |= REQUEST_RAW_PROMPT | REQUEST_RAW_OUTPUT;
    if (!skip_special) r->params.flags |= REQUEST_SPECIAL_TEXT;
    if (!add_special) r->params.flags |= REQUEST_NO_BOS;
    return read_prompts(r, body, d, f);
}

/* ---- the whole -------------------------------------------------------------------------- */

int request_read(struct request *r, enum api api, bool websocket, const json_t *body, const struct request_defaults *d, struct fault *f)
{
    memset(r, 0, sizeof *r);
    r->api = api;
    r->n = 1;
    r->meta = json_pack("{s:i}", "api", (int)api);
    r->echo = json_object();
    r->store = api == API_RESPONSES;
    r->stream = websocket;
    int rc = request_sampling(r, body, d, f);
    if (rc >= 0) rc = api == API_RESPONSES ? read_responses(r, websocket, body, d, f) : api == API_CHAT ? read_chat(r, body, d, f) : read_completions(r, body, d, f);
    if (rc < 0) {
        request_free(r);
        return -E_FORMAT;
    }
    json_object_set_new(r->meta, "store", json_boolean(r->store));
    json_object_set_new(r->meta, "instructions", json_integer(r->instructions));
    if (r->params.sampling.want_logprobs) json_object_set_new(r->meta, "logprobs", json_true());
    return 0;
}

void request_free(struct request *r)
{
    json_decref(r->meta);
    json_decref(r->echo);
    request_forget_prompts(r);
    memset(r, 0, sizeof *r);
}

void request_forget_prompts(struct request *r)
{
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        json_decref(r->chat[i]);
        r->chat[i] = NULL;
    }
    media_list_free(&r->media);
}

void request_params_of(const struct request *r, uint32_t choice, struct request_params *out)
{
    *out = r->params;
    out->sampling.seed += choice;
}

size_t request_record(const struct request *r, uint32_t choice, msgpack_sbuffer *out)
{
    json_t *meta = json_copy(r->meta);
    const json_t *chat = r->chat[choice / r->n];
    const json_t *prompt = json_object_get(chat, "prompt_text") ? json_object_get(chat, "prompt_text") : json_object_get(chat, "prompt");

    json_object_set_new(meta, "choice", json_integer(choice));
    if (r->echo_prompt && json_is_string(prompt)) json_object_set(meta, "prompt_text", (json_t *)prompt);
    if (json_object_size(r->echo)) {
        char *echo = json_dumps(r->echo, JSON_COMPACT | JSON_REAL_PRECISION(7));
        if (echo) json_object_set_new(meta, "echo", json_stringn(echo + 1, strlen(echo) - 2)); /* its members, without the braces */
        free(echo);
    }
    char *text = json_dumps(meta, JSON_COMPACT);
    const size_t request_bytes = pack_record(out, text ? text : "{}", text ? strlen(text) : 2, chat);
    free(text);
    json_decref(meta);
    return request_bytes;
}
