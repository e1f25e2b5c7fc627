/* launcher/quantize_calibrate.c - the largest activation that each matrix meets, for formats with static activation scales.
 *
 * Runs the unquantized model over a text, in pieces that do not see each other. More text finds larger values; what exceeds them
 * later is cut off, so the text should be like what will be served. */
#include "launcher/quantize.h"
#include "model/forward.h"
#include "model/tokenizer.h"
#include "shm/error.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CALIBRATE_BYTES_MAX (64u << 20)
#define CALIBRATE_PIECE 256u          /* tokens that see each other */
#define CALIBRATE_TOKENS_MAX 8192u
#define CALIBRATE_PAGES 64u

static void measure(void *context, const struct stored_matrix *matrix, const float *rows, uint32_t row_count)
{
    struct quantize *q = context;

    for (uint32_t layer = 0; layer < q->config.layer_count; layer++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++)
            if (model_matrix(&q->weights, layer, which) == matrix)
                for (uint64_t i = 0; i < (uint64_t)row_count * matrix->k; i++)
                    if (!(fabsf(rows[i]) <= q->input_largest[layer][which])) q->input_largest[layer][which] = fabsf(rows[i]);
}

/* The text as token ids, at most CALIBRATE_TOKENS_MAX; *ids is the caller's. The count or -E_CODE. */
static int read_tokens(struct quantize *q, uint32_t **ids)
{
    struct tokenizer *tokenizer = NULL;
    const uint8_t *json;
    uint64_t json_bytes;
    char *text = NULL;
    struct stat st;
    FILE *file = fopen(q->calibration, "rb");
    int rc;

    *ids = NULL;
    if (!file || fstat(fileno(file), &st) != 0 || !S_ISREG(st.st_mode)) rc = model_error_set(&q->err, -E_NOT_FOUND, "--calibration %s: cannot be read", q->calibration);
    else if (st.st_size == 0 || st.st_size > CALIBRATE_BYTES_MAX) rc = model_error_set(&q->err, -E_RANGE, "--calibration %s: %lld bytes", q->calibration, (long long)st.st_size);
    else if (model_files_find(&q->files, "tokenizer.json", &json, &json_bytes) != 0) rc = model_error_set(&q->err, -E_NOT_FOUND, "%s: no tokenizer.json, which calibration needs", q->in);
    else if (!(text = malloc((size_t)st.st_size)) || !(*ids = malloc(((size_t)st.st_size + 16) * sizeof(**ids)))) rc = model_error_set(&q->err, -E_NOMEM, "no memory for the calibration text");
    else if (fread(text, 1, (size_t)st.st_size, file) != (size_t)st.st_size) rc = model_error_set(&q->err, -E_IO, "--calibration %s: cannot be read", q->calibration);
    else if ((rc = tokenizer_open(&tokenizer, (const char *)json, json_bytes, q->err.text, sizeof(q->err.text))) == 0) {
        rc = tokenizer_encode(tokenizer, text, (size_t)st.st_size, NULL, TOKENIZER_ALL_TRUSTED, *ids, (size_t)st.st_size + 16);
        if (rc <= 0) rc = model_error_set(&q->err, -E_FORMAT, "--calibration %s: no tokens", q->calibration);
        else if (tokenizer_vocab_count(tokenizer) > q->config.vocab) rc = model_error_set(&q->err, -E_FORMAT, "tokenizer.json has more ids than the model");
        else if (rc > (int)CALIBRATE_TOKENS_MAX) rc = (int)CALIBRATE_TOKENS_MAX;
    }
    tokenizer_close(tokenizer);
    free(text);
    if (file) fclose(file);
    return rc;
}

static int run_pieces(struct quantize *q, const uint32_t *ids, uint32_t count)
{
    const struct forward_options options = { .threads = q->threads, .rows_max = CALIBRATE_PIECE };
    uint32_t pages[CALIBRATE_PAGES];
    struct forward_row rows[CALIBRATE_PIECE];
    struct forward *forward = NULL;
    struct kv_geometry geo;
    struct forward_seq seq;
    void *arena = NULL;
    int rc = kv_geometry_init(&geo, &q->config, KV_F32, CALIBRATE_PIECE, CALIBRATE_PIECE, CALIBRATE_PAGES, CALIBRATE_PAGES);

    for (uint32_t i = 0; i < CALIBRATE_PAGES; i++) pages[i] = i;
    seq = (struct forward_seq){ pages, pages, CALIBRATE_PAGES, CALIBRATE_PAGES };
    if (rc == 0 && posix_memalign(&arena, 4096, geo.arena_bytes) != 0) rc = -E_NOMEM;
    if (rc == 0) rc = forward_open(&forward, &q->weights, &geo, arena, &options);
    if (rc == 0) forward_set_input_hook(forward, measure, q);
    for (uint32_t at = 0; rc == 0 && at < count; at += CALIBRATE_PIECE) {
        const uint32_t n = count - at < CALIBRATE_PIECE ? count - at : CALIBRATE_PIECE;

        for (uint32_t i = 0; i < n; i++) rows[i] = (struct forward_row){ .token = ids[at + i], .position = i };
        rc = forward_run(forward, rows, n, &seq, 1, NULL, NULL);
        fprintf(stderr, "\rcalibrating: %u of %u tokens", at + n, count);
    }
    fprintf(stderr, "\n");
    forward_close(forward);
    free(arena);
    return rc == 0 ? 0 : model_error_set(&q->err, rc, "calibration: %s", error_text(rc));
}

int quantize_calibrate(struct quantize *q)
{
    uint32_t *ids;
    int rc = read_tokens(q, &ids);

    if (rc > 0) rc = run_pieces(q, ids, (uint32_t)rc);
    free(ids);
    for (uint32_t layer = 0; rc == 0 && layer < q->config.layer_count; layer++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++)
            if (model_matrix(&q->weights, layer, which)->data && !isfinite(q->input_largest[layer][which]))
                rc = model_error_set(&q->err, -E_FORMAT, "calibration: layers.%u.%s meets values that are not finite", layer, model_matrix_name(which));
    return rc;
}
