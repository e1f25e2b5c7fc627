/* schemas/vocabulary.c - the gateway's own tokenizer, for /tokenize, /detokenize and log probabilities.
 *
 * Most gateways never need it, and a large one takes most of a second to load, in which
 * no client would be served: it is loaded by a thread, when first asked for. */
#include "schemas/front.h"

#include "model/detok.h"
#include "model/tokenizer.h"
#include "shm/atomic.h"
#include "shm/error.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define TOKENIZE_BYTES_MAX (4u << 20) /* one call holds up the other clients: a bounded time only */

static uint64_t loaded; /* the loader's word: 0 running, 1 failed, else the tokenizer's address (V1) */

static void *load(void *argument)
{
    struct front *f = argument;
    struct tokenizer *t = NULL;
    uint64_t bytes = 0;
    char err[256] = "no tokenizer.json was given";
    const char *json = stage_map(&f->stage, "file.tokenizer.json", false, &bytes);

    if (!json || tokenizer_open(&t, json, bytes, err, sizeof err) != 0) {
        stage_log(&f->stage, LOG_ERROR, "tokenizer-failed", "reason=\"%s\"", err);
        t = NULL;
    }
    shm_store_release(&loaded, t ? (uint64_t)(uintptr_t)t : 1); /* V1 -> vocabulary_ready */
    return NULL;
}

bool vocabulary_ready(struct front *f)
{
    pthread_t thread;

    if (f->tokenizer) return true;
    if (!f->tokenizer_asked) {
        f->tokenizer_asked = true;
        if (pthread_create(&thread, NULL, load, f) != 0) f->tokenizer_failed = true;
        else pthread_detach(thread);
    }
    const uint64_t word = shm_load_acquire(&loaded); /* <- V1 */
    if (word == 1) f->tokenizer_failed = true;
    else if (word) f->tokenizer = (const struct tokenizer *)(uintptr_t)word;
    return f->tokenizer != NULL;
}

static int wait_or_fail(struct front *f, struct fault *fault)
{
    if (vocabulary_ready(f)) return 1;
    return f->tokenizer_failed ? fault_set(fault, 500, "server_error", NULL, "The tokenizer cannot be loaded.") : 0;
}

int vocabulary_tokenize(struct front *f, const json_t *body, struct wire *out, struct fault *fault)
{
    static const char *const names[] = {"model", "prompt", "add_special_tokens", "return_token_strs", NULL};
    const char *prompt = NULL;
    bool special = true, strings = false;
    int count;

    if (field_known(body, names, NULL, "", fault) < 0 || field_string(body, "prompt", TOKENIZE_BYTES_MAX, &prompt, fault) < 0 ||
        field_bool(body, "add_special_tokens", &special, fault) < 0 || field_bool(body, "return_token_strs", &strings, fault) < 0)
        return -E_FORMAT;
    if (!prompt) return fault_set(fault, 400, "missing_required_parameter", "prompt", "Missing required parameter: 'prompt'.");
    if ((count = wait_or_fail(f, fault)) != 1) return count;

    const size_t bytes = strlen(prompt);
    uint32_t *ids = malloc((bytes + 2) * sizeof *ids);
    if (!ids) return fault_set(fault, 500, "server_error", NULL, "Out of memory.");
    uint32_t first = 0;
    const uint32_t bos = tokenizer_id(f->tokenizer, "<bos>");
    if (special && bos != TOKENIZER_NO_ID) ids[first++] = bos;
    count = tokenizer_encode(f->tokenizer, prompt, bytes, NULL, TOKENIZER_ALL_TRUSTED, ids + first, bytes + 1);
    if (count < 0) {
        free(ids);
        return fault_set(fault, 400, "invalid_prompt", "prompt", "The text cannot be tokenized: %s.", error_text(count));
    }
    count += (int)first;
    wire_format(out, "{\"count\":%d,\"max_model_len\":%u,\"tokens\":[", count, f->table.limits.context_max);
    for (int i = 0; i < count; i++) wire_format(out, "%s%u", i ? "," : "", ids[i]);
    wire_text(out, "]");
    if (strings) {
        wire_text(out, ",\"token_strs\":[");
        for (int i = 0; i < count; i++) {
            size_t n = 0;
            const char *text = tokenizer_token_text(f->tokenizer, ids[i], &n);
            if (i) wire_text(out, ",");
            wire_string_bytes(out, text ? text : "", n);
        }
        wire_text(out, "]");
    }
    wire_text(out, "}\n");
    free(ids);
    return 1;
}

int vocabulary_detokenize(struct front *f, const json_t *body, struct wire *out, struct fault *fault)
{
    static const char *const names[] = {"model", "tokens", NULL};
    char piece[DETOK_BYTES_MAX];
    struct wire text = {0};
    struct detok detok;
    json_t *tokens = NULL, *id;
    size_t i;
    int rc;

    if (field_known(body, names, NULL, "", fault) < 0 || field_array(body, "tokens", f->table.limits.context_max, &tokens, fault) < 0) return -E_FORMAT;
    if (!tokens) return fault_set(fault, 400, "missing_required_parameter", "tokens", "Missing required parameter: 'tokens'.");
    if ((rc = wait_or_fail(f, fault)) != 1) return rc;
    detok_init(&detok);
    json_array_foreach(tokens, i, id)
    {
        const json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= tokenizer_vocab_count(f->tokenizer)) {
            wire_free(&text);
            return fault_set(fault, 400, "out_of_range", "tokens", "Invalid 'tokens': element %zu is not a token id from 0 to %u.", i,
                             tokenizer_vocab_count(f->tokenizer) - 1);
        }
        const int n = detok_feed(&detok, f->tokenizer, (uint32_t)value, piece, sizeof piece, 0);
        if (n > 0) wire_add(&text, piece, (size_t)n);
    }
    const int n = detok_flush(&detok, piece, sizeof piece);
    if (n > 0) wire_add(&text, piece, (size_t)n);
    wire_text(out, "{\"prompt\":");
    wire_string_bytes(out, text.data ? text.data : "", text.bytes);
    wire_text(out, "}\n");
    wire_free(&text);
    return 1;
}
