/* shm/library.c - see library.h. */
#include "shm/library.h"

#include "shm/error.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

int library_find(const char *name, const char *variable, char *path, size_t path_bytes, char *err, size_t err_bytes)
{
    static const char *const places[] = {"/../lib/", "/../", "/lib/", "/"};
    const char *named = getenv(variable);
    char dir[PATH_MAX];

    if (named && named[0]) {
        const int bytes = snprintf(path, path_bytes, "%s", named);
        if (bytes < (int)path_bytes && access(path, F_OK) == 0) return 0;
        snprintf(err, err_bytes, bytes < (int)path_bytes ? "there is no %s" : "the path %s is too long", named);
        return -E_NOT_FOUND;
    }
    if (own_directory(dir) != 0) {
        snprintf(err, err_bytes, "the executable's own directory is unknown (/proc is not mounted?)");
        return -E_NOT_FOUND;
    }
    for (unsigned i = 0; i < sizeof places / sizeof *places; i++) /* one that is there and broken is an error, not a reason to look on */
        if (snprintf(path, path_bytes, "%s%s%s", dir, places[i], name) < (int)path_bytes && access(path, F_OK) == 0) return 0;
    snprintf(err, err_bytes, "%s is not in %s/../lib, %s/.., %s/lib or %s", name, dir, dir, dir, dir);
    return -E_NOT_FOUND;
}
