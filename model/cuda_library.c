/* model/cuda_library.c - finds and opens libsluice_cuda.so (contract in cuda_library.h). */
#include "model/cuda_library.h"
#include "shm/error.h"
#include "shm/library.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int find_functions(struct cuda_library *lib, char *err, size_t err_bytes)
{
    const char *missing = NULL;
    uint32_t version;

#define FIND(name) \
    if ((lib->name = (__typeof__(lib->name))dlsym(lib->handle, "cuda_" #name)) == NULL && !missing) missing = "cuda_" #name;
    CUDA_LIBRARY_FUNCTIONS(FIND)
#undef FIND
    if (lib->backend_version && (version = lib->backend_version()) != CUDA_BACKEND_VERSION) {
        snprintf(err, err_bytes, "%s has version %u, this program needs %u: both must come from one build", lib->path, version, CUDA_BACKEND_VERSION);
        return -E_VERSION;
    }
    if (!missing) return 0;
    snprintf(err, err_bytes, "%s lacks the function %s: it must come from the same build as this program", lib->path, missing);
    return -E_VERSION;
}

static int open_at(struct cuda_library *lib, const char *path, char *err, size_t err_bytes)
{
    const char *reason;

    if (access(path, F_OK) != 0) {
        snprintf(err, err_bytes, "there is no %s", path);
        return -E_NOT_FOUND;
    }
    if (snprintf(lib->path, sizeof lib->path, "%s", path) >= (int)sizeof lib->path) {
        snprintf(err, err_bytes, "the path %s is too long", path);
        return -E_NOT_FOUND;
    }
    lib->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (lib->handle) return find_functions(lib, err, err_bytes);
    reason = dlerror();
    snprintf(err, err_bytes, "%s cannot be loaded: %s", path, reason ? reason : "no reason given");
    return -E_IO;
}

int cuda_library_open(struct cuda_library *lib, const char *path, char *err, size_t err_bytes)
{
    char found[CUDA_LIBRARY_PATH_BYTES];

    memset(lib, 0, sizeof *lib);
    if (err_bytes) err[0] = '\0';
    const bool given = path && path[0];
    const int rc = given ? 0 : library_find(CUDA_LIBRARY_NAME, "SLUICE_CUDA_LIBRARY", found, sizeof found, err, err_bytes);
    return rc ? rc : open_at(lib, given ? path : found, err, err_bytes);
}
