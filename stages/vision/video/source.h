/* stages/vision/video/source.h - a video file in memory as libavformat opens it, and all packets of its video track.
 *
 * Part of libsluice_video.so alone: nothing else of the project knows libav. The file is bytes; there are no protocols, no other files, and of libav's many formats
 * and codecs only those below are ever looked for. Packets are kept, so whatever frame is wanted is found without a second reading. */
#ifndef SLUICE_VISION_VIDEO_SOURCE_H
#define SLUICE_VISION_VIDEO_SOURCE_H

#include "schemas/video.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <stdbool.h>

struct source_packet {
    AVPacket *packet;                 /* owned by the source */
    int64_t pts;                      /* when it is shown, in the track's time base; where the file does not tell, when it is decoded */
};

struct source_frame {                 /* in the order in which frames are shown */
    int64_t pts;
    uint32_t packet;                  /* index */
    bool is_key;
};

struct source {
    const uint8_t *file;              /* borrowed until source_close */
    size_t bytes, at;
    AVIOContext *io;
    AVFormatContext *format;
    AVStream *track;                  /* of format */
    struct source_packet *packet;     /* owned: as the file has them, in the order of decoding */
    uint32_t packet_count;
    struct source_frame *frame;       /* owned */
    uint32_t frame_count;
    int64_t end_pts;                  /* of the frame that ends last */
};

/* 0; -E_FORMAT, -E_RANGE, -E_LIMIT with words. Close it in any case. */
int source_open(struct source *s, const uint8_t *file, size_t bytes, const struct video_limits *limits, char why[VIDEO_ERROR_BYTES]);
void source_close(struct source *s);

/* Frames a second, on average over the track; what the header says where the packets have no lengths, or 24. */
double source_fps(const struct source *s);

/* How the track is to be turned, as EXIF counts: 1, 3, 6 or 8. */
uint32_t source_orientation(const struct source *s);

/* Words for the client; returns code. */
__attribute__((format(printf, 3, 4))) int source_fault(int code, char why[VIDEO_ERROR_BYTES], const char *format, ...);

/* The same of a file that asks for too much: a process for one file has memory enough for any good one. */
int source_no_memory(char why[VIDEO_ERROR_BYTES]);

#endif
