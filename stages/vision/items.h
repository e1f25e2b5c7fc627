/* stages/vision/items.h - items of files become items of pictures. */
#ifndef SLUICE_VISION_ITEMS_H
#define SLUICE_VISION_ITEMS_H

#include "schemas/table.h"
#include "stages/vision/desk.h"

/* Every file of the request has an item in its record: a picture that is shown in pieces, too, and a video file get one for each piece or frame instead, with its place in the data and, frames, its
 * time. at[]: where each file's header stands in the request. False: they are more than MEDIA_ITEMS_MAX, and nothing was changed. */
bool items_spread(const struct table *table, uint32_t slot, const struct desk_limits *limits, const uint64_t *at, uint32_t files);

#endif
