/* stages/vision/video/source.c - see source.h. */
#include "stages/vision/video/source.h"

#include "shm/error.h"

#include <libavutil/display.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IO_BYTES 32768
#define BYTES_OF_FILE_MAX 2u          /* of all packets together, in sizes of the file: more is a table that points at the same bytes again and again */
#define PACKETS_AT_FIRST 1024u

/* Never anything else, whatever a file claims to hold. */
static const char formats[] = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif";
static const char codecs[] = "h264,hevc,vp8,vp9,libdav1d,av1,mpeg4,gif";

int source_fault(int code, char why[VIDEO_ERROR_BYTES], const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(why, VIDEO_ERROR_BYTES, format, args);
    va_end(args);
    return code;
}

int source_no_memory(char why[VIDEO_ERROR_BYTES]) { return source_fault(-E_LIMIT, why, "it takes more memory than one video is given"); }

/* ---- bytes ---------------------------------------------------------------------------------- */

static int read_bytes(void *context, uint8_t *out, int wanted)
{
    struct source *s = context;
    const size_t left = s->bytes - s->at, bytes = (size_t)wanted < left ? (size_t)wanted : left;

    if (wanted <= 0 || bytes == 0) return AVERROR_EOF;
    memcpy(out, s->file + s->at, bytes);
    s->at += bytes;
    return (int)bytes;
}

static int64_t seek_bytes(void *context, int64_t offset, int whence)
{
    struct source *s = context;

    if (whence & AVSEEK_SIZE) return (int64_t)s->bytes;
    whence &= ~AVSEEK_FORCE;
    const int64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? (int64_t)s->at : whence == SEEK_END ? (int64_t)s->bytes : -1;
    if (base < 0 || offset < -base || offset > (int64_t)s->bytes - base) return AVERROR(EINVAL);
    s->at = (size_t)(base + offset);
    return (int64_t)s->at;
}

/* A file that names others gets none. */
static int refuse_open(struct AVFormatContext *format, AVIOContext **io, const char *url, int flags, AVDictionary **options)
{
    (void)format;
    (void)io;
    (void)url;
    (void)flags;
    (void)options;
    return AVERROR(EPERM);
}

/* By its first bytes, so that no other format's code ever sees the file. */
static const char *format_of(const uint8_t *file, size_t bytes)
{
    static const char *const boxes[] = {"ftyp", "moov", "mdat", "free", "skip", "wide", "pnot"};

    if (bytes < 12) return NULL;
    if (memcmp(file, "\x1a\x45\xdf\xa3", 4) == 0) return "matroska";
    if (memcmp(file, "GIF87a", 6) == 0 || memcmp(file, "GIF89a", 6) == 0) return "gif";
    for (size_t i = 0; i < sizeof boxes / sizeof *boxes; i++)
        if (memcmp(file + 4, boxes[i], 4) == 0) return "mov";
    return NULL;
}

static int open_format(struct source *s, char why[VIDEO_ERROR_BYTES])
{
    const char *name = format_of(s->file, s->bytes);
    uint8_t *buffer = NULL;

    if (!name) return source_fault(-E_FORMAT, why, "it is neither MP4, MOV, WebM, Matroska nor GIF");
    const AVInputFormat *input = av_find_input_format(name);
    if (!input) return source_fault(-E_FORMAT, why, "this server's libavformat does not read its format (%s)", name);
    s->format = avformat_alloc_context();
    buffer = av_malloc(IO_BYTES);
    if (buffer) s->io = avio_alloc_context(buffer, IO_BYTES, 0, s, read_bytes, NULL, seek_bytes);
    if (!s->format || !s->io) {
        if (!s->io) av_free(buffer);
        return source_no_memory(why);
    }
    s->format->pb = s->io;
    s->format->io_open = refuse_open;
    s->format->format_whitelist = av_strdup(formats);
    s->format->codec_whitelist = av_strdup(codecs);
    s->format->protocol_whitelist = av_strdup("");
    const int rc = avformat_open_input(&s->format, NULL, (AVInputFormat *)input, NULL); /* frees the context when it fails */
    if (rc == AVERROR(ENOMEM)) return source_no_memory(why);
    return rc < 0 ? source_fault(-E_FORMAT, why, "it is damaged: its header cannot be read") : 0;
}

/* ---- the track -------------------------------------------------------------------------------- */

