/* schemas/image.h - pictures as clients send them: JPEG, PNG and WebP files to rows of RGB bytes.
 *
 * image_probe looks at the header alone and allocates nothing; image_decode does the work for a picture that was probed. What a file claims
 * is believed only within the limits of struct image_limits, so no file makes a decoder allocate more than
 * image_decode_bytes_max() says. The decoders are libjpeg-turbo, libspng and libwebp; run them where a crash costs nothing (stages/vision.c).
 *
 * The result is what the reference's loader makes: the EXIF orientation applied, then RGB: transparency dropped, CMYK by the plain formula,
 * palettes and grey expanded, of an animation the first frame. One difference on purpose: 16-bit grey is divided by 256 (the
 * reference's library clips it at 255, which leaves a white picture). */
#ifndef SLUICE_SCHEMAS_IMAGE_H
#define SLUICE_SCHEMAS_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum image_kind { IMAGE_NONE = 0, IMAGE_JPEG = 1, IMAGE_PNG = 2, IMAGE_WEBP = 3 };

struct image_limits {
    uint32_t side_max;        /* pixels */
    uint64_t pixels_max;
    uint32_t scans_max;       /* of a progressive JPEG */
};
#define IMAGE_SIDE_MAX 16384u
#define IMAGE_PIXELS_MAX (40u * 1000u * 1000u)
#define IMAGE_SCANS_MAX 100u
#define IMAGE_ERROR_BYTES 160u

struct image_info {
    enum image_kind kind;
    uint32_t width, height;   /* as stored; orientations 5 to 8 swap them */
    uint32_t orientation;     /* EXIF: 1 (upright) .. 8 */
};

struct image {                /* upright */
    uint32_t width, height;
    uint8_t *rgb;             /* owned: [height][width][3]; free() */
};

/* Reads the header. 0; -E_FORMAT (no known format, or broken), -E_RANGE (over the limits); why says it in words for the client. */
int image_probe(const uint8_t *file, size_t file_bytes, const struct image_limits *limits, struct image_info *info, char why[IMAGE_ERROR_BYTES]);

/* Decodes. least_width, least_height: the caller will reduce the picture at least to these sides (upright), so a JPEG may be decoded at a half, a
 * quarter or an eighth as long as both sides stay at least twice as large; 0: full size, always.
 * 0 and *out; -E_FORMAT (broken or truncated), -E_LIMIT (too many scans), -E_NOMEM. */
int image_decode(const uint8_t *file, size_t file_bytes, const struct image_limits *limits, const struct image_info *info, uint32_t least_width, uint32_t least_height,
                 struct image *out, char why[IMAGE_ERROR_BYTES]);

/* Where rows go as they are decoded: as stored (not turned), top to bottom, `rows` of them one behind the other, three bytes a pixel. */
struct image_sink {
    int (*begin)(void *context, uint32_t width, uint32_t height); /* before the first row: the size that comes. 0, or -E_NOMEM, which image_decode_rows returns */
    void (*rows)(void *context, const uint8_t *rgb, uint32_t rows);
    void *context;                                                /* borrowed */
};

/* image_decode without the picture in memory as a whole, where its format allows (JPEG; PNG that is not interlaced). shrink: 1, or what image_shrink said.
 * Rows that came before a failure are worth nothing. 0, -E_FORMAT, -E_LIMIT, -E_NOMEM. */
int image_decode_rows(const uint8_t *file, size_t file_bytes, const struct image_limits *limits, const struct image_info *info, uint32_t shrink, const struct image_sink *sink,
                      char why[IMAGE_ERROR_BYTES]);

/* The largest divisor (1, 2, 4 or 8) at which a JPEG may be decoded that is then reduced to these sides (upright): both stay at least twice as large. 1 for other formats. */
uint32_t image_shrink(const struct image_info *info, uint32_t least_width, uint32_t least_height);

/* Upper bound of what image_decode allocates for this picture, the result included. */
uint64_t image_decode_bytes_max(const struct image_info *info);

/* ---- for the decoders (image_jpeg.c, image_png.c, image_webp.c) ------------------------------ */

__attribute__((format(printf, 3, 4))) int image_fault(int code, char why[IMAGE_ERROR_BYTES], const char *format, ...); /* returns code */

int image_jpeg_probe(const uint8_t *file, size_t bytes, struct image_info *info, char why[IMAGE_ERROR_BYTES]);
int image_png_probe(const uint8_t *file, size_t bytes, struct image_info *info, char why[IMAGE_ERROR_BYTES]);
int image_webp_probe(const uint8_t *file, size_t bytes, struct image_info *info, char why[IMAGE_ERROR_BYTES]);
int image_jpeg_decode(const uint8_t *file, size_t bytes, uint32_t scans_max, uint32_t shrink, const struct image_sink *sink, char why[IMAGE_ERROR_BYTES]);
int image_png_decode(const uint8_t *file, size_t bytes, const struct image_limits *limits, const struct image_sink *sink, char why[IMAGE_ERROR_BYTES]);
int image_webp_decode(const uint8_t *file, size_t bytes, const struct image_sink *sink, char why[IMAGE_ERROR_BYTES]);
int image_no_memory(uint32_t width, uint32_t height, char why[IMAGE_ERROR_BYTES]); /* -E_NOMEM, and the words for it */

/* The orientation that an EXIF block (from its TIFF header on) states; 1 when it states none or is broken. */
uint32_t image_exif_orientation(const uint8_t *tiff, size_t bytes);

#endif
