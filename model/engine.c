/* model/engine.c - puts a stage's model together from its wiring. */
#include "model/engine.h"

#include "schemas/table.h"
#include "shm/error.h"

#include <string.h>

void engine_open_config(struct engine *e, struct stage *s)
{
    struct model_error err = {""};
    const struct wiring *w = &s->wiring;
    int rc = 0;

    memset(e, 0, sizeof *e);
    model_files_init(&e->files);
    for (unsigned i = 0; i < w->fd_count && rc == 0; i++)
        if (strncmp(w->fd_name[i], "file.", 5) == 0) rc = model_files_add(&e->files, w->fd_name[i] + 5, w->fd[i], &err);
    if (rc == 0) rc = model_config_load(&e->config, &e->generation, &e->files, &err);
    if (rc != 0) stage_exit(s, EXIT_CONFIG, "the model cannot be used: %s", err.text[0] ? err.text : error_text(rc));
}

static void beat(void *stage, uint32_t layers_done, uint32_t layer_count)
{
    (void)layers_done;
    (void)layer_count;
    stage_beat(stage);
}

void engine_open_forward(struct engine *e, struct stage *s, uint32_t rows_max)
{
    struct model_error err = {""};
    const struct wiring *w = &s->wiring;
    const enum kv_dtype dtype = strcmp(wiring_text(w, "kv.cache_dtype", "bf16"), "f32") == 0 ? KV_F32 : KV_BF16;
    const struct forward_options options = {.threads = (uint32_t)wiring_u64(w, "threads", 1), .rows_max = rows_max};
    uint64_t bytes = 0;

    engine_open_config(e, s);
    int rc = model_load(&e->config, &e->generation, &e->weights, &e->files, &err);
    if (rc != 0) stage_exit(s, EXIT_CONFIG, "the model cannot be used: %s", err.text[0] ? err.text : error_text(rc));
    rc = kv_geometry_init(&e->geometry, &e->config, dtype, (uint32_t)wiring_u64(w, "model.context_max", 0), (uint32_t)wiring_u64(w, "kv.rows_max", 0),
                          (uint32_t)wiring_u64(w, "kv.full_page_count", 0), (uint32_t)wiring_u64(w, "kv.sliding_page_count", 0));
    if (rc != 0) stage_exit(s, EXIT_CONFIG, "the KV cache cannot be laid out: %s", error_text(rc));
    e->kv = stage_map(s, "arena.kv", true, &bytes);
    if (!e->kv || bytes != e->geometry.arena_bytes)
        stage_exit(s, EXIT_MISSING, "the KV arena has %llu bytes, %llu are needed", (unsigned long long)bytes, (unsigned long long)e->geometry.arena_bytes);
    rc = forward_open(&e->forward, &e->weights, &e->geometry, e->kv, &options);
    if (rc != 0) stage_exit(s, EXIT_MISSING, "the forward pass cannot be set up: %s", error_text(rc));
    forward_set_progress(e->forward, beat, s);
}

struct tokenizer *engine_open_tokenizer(const struct engine *e, struct stage *s)
{
    struct tokenizer *t = NULL;
    const uint8_t *bytes;
    uint64_t byte_count;
    char err[512] = "";

    if (model_files_find(&e->files, "tokenizer.json", &bytes, &byte_count) != 0) stage_exit(s, EXIT_CONFIG, "the checkpoint has no tokenizer.json");
    if (tokenizer_open(&t, (const char *)bytes, byte_count, err, sizeof err) != 0) stage_exit(s, EXIT_CONFIG, "tokenizer.json cannot be used: %s", err);
    if (tokenizer_vocab_count(t) > e->config.vocab)
        stage_exit(s, EXIT_CONFIG, "tokenizer.json has ids up to %u, the model knows %u tokens", tokenizer_vocab_count(t) - 1, e->config.vocab);
    return t;
}

uint32_t engine_finish_by_token(const struct generation_config *g, const struct request_params *p, uint32_t token)
{
    for (uint32_t i = 0; i < p->stop_token_count && i < STOP_TOKENS_MAX; i++)
        if (p->stop_tokens[i] == token) return FINISH_STOP_TOKEN;
    if (p->flags & REQUEST_IGNORE_EOS) return FINISH_NONE;
    for (uint32_t i = 0; i < g->eos_count; i++)
        if (g->eos_token[i] == token) return FINISH_EOS;
    return FINISH_NONE;
}
