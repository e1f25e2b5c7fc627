/* stages/vision/areas.c - see areas.h. */
#include "stages/vision/areas.h"

#include "shm/error.h"
#include "shm/must.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WARM_BYTES_MAX (8u << 20)     /* four pictures of 280 tokens */

static uint64_t room_of(const struct areas *a)
{
    return a->table->stride[ROLE_VISION] - a->table->media_offset;
}

int areas_open(struct areas *a, const struct table *table, uint8_t *segment, int fd)
{
    *a = (struct areas){.table = table, .segment = segment, .fd = fd, .area = calloc(table->limits.slot_count, sizeof *a->area)};
    return a->area ? 0 : -E_NOMEM;
}

bool areas_adopt(struct areas *a, uint32_t area, uint64_t bytes)
{
    if (area >= a->table->limits.slot_count || a->area[area].taken || bytes > room_of(a)) return false;
    a->area[area] = (struct area){.warm_bytes = bytes, .taken = true};
    return true;
}

static void cool(struct areas *a, uint32_t area)
{
    madvise(table_media_area(a->table, area), room_of(a), MADV_REMOVE);
    a->area[area].warm_bytes = 0;
}

void areas_clear(struct areas *a)
{
    for (uint32_t i = 0; i < a->table->limits.slot_count; i++)
        if (!a->area[i].taken) cool(a, i);
}

uint32_t areas_take(struct areas *a)
{
    uint32_t best = UINT32_MAX;

    for (uint32_t i = 0; i < a->table->limits.slot_count; i++)
        if (!a->area[i].taken && (best == UINT32_MAX || a->area[i].warm_bytes > a->area[best].warm_bytes)) best = i;
    must(best != UINT32_MAX);
    a->area[best].taken = true;
    a->warm_free_bytes -= a->area[best].warm_bytes;
    return best;
}

void areas_give_back(struct areas *a, uint32_t area)
{
    must(area < a->table->limits.slot_count && a->area[area].taken);
    if (a->area[area].warm_bytes > WARM_BYTES_MAX - a->warm_free_bytes) cool(a, area);
    a->warm_free_bytes += a->area[area].warm_bytes;
    a->area[area].taken = false;
}

/* Pages that are not there yet are written through the file: those that are written whole need be neither zeroed nor mapped first, which halves their cost. */
static int write_file(const struct areas *a, uint8_t *to, const uint8_t *data, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes;) {
        const ssize_t n = pwrite(a->fd, data + done, bytes - done, (off_t)((uint64_t)(to - a->segment) + done));
        if (n <= 0 && errno != EINTR) return -E_NOMEM;
        if (n > 0) done += (uint64_t)n;
    }
    return 0;
}

int areas_write(struct areas *a, uint32_t area, uint64_t at, const uint8_t *data, uint64_t bytes)
{
    must(area < a->table->limits.slot_count && at <= room_of(a) && bytes <= room_of(a) - at);
    struct area *w = &a->area[area];
    uint8_t *to = table_media_area(a->table, area) + at;

    if (at + bytes <= w->warm_bytes) {
        memcpy(to, data, bytes);
        return 0;
    }
    const int rc = write_file(a, to, data, bytes);
    if (rc == 0) w->warm_bytes = at + bytes;
    return rc;
}
