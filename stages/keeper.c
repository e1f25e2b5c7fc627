/* stages/keeper.c - reads the checkpoint, makes the memory that outlives every stage, fills it, and hands the descriptors to the launcher.
 *
 * Reads    the model directory (option model.dir); options device.asked, weights.dtype, model.random
 * Gives    message "model": what the model is and where it runs (options model.*, kv.*, gpu.*, device), descriptors file.*, arena.kv, arena.states, arena.features, arena.signals
 *          and, on a GPU, gpu.weights. It is sent before the weights are loaded, so that the stages set themselves up meanwhile;
 *          counter KEEPER_LOADED tells them when the weights are in place.
 * Owns     nothing that anybody needs afterwards: the launcher holds every descriptor, GPU memory's too. The keeper may die or leave at any
 *          time; started again, it finds its work done, or loads again into the same memory. Once it has loaded it gives its
 *          GPU context back. What it still does: when the launcher is killed, it removes what that left in the file system.
 * Fails    a checkpoint that would not load: exit 100 with the reason, before anything is allocated. */
#include "stages/keeper/keeper.h"

#include "model/quantization.h"
#include "model/shapes.h"
#include "model/states.h"
#include "schemas/counters.h"
#include "schemas/media.h"
#include "shm/atomic.h"
#include "shm/clock.h"
#include "shm/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CONTEXT_MAX_CPU 8192u /* on a CPU nobody waits for more unless asked */
#define CONTEXT_MIN_GPU 1024u /* below, less memory is no longer an answer */
#define PREFILL_CHUNK_CPU 128u
#define PREFILL_CHUNK_GPU 2048u
#define VERIFY_BLOCK_MAX (RING_TOKENS_MAX + 1u)
#define GPU_RESERVE_BYTES (4ull << 30) /* contexts, kernels and scratch of prefill, verify and MPS; measured with 32 sequences of 32k: 1.8 GiB */

/* ---- the model's files ---------------------------------------------------------------------- */

static void add_text(struct keeper *k, const char *name, const char *text)
{
    const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    const size_t bytes = strlen(text);
    struct model_error err = {""};

    if (fd < 0 || write(fd, text, bytes) != (ssize_t)bytes || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0)
        stage_exit(&k->stage, EXIT_MISSING, "%s of the built-in shape cannot be made: %s", name, strerror(errno));
    if (model_files_add(&k->files, name, fd, &err) != 0) stage_exit(&k->stage, EXIT_MISSING, "%s", err.text);
    close(fd);
}

/* A built-in shape with the tokenizer and the chat template that lie in the model directory. */
static void open_shape(struct keeper *k, const char *name, const struct model_files *dir)
{
    const struct model_shape *shape = model_shape_find(name);
    struct model_error err = {""};

    if (!shape) stage_exit(&k->stage, EXIT_CONFIG, "--random-weights %s: the built-in shapes are %s", name, model_shape_names());
    model_files_init(&k->files);
    add_text(k, "config.json", shape->config);
    add_text(k, "generation_config.json", shape->generation);
    for (uint32_t i = 0; i < dir->count; i++) {
        const char *file = dir->file[i].name;
        if (strncmp(file, "tokenizer", 9) != 0 && strcmp(file, "chat_template.jinja") != 0) continue;
        if (model_files_add(&k->files, file, dir->file[i].fd, &err) != 0) stage_exit(&k->stage, EXIT_MISSING, "%s", err.text);
    }
}

static void open_dir(struct keeper *k, const char *dir)
{
    const char *random = wiring_text(&k->stage.wiring, "model.random", "");
    struct model_error err = {""};

    if (model_files_open_dir(&k->files, dir, &err) != 0) stage_exit(&k->stage, EXIT_CONFIG, "%s cannot be served: %s", dir, err.text);
    if (!random[0]) return;
    struct model_files own = k->files;
    open_shape(k, random, &own);
    model_files_close(&own);
}

