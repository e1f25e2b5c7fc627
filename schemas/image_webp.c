/* schemas/image_webp.c - WebP by libwebp: lossy, lossless, with alpha; of an animation the first frame on its canvas. */
#include "schemas/image.h"

#include "shm/error.h"

#include <stdlib.h>
#include <string.h>
#include <webp/decode.h>
#include <webp/demux.h>

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
static int decode_still(const uint8_t *file, size_t bytes, struct image *out, char why[IMAGE_ERROR_BYTES])
{
    const size_t stride = (size_t)out->width * 3;

    return WebPDecodeRGBInto(file, bytes, out->rgb, stride * out->height, (int)stride) ? 0 : damaged(why);
}

/* The first frame may cover a part of the canvas; the rest of it is black, as the reference's loader shows it. */
static int decode_frame(WebPDemuxer *demux, struct image *out, char why[IMAGE_ERROR_BYTES])
{
    WebPIterator frame;
    int rc = 0;

    if (!WebPDemuxGetFrame(demux, 1, &frame)) return damaged(why);
    const size_t stride = (size_t)out->width * 3;
    if (frame.x_offset < 0 || frame.y_offset < 0 || frame.width <= 0 || frame.height <= 0 || (uint32_t)frame.x_offset + (uint32_t)frame.width > out->width ||
        (uint32_t)frame.y_offset + (uint32_t)frame.height > out->height)
        rc = damaged(why);
    else {
        memset(out->rgb, 0, stride * out->height);
        const size_t first = (size_t)frame.y_offset * stride + (size_t)frame.x_offset * 3;
        if (!WebPDecodeRGBInto(frame.fragment.bytes, frame.fragment.size, out->rgb + first, stride * out->height - first, (int)stride)) rc = damaged(why);
    }
    WebPDemuxReleaseIterator(&frame);
    return rc;
}

int image_webp_decode(const uint8_t *file, size_t bytes, struct image *out, char why[IMAGE_ERROR_BYTES])
{
    const WebPData data = data_of(file, bytes);
    WebPDemuxer *demux = WebPDemux(&data);
    int rc;

    if (!demux) return damaged(why);
    out->width = WebPDemuxGetI(demux, WEBP_FF_CANVAS_WIDTH);
    out->height = WebPDemuxGetI(demux, WEBP_FF_CANVAS_HEIGHT);
    out->rgb = malloc((size_t)out->width * out->height * 3);
    if (!out->rgb) rc = image_fault(-E_NOMEM, why, "there is no memory for a picture of %u x %u pixels", out->width, out->height);
    else if (WebPDemuxGetI(demux, WEBP_FF_FORMAT_FLAGS) & ANIMATION_FLAG) rc = decode_frame(demux, out, why);
    else rc = decode_still(file, bytes, out, why);
    WebPDemuxDelete(demux);
    return rc;
}
