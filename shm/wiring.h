/* shm/wiring.h - what the launcher tells a stage: one msgpack map and a row of descriptors.
 *
 * Format: schemas/wiring.md. Values are read once, checked, and copied; nothing
 * here points into shared memory. Used by stages (decode) and launcher (encode). */
#ifndef SLUICE_SHM_WIRING_H
#define SLUICE_SHM_WIRING_H

#include "shm/pipeline.h"

#include <stdbool.h>
#include <stddef.h>

#define WIRING_VERSION 1u
#define WIRING_FDS_MAX 240u /* SCM_RIGHTS takes 253 at most */
#define WIRING_NAME_BYTES 128u
#define WIRING_OPTIONS_MAX 128u
#define WIRING_VALUE_BYTES 512u
#define WIRING_MESSAGE_BYTES (256u * 1024u)

struct wiring_option { /* configuration and model facts: name -> text; numbers are decimal text */
    char name[WIRING_NAME_BYTES];
    char value[WIRING_VALUE_BYTES];
};

struct wiring {
    int role;
    unsigned fd_count;
    int fd[WIRING_FDS_MAX]; /* owned by whoever received the message */
    char fd_name[WIRING_FDS_MAX][WIRING_NAME_BYTES];
    unsigned option_count;
    struct wiring_option option[WIRING_OPTIONS_MAX];
};

/* Adds or replaces an option; must() on overflow: the launcher's own options only. */
void wiring_set(struct wiring *w, const char *name, const char *value);
__attribute__((format(printf, 3, 4))) void wiring_setf(struct wiring *w, const char *name, const char *format, ...);
void wiring_add_fd(struct wiring *w, const char *name, int fd);

/* The text of an option, or `otherwise`. Borrowed from w. */
const char *wiring_text(const struct wiring *w, const char *name, const char *otherwise);
/* As a number; `otherwise` when absent or not a number. */
uint64_t wiring_u64(const struct wiring *w, const char *name, uint64_t otherwise);
/* A descriptor by name or -1. */
int wiring_fd(const struct wiring *w, const char *name);

/* Sends w (with its descriptors) over a SOCK_SEQPACKET socket as message `type`. 0, -E_PEER, -E_LIMIT, -E_IO. */
int wiring_send(int socket_fd, const char *type, const struct wiring *w);

/* Receives one message; its type is copied to type[32]. 1, 0 when nothing waits (MSG_DONTWAIT asked by `wait`
 * false), -E_PEER at end of file, -E_FORMAT, -E_VERSION, -E_LIMIT (too long, too many descriptors), -E_IO, -E_NOMEM. Received
 * descriptors are close-on-exec; on an error all of them are closed. */
int wiring_receive(int socket_fd, bool wait, char type[32], struct wiring *w);

#endif