/* After a restart: the very files that the server began with. */
static void open_again(struct keeper *k)
{
    const struct wiring *w = &k->stage.wiring;
    struct model_error err = {""};

    model_files_init(&k->files);
    for (unsigned i = 0; i < w->fd_count; i++)
        if (strncmp(w->fd_name[i], "file.", 5) == 0 && strcmp(w->fd_name[i], "file.api_keys") != 0 && model_files_add(&k->files, w->fd_name[i] + 5, w->fd[i], &err) != 0)
            stage_exit(&k->stage, EXIT_MISSING, "%s", err.text);
}

static void read_model(struct keeper *k, const char *name)
{
    struct model_error err = {""};
    int rc;

    k->random = wiring_text(&k->stage.wiring, "model.random", "")[0] != '\0';
    if (k->random) rc = model_config_load(&k->config, &k->generation, &k->files, &err);
    else rc = model_load(&k->config, &k->generation, &k->weights, &k->files, &err);
    if (rc != 0) stage_exit(&k->stage, EXIT_CONFIG, "%s cannot be served: %s", name, err.text[0] ? err.text : error_text(rc));
}

/* ---- memory ----------------------------------------------------------------------------------- */

/* auto: as the checkpoint's config says. */
static enum kv_dtype cache_dtype(struct keeper *k)
{
    const char *asked = wiring_text(&k->stage.wiring, "kv.cache_dtype", "auto");
    const enum kv_dtype named = kv_dtype_named(asked);
    struct quantization quantization;
    struct model_error err = {""};

    if (named) return named;
    if (strcmp(asked, "auto") != 0) stage_exit(&k->stage, EXIT_CONFIG, "--kv-cache-dtype %s: takes auto, bf16, fp8 or f32", asked);
    if (quantization_load(&quantization, &k->files, &err) != 0) stage_exit(&k->stage, EXIT_CONFIG, "the element type of the KV cache is not known: %s; say --kv-cache-dtype bf16", err.text);
    return quantization.kv_cache_fp8 ? KV_FP8 : KV_BF16;
}

/* The layout of a page, for a cache of no pages. */
static void lay_pages(struct keeper *k)
{
    const int rc = kv_geometry_init(&k->geometry, &k->config, cache_dtype(k), 1, 1, 0, 0);

    if (rc != 0) stage_exit(&k->stage, EXIT_CONFIG, "the KV cache cannot be laid out: %s", error_text(rc));
}

static uint64_t option(const struct keeper *k, const char *name, uint64_t otherwise)
{
    const uint64_t value = wiring_u64(&k->stage.wiring, name, 0);

    return value ? value : otherwise;
}

static uint32_t rows_max(const struct keeper *k)
{
    const uint64_t chunk = option(k, "prefill.chunk", k->cuda ? PREFILL_CHUNK_GPU : PREFILL_CHUNK_CPU);
    uint64_t rows = chunk > VERIFY_BLOCK_MAX ? chunk : VERIFY_BLOCK_MAX;

    if (rows < k->media.picture_budget) rows = k->media.picture_budget; /* a picture is never cut */

    return rows < k->config.max_position ? (uint32_t)rows : k->config.max_position;
}

static uint64_t states_needed(const struct keeper *k)
{
    return states_bytes((uint32_t)wiring_u64(&k->stage.wiring, "table.slots", 0), k->config.hidden);
}

static uint64_t cache_limit(struct keeper *k)
{
    const uint64_t asked = wiring_u64(&k->stage.wiring, "kv.cache_mib", 0) << 20, taken = k->weights_bytes + states_needed(k) + GPU_RESERVE_BYTES + (k->cuda ? features_plan(k) : 0);

    if (asked) return asked;
    if (!k->cuda) return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
    if (k->facts.memory_free <= taken)
        stage_exit(&k->stage, EXIT_MISSING, "the GPU has %llu MiB free, the weights need %llu and the stages about %llu: stop what else runs there%s", (unsigned long long)(k->facts.memory_free >> 20),
                   (unsigned long long)(k->weights_bytes >> 20), GPU_RESERVE_BYTES >> 20, k->spec.layer[0].stored.format[CUDA_GATE] == WEIGHT_BF16 ? ", or try --weights-dtype fp8" : "");
    return k->facts.memory_free - taken;
}

