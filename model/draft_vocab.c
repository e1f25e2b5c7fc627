/* model/draft_vocab.c - reads the list of tokens that a drafter may propose (contract in draft_vocab.h). */
#include "model/draft_vocab.h"

#include "shm/error.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Marks and copies the first `count` entries. */
static int take(struct draft_vocab *v, const json_t *list, uint32_t count, uint32_t vocab, uint8_t *listed, struct model_error *err)
{
    for (uint32_t i = 0; i < count; i++) {
        const json_t *entry = json_array_get(list, i);
        const json_int_t token = json_is_integer(entry) ? json_integer_value(entry) : -1;
        if (token < 0 || token >= vocab) return model_error_set(err, -E_FORMAT, DRAFT_VOCAB_FILE ": entry %u is no token of the model, which has %u", i, vocab);
        if (listed[token]) return model_error_set(err, -E_FORMAT, DRAFT_VOCAB_FILE ": token %lld stands there twice", (long long)token);
        listed[token] = 1;
        v->token[i] = (uint32_t)token;
    }
    v->count = count;
    return 0;
}

static int read_list(struct draft_vocab *v, const struct model_files *files, uint32_t wanted, uint32_t vocab, uint8_t *listed, struct model_error *err)
{
    const uint8_t *bytes;
    uint64_t byte_count;
    json_error_t problem;

    if (wanted < DRAFT_VOCAB_STEP) return model_error_set(err, -E_RANGE, "draft-vocab is %u; it is 0 or at least %u", wanted, DRAFT_VOCAB_STEP);
    if (model_files_find(files, DRAFT_VOCAB_FILE, &bytes, &byte_count) != 0) return model_error_set(err, -E_NOT_FOUND, "draft-vocab %u: its folder has no " DRAFT_VOCAB_FILE, wanted);
    json_t *list = json_loadb((const char *)bytes, byte_count, 0, &problem);
    if (!list) return model_error_set(err, -E_FORMAT, DRAFT_VOCAB_FILE ": line %d: %s", problem.line, problem.text);
    int rc = 0;
    if (!json_is_array(list)) rc = model_error_set(err, -E_FORMAT, DRAFT_VOCAB_FILE " is no array");
    else if (json_array_size(list) < wanted) rc = model_error_set(err, -E_RANGE, "draft-vocab %u: " DRAFT_VOCAB_FILE " has %zu tokens", wanted, json_array_size(list));
    else if (!(v->token = malloc(wanted * sizeof *v->token))) rc = model_error_set(err, -E_NOMEM, "out of memory");
    if (rc == 0) rc = take(v, list, wanted / DRAFT_VOCAB_STEP * DRAFT_VOCAB_STEP, vocab, listed, err);
    json_decref(list);
    return rc;
}

int draft_vocab_open(struct draft_vocab *v, const struct model_files *files, uint32_t wanted, uint32_t vocab, const uint32_t *suppress, uint32_t suppress_count, struct model_error *err)
{
    uint8_t *listed = calloc(vocab ? vocab : 1, 1);
    int rc = 0;

    memset(v, 0, sizeof *v);
    if (!listed || !(v->left_out = malloc((vocab + 1) * sizeof *v->left_out))) rc = model_error_set(err, -E_NOMEM, "out of memory");
    if (rc == 0 && wanted) rc = read_list(v, files, wanted, vocab, listed, err);
    else if (rc == 0) memset(listed, 1, vocab);
    for (uint32_t i = 0; i < suppress_count && rc == 0; i++)
        if (suppress[i] < vocab) listed[suppress[i]] = 0;
    for (uint32_t t = 0; t < vocab && rc == 0; t++)
        if (!listed[t]) v->left_out[v->left_out_count++] = t;
    free(listed);
    if (rc != 0) draft_vocab_close(v);
    return rc;
}

void draft_vocab_close(struct draft_vocab *v)
{
    free(v->token);
    free(v->left_out);
    memset(v, 0, sizeof *v);
}
