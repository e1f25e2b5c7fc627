/* stages/vision/areas.h - where the data of requests lies in the vision stage's segment.
 *
 * There are as many areas as slots, each as large as a request's data may be (media_tokens_max tokens, at table.media_offset behind a slot's record), and any
 * request may have any of them: vision_slot.area says which. So the one that was given back last is taken first, whose pages are in memory still: a slot of its own comes round only after all
 * others, and having 1.8 MB of pages made and taken away for every picture costs a seventh of what a JPEG of 1080p takes in all.
 * What free areas keep is bounded (WARM_BYTES_MAX in areas.c); the rest goes back to the system. Nothing reads a free area.
 * Restarted: areas_open, areas_adopt for what a predecessor committed, areas_clear. */
#ifndef SLUICE_VISION_AREAS_H
#define SLUICE_VISION_AREAS_H

#include "schemas/table.h"

#include <stdbool.h>

struct areas {
    const struct table *table;        /* borrowed */
    uint8_t *segment;                 /* borrowed: the stage's own, mapped */
    int fd;                           /* borrowed: of the same */
    struct area { uint64_t warm_bytes; bool taken; } *area; /* [slot_count], owned; warm: from its beginning, in memory */
    uint64_t warm_free_bytes;         /* of all that are not taken */
};

/* 0, -E_NOMEM. */
int areas_open(struct areas *a, const struct table *table, uint8_t *segment, int fd);
/* A predecessor's, in use. False: there is no such one, or it is taken. */
bool areas_adopt(struct areas *a, uint32_t area, uint64_t bytes);
/* After all were adopted: what lies in the others goes back to the system. */
void areas_clear(struct areas *a);

/* One that nobody has; there is always one as long as each slot has at most one. */
uint32_t areas_take(struct areas *a);
void areas_give_back(struct areas *a, uint32_t area);
/* Behind the `at` bytes that are there. 0, -E_NOMEM: the system has no page left. */
int areas_write(struct areas *a, uint32_t area, uint64_t at, const uint8_t *data, uint64_t bytes);

#endif
