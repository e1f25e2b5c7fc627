/* stages/keeper.c - reads the checkpoint, makes the memory that outlives every stage, and hands the descriptors to the launcher.
 *
 * Reads    the model directory (option model.dir)
 * Gives    message "model": what the model is (options model.*, kv.*), descriptors file.* and arena.kv
 * Owns     nothing that anybody needs afterwards: the launcher holds every descriptor. The keeper may die or
 *          leave at any time; started again, it finds its work done. What it still does: when the launcher is
 *          killed, it removes the control socket.
 * Fails    a checkpoint that would not load: exit 100 with the reason, before anything is allocated. */
#include "model/engine.h"
#include "model/kv.h"
#include "schemas/counters.h"
#include "shm/error.h"
#include "shm/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CONTEXT_MAX_DEFAULT 8192u /* on a CPU nobody waits for more unless asked */
#define VERIFY_BLOCK_MAX (RING_TOKENS_MAX + 1u)

struct keeper {
    struct stage stage;
    struct model_files files;
    struct model_config config;
    struct generation_config generation;
    struct model_weights weights;
    struct kv_geometry geometry;
    struct wiring out; /* the message */
};

static uint32_t choose_context(const struct keeper *k)
{
    const uint64_t asked = wiring_u64(&k->stage.wiring, "request.max_context", 0);
    const uint32_t most = k->config.max_position;

    if (asked == 0) return most < CONTEXT_MAX_DEFAULT ? most : CONTEXT_MAX_DEFAULT;
    return asked < most ? (uint32_t)asked : most;
}

/* Pages for every sequence at full context, or as many as the limit holds, but at least one whole sequence. */
static void size_cache(struct keeper *k)
{
    const struct wiring *w = &k->stage.wiring;
    const enum kv_dtype dtype = strcmp(wiring_text(w, "kv.cache_dtype", "bf16"), "f32") == 0 ? KV_F32 : KV_BF16;
    const uint64_t chunk = wiring_u64(w, "prefill.chunk", 128), sequences_asked = wiring_u64(w, "max_sequences", 32);
    const uint32_t rows_max = chunk > VERIFY_BLOCK_MAX ? (uint32_t)chunk : VERIFY_BLOCK_MAX, context = choose_context(k);
    uint64_t limit = wiring_u64(w, "kv.cache_mib", 0) << 20;
    int rc = kv_geometry_init(&k->geometry, &k->config, dtype, context, rows_max, 0, 0);

    if (rc != 0) stage_exit(&k->stage, EXIT_CONFIG, "a context of %u tokens cannot be laid out: %s; lower --max-context", context, error_text(rc));
    const uint64_t sequence_bytes = k->geometry.full_pages_per_seq * k->geometry.full_page_bytes + k->geometry.sliding_pages_per_seq * k->geometry.sliding_page_bytes;
    if (limit == 0) limit = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
    uint64_t sequences = limit / sequence_bytes;
    if (sequences == 0)
        stage_exit(&k->stage, EXIT_CONFIG, "one sequence of %u tokens needs %llu MiB of KV cache, more than the limit of %llu MiB; lower --max-context or raise --kv-cache-mib",
                   context, (unsigned long long)(sequence_bytes >> 20) + 1, (unsigned long long)(limit >> 20));
    if (sequences > sequences_asked) sequences = sequences_asked;
    rc = kv_geometry_init(&k->geometry, &k->config, dtype, context, rows_max, (uint32_t)sequences * k->geometry.full_pages_per_seq,
                          (uint32_t)sequences * k->geometry.sliding_pages_per_seq);
    if (rc != 0) stage_exit(&k->stage, EXIT_CONFIG, "the KV cache cannot be laid out: %s", error_text(rc));
}

