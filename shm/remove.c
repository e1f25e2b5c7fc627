/* shm/remove.c - see remove.h. */
#include "shm/remove.h"

#include "shm/error.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

int remove_flat_dir(const char *path)
{
    DIR *dir = opendir(path);

    if (!dir) return errno == ENOENT ? 0 : -E_IO;
    for (const struct dirent *e; (e = readdir(dir)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) unlinkat(dirfd(dir), e->d_name, 0);
    closedir(dir);
    return rmdir(path) == 0 || errno == ENOENT ? 0 : -E_IO;
}
