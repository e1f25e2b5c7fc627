/* model/cuda_library.c - finds and opens libsluice_cuda.so (contract in cuda_library.h). */
#include "model/cuda_library.h"
#include "shm/error.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
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

/* The directory of our own executable, without a slash at its end. */
static int own_directory(char dir[PATH_MAX])
{
    const ssize_t bytes = readlink("/proc/self/exe", dir, PATH_MAX - 1);
    char *slash;

    if (bytes <= 0) return -E_IO;
    dir[bytes] = '\0';
    if ((slash = strrchr(dir, '/')) == NULL) return -E_IO;
    *slash = '\0';
    return 0;
}

int cuda_library_open(struct cuda_library *lib, const char *path, char *err, size_t err_bytes)
{
    static const char *const places[] = {"/../lib/", "/../", "/lib/", "/"};
    char dir[PATH_MAX], candidate[PATH_MAX + 64];

    memset(lib, 0, sizeof *lib);
    if (err_bytes) err[0] = '\0';
    if (!path) path = getenv("SLUICE_CUDA_LIBRARY");
    if (path && path[0]) return open_at(lib, path, err, err_bytes);
    if (own_directory(dir) != 0) {
        snprintf(err, err_bytes, "the executable's own directory is unknown (/proc is not mounted?)");
        return -E_NOT_FOUND;
    }
    for (unsigned i = 0; i < sizeof places / sizeof *places; i++) { /* one that is there and broken is an error, not a reason to look on */
        snprintf(candidate, sizeof candidate, "%s%s" CUDA_LIBRARY_NAME, dir, places[i]);
        const int rc = open_at(lib, candidate, err, err_bytes);
        if (rc != -E_NOT_FOUND) return rc;
    }
    snprintf(err, err_bytes, "%s is not in %s/../lib, %s/.., %s/lib or %s", CUDA_LIBRARY_NAME, dir, dir, dir, dir);
    return -E_NOT_FOUND;
}
