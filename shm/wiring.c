/* shm/wiring.c - options and descriptors as one msgpack message over a SOCK_SEQPACKET socket.
 *
 * The receiving side trusts the launcher's intent but not the bytes: every length
 * and type is checked, a malformed message is -E_FORMAT. */
#include "shm/wiring.h"

#include "shm/error.h"
#include "shm/must.h"

#include <errno.h>
#include <msgpack.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void wiring_set(struct wiring *w, const char *name, const char *value)
{
    struct wiring_option *slot = NULL;

    for (unsigned i = 0; i < w->option_count && !slot; i++)
        if (strcmp(w->option[i].name, name) == 0) slot = &w->option[i];
    if (!slot) {
        must(w->option_count < WIRING_OPTIONS_MAX);
        slot = &w->option[w->option_count++];
    }
    must(strlen(name) < sizeof slot->name && strlen(value) < sizeof slot->value);
    snprintf(slot->name, sizeof slot->name, "%s", name);
    snprintf(slot->value, sizeof slot->value, "%s", value);
}

void wiring_setf(struct wiring *w, const char *name, const char *format, ...)
{
    char value[WIRING_VALUE_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(value, sizeof value, format, args);
    va_end(args);
    wiring_set(w, name, value);
}

void wiring_add_fd(struct wiring *w, const char *name, int fd)
{
    must(w->fd_count < WIRING_FDS_MAX && fd >= 0 && strlen(name) < WIRING_NAME_BYTES);
    snprintf(w->fd_name[w->fd_count], WIRING_NAME_BYTES, "%s", name);
    w->fd[w->fd_count++] = fd;
}

const char *wiring_text(const struct wiring *w, const char *name, const char *otherwise)
{
    for (unsigned i = 0; i < w->option_count; i++)
        if (strcmp(w->option[i].name, name) == 0) return w->option[i].value;
    return otherwise;
}

uint64_t wiring_u64(const struct wiring *w, const char *name, uint64_t otherwise)
{
    const char *text = wiring_text(w, name, NULL);
    char *end;

    if (!text || *text < '0' || *text > '9') return otherwise;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    return *end || errno ? otherwise : value;
}

int wiring_fd(const struct wiring *w, const char *name)
{
    for (unsigned i = 0; i < w->fd_count; i++)
        if (strcmp(w->fd_name[i], name) == 0) return w->fd[i];
    return -1;
}

static void pack_text(msgpack_packer *pk, const char *text)
{
    const size_t bytes = strlen(text);

    msgpack_pack_str(pk, bytes);
    msgpack_pack_str_body(pk, text, bytes);
}

static void pack(msgpack_packer *pk, const char *type, const struct wiring *w)
{
    msgpack_pack_map(pk, 5);
    pack_text(pk, "type"), pack_text(pk, type);
    pack_text(pk, "version"), msgpack_pack_uint32(pk, WIRING_VERSION);
    pack_text(pk, "role"), pack_text(pk, role_name(w->role) ? role_name(w->role) : "none");
    pack_text(pk, "options"), msgpack_pack_map(pk, w->option_count);
    for (unsigned i = 0; i < w->option_count; i++) pack_text(pk, w->option[i].name), pack_text(pk, w->option[i].value);
    pack_text(pk, "descriptors"), msgpack_pack_array(pk, w->fd_count);
    for (unsigned i = 0; i < w->fd_count; i++) pack_text(pk, w->fd_name[i]);
}

int wiring_send(int socket_fd, const char *type, const struct wiring *w)
{
    static const struct wiring nothing = {.role = -1};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * WIRING_FDS_MAX)];
    } control;
    msgpack_sbuffer buffer;
    msgpack_packer packer;
    int rc = 0;

    if (!w) w = &nothing;
    msgpack_sbuffer_init(&buffer);
    msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
    pack(&packer, type, w);

    struct iovec iov = {.iov_base = buffer.data, .iov_len = buffer.size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (w->fd_count > 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * w->fd_count);
        memset(control.bytes, 0, msg.msg_controllen);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * w->fd_count);
        memcpy(CMSG_DATA(c), w->fd, sizeof(int) * w->fd_count);
    }
    if (buffer.size > WIRING_MESSAGE_BYTES) {
        rc = -E_LIMIT;
    } else {
        ssize_t sent;
        do sent = sendmsg(socket_fd, &msg, MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
        if (sent < 0) rc = errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN ? -E_PEER : -E_IO;
    }
    msgpack_sbuffer_destroy(&buffer);
    return rc;
}

