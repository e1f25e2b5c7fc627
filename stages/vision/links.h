/* stages/vision/links.h - pictures that a request names by their address: asked for at the fetch stage (schemas/fetch.h), and what came of it.
 *
 * The vision stage never touches the network; what it gets is a sealed memfd, mapped read-only and kept from the workers' forks, that nobody can change any more. */
#ifndef SLUICE_VISION_LINKS_H
#define SLUICE_VISION_LINKS_H

#include "schemas/fetch.h"

#include <stdbool.h>

#define LINKS_MAX 64u                 /* asked for at once, of all requests; others wait */

struct link {
    uint64_t id;                      /* 0: free */
    uint32_t slot, generation, item;
    uint64_t asked_ns;
};

struct links {
    int socket;                       /* borrowed; -1: this server fetches nothing */
    uint64_t last_id;
    struct link link[LINKS_MAX];
};

struct link_event {
    uint32_t slot, generation, item;
    uint32_t status;                  /* enum media_status; MEDIA_NONE: the fetch stage was restarted, ask again */
    uint8_t *data;                    /* MEDIA_READY: mapped, the receiver's to munmap */
    uint64_t bytes;
    char why[FETCH_WHY_BYTES];
};

void links_open(struct links *l, int socket);

/* 0, or -E_FULL: not now. */
int links_ask(struct links *l, uint32_t slot, uint32_t generation, uint32_t item, const uint8_t *url, uint64_t url_bytes);

/* The next thing that happened: 1 and *event; 0: nothing. */
int links_poll(struct links *l, struct link_event *event);

#endif
