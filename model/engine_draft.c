/* model/engine_draft.c - finds out what the wired drafter is, and opens it on the target's device (contract in engine_draft.h). */
#include "model/engine_draft.h"

#include "model/engine_gpu.h"
#include "shm/error.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define POPULATE_BYTES_MAX (1ull << 30) /* a larger file is read as it is used: its first rounds are slow */

static const char *const kind_names[] = {"none", "ngram", "mtp", "dspark"};

const char *engine_draft_kind_name(uint32_t kind)
{
    return kind < sizeof kind_names / sizeof *kind_names ? kind_names[kind] : "?";
}

int engine_draft_kind(const struct model_files *files, struct model_error *err)
{
    const uint8_t *bytes;
    uint64_t byte_count;
    json_error_t problem;

    if (model_files_find(files, "config.json", &bytes, &byte_count) != 0) return model_error_set(err, -E_NOT_FOUND, "the drafter has no config.json");
    json_t *root = json_loadb((const char *)bytes, byte_count, 0, &problem);
    if (!root) return model_error_set(err, -E_FORMAT, "config.json: line %d: %s", problem.line, problem.text);
    const char *name = json_string_value(json_array_get(json_object_get(root, "architectures"), 0));
    int kind = -E_UNSUPPORTED;
    if (name && strstr(name, "DSpark")) kind = DRAFT_KIND_DSPARK;
    else if (name && strstr(name, "Assistant")) kind = DRAFT_KIND_MTP;
    else model_error_set(err, -E_UNSUPPORTED, "config.json: architectures is %.100s; a drafter is a Gemma4UnifiedAssistantForCausalLM or a Gemma4DSparkModel", name ? name : "missing");
    json_decref(root);
    return kind;
}

uint32_t engine_draft_format(const struct engine_draft *d)
{
    const char *dtype = wiring_text(&d->stage->wiring, "draft.dtype", "auto");

    if (strcmp(dtype, "bf16") == 0) return WEIGHT_BF16;
    if (strcmp(dtype, "auto") != 0 && strcmp(dtype, "fp8") != 0) stage_exit(d->stage, EXIT_CONFIG, "draft.dtype is \"%s\", known are auto, bf16 and fp8", dtype);
    return WEIGHT_FP8; /* a drafter's rounding costs accepted drafts at most, its bytes decide the round */
}

void engine_draft_accepted(const struct engine_draft *d, const struct cuda_library *lib, int rc)
{
    if (rc == -E_IO) engine_gpu_lost(lib, d->stage, "setting up", rc);
    if (rc != 0) stage_exit(d->stage, rc == -E_NOMEM ? EXIT_MISSING : EXIT_CONFIG, "the drafter cannot be set up on the GPU (%s): %s", error_text(rc), lib->backend_error());
}

static void add_files(struct engine_draft *d)
{
    const struct wiring *w = &d->stage->wiring;
    struct model_error err = {""};

    model_files_init(&d->files);
    for (unsigned i = 0; i < w->fd_count; i++)
        if (strncmp(w->fd_name[i], "draft.", 6) == 0 && model_files_add(&d->files, w->fd_name[i] + 6, w->fd[i], &err) != 0)
            stage_exit(d->stage, EXIT_CONFIG, "the drafter cannot be used: %s", err.text);
}

void engine_draft_open(struct engine_draft *d, struct stage *s, uint32_t slot_count, uint32_t rows_max)
{
    const bool cuda = strcmp(wiring_text(&s->wiring, "device", "cpu"), "cuda") == 0;
    struct model_error err = {""};

    memset(d, 0, sizeof *d);
    d->stage = s;
    d->slot_count = slot_count;
    d->rows_max = rows_max;
    engine_open_geometry(&d->target, s);
    add_files(d);
    const int kind = engine_draft_kind(&d->files, &err);
    if (kind < 0) stage_exit(s, EXIT_CONFIG, "the drafter cannot be used: %s", err.text);
    for (uint32_t i = 0; i < d->files.count && !cuda; i++)
        if (d->files.file[i].byte_count <= POPULATE_BYTES_MAX && d->files.file[i].bytes) madvise((void *)d->files.file[i].bytes, d->files.file[i].byte_count, MADV_POPULATE_READ);
    const struct generation_config *g = &d->target.generation;
    if (draft_vocab_open(&d->vocab, &d->files, (uint32_t)wiring_u64(&s->wiring, "draft.vocab", 0), d->target.config.vocab, g->suppress_token, g->suppress_count, &err) != 0)
        stage_exit(s, EXIT_CONFIG, "the drafter cannot be used: %s", err.text);
    d->kind = (uint32_t)kind;
    if (cuda && kind == DRAFT_KIND_DSPARK) engine_draft_open_dspark_cuda(d);
    else if (cuda) engine_draft_open_cuda(d);
    else if (kind == DRAFT_KIND_DSPARK) engine_draft_open_dspark(d);
    else engine_draft_open_mtp(d);
}