/* A context that nobody asked for is halved until a sequence fits; one that was asked for is kept, or refused. */
static void size_cache(struct keeper *k)
{
    const struct wiring *w = &k->stage.wiring;
    const uint64_t asked = wiring_u64(w, "request.max_context", 0), most = k->config.max_position;
    struct cache_wish wish = {.dtype = cache_dtype(k), .rows_max = rows_max(k),
                              .sequences = (uint32_t)wiring_u64(w, "max_sequences", 32), .limit_bytes = cache_limit(k)};
    int rc;

    wish.context = (uint32_t)(asked && asked < most ? asked : !asked && !k->cuda && most > CONTEXT_MAX_CPU ? CONTEXT_MAX_CPU : most);
    while ((rc = cache_size(&k->geometry, &k->config, &wish)) == -E_LIMIT && k->cuda && !asked && wish.context / 2 >= CONTEXT_MIN_GPU) wish.context /= 2;
    if (rc == -E_LIMIT)
        stage_exit(&k->stage, EXIT_CONFIG, "one sequence of %u tokens does not fit into a KV cache of %llu MiB; lower --max-context or raise --kv-cache-mib%s", wish.context,
                   (unsigned long long)(wish.limit_bytes >> 20), k->cuda ? " (memory that other processes hold on the GPU counts)" : "");
    if (rc != 0) stage_exit(&k->stage, EXIT_CONFIG, "a context of %u tokens cannot be laid out: %s; lower --max-context", wish.context, error_text(rc));
    if (!asked && k->cuda && wish.context < most)
        stage_log(&k->stage, LOG_WARN, "context", "tokens=%u reason=\"a sequence of the model's %llu tokens does not fit into the GPU's free memory\"", wish.context, (unsigned long long)most);
}

static void make_arena(struct keeper *k)
{
    const uint64_t states = states_needed(k);
    int fd = -1, weights_fd = -1, states_fd = -1, signals_fd = -1, rc = 0;

    if (states == 0) stage_exit(&k->stage, EXIT_CONFIG, "table.slots was not given"); /* the launcher always does */
    if (k->cuda) {
        rc = k->lib.memory_create(k->weights_bytes, &weights_fd);
        if (rc == 0) rc = k->lib.memory_create(k->geometry.arena_bytes, &fd);
        if (rc == 0) rc = k->lib.memory_create(states, &states_fd);
        if (rc == 0) rc = k->lib.memory_create(CUDA_HANDOVER_BYTES, &signals_fd);
        if (rc != 0)
            stage_exit(&k->stage, EXIT_MISSING, "%llu MiB of GPU memory (weights %llu MiB) cannot be had: %s; lower --kv-cache-mib", (unsigned long long)((k->weights_bytes + k->geometry.arena_bytes + states) >> 20),
                       (unsigned long long)(k->weights_bytes >> 20), k->lib.backend_error());
        wiring_add_fd(&k->out, "gpu.weights", weights_fd);
        wiring_add_fd(&k->out, "arena.signals", signals_fd);
    } else {
        fd = keeper_memfd(k, "sluice-kv", "the KV cache", k->geometry.arena_bytes);
        states_fd = keeper_memfd(k, "sluice-states", "the memory of hidden states", states);
    }
    features_make(k);
    wiring_add_fd(&k->out, "arena.kv", fd);
    wiring_add_fd(&k->out, "arena.states", states_fd);
    shm_store_relaxed(&k->stage.status->counters[KEEPER_ARENA_BYTES], k->geometry.arena_bytes); /* stored, not added: a predecessor may have died behind this line */
}

/* Bytes of weights that a load moves: matrices as stored. */
static uint64_t stored_weights(const struct keeper *k)
{
    const uint64_t embed = (uint64_t)k->config.vocab * k->config.hidden;
    uint64_t bytes = 0;

    if (k->random) return k->weights_bytes;
    for (uint32_t i = 0; i < k->config.layer_count; i++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
            const struct stored_matrix *m = model_matrix(&k->weights, i, which);
            if (m->data) bytes += stored_code_bytes(m->element, (uint64_t)m->rows * m->k) + (m->element == STORED_E2M1 ? (uint64_t)m->rows * m->k / STORED_GROUP : 0);
        }
    return bytes + stored_code_bytes(k->weights.dtype == DTYPE_F32 ? STORED_F32 : STORED_BF16, embed);
}

