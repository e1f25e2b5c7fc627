/* schemas/image_png.c - PNG by libspng: every colour type and depth, interlaced or not, checksums checked. Where ISA-L is there, image_png_rows.c decodes what is
 * not interlaced; libspng has looked at the header by then. */
#include "schemas/image_png.h"

#include "shm/error.h"

#include <spng.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES_MAX (8u << 20)   /* of one ancillary chunk, unpacked */
#define CHUNKS_BYTES_MAX (16u << 20) /* of all of them */

static int broken(int rc, char why[IMAGE_ERROR_BYTES])
{
    if (rc == SPNG_EMEM) return image_fault(-E_NOMEM, why, "there is no memory for the PNG file");
    return image_fault(-E_FORMAT, why, "the PNG file cannot be decoded: %.100s", spng_strerror(rc));
}

const uint8_t *image_png_chunk(const uint8_t *file, size_t file_bytes, size_t *at, char type[5], uint32_t *bytes)
{
    const uint8_t *p = file + *at;

    if (file_bytes - *at < 12) return NULL;
    *bytes = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    if (*bytes > file_bytes - *at - 12) return NULL;
    memcpy(type, p + 4, 4);
    type[4] = '\0';
    *at += (size_t)*bytes + 12;
    return p + 8;
}

int image_png_probe(const uint8_t *file, size_t bytes, struct image_info *info, char why[IMAGE_ERROR_BYTES])
{
    size_t at = IMAGE_PNG_HEAD_BYTES;
    char type[5];
    uint32_t n;
    const uint8_t *p = image_png_chunk(file, bytes, &at, type, &n);

    if (!p || strcmp(type, "IHDR") != 0 || n != 13) return image_fault(-E_FORMAT, why, "the PNG file has no header");
    info->width = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    info->height = (uint32_t)p[4] << 24 | (uint32_t)p[5] << 16 | (uint32_t)p[6] << 8 | p[7];
    while ((p = image_png_chunk(file, bytes, &at, type, &n)) != NULL)
        if (strcmp(type, "eXIf") == 0) {
            info->orientation = image_exif_orientation(p, n);
            break;
        }
    return 0;
}

/* Interlaced, the picture stands in memory as a whole. */
static int decode_rows(spng_ctx *png, const struct spng_ihdr *head, size_t size, const struct image_sink *sink, char why[IMAGE_ERROR_BYTES])
{
    const bool whole = head->interlace_method != 0;
    const size_t row_bytes = (size_t)head->width * 3;
    uint8_t *rgb = malloc(whole ? size : row_bytes);
    int rc = 0, code = 0;

    if (!rgb || sink->begin(sink->context, head->width, head->height) != 0) code = image_no_memory(head->width, head->height, why);
    else if (whole) {
        if ((rc = spng_decode_image(png, rgb, size, SPNG_FMT_RGB8, 0)) == 0) sink->rows(sink->context, rgb, head->height);
    } else if ((rc = spng_decode_image(png, NULL, 0, SPNG_FMT_RGB8, SPNG_DECODE_PROGRESSIVE)) == 0) {
        for (uint32_t y = 0; y < head->height && rc == 0; y++) {
            rc = spng_decode_row(png, rgb, row_bytes);
            if (rc == SPNG_EOI && y + 1 == head->height) rc = 0; /* it says so with the last row */
            if (rc == 0) sink->rows(sink->context, rgb, 1);
        }
    }
    free(rgb);
    return rc != 0 ? broken(rc, why) : code;
}

int image_png_decode(const uint8_t *file, size_t bytes, const struct image_limits *limits, const struct image_sink *sink, char why[IMAGE_ERROR_BYTES])
{
    spng_ctx *png = spng_ctx_new(0);
    struct spng_ihdr head;
    size_t size = 0;
    int rc, code;

    if (!png) return image_fault(-E_NOMEM, why, "there is no memory for the PNG file");
    spng_set_image_limits(png, limits->side_max, limits->side_max);
    spng_set_chunk_limits(png, CHUNK_BYTES_MAX, CHUNKS_BYTES_MAX);
    spng_set_crc_action(png, SPNG_CRC_ERROR, SPNG_CRC_DISCARD);
    rc = spng_set_png_buffer(png, file, bytes);
    if (rc == 0) rc = spng_get_ihdr(png, &head);
    if (rc == 0) rc = spng_decoded_image_size(png, SPNG_FMT_RGB8, &size);
    if (rc != 0) code = broken(rc, why);
    else if (size != (size_t)head.width * head.height * 3) code = image_fault(-E_FORMAT, why, "the PNG file contradicts itself about its size");
#ifdef HAVE_ISAL
    else if (head.interlace_method == 0) code = image_png_decode_rows(file, bytes, sink, why);
#endif
    else code = decode_rows(png, &head, size, sink, why);
    spng_ctx_free(png);
    return code;
}
