/* stages/vision/items.c - see items.h. */
#include "stages/vision/items.h"

#include "model/picture.h"

#include <string.h>

static uint64_t square_bytes(const struct desk_limits *l) { return (uint64_t)l->picture_side * l->picture_side * 3; }

static uint32_t parts_of(const struct desk_limits *l, const struct media_item *item)
{
    if (item->kind == MEDIA_VIDEO) return item->frames;
    return l->picture_side && item->kind != MEDIA_SOUND ? item->tokens / l->picture_budget : 1;
}

/* When frame `part` of a video file is shown: the worker left it behind the pixels. When a frame of a list is: its author said so. */
static uint32_t time_of(const struct table *t, uint32_t slot, const struct media_item *whole, uint64_t at, uint32_t part)
{
    const uint8_t *data = table_media(t, slot) + whole->offset;
    struct media_file_hdr hdr = {0};
    uint32_t at_ms = 0;

    if (whole->kind == MEDIA_VIDEO) memcpy(&at_ms, data + (uint64_t)whole->tokens * PICTURE_PATCH_BYTES + part * sizeof at_ms, sizeof at_ms);
    else if (media_next(table_request(t, slot), t->limits.request_bytes_max, &at, &hdr, &data) == 0) at_ms = hdr.at_ms;
    return at_ms;
}

bool items_spread(const struct table *table, uint32_t slot, const struct desk_limits *limits, const uint64_t *at, uint32_t files)
{
    struct vision_slot *v = table_vision(table, slot);
    uint32_t to = 0;

    for (uint32_t i = 0; i < files; i++) to += parts_of(limits, &v->item[i]);
    if (to > MEDIA_ITEMS_MAX) return false;
    v->count = to;
    for (uint32_t i = files; i-- > 0;) {
        const struct media_item whole = v->item[i]; /* its place may be taken by one of its parts */
        const uint32_t parts = parts_of(limits, &whole);
        const uint64_t part_bytes = whole.kind == MEDIA_VIDEO ? (uint64_t)whole.tokens / parts * PICTURE_PATCH_BYTES : square_bytes(limits);
        for (uint32_t p = parts; p-- > 0;) {
            struct media_item *item = &v->item[--to];
            *item = whole;
            item->kind = whole.kind == MEDIA_VIDEO ? MEDIA_FRAME : whole.kind;
            item->file = i;
            item->tokens = whole.tokens / parts;
            item->offset += p * part_bytes;
            item->frames = 0;
            item->at_ms = time_of(table, slot, &whole, at[i], p);
        }
    }
    return true;
}
