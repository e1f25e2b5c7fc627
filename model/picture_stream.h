/* model/picture_stream.h - picture_resize for a picture whose rows come one after the other, turned upright on the way.
 *
 * The same arithmetic in the same order, so the same bytes as turning, resizing and cutting one after the other (tests/unit/picture_stream_test.c), in a few
 * rows' memory: a picture of twelve million pixels never stands in memory as a whole, and every row is used while it is in the cache.
 * Pictures that lie on their side (orientations 5 to 8) are narrowed along stored columns first: those are the rows of the upright picture. */
#ifndef SLUICE_MODEL_PICTURE_STREAM_H
#define SLUICE_MODEL_PICTURE_STREAM_H

#include "model/picture_passes.h"

#include <stdbool.h>

enum picture_layout { PICTURE_ROWS = 1 /* [height][width][3] */, PICTURE_PATCHES = 2 /* as picture_patches() */ };

struct picture_stream_job {
    uint32_t width, height;           /* of the picture as it is stored */
    uint32_t orientation;             /* EXIF: 1 to 8; what turns it upright */
    uint32_t out_width, out_height;   /* upright; for PICTURE_PATCHES multiples of PICTURE_PATCH */
    enum picture_filter filter;
    enum picture_layout layout;
    uint8_t *out;                     /* borrowed: out_width * out_height * 3 bytes */
};

struct picture_stream {
    struct picture_stream_job job;
    const struct picture_passes *passes;
    struct picture_taps along, across;  /* along stored rows; across them, from row to row. first == NULL: nothing to do that way */
    bool turned, mirror_x, mirror_y;    /* mirrors: of the stored picture */
    uint32_t taken;                     /* rows that came */
    uint32_t made, make;                /* lines of the result (turned: columns): done, and all of them */
    uint8_t *window;                    /* owned: rows that lines to come need */
    uint32_t window_rows, window_first, held;
    uint32_t row_bytes;                 /* of a row in the window */
    uint8_t *line, *middle;             /* owned: a line of the result; turned: before its second pass */
};

/* 0; -E_NOMEM; -E_RANGE: a side is 0 or above PICTURE_SIDE_MAX, or no such orientation. Close it only after 0. */
int picture_stream_open(struct picture_stream *s, const struct picture_stream_job *job);

/* The next `rows` stored rows, one behind the other; more than the picture has are ignored. */
void picture_stream_rows(struct picture_stream *s, const uint8_t *rgb, uint32_t rows);

/* Is all of `out` written? */
bool picture_stream_is_whole(const struct picture_stream *s);
void picture_stream_close(struct picture_stream *s);

#endif
