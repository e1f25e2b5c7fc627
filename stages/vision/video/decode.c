/* stages/vision/video/decode.c - the frames of a video that a model is shown, as rows of RGB (contract in schemas/video.h).
 *
 * Reads    the file, in memory
 * Owns     what libav allocates; given back before it returns
 * Fails    with words for the client. A file that libav itself dies of costs the process: this runs in a sandboxed worker of the vision stage alone.
 *
 * As the reference's loader (torchcodec): frames are counted in the order in which they are shown, each wanted one is decoded from the key frame before it, colours are
 * converted by libswscale (bicubic, where it has to interpolate) with the matrix and the range that the frame names. */
#include "schemas/video.h"

#include "shm/error.h"
#include "stages/vision/video/source.h"

#include <libswscale/swscale.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define ALLOCATION_BYTES_MAX (256u << 20)
#define ROW_ALIGN 64u                 /* of a row that libswscale writes: whole vectors, whatever the width */
#define NO_PACKET UINT32_MAX

__attribute__((visibility("default"))) __typeof__(video_version) video_version;
__attribute__((visibility("default"))) __typeof__(video_libavcodec) video_libavcodec;
__attribute__((visibility("default"))) __typeof__(video_decode) video_decode;

struct reader {
    struct source source;
    const struct video_limits *limits;
    const struct video_sink *sink;
    AVCodecContext *decoder;
    AVFrame *frame;
    uint32_t key;                     /* packet that decoding last began with; NO_PACKET: none */
    uint32_t next;                    /* packet that the decoder gets next */
    bool is_drained;                  /* it was told that no more come */
    int64_t wanted[VIDEO_FRAMES_MAX]; /* times of the frames that are taken */
    uint32_t wanted_count;
    struct SwsContext *converter;     /* for frames of this size, format and matrix */
    int width, height, format, space, range;
    uint8_t *padded, *rgb;            /* [height][row_bytes], and without the padding */
    uint32_t row_bytes;
};

/* ---- a frame ---------------------------------------------------------------------------------- */

static int open_decoder(struct reader *r, char why[VIDEO_ERROR_BYTES])
{
    const AVCodecParameters *p = r->source.track->codecpar;
    const AVCodec *codec = avcodec_find_decoder(p->codec_id);

    if (!codec) return source_fault(-E_FORMAT, why, "this server's libavcodec cannot decode %s", avcodec_get_name(p->codec_id));
    r->decoder = avcodec_alloc_context3(codec);
    r->frame = av_frame_alloc();
    if (!r->decoder || !r->frame || avcodec_parameters_to_context(r->decoder, p) < 0) return source_no_memory(why);
    r->decoder->pkt_timebase = r->source.track->time_base;
    r->decoder->thread_count = 1;     /* the sandbox has no second thread */
    r->decoder->max_pixels = (int64_t)r->limits->pixels_max;
    if (avcodec_open2(r->decoder, codec, NULL) < 0) return source_fault(-E_FORMAT, why, "it is damaged: its %s decoder cannot begin", codec->name);
    r->key = NO_PACKET;
    return 0;
}

static int64_t time_of(const AVFrame *f) { return f->pts != AV_NOPTS_VALUE ? f->pts : f->pkt_dts; }

static bool is_wanted(const struct reader *r, int64_t pts)
{
    for (uint32_t i = 0; i < r->wanted_count; i++)
        if (r->wanted[i] == pts) return true;
    return false;
}

/* The decoder gets the next packet, or hears that there is none. A frame that nobody wants and no other frame needs is not decoded: of H.264 as it is usually coded the half. */
static int feed(struct reader *r, char why[VIDEO_ERROR_BYTES])
{
    if (r->next == r->source.packet_count) {
        if (r->is_drained) return source_fault(-E_FORMAT, why, "a frame of it cannot be decoded");
        r->is_drained = true;
        avcodec_send_packet(r->decoder, NULL);
        return 0;
    }
    const struct source_packet *packet = &r->source.packet[r->next++];
    r->decoder->skip_frame = is_wanted(r, packet->pts) ? AVDISCARD_DEFAULT : AVDISCARD_NONREF;
    const int rc = avcodec_send_packet(r->decoder, packet->packet);
    if (rc == AVERROR(ENOMEM)) return source_no_memory(why);
    return rc < 0 ? source_fault(-E_FORMAT, why, "it is damaged: a packet cannot be decoded") : 0;
}

/* Decodes until the frame of this time, or the first behind it, is in r->frame. */
static int decode_until(struct reader *r, int64_t pts, char why[VIDEO_ERROR_BYTES])
{
    for (;;) {
        const int rc = avcodec_receive_frame(r->decoder, r->frame);
        if (rc == 0 && time_of(r->frame) >= pts) return 0;
        if (rc == 0) continue;
        if (rc == AVERROR_EOF) return source_fault(-E_FORMAT, why, "a frame of it cannot be decoded");
        if (rc == AVERROR(ENOMEM)) return source_no_memory(why);
        if (rc != AVERROR(EAGAIN)) return source_fault(-E_FORMAT, why, "it is damaged: a frame cannot be decoded");
        const int fed = feed(r, why);
        if (fed != 0) return fed;
    }
}

/* The packet with which decoding frame `index` begins: the last key frame that is not shown later; without any, the first packet. */
static uint32_t key_before(const struct source *s, uint32_t index)
{
    const int64_t pts = s->frame[index].pts;

    while (index + 1 < s->frame_count && s->frame[index + 1].pts == pts) index++;
    for (uint32_t i = index + 1; i-- > 0;)
        if (s->frame[i].is_key) return s->frame[i].packet;
    return 0;
}

