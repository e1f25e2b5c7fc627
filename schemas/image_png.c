/* schemas/image_png.c - PNG by libspng: every colour type and depth, interlaced or not, checksums checked. */
#include "schemas/image.h"

#include "shm/error.h"

#include <spng.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES_MAX (8u << 20)   /* of one ancillary chunk, unpacked */
#define CHUNKS_BYTES_MAX (16u << 20) /* of all of them */
#define HEAD_BYTES 8u

static int broken(int rc, char why[IMAGE_ERROR_BYTES])
{
    if (rc == SPNG_EMEM) return image_fault(-E_NOMEM, why, "there is no memory for the PNG file");
    return image_fault(-E_FORMAT, why, "the PNG file cannot be decoded: %.100s", spng_strerror(rc));
}

/* The chunks of a file one after the other; NULL at the end. *bytes: of its data. */
static const uint8_t *next_chunk(const uint8_t *file, size_t file_bytes, size_t *at, char type[5], uint32_t *bytes)
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
    size_t at = HEAD_BYTES;
    char type[5];
    uint32_t n;
    const uint8_t *p = next_chunk(file, bytes, &at, type, &n);

    if (!p || strcmp(type, "IHDR") != 0 || n != 13) return image_fault(-E_FORMAT, why, "the PNG file has no header");
    info->width = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    info->height = (uint32_t)p[4] << 24 | (uint32_t)p[5] << 16 | (uint32_t)p[6] << 8 | p[7];
    while ((p = next_chunk(file, bytes, &at, type, &n)) != NULL)
        if (strcmp(type, "eXIf") == 0) {
            info->orientation = image_exif_orientation(p, n);
            break;
        }
    return 0;
}

int image_png_decode(const uint8_t *file, size_t bytes, const struct image_limits *limits, struct image *out, char why[IMAGE_ERROR_BYTES])
{
    spng_ctx *png = spng_ctx_new(0);
    struct spng_ihdr head;
    size_t size = 0;
    int rc, code = 0;

    if (!png) return image_fault(-E_NOMEM, why, "there is no memory for the PNG file");
    spng_set_image_limits(png, limits->side_max, limits->side_max);
    spng_set_chunk_limits(png, CHUNK_BYTES_MAX, CHUNKS_BYTES_MAX);
    spng_set_crc_action(png, SPNG_CRC_ERROR, SPNG_CRC_DISCARD);
    rc = spng_set_png_buffer(png, file, bytes);
    if (rc == 0) rc = spng_get_ihdr(png, &head);
    if (rc == 0) rc = spng_decoded_image_size(png, SPNG_FMT_RGB8, &size);
    if (rc != 0) code = broken(rc, why);
    else if (size != (size_t)head.width * head.height * 3) code = image_fault(-E_FORMAT, why, "the PNG file contradicts itself about its size");
    else if ((out->rgb = malloc(size)) == NULL) code = image_fault(-E_NOMEM, why, "there is no memory for a picture of %u x %u pixels", head.width, head.height);
    else {
        out->width = head.width;
        out->height = head.height;
        rc = spng_decode_image(png, out->rgb, size, SPNG_FMT_RGB8, 0);
        if (rc != 0) code = broken(rc, why);
    }
    spng_ctx_free(png);
    return code;
}
