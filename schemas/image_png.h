/* schemas/image_png.h - what the two readers of PNG share: image_png.c (libspng) and image_png_rows.c (ISA-L). */
#ifndef SLUICE_SCHEMAS_IMAGE_PNG_H
#define SLUICE_SCHEMAS_IMAGE_PNG_H

#include "schemas/image.h"

#define IMAGE_PNG_HEAD_BYTES 8u

/* The chunks of a file one after the other: its data, behind its length and name; NULL at the end. */
const uint8_t *image_png_chunk(const uint8_t *file, size_t file_bytes, size_t *at, char type[5], uint32_t *bytes);

/* As image_png_decode, for a file that is not interlaced. Only with HAVE_ISAL. */
int image_png_decode_rows(const uint8_t *file, size_t bytes, const struct image_sink *sink, char why[IMAGE_ERROR_BYTES]);

#endif
