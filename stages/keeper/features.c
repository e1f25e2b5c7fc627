/* stages/keeper/features.c - memory for the outputs of layers that a drafter reads, model/features.h (contract in keeper.h).
 *
 * Reads    options table.slots, draft.context; on a GPU the drafter's config.json and the sizes of its files (descriptors draft.*)
 * Gives    descriptor arena.features; on a GPU options features.places, features.sources, features.element_bytes
 * Fails    a drafter whose configuration cannot be read: no memory is set aside, and the draft stage says what is wrong with it. No memory: exit 111. */
#include "model/engine_draft.h"
#include "model/features.h"
#include "stages/keeper/keeper.h"

#include <string.h>

#define SHARE 8u                      /* of the GPU's free memory, 1 / this at most: more sequences than it holds are more than drafting pays for */

static void layout(const struct keeper *k, struct features *f, uint32_t places)
{
    const uint32_t context = (uint32_t)wiring_u64(&k->stage.wiring, "draft.context", 0);

    if (!k->cuda) features_init(f, places, context, k->geometry.max_context, k->config.hidden);
    else features_init_device(f, places, context, k->config.max_position, k->config.hidden, k->feature_sources, k->feature_element_bytes);
}

/* The drafter that the server begins with, if it is one that reads outputs of layers, and the bytes of its files. */
static bool find_head(const struct keeper *k, struct dspark_config *head, uint64_t *bytes)
{
    const struct wiring *w = &k->stage.wiring;
    struct model_error err = {""};
    struct model_files files;
    const uint8_t *json;
    uint64_t json_bytes;
    bool found;

    model_files_init(&files);
    *bytes = 0;
    for (unsigned i = 0; i < w->fd_count; i++)
        if (strncmp(w->fd_name[i], "draft.", 6) == 0 && model_files_add(&files, w->fd_name[i] + 6, w->fd[i], &err) != 0) break;
    for (uint32_t i = 0; i < files.count; i++) *bytes += files.file[i].byte_count;
    found = files.count > 0 && engine_draft_kind(&files, &err) == DRAFT_KIND_DSPARK && model_files_find(&files, "config.json", &json, &json_bytes) == 0 &&
            dspark_config_parse(head, json, json_bytes, &err) == 0 && head->layers.hidden == k->config.hidden;
    model_files_close(&files);
    return found;
}

uint64_t features_plan(struct keeper *k)
{
    const uint64_t slots = wiring_u64(&k->stage.wiring, "table.slots", 0), context = wiring_u64(&k->stage.wiring, "draft.context", 0);
    struct cuda_dspark_spec spec;
    struct dspark_config head;
    struct features f;
    uint64_t ring_bytes = 0;

    k->feature_places = 0;
    if (!find_head(k, &head, &k->drafter_bytes)) {
        k->drafter_bytes = 0;
        return 0;
    }
    k->feature_sources = head.source_count;
    engine_draft_dspark_spec(&spec, &head, strcmp(wiring_text(&k->stage.wiring, "draft.dtype", "auto"), "bf16") == 0 ? WEIGHT_BF16 : WEIGHT_FP8);
    const uint64_t weights = k->lib.dspark_weights_bytes(&spec);
    k->feature_element_bytes = weights ? 2 : 4; /* what its kernels take, else what the CPU computes with */
    if (weights > k->drafter_bytes) k->drafter_bytes = weights; /* an output matrix that its files lack is held by it all the same, rounded */
    layout(k, &f, 1);
    for (uint32_t i = 0; i < head.layers.layer_count; i++) ring_bytes += 2ull * sizeof(uint16_t) * model_kv_dim(&head.layers, i) * (context + head.block);
    const uint64_t places = k->facts.memory_free / SHARE / (features_bytes(&f) + ring_bytes);
    k->feature_places = (uint32_t)(places < slots ? places : slots);
    if (k->feature_places == 0) {
        stage_log(&k->stage, LOG_WARN, "no-outputs", "reason=\"outputs of layers for one sequence take %llu MiB, too much of this GPU: lower --draft-context\"", (unsigned long long)(features_bytes(&f) >> 20));
        return 0;
    }
    k->drafter_bytes += k->feature_places * ring_bytes;
    return k->feature_places * features_bytes(&f) + k->drafter_bytes;
}

void features_make(struct keeper *k)
{
    struct features f;
    int fd = -1;

    if (!k->cuda) {
        layout(k, &f, (uint32_t)wiring_u64(&k->stage.wiring, "table.slots", 0));
        wiring_add_fd(&k->out, "arena.features", keeper_memfd(k, "sluice-features", "the memory of layers' outputs", features_bytes(&f)));
        return;
    }
    if (k->feature_places == 0) return;
    features_init_device(&f, k->feature_places, (uint32_t)wiring_u64(&k->stage.wiring, "draft.context", 0), k->geometry.max_context, k->config.hidden, k->feature_sources,
                         k->feature_element_bytes);
    if (k->lib.memory_create(features_bytes(&f), &fd) != 0)
        stage_exit(&k->stage, EXIT_MISSING, "%llu MiB of GPU memory for outputs of layers cannot be had: %s; lower --draft-context or --kv-cache-mib", (unsigned long long)(features_bytes(&f) >> 20),
                   k->lib.backend_error());
    wiring_add_fd(&k->out, "arena.features", fd);
    wiring_setf(&k->out, "features.places", "%u", k->feature_places);
    wiring_setf(&k->out, "features.sources", "%u", k->feature_sources);
    wiring_setf(&k->out, "features.element_bytes", "%u", k->feature_element_bytes);
}
