/* schemas/video.h - a video file as clients send it: which of its frames a model is shown, when they are shown, and the library that decodes them.
 *
 * The frames are those that the reference's processor takes: 32 that are evenly spread (all of a shorter video, which the reference refuses), each with
 * the time (its number / frames a second) at which it stands. Sound tracks are not looked at, neither here nor there.
 *
 * Decoding is libavformat's, libavcodec's and libswscale's work. They bring more than a hundred libraries along, so no executable is linked with them:
 * libsluice_video.so (stages/vision/video) is, and a worker of the vision stage opens it before it gives up its powers. A build without libav has no such file,
 * and a server without it takes videos as lists of frames only. */
#ifndef SLUICE_SCHEMAS_VIDEO_H
#define SLUICE_SCHEMAS_VIDEO_H

#include <stddef.h>
#include <stdint.h>

#define VIDEO_VERSION 1u              /* of everything below that crosses into the library */
#define VIDEO_LIBRARY_NAME "libsluice_video.so"
#define VIDEO_ERROR_BYTES 160u
#define VIDEO_FRAMES_MAX 32u          /* of one video, as the reference has it */
#define VIDEO_SIDE_MAX 4096u          /* pixels */
#define VIDEO_PIXELS_MAX (4096u * 2304u)
#define VIDEO_TOTAL_MAX 500000u       /* frames in the file: four and a half hours at 30 a second */
#define VIDEO_SECONDS_MAX 21600u
#define VIDEO_FPS_DEFAULT 24.0        /* the reference's, of a video that does not tell */

struct video_limits {
    uint32_t side_max;                /* pixels, as stored */
    uint64_t pixels_max;
    uint32_t total_max;               /* frames in the file */
    uint32_t seconds_max;             /* from the first frame to the end of the last */
    uint32_t frames_max;              /* that are taken, at most VIDEO_FRAMES_MAX */
};

struct video_info {
    uint32_t width, height;           /* as stored; orientations 6 and 8 swap them */
    uint32_t orientation;             /* as EXIF counts: 1 upright, 3, 6 or 8 */
    uint32_t total;                   /* frames in the file */
    uint32_t frames;                  /* that are taken */
    double fps;                       /* on average */
};

struct video_sink {
    int (*begin)(void *context, const struct video_info *info);                                          /* before the first frame; not 0: give up, video_decode returns it */
    int (*frame)(void *context, uint32_t i, const uint8_t *rgb, uint32_t width, uint32_t height);        /* frame i of those that are taken, as stored: [height][width][3] */
    void *context;                                                                                       /* borrowed */
};

/* Which frame of a file with `total` is the i-th of `frames`: the reference counts up in f32. */
static inline uint32_t video_index(uint32_t i, uint32_t total, uint32_t frames)
{
    return (uint32_t)(float)(i * ((double)total / frames));
}

/* When frame `index` is shown, in milliseconds: rounded down, so that its whole seconds are the reference's. */
uint32_t video_at_ms(uint32_t index, double fps);

/* ---- what the library exports ------------------------------------------------------------------ */

uint32_t video_version(void);
uint32_t video_libavcodec(void);      /* the major version of the one that it runs with: frames are the reference's to the bit where that has the same */

/* Decodes the frames that are taken, in order, each handed to the sink. 0; -E_FORMAT: no known format, or damaged; -E_RANGE: over the limits, by what the file says;
 * -E_LIMIT: over them by what was found, or over the memory that there is; or what the sink said. why has words for the client. */
int video_decode(const uint8_t *file, size_t file_bytes, const struct video_limits *limits, const struct video_sink *sink, char why[VIDEO_ERROR_BYTES]);

/* ---- finding it --------------------------------------------------------------------------------- */

struct video_library {
    void *handle;                     /* of dlopen; never closed */
    __typeof__(video_version) *version;
    __typeof__(video_libavcodec) *libavcodec;
    __typeof__(video_decode) *decode;
};

/* Opens it: beside the executable or in its ../lib, or what SLUICE_VIDEO_LIBRARY names. 0; -E_NOT_FOUND, -E_IO (it or a library that it needs cannot be
 * loaded), -E_VERSION; err says why. Takes 40 ms: the libraries of libav and all that they need. */
int video_library_open(struct video_library *lib, char *err, size_t err_bytes);

/* Is there one to open? What it needs may still be missing: launcher/trial.c tries. */
int video_library_find(char *path, size_t path_bytes);

#endif
