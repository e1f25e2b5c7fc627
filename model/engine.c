/* model/engine.c - puts a stage's model together from its wiring (contract in engine.h). */
#include "model/engine.h"
#include "schemas/counters.h"
#include "schemas/table.h"
#include "shm/error.h"
#include "shm/must.h"

#include <poll.h>
#include <string.h>

#define LOADED_POLL_MS 2

void engine_open_config(struct engine *e, struct stage *s)
{
    struct model_error err = {""};
    const struct wiring *w = &s->wiring;
    int rc = 0;

    memset(e, 0, sizeof *e);
    e->stage = s;
    model_files_init(&e->files);
    for (unsigned i = 0; i < w->fd_count && rc == 0; i++)
        if (strncmp(w->fd_name[i], "file.", 5) == 0) rc = model_files_add(&e->files, w->fd_name[i] + 5, w->fd[i], &err);
    if (rc == 0) rc = model_config_load(&e->config, &e->generation, &e->files, &err);
    if (rc != 0) stage_exit(s, EXIT_CONFIG, "the model cannot be used: %s", err.text[0] ? err.text : error_text(rc));
}

static void open_geometry(struct engine *e)
{
    const struct wiring *w = &e->stage->wiring;
    const enum kv_dtype dtype = kv_dtype_named(wiring_text(w, "kv.cache_dtype", "bf16")); /* the keeper has chosen: never auto */
    const int rc = kv_geometry_init(&e->geometry, &e->config, dtype, (uint32_t)wiring_u64(w, "model.context_max", 0), (uint32_t)wiring_u64(w, "kv.rows_max", 0),
                                    (uint32_t)wiring_u64(w, "kv.full_page_count", 0), (uint32_t)wiring_u64(w, "kv.sliding_page_count", 0));

    if (rc != 0) stage_exit(e->stage, EXIT_CONFIG, "the KV cache cannot be laid out: %s", error_text(rc));
}

/* The keeper fills the memory that we have mapped already. */
void engine_await_weights(struct engine *e)
{
    const uint8_t *keeper = e->stage->segment[ROLE_KEEPER];
    const struct stage_status *status = (const struct stage_status *)(keeper + SEGMENT_STATUS_OFFSET);

    if (!keeper) stage_exit(e->stage, EXIT_CONFIG, "the keeper's segment was not given");
    while (!shm_load_acquire(&status->counters[KEEPER_LOADED])) { /* W1 <- the keeper's release store: the weights are written */
        if (!stage_running(e->stage)) stage_exit(e->stage, EXIT_ASKED, "asked to stop before the weights were in place");
        poll(NULL, 0, LOADED_POLL_MS);
    }
}

void engine_open_geometry(struct engine *e, struct stage *s)
{
    engine_open_config(e, s);
    open_geometry(e);
}

void engine_open_forward(struct engine *e, struct stage *s, enum engine_use use, uint32_t slot_count, uint32_t rows_max)
{
    engine_open_config(e, s);
    e->slot_count = slot_count;
    open_geometry(e);
    if (strcmp(wiring_text(&s->wiring, "device", "cpu"), "cuda") != 0) {
        engine_open_cpu(e, use, rows_max);
        return;
    }
    engine_open_cuda(e, use, rows_max);
    engine_await_weights(e);
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

uint32_t engine_rows_computed(const struct engine *e, uint32_t rows)
{
    uint32_t computed = 1;

    if (e->device->steps_by_graph == 0) return rows;
    while (computed < rows) computed *= 2;
    return computed;
}
