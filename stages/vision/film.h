/* stages/vision/film.h - a video file on a desk of its own: the frames that the model is shown, each a picture of few soft tokens.
 *
 * The worker opens libsluice_video.so (schemas/video.h) before it gives up its powers: more than a hundred libraries are mapped into this one process and into no other,
 * and go with it. Where it has gone since the server's start the worker stands there all the same, tells every client that nothing comes of the file, and the log why. */
#ifndef SLUICE_VISION_FILM_H
#define SLUICE_VISION_FILM_H

#include "stages/vision/desk.h"

/* In the worker, while it can still read files. */
void film_load(void);

/* Frames to blocks of pixels, one frame behind the other, all of one size, and behind them when each is shown (u32 milliseconds). `out` holds film_out_bytes(). */
void film_decode(const struct desk_limits *limits, const struct media_file_hdr *hdr, const uint8_t *file, uint8_t *out, struct desk_result *result);
uint64_t film_out_bytes(const struct desk_limits *limits);

#endif