static bool text_is(const msgpack_object *o, const char *text)
{
    return o->type == MSGPACK_OBJECT_STR && o->via.str.size == strlen(text) && memcmp(o->via.str.ptr, text, o->via.str.size) == 0;
}

static int copy_text(const msgpack_object *o, char *to, size_t to_bytes)
{
    if (o->type != MSGPACK_OBJECT_STR || o->via.str.size >= to_bytes) return -E_FORMAT;
    memcpy(to, o->via.str.ptr, o->via.str.size);
    to[o->via.str.size] = '\0';
    return 0;
}

static int unpack_options(const msgpack_object *map, struct wiring *w)
{
    char name[WIRING_NAME_BYTES], value[WIRING_VALUE_BYTES];

    if (map->type != MSGPACK_OBJECT_MAP || map->via.map.size > WIRING_OPTIONS_MAX) return -E_FORMAT;
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        if (copy_text(&map->via.map.ptr[i].key, name, sizeof name) || copy_text(&map->via.map.ptr[i].val, value, sizeof value)) return -E_FORMAT;
        if (w->option_count == WIRING_OPTIONS_MAX && !wiring_text(w, name, NULL)) return -E_FORMAT; /* "options" may come twice */
        wiring_set(w, name, value);
    }
    return 0;
}

static int unpack_names(const msgpack_object *array, struct wiring *w)
{
    if (array->type != MSGPACK_OBJECT_ARRAY || array->via.array.size != w->fd_count) return -E_FORMAT;
    for (uint32_t i = 0; i < w->fd_count; i++)
        if (copy_text(&array->via.array.ptr[i], w->fd_name[i], WIRING_NAME_BYTES)) return -E_FORMAT;
    return 0;
}

static int unpack(const char *bytes, size_t count, char type[32], struct wiring *w)
{
    msgpack_unpacked result;
    size_t offset = 0;
    char role[32] = "";
    uint64_t version = 0;
    bool named = w->fd_count == 0; /* every descriptor has a name */
    int rc = -E_FORMAT;

    type[0] = '\0';
    msgpack_unpacked_init(&result);
    if (msgpack_unpack_next(&result, bytes, count, &offset) != MSGPACK_UNPACK_SUCCESS || result.data.type != MSGPACK_OBJECT_MAP) goto done;
    for (uint32_t i = 0; i < result.data.via.map.size; i++) {
        const msgpack_object *key = &result.data.via.map.ptr[i].key, *value = &result.data.via.map.ptr[i].val;
        if (text_is(key, "type") && copy_text(value, type, 32)) goto done;
        if (text_is(key, "version") && value->type == MSGPACK_OBJECT_POSITIVE_INTEGER) version = value->via.u64;
        if (text_is(key, "role") && copy_text(value, role, sizeof role)) goto done;
        if (text_is(key, "options") && unpack_options(value, w)) goto done;
        if (text_is(key, "descriptors")) {
            if (unpack_names(value, w)) goto done;
            named = true;
        }
    }
    if (!type[0] || !named) goto done;
    rc = version == WIRING_VERSION ? 0 : -E_VERSION;
    w->role = role_from_name(role);
done:
    msgpack_unpacked_destroy(&result);
    return rc;
}

int wiring_receive(int socket_fd, bool wait, char type[32], struct wiring *w)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * (WIRING_FDS_MAX + 8))];
    } control;
    char *bytes = malloc(WIRING_MESSAGE_BYTES);
    if (!bytes) return -E_NOMEM;
    struct iovec iov = {.iov_base = bytes, .iov_len = WIRING_MESSAGE_BYTES};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t got;
    int rc;

    memset(w, 0, sizeof *w);
    do got = recvmsg(socket_fd, &msg, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
    while (got < 0 && errno == EINTR && wait);
    if (got < 0) {
        const int error = errno;
        free(bytes);
        if (error == EAGAIN || error == EINTR) return 0;
        return error == ECONNRESET ? -E_PEER : -E_IO;
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        const size_t fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < fds; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
            if (w->fd_count < WIRING_FDS_MAX) w->fd[w->fd_count++] = fd;
            else close(fd);
        }
    }
    if (got == 0) rc = -E_PEER; /* the end, or an empty message, which nobody sends; descriptors may even come with that */
    else rc = msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? -E_LIMIT : unpack(bytes, (size_t)got, type, w);
    free(bytes);
    if (rc == 0) return 1;
    for (unsigned i = 0; i < w->fd_count; i++) close(w->fd[i]);
    w->fd_count = 0;
    return rc;
}