/* ---- the message ------------------------------------------------------------------------------- */

static void describe_files(struct keeper *k)
{
    char name[WIRING_NAME_BYTES];
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < k->files.count; i++) {
        if (snprintf(name, sizeof name, "file.%s", k->files.file[i].name) >= (int)sizeof name)
            stage_exit(&k->stage, EXIT_CONFIG, "the file name %s is too long", k->files.file[i].name);
        wiring_add_fd(&k->out, name, k->files.file[i].fd);
        bytes += k->files.file[i].byte_count;
    }
    wiring_setf(&k->out, "model.bytes", "%llu", (unsigned long long)(k->random ? k->weights_bytes : bytes));
}

/* Soft tokens of one request: the record of every slot has room for them (address space: memory is taken as it is used). */
static uint32_t media_tokens(const struct keeper *k)
{
    const uint64_t asked = wiring_u64(&k->stage.wiring, "media.tokens_asked", 0), wanted = asked ? asked : MEDIA_TOKENS_DEFAULT;

    if (!k->media.picture_budget && !k->media.sound_seconds) return 0;
    return wanted < k->geometry.max_context ? (uint32_t)wanted : k->geometry.max_context;
}

static int check_tower(const struct keeper *k, struct model_error *err)
{
    struct siglip_weights tower;
    const int rc = model_media_tower(&tower, &k->media, &k->files, err);

    if (rc == 0) siglip_weights_free(&tower);
    return rc;
}

/* Does the checkpoint see and hear, and can it here? A configuration that promises what the files lack is one of text alone. */
static void choose_media(struct keeper *k)
{
    struct model_error err = {""};
    struct soft_weights weights;
    const char *off = NULL;

    int rc = model_media_load(&k->media, &k->config, &k->files, &err);
    if (rc == 0 && !k->media.picture_budget && !k->media.sound_seconds) return;
    if (rc == 0 && !k->random) {
        rc = k->media.siglip.image ? check_tower(k, &err) : model_media_weights(&weights, &k->media, &k->files, &err);
        if (rc == 0 && !k->media.siglip.image) soft_weights_free(&weights);
        if (rc == -E_NOT_FOUND) off = err.text;
    }
    if (rc != 0 && rc != -E_NOT_FOUND) stage_exit(&k->stage, EXIT_CONFIG, "pictures and sound of the model cannot be used: %s", err.text[0] ? err.text : error_text(rc));
    if (off) stage_log(&k->stage, LOG_WARN, "text-alone", "reason=\"%s\"", off);
    if (off) memset(&k->media, 0, sizeof k->media);
}

static void describe(struct keeper *k, const char *dir)
{
    struct wiring *out = &k->out;

    if (!wiring_text(&k->stage.wiring, "model.name", NULL)) {
        const char *slash = strrchr(dir, '/');
        wiring_set(out, "model.name", slash && slash[1] ? slash + 1 : dir);
    }
    wiring_setf(out, "model.context_max", "%u", k->geometry.max_context);
    wiring_setf(out, "model.vocab", "%u", k->config.vocab);
    wiring_setf(out, "model.temperature", "%g", k->generation.do_sample ? (double)k->generation.temperature : 0.0);
    wiring_setf(out, "model.top_p", "%g", (double)k->generation.top_p);
    wiring_setf(out, "model.min_p", "%g", (double)k->generation.min_p);
    wiring_setf(out, "model.top_k", "%u", k->generation.top_k);
    wiring_setf(out, "kv.full_pages_per_seq", "%u", k->geometry.full_pages_per_seq);
    wiring_setf(out, "kv.sliding_pages_per_seq", "%u", k->geometry.sliding_pages_per_seq);
    wiring_setf(out, "kv.full_page_count", "%u", k->geometry.full_page_count);
    wiring_setf(out, "kv.sliding_page_count", "%u", k->geometry.sliding_page_count);
    wiring_setf(out, "kv.rows_max", "%u", k->geometry.rows_max);
    wiring_set(out, "kv.cache_dtype", kv_dtype_name(k->geometry.dtype));
    wiring_setf(out, "prefill.chunk", "%llu", (unsigned long long)option(k, "prefill.chunk", k->cuda ? PREFILL_CHUNK_GPU : PREFILL_CHUNK_CPU));
    wiring_setf(out, "media.picture_budget", "%u", k->media.picture_budget);
    wiring_setf(out, "media.picture_positions", "%u", k->media.picture_positions);
    wiring_setf(out, "media.picture_side", "%u", k->media.picture_side);
    wiring_setf(out, "media.picture_token_bytes", "%u", k->media.picture_token_bytes);
    wiring_setf(out, "media.video", "%d", k->media.picture_budget && k->media.has_video);
    wiring_setf(out, "media.sound_seconds", "%u", k->media.sound_seconds);
    wiring_setf(out, "table.media_tokens_max", "%u", media_tokens(k));
    describe_files(k);
}

