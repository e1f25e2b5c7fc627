/* model/engine_gpu.c - opening the GPU and losing it (contract in engine_gpu.h). */
#include "model/engine_gpu.h"

#include "model/engine.h"
#include "model/features.h"
#include "shm/atomic.h"
#include "shm/error.h"
#include "shm/must.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void engine_gpu_open(struct cuda_library *lib, struct cuda_device_facts *facts, struct stage *s)
{
    char err[1024];
    int rc = cuda_library_open(lib, wiring_text(&s->wiring, "gpu.library", NULL), err, sizeof err);

    if (rc != 0) stage_exit(s, EXIT_CONFIG, "the CUDA library cannot be used: %s", err);
    rc = lib->device_open(facts);
    stage_beat(s);
    if (rc != 0) stage_exit(s, rc == -E_UNSUPPORTED ? EXIT_CONFIG : EXIT_MISSING, "the GPU cannot be used: %s", lib->backend_error());
}

void *engine_gpu_map(const struct cuda_library *lib, struct stage *s, const char *name, uint64_t bytes, bool writable)
{
    const int fd = stage_fd(s, name);
    void *device = NULL;

    if (fd < 0) stage_exit(s, EXIT_CONFIG, "the descriptor %s was not given", name);
    const int rc = lib->memory_map(fd, bytes, writable, &device);
    if (rc != 0) stage_exit(s, EXIT_MISSING, "%s (%llu MiB of GPU memory) cannot be mapped: %s", name, (unsigned long long)(bytes >> 20), lib->backend_error());
    return device;
}

void *engine_gpu_own(const struct cuda_library *lib, struct stage *s, uint64_t bytes, const char *what)
{
    void *device = NULL;
    int fd = -1, rc = lib->memory_create(bytes, &fd);

    if (rc == 0) rc = lib->memory_map(fd, bytes, true, &device);
    if (fd >= 0) close(fd); /* the mapping holds it */
    if (rc != 0) stage_exit(s, EXIT_MISSING, "%llu MiB of GPU memory for %s: %s", (unsigned long long)(bytes >> 20), what, lib->backend_error());
    return device;
}

void engine_gpu_check(const struct cuda_library *lib, struct stage *s, const char *what, int rc)
{
    if (rc == 0) return;
    if (rc == -E_NOMEM) stage_exit(s, EXIT_MISSING, "%s: %s", what, lib->backend_error());
    if (rc == -E_IO || rc == -E_TIMEOUT) engine_gpu_lost(lib, s, what, rc);
    stage_log(s, LOG_ERROR, "gpu-refused", "call=\"%s\" reason=\"%s\"", what, error_text(rc));
    must(!"the GPU library refused what was checked before");
}

void engine_gpu_formats(struct stage *s, struct cuda_layer_format *formats, uint32_t layers)
{
    const int fd = stage_fd(s, "gpu.formats");
    const size_t bytes = layers * sizeof *formats;

    if (fd < 0) stage_exit(s, EXIT_CONFIG, "the descriptor gpu.formats was not given");
    const ssize_t got = pread(fd, formats, bytes, 0);
    if (got != (ssize_t)bytes) stage_exit(s, EXIT_CONFIG, "gpu.formats has %lld bytes where %u layers need %llu: use executables and library of one build", (long long)got, layers, (unsigned long long)bytes);
}

void engine_gpu_spec(struct stage *s, struct cuda_model_spec *spec, const struct model_config *config, const struct generation_config *generation, const struct kv_geometry *geometry)
{
    struct cuda_layer_format formats[MODEL_LAYERS_MAX];
    const char *name = wiring_text(&s->wiring, "gpu.table_format", "");
    const uint32_t table = engine_weights_format(name);
    struct model_error err = {""};

    if (table != WEIGHT_BF16 && table != WEIGHT_F32) stage_exit(s, EXIT_CONFIG, "gpu.table_format is \"%s\", known are bf16 and f32", name);
    engine_gpu_formats(s, formats, config->layer_count);
    if (engine_cuda_spec(spec, config, generation, geometry, table, formats, &err) != 0) stage_exit(s, EXIT_CONFIG, "the GPU cannot run this model: %s", err.text);
}

void engine_gpu_features(const struct cuda_library *lib, struct stage *s, const struct model_config *config, uint32_t context_max, bool writable, struct cuda_features *out,
                         struct features *layout)
{
    const struct wiring *w = &s->wiring;
    struct features f;

    memset(out, 0, sizeof *out);
    if (stage_fd(s, "arena.features") < 0) return;
    features_init_device(&f, (uint32_t)wiring_u64(w, "features.places", 0), (uint32_t)wiring_u64(w, "draft.context", 0), context_max, config->hidden,
                         (uint32_t)wiring_u64(w, "features.sources", 0), (uint32_t)wiring_u64(w, "features.element_bytes", 0));
    if (f.place_count == 0 || f.source_max == 0 || (f.element_bytes != 2 && f.element_bytes != 4))
        stage_exit(s, EXIT_CONFIG, "the layout of arena.features was not given: use executables of one build");
    f.base = engine_gpu_map(lib, s, "arena.features", features_bytes(&f), writable);
    *out = (struct cuda_features){.device = f.base, .row_bytes = f.row_bytes, .places = f.place_count, .rows = f.rows, .sources_max = f.source_max, .element_bytes = f.element_bytes};
    if (layout) *layout = f;
}

struct cuda_handover_record *engine_gpu_signals(const struct cuda_library *lib, struct stage *s)
{
    const char *how = wiring_text(&s->wiring, "draft.signals", "auto"), *mps = getenv("CUDA_MPS_PIPE_DIRECTORY");
    struct stat dir;

    if (strcmp(how, "host") == 0 || stage_fd(s, "arena.signals") < 0) return NULL;
    if (strcmp(how, "auto") != 0 && strcmp(how, "device") != 0) stage_exit(s, EXIT_CONFIG, "draft.signals is \"%s\", known are auto, device and host", how);
    if (how[0] == 'a' && (!mps || stat(mps, &dir) != 0 || !S_ISDIR(dir.st_mode))) return NULL;
    return engine_gpu_map(lib, s, "arena.signals", CUDA_HANDOVER_BYTES, true);
}

void engine_gpu_lost(const struct cuda_library *lib, struct stage *s, const char *what, int rc)
{
    const char *reason = rc == -E_TIMEOUT ? "it did not end" : lib->backend_error();

    stage_log(s, LOG_ERROR, "gpu-lost", "code=%d during=\"%s\" reason=\"%s\"", EXIT_GPU, what, reason);
    snprintf(s->status->panic, STATUS_PANIC_BYTES, "GPU: %s: %s", what, reason);
    shm_store_release(&s->status->state, STAGE_STATE_STOPPING);
    _exit(EXIT_GPU);
}