static void make_arena(struct keeper *k)
{
    const int fd = memfd_create("sluice-kv", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, (off_t)k->geometry.arena_bytes) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
        stage_exit(&k->stage, EXIT_MISSING, "the KV cache (%llu MiB) cannot be made: %s", (unsigned long long)(k->geometry.arena_bytes >> 20), strerror(errno));
    wiring_add_fd(&k->out, "arena.kv", fd);
    stage_count(&k->stage, KEEPER_ARENA_BYTES, k->geometry.arena_bytes);
}

static void describe(struct keeper *k, const char *dir)
{
    struct wiring *out = &k->out;
    char name[WIRING_NAME_BYTES];
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < k->files.count; i++) {
        if (snprintf(name, sizeof name, "file.%s", k->files.file[i].name) >= (int)sizeof name)
            stage_exit(&k->stage, EXIT_CONFIG, "the file name %s is too long", k->files.file[i].name);
        wiring_add_fd(out, name, k->files.file[i].fd);
        bytes += k->files.file[i].byte_count;
    }
    if (!wiring_text(&k->stage.wiring, "model.name", NULL)) {
        const char *slash = strrchr(dir, '/');
        wiring_set(out, "model.name", slash && slash[1] ? slash + 1 : dir);
    }
    wiring_setf(out, "model.context_max", "%u", k->geometry.max_context);
    wiring_setf(out, "model.vocab", "%u", k->config.vocab);
    wiring_setf(out, "model.bytes", "%llu", (unsigned long long)bytes);
    wiring_setf(out, "model.temperature", "%g", k->generation.do_sample ? (double)k->generation.temperature : 0.0);
    wiring_setf(out, "model.top_p", "%g", (double)k->generation.top_p);
    wiring_setf(out, "model.min_p", "%g", (double)k->generation.min_p);
    wiring_setf(out, "model.top_k", "%u", k->generation.top_k);
    wiring_setf(out, "kv.full_pages_per_seq", "%u", k->geometry.full_pages_per_seq);
    wiring_setf(out, "kv.sliding_pages_per_seq", "%u", k->geometry.sliding_pages_per_seq);
    wiring_setf(out, "kv.full_page_count", "%u", k->geometry.full_page_count);
    wiring_setf(out, "kv.sliding_page_count", "%u", k->geometry.sliding_page_count);
    wiring_setf(out, "kv.rows_max", "%u", k->geometry.rows_max);
    stage_count(&k->stage, KEEPER_BYTES_TOTAL, bytes);
    stage_count(&k->stage, KEEPER_BYTES_DONE, bytes);
}

static void read_model(struct keeper *k)
{
    const char *dir = wiring_text(&k->stage.wiring, "model.dir", "");
    struct model_error err = {""};
    int rc = model_files_open_dir(&k->files, dir, &err);

    if (rc == 0) rc = model_load(&k->config, &k->generation, &k->weights, &k->files, &err);
    if (rc != 0) stage_exit(&k->stage, EXIT_CONFIG, "%s cannot be served: %s", dir, err.text[0] ? err.text : error_text(rc));
    size_cache(k);
    make_arena(k);
    describe(k, dir);
    rc = wiring_send(k->stage.control_fd, "model", &k->out);
    if (rc != 0) stage_exit(&k->stage, EXIT_MISSING, "the launcher did not take the model's descriptors: %s", error_text(rc));
}

/* The launcher is gone without a goodbye: nothing of the server may stay behind. */
static void sweep(const struct keeper *k)
{
    const char *socket = wiring_text(&k->stage.wiring, "run.control_path", NULL), *dir = wiring_text(&k->stage.wiring, "run.made_dir", NULL);

    if (socket) unlink(socket);
    if (dir) rmdir(dir);
}

int main(int argc, char **argv)
{
    static struct keeper k;

    stage_attach(&k.stage, ROLE_KEEPER, "reads the checkpoint and makes the memory that outlives every stage", argc, argv);
    if (stage_fd(&k.stage, "arena.kv") < 0) read_model(&k);
    stage_ready(&k.stage);
    while (stage_running(&k.stage)) stage_wait(&k.stage, 1000);
    if (stage_launcher_gone(&k.stage)) sweep(&k);
    return 0;
}