static void begin(struct keeper *k)
{
    const char *dir = wiring_text(&k->stage.wiring, "model.dir", "");
    char why[WIRING_VALUE_BYTES];

    open_dir(k, dir);
    read_model(k, dir);
    lay_pages(k); /* the spec needs the pages' layout, their number needs the spec's bytes */
    device_choose(k, why, sizeof why);
    choose_media(k);
    size_cache(k);
    make_arena(k);
    describe(k, dir);
    shm_store_relaxed(&k->stage.status->counters[KEEPER_BYTES_TOTAL], stored_weights(k));
    const int rc = wiring_send(k->stage.control_fd, "model", &k->out);
    if (rc != 0) stage_exit(&k->stage, EXIT_MISSING, "the launcher did not take the model's descriptors: %s", error_text(rc));
}

/* Our predecessor died between the message and the last weight. */
static void begin_again(struct keeper *k)
{
    const struct wiring *w = &k->stage.wiring;
    uint64_t *done = &k->stage.status->counters[KEEPER_BYTES_DONE];

    if (strcmp(wiring_text(w, "device", "cpu"), "cuda") != 0) return;
    open_again(k);
    read_model(k, "the model");
    lay_pages(k);
    device_reopen(k);
    shm_store_relaxed(done, 0);
}

/* Fills the GPU's memory, and gives back what only that needed. */
static void load(struct keeper *k, int weights_fd)
{
    uint64_t *counters = k->stage.status->counters;
    const uint64_t begin_ns = clock_ns();

    shm_store_relaxed(&counters[KEEPER_LOAD_BEGIN_NS], begin_ns);
    if (k->cuda) load_weights(k, weights_fd);
    shm_store_relaxed(&counters[KEEPER_BYTES_DONE], counters[KEEPER_BYTES_TOTAL]);
    shm_store_relaxed(&counters[KEEPER_LOAD_NS], clock_ns() - begin_ns);
    shm_store_release(&counters[KEEPER_LOADED], 1); /* W0 -> W1 in model/engine.c: the weights are written */
    if (k->cuda && k->lib.device_close() != 0) stage_log(&k->stage, LOG_WARN, "gpu-close", "reason=\"%s\"", k->lib.backend_error());
    if (!k->random) model_weights_free(&k->weights);
    model_files_close(&k->files);
}

int main(int argc, char **argv)
{
    static struct keeper k;

    stage_attach(&k.stage, ROLE_KEEPER, "reads the checkpoint and makes the memory that outlives every stage", argc, argv);
    if (!shm_load_relaxed(&k.stage.status->counters[KEEPER_LOADED])) {
        const int weights_fd = stage_fd(&k.stage, "gpu.weights");
        if (stage_fd(&k.stage, "arena.kv") < 0) begin(&k);
        else begin_again(&k);
        load(&k, weights_fd >= 0 ? weights_fd : wiring_fd(&k.out, "gpu.weights"));
    }
    stage_ready(&k.stage);
    while (stage_running(&k.stage)) stage_wait(&k.stage, 1000);
    keeper_leave(&k);
}
