/* schemas/image.c - which decoder, limits before work, and the upright picture. */
#include "schemas/image.h"

#include "shm/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIF_ENTRIES_MAX 512u
#define EXIF_ORIENTATION 0x0112u
#define EXIF_SHORT 3u
#define SHRINK_MAX 8u

int image_fault(int code, char why[IMAGE_ERROR_BYTES], const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(why, IMAGE_ERROR_BYTES, format, args);
    va_end(args);
    return code;
}

int image_no_memory(uint32_t width, uint32_t height, char why[IMAGE_ERROR_BYTES])
{
    return image_fault(-E_NOMEM, why, "there is no memory for a picture of %u x %u pixels", width, height);
}

/* ---- EXIF ------------------------------------------------------------------------------ */

static uint32_t get16(const uint8_t *p, bool little)
{
    return little ? p[0] | (uint32_t)p[1] << 8 : (uint32_t)p[0] << 8 | p[1];
}

static uint32_t get32(const uint8_t *p, bool little)
{
    return little ? get16(p, true) | get16(p + 2, true) << 16 : get16(p, false) << 16 | get16(p + 2, false);
}

uint32_t image_exif_orientation(const uint8_t *tiff, size_t bytes)
{
    if (bytes < 8) return 1;
    const bool little = tiff[0] == 'I';
    if (tiff[0] != tiff[1] || (!little && tiff[0] != 'M') || get16(tiff + 2, little) != 42) return 1;
    const uint64_t at = get32(tiff + 4, little);
    if (at > bytes || bytes - at < 2) return 1;
    const uint32_t entries = get16(tiff + at, little);
    if (entries > EXIF_ENTRIES_MAX || (bytes - at - 2) / 12 < entries) return 1;
    for (uint32_t i = 0; i < entries; i++) {
        const uint8_t *e = tiff + at + 2 + 12 * (uint64_t)i;
        if (get16(e, little) != EXIF_ORIENTATION || get16(e + 2, little) != EXIF_SHORT || get32(e + 4, little) != 1) continue;
        const uint32_t orientation = get16(e + 8, little);
        return orientation >= 1 && orientation <= 8 ? orientation : 1;
    }
    return 1;
}

/* Where pixel (x, y) of the stored picture stands in the upright one. */
static size_t upright_index(uint32_t orientation, uint32_t x, uint32_t y, uint32_t width, uint32_t height)
{
    switch (orientation) {
    case 2: return (size_t)y * width + (width - 1 - x);
    case 3: return (size_t)(height - 1 - y) * width + (width - 1 - x);
    case 4: return (size_t)(height - 1 - y) * width + x;
    case 5: return (size_t)x * height + y;
    case 6: return (size_t)x * height + (height - 1 - y);
    case 7: return (size_t)(width - 1 - x) * height + (height - 1 - y);
    case 8: return (size_t)(width - 1 - x) * height + y;
    default: return (size_t)y * width + x;
    }
}

static int turn(struct image *image, uint32_t orientation, char why[IMAGE_ERROR_BYTES])
{
    const uint32_t w = image->width, h = image->height;
    const uint8_t *from = image->rgb;

    if (orientation == 1) return 0;
    uint8_t *to = malloc((size_t)w * h * 3);
    if (!to) return image_fault(-E_NOMEM, why, "there is no memory to turn the picture upright");
    for (uint32_t y = 0; y < h; y++)
        for (uint32_t x = 0; x < w; x++, from += 3) memcpy(to + 3 * upright_index(orientation, x, y, w, h), from, 3);
    free(image->rgb);
    image->rgb = to;
    if (orientation >= 5) {
        image->width = h;
        image->height = w;
    }
    return 0;
}

/* ---- dispatch ---------------------------------------------------------------------------- */

static enum image_kind kind_of(const uint8_t *file, size_t bytes)
{
    if (bytes >= 3 && memcmp(file, "\xff\xd8\xff", 3) == 0) return IMAGE_JPEG;
    if (bytes >= 8 && memcmp(file, "\x89PNG\r\n\x1a\n", 8) == 0) return IMAGE_PNG;
    if (bytes >= 12 && memcmp(file, "RIFF", 4) == 0 && memcmp(file + 8, "WEBP", 4) == 0) return IMAGE_WEBP;
    return IMAGE_NONE;
}

static const char *name_unsupported(const uint8_t *file, size_t bytes)
{
    if (bytes >= 6 && (memcmp(file, "GIF87a", 6) == 0 || memcmp(file, "GIF89a", 6) == 0)) return "GIF";
    if (bytes >= 2 && memcmp(file, "BM", 2) == 0) return "BMP";
    if (bytes >= 4 && (memcmp(file, "II*\0", 4) == 0 || memcmp(file, "MM\0*", 4) == 0)) return "TIFF";
    if (bytes >= 12 && memcmp(file + 4, "ftypavif", 8) == 0) return "AVIF";
    if (bytes >= 12 && memcmp(file + 4, "ftyp", 4) == 0) return "HEIC or a video";
    return "of no format known here";
}

