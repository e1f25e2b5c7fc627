/* schemas/fetch.h - what the vision stage and the fetch stage say to each other (schemas/media.md is the prose).
 *
 * One SOCK_SEQPACKET pair, whose ends the launcher keeps, so that it outlives both stages. The vision stage asks for a URL under a number of its own; the fetch
 * stage answers with a sealed memfd that holds what came, or with words. A stage that (re)starts remembers nothing: the fetch stage says FETCH_HELLO
 * then, and whatever was asked before is asked again; answers to numbers that nobody asked for are dropped. */
#ifndef SLUICE_SCHEMAS_FETCH_H
#define SLUICE_SCHEMAS_FETCH_H

#include <stddef.h>
#include <stdint.h>

#define FETCH_URL_BYTES_MAX 2048u     /* without a NUL */
#define FETCH_WHY_BYTES 200u
#define FETCH_WORKERS 8u              /* URLs that are fetched at once */

enum fetch_what { FETCH_HELLO = 1, FETCH_DONE = 2 };

struct fetch_ask {
    uint64_t id;
    uint32_t url_bytes, pad;
    char url[FETCH_URL_BYTES_MAX];
};

struct fetch_answer {
    uint64_t id;
    uint32_t what;                    /* enum fetch_what */
    uint32_t status;                  /* enum media_status; MEDIA_READY: a descriptor comes along */
    uint64_t bytes;                   /* of the file */
    char why[FETCH_WHY_BYTES];
};

/* Sends a message, and pass_fd with it (-1: none). 0; -E_FULL: the other side does not read now; -E_IO. */
int fetch_send(int socket, const void *message, size_t bytes, int pass_fd);

/* Takes a message of exactly `bytes`; *passed_fd is the caller's to close, or -1. 1; 0: none is there; -E_FORMAT: it was another one (dropped); -E_IO. */
int fetch_receive(int socket, void *message, size_t bytes, int *passed_fd);

#endif