static bool is_known(enum AVCodecID codec)
{
    static const enum AVCodecID known[] = {AV_CODEC_ID_H264, AV_CODEC_ID_HEVC, AV_CODEC_ID_VP8, AV_CODEC_ID_VP9, AV_CODEC_ID_AV1, AV_CODEC_ID_MPEG4, AV_CODEC_ID_GIF};

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (codec == known[i]) return true;
    return false;
}

static int check_size(const AVCodecParameters *p, const struct video_limits *limits, char why[VIDEO_ERROR_BYTES])
{
    if (p->width < 0 || p->height < 0 || (uint32_t)p->width > limits->side_max || (uint32_t)p->height > limits->side_max || (uint64_t)p->width * (uint64_t)p->height > limits->pixels_max)
        return source_fault(-E_RANGE, why, "it is %d x %d pixels: at most %u a side and %llu in all are taken", p->width, p->height, limits->side_max, (unsigned long long)limits->pixels_max);
    return 0;
}

static int open_track(struct source *s, const struct video_limits *limits, char why[VIDEO_ERROR_BYTES])
{
    for (unsigned i = 0; i < s->format->nb_streams; i++) { /* before anything is decoded to learn more of it */
        const AVCodecParameters *p = s->format->streams[i]->codecpar;
        if (p->codec_type != AVMEDIA_TYPE_VIDEO) s->format->streams[i]->discard = AVDISCARD_ALL;
        else if (check_size(p, limits, why) != 0) return -E_RANGE;
    }
    avformat_find_stream_info(s->format, NULL); /* what it does not find is missed below */
    const int best = av_find_best_stream(s->format, AVMEDIA_TYPE_VIDEO, -1, -1, NULL, 0);
    if (best < 0) return source_fault(-E_FORMAT, why, "there is no video track in it");
    s->track = s->format->streams[best];
    for (unsigned i = 0; i < s->format->nb_streams; i++)
        if ((int)i != best) s->format->streams[i]->discard = AVDISCARD_ALL;
    if (!is_known(s->track->codecpar->codec_id))
        return source_fault(-E_FORMAT, why, "its pictures are coded as %s: H.264, HEVC, VP8, VP9, AV1, MPEG-4 and GIF are taken", avcodec_get_name(s->track->codecpar->codec_id));
    if (s->track->time_base.num <= 0 || s->track->time_base.den <= 0) return source_fault(-E_FORMAT, why, "it is damaged: it counts time in no unit");
    return check_size(s->track->codecpar, limits, why);
}

static int room_for_packet(struct source *s, uint32_t *room, char why[VIDEO_ERROR_BYTES])
{
    if (s->packet_count < *room) return 0;
    const uint32_t count = *room ? 2 * *room : PACKETS_AT_FIRST;
    struct source_packet *packet = realloc(s->packet, (size_t)count * sizeof *packet);
    if (!packet) return source_no_memory(why);
    s->packet = packet;
    *room = count;
    return 0;
}

/* All packets of the track. */
static int read_packets(struct source *s, const struct video_limits *limits, char why[VIDEO_ERROR_BYTES])
{
    uint64_t bytes = 0;
    uint32_t room = 0;
    int rc;

    for (;;) {
        if ((rc = room_for_packet(s, &room, why)) != 0) return rc;
        AVPacket *packet = av_packet_alloc();
        if (!packet) return source_no_memory(why);
        rc = av_read_frame(s->format, packet);
        if (rc == 0 && packet->stream_index == s->track->index) {
            bytes += (uint64_t)packet->size;
            s->packet[s->packet_count++] = (struct source_packet){.packet = packet, .pts = packet->pts != AV_NOPTS_VALUE ? packet->pts : packet->dts};
        } else av_packet_free(&packet);
        if (rc == AVERROR_EOF) return 0;
        if (rc == AVERROR(ENOMEM)) return source_no_memory(why);
        if (rc < 0) return source_fault(-E_FORMAT, why, "it is damaged: it cannot be read to its end");
        if (s->packet_count > limits->total_max) return source_fault(-E_LIMIT, why, "it has more than %u frames", limits->total_max);
        if (bytes > BYTES_OF_FILE_MAX * (uint64_t)s->bytes) return source_fault(-E_LIMIT, why, "its table of contents names more bytes than there are");
    }
}

static int by_time(const void *a, const void *b)
{
    const struct source_frame *x = a, *y = b;

    if (x->pts != y->pts) return x->pts < y->pts ? -1 : 1;
    return x->packet < y->packet ? -1 : x->packet > y->packet;
}

