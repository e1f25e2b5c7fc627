/* launcher/segments.c - creates a role's segment: an anonymous file that vanishes with its last descriptor. */
#include "launcher/server.h"

#include "shm/atomic.h"
#include "shm/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int segment_create(struct server *v, int role, uint64_t slot_stride, uint32_t slot_count, uint64_t board_bytes, char *err, size_t err_bytes)
{
    char name[64], path[64];
    const uint64_t slots_offset = segment_slots_offset(role);
    const uint64_t bytes = slots_offset + board_bytes + slot_stride * slot_count;
    const char *step = "created";

    snprintf(name, sizeof name, "sluice-%s", role_name(role));
    const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) goto failed;
    step = "sized";
    if (ftruncate(fd, (off_t)bytes) != 0) goto failed;
    /* nobody can shrink it under a reader's feet */
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) goto failed;
    step = "opened read-only through /proc";
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const int ro_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (ro_fd < 0) goto failed;
    step = "mapped";
    struct segment_hdr *h = mmap(NULL, SEGMENT_STATUS_OFFSET, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (h == MAP_FAILED) goto failed;
    h->version = LAYOUT_VERSION;
    h->role = (uint32_t)role;
    h->bytes = bytes;
    h->slots_offset = slots_offset;
    h->slot_stride = slot_stride;
    h->slot_count = slot_count;
    shm_store_release(&h->magic, SEGMENT_MAGIC); /* R0 */
    munmap(h, SEGMENT_STATUS_OFFSET);
    void *at = mmap(NULL, bytes, role == ROLE_LAUNCHER ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, role == ROLE_LAUNCHER ? fd : ro_fd, 0);
    if (at == MAP_FAILED) goto failed;
    v->segment[role] = at;
    v->segment_fd[role] = fd;
    v->segment_ro_fd[role] = ro_fd;
    if (slot_count > 0) v->table.base[role] = (uint8_t *)at + slots_offset + board_bytes;
    return 0;
failed:
    snprintf(err, err_bytes, "shared memory of %s (%llu MiB) cannot be %s: %s", role_name(role), (unsigned long long)(bytes >> 20), step, strerror(errno));
    return -E_IO;
}