static int seek_frame(struct reader *r, uint32_t index, char why[VIDEO_ERROR_BYTES])
{
    const uint32_t key = key_before(&r->source, index);

    if (key != r->key) {              /* frames are asked for in the order of time: the same key frame means that the decoder is on its way */
        avcodec_flush_buffers(r->decoder);
        r->key = r->next = key;
        r->is_drained = false;
    }
    return decode_until(r, r->source.frame[index].pts, why);
}

/* ---- its colours ------------------------------------------------------------------------------- */

static int open_converter(struct reader *r, char why[VIDEO_ERROR_BYTES])
{
    const AVFrame *f = r->frame;
    int *inverse, *table, from_full, to_full, brightness, contrast, saturation;

    if (r->converter && r->width == f->width && r->height == f->height && r->format == f->format && r->space == (int)f->colorspace && r->range == (int)f->color_range) return 0;
    sws_freeContext(r->converter);
    free(r->padded);
    free(r->rgb);
    r->width = f->width;
    r->height = f->height;
    r->format = f->format;
    r->space = f->colorspace;
    r->range = f->color_range;
    r->row_bytes = ((uint32_t)f->width * 3 + 2 * ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN;
    r->padded = aligned_alloc(ROW_ALIGN, (size_t)r->row_bytes * (uint32_t)f->height);
    r->rgb = malloc((size_t)f->width * (uint32_t)f->height * 3);
    r->converter = sws_getContext(f->width, f->height, f->format, f->width, f->height, AV_PIX_FMT_RGB24, SWS_BICUBIC, NULL, NULL, NULL);
    if (!r->padded || !r->rgb || !r->converter) return source_no_memory(why);
    if (sws_getColorspaceDetails(r->converter, &inverse, &from_full, &table, &to_full, &brightness, &contrast, &saturation) < 0) return 0; /* RGB already */
    const int *matrix = sws_getCoefficients((int)f->colorspace);
    if (f->color_range == AVCOL_RANGE_JPEG) from_full = 1;
    sws_setColorspaceDetails(r->converter, matrix, from_full, matrix, to_full, brightness, contrast, saturation);
    return 0;
}

static int convert(struct reader *r, char why[VIDEO_ERROR_BYTES])
{
    const AVFrame *f = r->frame;
    const uint32_t width = (uint32_t)f->width, height = (uint32_t)f->height;

    if (f->width <= 0 || f->height <= 0 || width > r->limits->side_max || height > r->limits->side_max || (uint64_t)width * height > r->limits->pixels_max)
        return source_fault(-E_LIMIT, why, "a frame of it is %d x %d pixels: at most %u a side and %llu in all are taken", f->width, f->height, r->limits->side_max, (unsigned long long)r->limits->pixels_max);
    const int rc = open_converter(r, why);
    if (rc != 0) return rc;
    uint8_t *const planes[4] = {r->padded};
    const int strides[4] = {(int)r->row_bytes};
    if (sws_scale(r->converter, (const uint8_t *const *)f->data, f->linesize, 0, f->height, planes, strides) != f->height) return source_fault(-E_FORMAT, why, "its colours cannot be converted");
    for (uint32_t y = 0; y < height; y++) memcpy(r->rgb + (size_t)y * width * 3, r->padded + (size_t)y * r->row_bytes, (size_t)width * 3);
    return 0;
}

/* ---- all of it ------------------------------------------------------------------------------------ */

static int decode_all(struct reader *r, const uint8_t *file, size_t bytes, char why[VIDEO_ERROR_BYTES])
{
    const struct source *s = &r->source;
    int rc = source_open(&r->source, file, bytes, r->limits, why);

    if (rc != 0 || (rc = open_decoder(r, why)) != 0) return rc;
    const uint32_t frames_max = r->limits->frames_max < VIDEO_FRAMES_MAX ? r->limits->frames_max : VIDEO_FRAMES_MAX;
    struct video_info info = {.orientation = source_orientation(s), .total = s->frame_count, .frames = s->frame_count < frames_max ? s->frame_count : frames_max, .fps = source_fps(s)};
    for (r->wanted_count = 0; r->wanted_count < info.frames; r->wanted_count++) r->wanted[r->wanted_count] = s->frame[video_index(r->wanted_count, info.total, info.frames)].pts;
    for (uint32_t i = 0; i < info.frames; i++) {
        if ((rc = seek_frame(r, video_index(i, info.total, info.frames), why)) != 0 || (rc = convert(r, why)) != 0) return rc;
        if (i == 0) {
            info.width = (uint32_t)r->width;
            info.height = (uint32_t)r->height;
            if ((rc = r->sink->begin(r->sink->context, &info)) != 0) return rc;
        }
        if ((rc = r->sink->frame(r->sink->context, i, r->rgb, (uint32_t)r->width, (uint32_t)r->height)) != 0) return rc;
    }
    return 0;
}

uint32_t video_version(void) { return VIDEO_VERSION; }

uint32_t video_libavcodec(void) { return avcodec_version() >> 16; }

int video_decode(const uint8_t *file, size_t file_bytes, const struct video_limits *limits, const struct video_sink *sink, char why[VIDEO_ERROR_BYTES])
{
    struct reader r = {.limits = limits, .sink = sink};

    why[0] = '\0';
    av_log_set_level(AV_LOG_QUIET);
    av_max_alloc(ALLOCATION_BYTES_MAX);
    const int rc = decode_all(&r, file, file_bytes, why);
    av_frame_free(&r.frame);
    avcodec_free_context(&r.decoder);
    sws_freeContext(r.converter);
    free(r.padded);
    free(r.rgb);
    source_close(&r.source);
    return rc;
}