/* From the first frame to the end of the last; with the reference's roundings, as times that fall on a second show them. */
static double seconds_of(const struct source *s)
{
    const double num = s->track->time_base.num, den = s->track->time_base.den;

    return (double)s->end_pts * num / den - (double)s->frame[0].pts * num / den;
}

/* Which frames there are, in the order in which they are shown. */
static int sort_frames(struct source *s, const struct video_limits *limits, char why[VIDEO_ERROR_BYTES])
{
    s->frame = malloc((s->packet_count + 1) * sizeof *s->frame);
    s->end_pts = INT64_MIN;
    if (!s->frame) return source_no_memory(why);
    for (uint32_t i = 0; i < s->packet_count; i++) {
        const AVPacket *p = s->packet[i].packet;
        if (p->flags & AV_PKT_FLAG_DISCARD) continue; /* decoded for the sake of others, never shown */
        if (s->packet[i].pts == AV_NOPTS_VALUE) return source_fault(-E_FORMAT, why, "it does not tell when its frames are shown");
        if (s->packet[i].pts > INT64_MAX / 4 || s->packet[i].pts < INT64_MIN / 4 || p->duration < 0 || p->duration > INT64_MAX / 4) return source_fault(-E_FORMAT, why, "it is damaged: a frame is shown at no possible time");
        s->frame[s->frame_count++] = (struct source_frame){.pts = s->packet[i].pts, .packet = i, .is_key = (p->flags & AV_PKT_FLAG_KEY) != 0};
        if (s->packet[i].pts + p->duration > s->end_pts) s->end_pts = s->packet[i].pts + p->duration;
    }
    if (s->frame_count == 0) return source_fault(-E_FORMAT, why, "it has no frames");
    qsort(s->frame, s->frame_count, sizeof *s->frame, by_time);
    const double seconds = seconds_of(s);
    if (seconds > limits->seconds_max) return source_fault(-E_RANGE, why, "it is %.0f seconds long: at most %u are taken", seconds, limits->seconds_max);
    return 0;
}

int source_open(struct source *s, const uint8_t *file, size_t bytes, const struct video_limits *limits, char why[VIDEO_ERROR_BYTES])
{
    memset(s, 0, sizeof *s);
    s->file = file;
    s->bytes = bytes;
    int rc = open_format(s, why);
    if (rc == 0) rc = open_track(s, limits, why);
    if (rc == 0) rc = read_packets(s, limits, why);
    return rc ? rc : sort_frames(s, limits, why);
}

void source_close(struct source *s)
{
    for (uint32_t i = 0; i < s->packet_count; i++) av_packet_free(&s->packet[i].packet);
    free(s->packet);
    free(s->frame);
    if (s->format) avformat_close_input(&s->format);
    if (s->io) av_freep(&s->io->buffer);
    avio_context_free(&s->io);
    memset(s, 0, sizeof *s);
}

double source_fps(const struct source *s)
{
    const double seconds = seconds_of(s);
    const AVRational stated = s->track->avg_frame_rate;

    if (seconds > 0) return s->frame_count / seconds;
    return stated.num > 0 && stated.den > 0 ? av_q2d(stated) : VIDEO_FPS_DEFAULT;
}

static const int32_t *matrix_of(const AVStream *track)
{
#if LIBAVFORMAT_VERSION_MAJOR >= 61
    const AVPacketSideData *d = av_packet_side_data_get(track->codecpar->coded_side_data, track->codecpar->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
    return d && d->size >= 9 * sizeof(int32_t) ? (const int32_t *)d->data : NULL;
#else
    size_t bytes = 0;
    const uint8_t *d = av_stream_get_side_data(track, AV_PKT_DATA_DISPLAYMATRIX, &bytes);
    return d && bytes >= 9 * sizeof(int32_t) ? (const int32_t *)d : NULL;
#endif
}

uint32_t source_orientation(const struct source *s)
{
    static const uint32_t turns[] = {1, 8, 3, 6}; /* by 0, 90, 180, 270 degrees counter-clockwise */
    const int32_t *matrix = matrix_of(s->track);
    const double degrees = matrix ? av_display_rotation_get(matrix) : 0;

    if (!(fabs(degrees) <= 360)) return 1; /* not a number: a matrix that turns nothing */
    return turns[((int)lround(degrees / 90) + 8) % 4];
}
