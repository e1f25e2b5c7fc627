/* stages/vision/film.c - see film.h. */
#include "stages/vision/film.h"

#include "model/picture_stream.h"
#include "schemas/video.h"
#include "shm/error.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

_Static_assert(VIDEO_FRAMES_MAX == MEDIA_FRAMES_MAX, "a file gives as many frames as a list may have");

static struct video_library library;
static bool is_looked_for;

struct cutting {                      /* a video on its way to blocks */
    const struct desk_limits *limits;
    struct desk_result *result;
    struct video_info info;
    uint8_t *out;
    uint32_t width, height;           /* of every frame of the result */
};

void film_load(void)
{
    char why[PATH_MAX];

    if (!is_looked_for && video_library_open(&library, why, sizeof why) != 0) fprintf(stderr, "stage=vision-worker level=error event=no-video-library reason=\"%s\"\n", why); /* for the operator; clients hear no paths */
    is_looked_for = true;
}

uint64_t film_out_bytes(const struct desk_limits *l)
{
    return (uint64_t)l->frames_max * ((uint64_t)l->frame_budget * PICTURE_PATCH_BYTES + sizeof(uint32_t));
}

static uint64_t frame_bytes(const struct cutting *c) { return (uint64_t)c->width * c->height * 3; }

static int refuse(struct cutting *c, uint32_t status, const char *why)
{
    desk_give_up(c->result, status, "%s", why);
    return -E_CANCELLED;
}

/* The size of all frames follows from the first. */
static int begin_film(void *context, const struct video_info *info)
{
    struct cutting *c = context;
    const bool turned = info->orientation >= 5;
    const uint32_t width = turned ? info->height : info->width, height = turned ? info->width : info->height;

    c->info = *info;
    if (picture_target(width, height, c->limits->frame_budget, &c->width, &c->height) != 0 || c->width / PICTURE_PATCH > c->limits->picture_positions || c->height / PICTURE_PATCH > c->limits->picture_positions)
        return refuse(c, MEDIA_BAD, "its frames are too long and narrow for this model");
    desk_touch(c->out, info->frames * frame_bytes(c), MADV_POPULATE_WRITE);
    return 0;
}

static int cut_frame(void *context, uint32_t i, const uint8_t *rgb, uint32_t width, uint32_t height)
{
    struct cutting *c = context;
    const struct picture_stream_job job = {.width = width, .height = height, .orientation = c->info.orientation, .out_width = c->width, .out_height = c->height,
                                           .filter = PICTURE_BICUBIC, .layout = PICTURE_PATCHES, .out = c->out + i * frame_bytes(c)};
    struct picture_stream stream;

    if (picture_stream_open(&stream, &job) != 0) return refuse(c, MEDIA_FAILED, "there is no memory to resize it");
    picture_stream_rows(&stream, rgb, height);
    picture_stream_close(&stream);
    const uint32_t at_ms = video_at_ms(video_index(i, c->info.total, c->info.frames), c->info.fps);
    memcpy(c->out + c->info.frames * frame_bytes(c) + i * sizeof at_ms, &at_ms, sizeof at_ms);
    return 0;
}

void film_decode(const struct desk_limits *l, const struct media_file_hdr *hdr, const uint8_t *file, uint8_t *out, struct desk_result *r)
{
    static const struct video_limits all = {.side_max = VIDEO_SIDE_MAX, .pixels_max = VIDEO_PIXELS_MAX, .total_max = VIDEO_TOTAL_MAX, .seconds_max = VIDEO_SECONDS_MAX, .frames_max = VIDEO_FRAMES_MAX};
    struct cutting c = {.limits = l, .result = r, .out = out};
    const struct video_sink sink = {.begin = begin_film, .frame = cut_frame, .context = &c};
    struct video_limits limits = all;
    char why[VIDEO_ERROR_BYTES] = "";

    film_load();
    if (hdr->kind != MEDIA_VIDEO) desk_give_up(r, MEDIA_FAILED, "it is no video file");
    else if (!library.decode) desk_give_up(r, MEDIA_FAILED, "this server's library for video files cannot be loaded: send its frames as pictures");
    if (r->status) return;
    if (l->frames_max < limits.frames_max) limits.frames_max = l->frames_max;
    const int rc = library.decode(file, hdr->bytes, &limits, &sink, why);
    if (rc != 0 && r->status == 0) desk_give_up(r, desk_status(rc), "%s", why); /* else the sink gave up, in its own words */
    if (rc != 0) return;
    r->frames = c.info.frames;
    r->columns = c.width / PICTURE_PATCH;
    r->tokens = r->frames * r->columns * (c.height / PICTURE_PATCH);
    r->status = MEDIA_READY;
}
