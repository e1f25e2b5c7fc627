/* schemas/request_sampling.c - the fields that all three APIs share. */
#include "schemas/request.h"

#include "schemas/sha256.h"
#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* The last row (cache_salt apart) changes nothing about an answer here: clients send these to every server. */
const char *const request_sampling_names[] = {
    "model", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos",
    "logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty", "return_token_ids", "metadata", "store", "top_logprobs",
    "cache_salt", "user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", NULL,
};

#define SALT_BYTES_MAX 1024u
#define TRY(call) do { if ((call) < 0) return -E_FORMAT; } while (0)

static int read_model(const json_t *body, const struct request_defaults *d, struct fault *f)
{
    const char *model = d->model;

    TRY(field_string(body, "model", 256, &model, f));
    if (strcmp(model, d->model) != 0)
        return fault_set(f, 404, "model_not_found", "model", "The model '%.120s' does not exist here. This server has '%s'.", model, d->model);
    return 0;
}

static int read_numbers(struct request *r, const json_t *body, const struct request_defaults *d, struct fault *f)
{
    struct sampling_params *s = &r->params.sampling;
    double temperature = d->temperature, top_p = d->top_p, min_p = d->min_p, presence = 0, frequency = 0, repetition = 1;
    int64_t top_k = d->top_k, seed;

    TRY(field_number(body, "temperature", 0, 2, &temperature, f));
    TRY(field_number(body, "top_p", 0, 1, &top_p, f));
    TRY(field_number(body, "min_p", 0, 1, &min_p, f));
    TRY(field_integer(body, "top_k", -1, INT32_MAX, &top_k, f));
    TRY(field_number(body, "presence_penalty", -2, 2, &presence, f));
    TRY(field_number(body, "frequency_penalty", -2, 2, &frequency, f));
    TRY(field_number(body, "repetition_penalty", 0.01, 100, &repetition, f));
    const int rc = field_integer(body, "seed", INT64_MIN, INT64_MAX, &seed, f);
    if (rc < 0) return rc;
    if (rc == 0) { /* drawn once and committed with the request: a crash does not change it */
        uint64_t drawn = 0;
        if (getrandom(&drawn, sizeof drawn, 0) != sizeof drawn) return fault_set(f, 500, "server_error", "seed", "No random seed could be drawn.");
        seed = (int64_t)(drawn >> 12); /* exact in JavaScript, too, when a client sends it back */
    }
    s->seed = (uint64_t)seed;
    s->temperature = (float)temperature;
    s->top_p = top_p == 0 ? 1e-6f : (float)top_p; /* 0 asks for the single best candidate; the sampler's 0 means "off" */
    s->min_p = (float)min_p;
    s->top_k = top_k < 0 ? 0 : top_k >= d->vocab ? 0 : (uint32_t)top_k;
    s->presence_penalty = (float)presence;
    s->frequency_penalty = (float)frequency;
    s->repetition_penalty = (float)repetition;
    return 0;
}

static int add_stop(struct request_params *p, const json_t *value, struct fault *f)
{
    const size_t bytes = json_string_length(value);

    if (!json_is_string(value)) return fault_set(f, 400, "invalid_type", "stop", "Invalid type for 'stop': expected a string or an array of strings.");
    if (bytes == 0 || bytes > STOP_STRING_BYTES)
        return fault_set(f, 400, "out_of_range", "stop", "Invalid 'stop': a stop string must have 1 to %u bytes.", STOP_STRING_BYTES);
    memcpy(p->stop[p->stop_count], json_string_value(value), bytes);
    p->stop_bytes[p->stop_count++] = (uint32_t)bytes;
    return 0;
}

static int read_stops(struct request *r, const json_t *body, uint32_t vocab, struct fault *f)
{
    const json_t *stop = json_object_get(body, "stop");
    json_t *ids = NULL, *id;
    const json_t *one;
    size_t i;

    if (json_is_array(stop)) {
        if (json_array_size(stop) > STOP_STRINGS_MAX)
            return fault_set(f, 400, "array_too_long", "stop", "Invalid 'stop': at most %u stop strings are allowed.", STOP_STRINGS_MAX);
        json_array_foreach(stop, i, one) TRY(add_stop(&r->params, one, f));
    } else if (stop && !json_is_null(stop)) TRY(add_stop(&r->params, stop, f));

    TRY(field_array(body, "stop_token_ids", STOP_TOKENS_MAX, &ids, f));
    json_array_foreach(ids, i, id)
    {
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab)
            return fault_set(f, 400, "out_of_range", "stop_token_ids", "Invalid 'stop_token_ids': each must be a token id from 0 to %u.", vocab - 1);
        r->params.stop_tokens[r->params.stop_token_count++] = (uint32_t)json_integer_value(id);
    }
    return 0;
}