int image_probe(const uint8_t *file, size_t file_bytes, const struct image_limits *limits, struct image_info *info, char why[IMAGE_ERROR_BYTES])
{
    int rc;

    memset(info, 0, sizeof *info);
    info->orientation = 1;
    info->kind = kind_of(file, file_bytes);
    switch (info->kind) {
    case IMAGE_JPEG: rc = image_jpeg_probe(file, file_bytes, info, why); break;
    case IMAGE_PNG: rc = image_png_probe(file, file_bytes, info, why); break;
    case IMAGE_WEBP: rc = image_webp_probe(file, file_bytes, info, why); break;
    default: return image_fault(-E_FORMAT, why, "the picture is %s; send JPEG, PNG or WebP", name_unsupported(file, file_bytes));
    }
    if (rc != 0) return rc;
    if (info->width == 0 || info->height == 0) return image_fault(-E_FORMAT, why, "the picture has no pixels (%u x %u)", info->width, info->height);
    if (info->width > limits->side_max || info->height > limits->side_max)
        return image_fault(-E_RANGE, why, "the picture is %u x %u pixels; a side may have at most %u", info->width, info->height, limits->side_max);
    if ((uint64_t)info->width * info->height > limits->pixels_max)
        return image_fault(-E_RANGE, why, "the picture is %u x %u pixels; at most %.1f million are taken", info->width, info->height, (double)limits->pixels_max / 1e6);
    return 0;
}

uint32_t image_shrink(const struct image_info *info, uint32_t least_width, uint32_t least_height)
{
    const bool swaps = info->orientation >= 5;
    const uint64_t w = 2 * (uint64_t)(swaps ? least_height : least_width), h = 2 * (uint64_t)(swaps ? least_width : least_height);
    uint32_t shrink = 1;

    if (info->kind != IMAGE_JPEG || !least_width || !least_height) return 1;
    while (shrink < SHRINK_MAX && info->width / (2 * shrink) >= w && info->height / (2 * shrink) >= h) shrink *= 2;
    return shrink;
}

int image_decode_rows(const uint8_t *file, size_t file_bytes, const struct image_limits *limits, const struct image_info *info, uint32_t shrink, const struct image_sink *sink,
                      char why[IMAGE_ERROR_BYTES])
{
    switch (info->kind) {
    case IMAGE_JPEG: return image_jpeg_decode(file, file_bytes, limits->scans_max, shrink, sink, why);
    case IMAGE_PNG: return image_png_decode(file, file_bytes, limits, sink, why);
    case IMAGE_WEBP: return image_webp_decode(file, file_bytes, sink, why);
    default: return image_fault(-E_FORMAT, why, "the picture was not probed");
    }
}

/* ---- the picture as a whole ---------------------------------------------------------------- */

struct whole {
    struct image *image;
    size_t bytes; /* that came */
};

static int begin_whole(void *context, uint32_t width, uint32_t height)
{
    struct whole *w = context;

    w->image->rgb = malloc((size_t)width * height * 3);
    if (!w->image->rgb) return -E_NOMEM;
    w->image->width = width;
    w->image->height = height;
    return 0;
}

static void keep_rows(void *context, const uint8_t *rgb, uint32_t rows)
{
    struct whole *w = context;
    const size_t bytes = (size_t)rows * w->image->width * 3;

    memcpy(w->image->rgb + w->bytes, rgb, bytes);
    w->bytes += bytes;
}

int image_decode(const uint8_t *file, size_t file_bytes, const struct image_limits *limits, const struct image_info *info, uint32_t least_width, uint32_t least_height,
                 struct image *out, char why[IMAGE_ERROR_BYTES])
{
    struct whole w = {.image = out};
    const struct image_sink sink = {.begin = begin_whole, .rows = keep_rows, .context = &w};

    memset(out, 0, sizeof *out);
    int rc = image_decode_rows(file, file_bytes, limits, info, image_shrink(info, least_width, least_height), &sink, why);
    if (rc == 0) rc = turn(out, info->orientation, why);
    if (rc != 0) {
        free(out->rgb);
        memset(out, 0, sizeof *out);
    }
    return rc;
}

/* RGB twice (turned), and what decoders keep: a progressive JPEG all coefficients (16 bits, four components), WebP RGBA and its planes. */
uint64_t image_decode_bytes_max(const struct image_info *info)
{
    const uint64_t blocks = (uint64_t)(info->width + 63) * (info->height + 63);

    return blocks * (6 + 8 + 4) + (8u << 20);
}
