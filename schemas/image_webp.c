/* schemas/image_webp.c - WebP by libwebp: lossy, lossless, with alpha; of an animation the first frame on its canvas. */
#include "schemas/image.h"

#include "shm/error.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <webp/decode.h>
#include <webp/demux.h>

#define HUGE_BYTES (2u << 20)

static WebPData data_of(const uint8_t *file, size_t bytes)
{
    return (WebPData){.bytes = file, .size = bytes};
}

static int damaged(char why[IMAGE_ERROR_BYTES])
{
    return image_fault(-E_FORMAT, why, "the WebP file is damaged or cut off");
}

int image_webp_probe(const uint8_t *file, size_t bytes, struct image_info *info, char why[IMAGE_ERROR_BYTES])
{
    const WebPData data = data_of(file, bytes);
    WebPDemuxer *demux = WebPDemux(&data); /* keeps offsets only */
    WebPChunkIterator chunk;

    if (!demux) return damaged(why);
    info->width = WebPDemuxGetI(demux, WEBP_FF_CANVAS_WIDTH);
    info->height = WebPDemuxGetI(demux, WEBP_FF_CANVAS_HEIGHT);
    if (WebPDemuxGetChunk(demux, "EXIF", 1, &chunk)) {
        const size_t skip = chunk.chunk.size > 6 && memcmp(chunk.chunk.bytes, "Exif\0\0", 6) == 0 ? 6 : 0;
        info->orientation = image_exif_orientation(chunk.chunk.bytes + skip, chunk.chunk.size - skip);
        WebPDemuxReleaseChunkIterator(&chunk);
    }
    WebPDemuxDelete(demux);
    return 0;
}

/* A still picture goes straight to RGB. */
static int decode_still(const uint8_t *file, size_t bytes, const struct image *to, char why[IMAGE_ERROR_BYTES])
{
    const size_t stride = (size_t)to->width * 3;

    return WebPDecodeRGBInto(file, bytes, to->rgb, stride * to->height, (int)stride) ? 0 : damaged(why);
}

/* The first frame may cover a part of the canvas; the rest of it is black, as the reference's loader shows it. */
static int decode_frame(WebPDemuxer *demux, const struct image *to, char why[IMAGE_ERROR_BYTES])
{
    WebPIterator frame;
    int rc = 0;

    if (!WebPDemuxGetFrame(demux, 1, &frame)) return damaged(why);
    const size_t stride = (size_t)to->width * 3;
    if (frame.x_offset < 0 || frame.y_offset < 0 || frame.width <= 0 || frame.height <= 0 || (uint32_t)frame.x_offset + (uint32_t)frame.width > to->width ||
        (uint32_t)frame.y_offset + (uint32_t)frame.height > to->height)
        rc = damaged(why);
    else {
        memset(to->rgb, 0, stride * to->height);
        const size_t first = (size_t)frame.y_offset * stride + (size_t)frame.x_offset * 3;
        if (!WebPDecodeRGBInto(frame.fragment.bytes, frame.fragment.size, to->rgb + first, stride * to->height - first, (int)stride)) rc = damaged(why);
    }
    WebPDemuxReleaseIterator(&frame);
    return rc;
}

/* The library wants all rows in memory; in huge pages, because touching each small one for the first time costs as much as a tenth of the decoding. */
int image_webp_decode(const uint8_t *file, size_t bytes, const struct image_sink *sink, char why[IMAGE_ERROR_BYTES])
{
    const WebPData data = data_of(file, bytes);
    WebPDemuxer *demux = WebPDemux(&data);
    struct image all;
    int rc;

    if (!demux) return damaged(why);
    all.width = WebPDemuxGetI(demux, WEBP_FF_CANVAS_WIDTH);
    all.height = WebPDemuxGetI(demux, WEBP_FF_CANVAS_HEIGHT);
    const size_t rgb_bytes = (size_t)all.width * all.height * 3;
    all.rgb = aligned_alloc(HUGE_BYTES, (rgb_bytes + HUGE_BYTES - 1) & ~(size_t)(HUGE_BYTES - 1));
    if (all.rgb) madvise(all.rgb, rgb_bytes & ~(size_t)(HUGE_BYTES - 1), MADV_HUGEPAGE); /* refused: small ones do, too */
    if (!all.rgb || sink->begin(sink->context, all.width, all.height) != 0) rc = image_no_memory(all.width, all.height, why);
    else if (WebPDemuxGetI(demux, WEBP_FF_FORMAT_FLAGS) & ANIMATION_FLAG) rc = decode_frame(demux, &all, why);
    else rc = decode_still(file, bytes, &all, why);
    if (rc == 0) sink->rows(sink->context, all.rgb, all.height);
    WebPDemuxDelete(demux);
    free(all.rgb);
    return rc;
}