static int read_bias(struct request *r, const json_t *body, uint32_t vocab, struct fault *f)
{
    struct sampling_params *s = &r->params.sampling;
    json_t *bias = NULL, *value;
    const char *key;

    TRY(field_object(body, "logit_bias", &bias, f));
    if (json_object_size(bias) > SAMPLER_BIAS_MAX)
        return fault_set(f, 400, "array_too_long", "logit_bias", "Invalid 'logit_bias': at most %d tokens are allowed.", SAMPLER_BIAS_MAX);
    json_object_foreach(bias, key, value)
    {
        char *end;
        const unsigned long token = strtoul(key, &end, 10);
        if (*key < '0' || *key > '9' || *end || token >= vocab)
            return fault_set(f, 400, "out_of_range", "logit_bias", "Invalid 'logit_bias': '%.40s' is not a token id from 0 to %u.", key, vocab - 1);
        const double number = json_number_value(value);
        if (!json_is_number(value) || !(number >= -100 && number <= 100))
            return fault_set(f, 400, "out_of_range", "logit_bias", "Invalid 'logit_bias': the bias of token %lu is not a number between -100 and 100.", token);
        s->logit_bias[s->logit_bias_count].token = (uint32_t)token;
        s->logit_bias[s->logit_bias_count++].bias = (float)number;
    }
    return 0;
}

/* Who knows no salt finds nothing in the KV cache that was computed under it: not even by the time that an answer takes. */
static int read_salt(struct request *r, const json_t *body, struct fault *f)
{
    const char *salt = NULL;
    struct sha256 hash;

    TRY(field_string(body, "cache_salt", SALT_BYTES_MAX, &salt, f));
    if (!salt) return 0;
    if (!*salt) return fault_set(f, 400, "out_of_range", "cache_salt", "Invalid 'cache_salt': it must not be empty.");
    sha256_begin(&hash);
    sha256_add(&hash, salt, strlen(salt));
    sha256_end(&hash, r->params.cache_salt);
    r->params.is_salted = 1;
    return 0;
}

int request_max_tokens(struct request *r, const json_t *body, const char *name, struct fault *f)
{
    int64_t count;
    const int rc = field_integer(body, name, 1, INT32_MAX, &count, f);

    if (rc == 1) r->params.max_tokens = (uint32_t)count;
    return rc;
}

int request_sampling(struct request *r, const json_t *body, const struct request_defaults *d, struct fault *f)
{
    bool ignore_eos = false, token_ids = false;
    json_t *options = NULL, *metadata = NULL;
    const char *ignored;

    TRY(read_model(body, d, f));
    json_object_set_new(r->meta, "model", json_string(d->model));
    TRY(read_numbers(r, body, d, f));
    TRY(read_stops(r, body, d->vocab, f));
    TRY(read_bias(r, body, d->vocab, f));
    TRY(field_bool(body, "stream", &r->stream, f));
    TRY(field_bool(body, "store", &r->store, f));
    TRY(field_bool(body, "ignore_eos", &ignore_eos, f));
    TRY(field_bool(body, "return_token_ids", &token_ids, f));
    TRY(field_object(body, "stream_options", &options, f));
    TRY(field_object(body, "metadata", &metadata, f));
    TRY(field_string(body, "user", 1024, &ignored, f));
    TRY(read_salt(r, body, f));
    if (options) TRY(field_bool(options, "include_usage", &r->include_usage, f));
    if (json_object_size(metadata) > 16) return fault_set(f, 400, "array_too_long", "metadata", "Invalid 'metadata': at most 16 entries are allowed.");
    if (ignore_eos) r->params.flags |= REQUEST_IGNORE_EOS;
    if (token_ids) json_object_set_new(r->meta, "token_ids", json_true());
    return 0;
}
