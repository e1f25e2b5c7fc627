/* stages/keeper/memory.c - host memory that the CPU's stages share (contract in keeper.h). Fails: exit 111. */
#include "stages/keeper/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int keeper_memfd(struct keeper *k, const char *name, const char *what, uint64_t bytes)
{
    const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
        stage_exit(&k->stage, EXIT_MISSING, "%s (%llu MiB) cannot be made: %s", what, (unsigned long long)(bytes >> 20), strerror(errno));
    return fd;
}
