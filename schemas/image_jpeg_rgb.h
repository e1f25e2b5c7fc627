/* schemas/image_jpeg_rgb.h - upsampling and colours of a JPEG in one step, in libjpeg-turbo's place; the same bytes.
 *
 * The library makes chroma rows as long as the picture's, writes them down, and reads them again to make colours of them, 32 bytes at a time. Here 64 pixels go from the planes to
 * RGB without leaving the registers. For the usual file, YCbCr with chroma halved both ways, at full size, where there is AVX-512 with VBMI; all else is the library's.
 * As image_jpeg_entropy.h it enters through the structures of jpegint.h. */
#ifndef SLUICE_SCHEMAS_IMAGE_JPEG_RGB_H
#define SLUICE_SCHEMAS_IMAGE_JPEG_RGB_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

/* After jpeg_start_decompress, before the first row. Memory is the library's, until jpeg_destroy. */
void image_jpeg_make_rgb(j_decompress_ptr jpeg);

/* ---- the row itself (image_jpeg_rgb_avx512vbmi.c) ------------------------------------------------ */

#define IMAGE_JPEG_RGB_PAD 64u        /* values behind the end of a sum that may be read and written */

struct image_jpeg_rgb {
    uint32_t width, chroma_width;     /* pixels; chroma_width is half of it, rounded up, and at least 1 */
    int16_t *sum[2];                  /* [1 + chroma_width + 1 + IMAGE_JPEG_RGB_PAD] of Cb and Cr: scratch */
    uint8_t pick[3][64];              /* which pixel a byte of the result is of, 64 and more: green's; 64 bytes, three times */
    uint64_t blue[3];                 /* which bytes are blue */
};

bool image_jpeg_rgb_is_here(void);
/* Once, for pick and blue. */
void image_jpeg_rgb_prepare(struct image_jpeg_rgb *r);
/* One row of pixels. near: the chroma rows that it lies in (Cb, Cr), beside: the next ones on its other side. */
void image_jpeg_rgb_row(const struct image_jpeg_rgb *r, const uint8_t *luma, const uint8_t *const near[2], const uint8_t *const beside[2], uint8_t *rgb);

#endif
