/* schemas/video.c - see video.h: times of frames, and opening the library that decodes them. */
#include "schemas/video.h"

#include "shm/error.h"
#include "shm/library.h"

#include <dlfcn.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define VARIABLE "SLUICE_VIDEO_LIBRARY"

uint32_t video_at_ms(uint32_t index, double fps)
{
    const double seconds = index / fps, whole = floor(seconds);

    if (!(seconds < UINT32_MAX / 1000)) return UINT32_MAX;
    const double ms = (seconds - whole) * 1000;
    return (uint32_t)whole * 1000 + (ms < 999 ? (uint32_t)ms : 999);
}

int video_library_find(char *path, size_t path_bytes)
{
    char err[PATH_MAX];

    return library_find(VIDEO_LIBRARY_NAME, VARIABLE, path, path_bytes, err, sizeof err);
}

int video_library_open(struct video_library *lib, char *err, size_t err_bytes)
{
    char path[PATH_MAX];
    const int rc = library_find(VIDEO_LIBRARY_NAME, VARIABLE, path, sizeof path, err, err_bytes);

    memset(lib, 0, sizeof *lib);
    if (rc != 0) return rc;
    lib->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib->handle) {
        const char *reason = dlerror();
        snprintf(err, err_bytes, "%s", reason ? reason : "no reason given");
        return -E_IO;
    }
    lib->version = (__typeof__(lib->version))dlsym(lib->handle, "video_version");
    lib->libavcodec = (__typeof__(lib->libavcodec))dlsym(lib->handle, "video_libavcodec");
    lib->decode = (__typeof__(lib->decode))dlsym(lib->handle, "video_decode");
    if (lib->version && lib->libavcodec && lib->decode && lib->version() == VIDEO_VERSION) return 0;
    snprintf(err, err_bytes, "%s comes from another build than this program", path);
    return -E_VERSION;
}
