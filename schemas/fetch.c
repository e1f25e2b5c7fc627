/* schemas/fetch.c - messages with a descriptor (contract in fetch.h). */
#include "schemas/fetch.h"

#include "shm/error.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int fetch_send(int socket, const void *message, size_t bytes, int pass_fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } room = {.bytes = {0}};
    struct iovec part = {.iov_base = (void *)(uintptr_t)message, .iov_len = bytes};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};

    if (pass_fd >= 0) {
        m.msg_control = room.bytes;
        m.msg_controllen = sizeof room.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof pass_fd);
        memcpy(CMSG_DATA(c), &pass_fd, sizeof pass_fd);
    }
    if (sendmsg(socket, &m, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)bytes) return 0;
    return errno == EAGAIN || errno == EINTR || errno == ENOBUFS ? -E_FULL : -E_IO;
}

int fetch_receive(int socket, void *message, size_t bytes, int *passed_fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } room;
    struct iovec part = {.iov_base = message, .iov_len = bytes};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room.bytes, .msg_controllen = sizeof room.bytes};
    const ssize_t got = recvmsg(socket, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    *passed_fd = -1;
    if (got < 0) return errno == EAGAIN || errno == EINTR ? 0 : -E_IO;
    const struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int))) memcpy(passed_fd, CMSG_DATA(c), sizeof(int));
    if (got == (ssize_t)bytes && !(m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) return 1;
    if (*passed_fd >= 0) close(*passed_fd);
    *passed_fd = -1;
    return got == 0 ? -E_IO : -E_FORMAT;
}
