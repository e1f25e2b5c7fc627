/* schemas/image_png_rows.c - PNG that is not interlaced, row by row: inflated by ISA-L (two and a half times as fast as zlib), a strip at a time.
 *
 * Built only where ISA-L is (HAVE_ISAL, see build.mk); image_png.c takes libspng for everything else, with the same pixels. Checks what that one checks: the
 * order of the chunks, checksums of those that count, that palette entries exist, that there are as many rows as the header says. */
#include "schemas/image_png.h"

#ifdef HAVE_ISAL

#include "schemas/image_png_filter.h"
#include "shm/error.h"

#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>
#include <stdlib.h>
#include <string.h>

#define STRIP_BYTES (192u * 1024u) /* of filtered rows; the inflater keeps 32 KiB of history beside them */
#define PALETTE_MAX 256u

enum colour { COLOUR_GREY = 0, COLOUR_RGB = 2, COLOUR_PALETTE = 3, COLOUR_GREY_ALPHA = 4, COLOUR_RGBA = 6 };

struct reader {
    const uint8_t *file;
    size_t file_bytes, at;            /* of the next chunk */
    uint32_t width, height, depth, colour, channels;
    size_t row_bytes, pixel_bytes;    /* as filtered */
    uint32_t strip_rows;
    uint8_t palette[PALETTE_MAX * 3];
    uint32_t palette_count;
    struct inflate_state inflate;
    uint8_t *memory, *strip, *above, *row, *rgb; /* memory is owned, the others lie in it */
    bool ended;                       /* no more IDAT */
    char *why;
};

static int damaged(const struct reader *r, const char *what)
{
    return image_fault(-E_FORMAT, r->why, "the PNG file cannot be decoded: %s", what);
}

/* The next chunk whose checksum counts: 1; 0 at the end of the file; -E_FORMAT. */
static int next_chunk(struct reader *r, char type[5], const uint8_t **data, uint32_t *bytes)
{
    while ((*data = image_png_chunk(r->file, r->file_bytes, &r->at, type, bytes)) != NULL) {
        const bool critical = !(type[0] & 0x20);
        if (!critical) continue;
        const uint8_t *c = *data + *bytes;
        const uint32_t stored = (uint32_t)c[0] << 24 | (uint32_t)c[1] << 16 | (uint32_t)c[2] << 8 | c[3];
        if (crc32_gzip_refl(0, *data - 4, *bytes + 4u) != stored) return damaged(r, "a checksum is wrong");
        return 1;
    }
    return 0;
}

static int read_header(struct reader *r)
{
    static const uint8_t channels[7] = {1, 0, 3, 1, 2, 0, 4};
    char type[5];
    const uint8_t *p;
    uint32_t n;

    r->at = IMAGE_PNG_HEAD_BYTES;
    if (next_chunk(r, type, &p, &n) != 1 || strcmp(type, "IHDR") != 0 || n != 13) return damaged(r, "it has no header");
    r->width = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    r->height = (uint32_t)p[4] << 24 | (uint32_t)p[5] << 16 | (uint32_t)p[6] << 8 | p[7];
    r->depth = p[8];
    r->colour = p[9];
    r->channels = r->colour < 7 ? channels[r->colour] : 0;
    const bool packed = r->depth == 1 || r->depth == 2 || r->depth == 4;
    if (r->channels == 0 || !(r->depth == 8 || (r->depth == 16 && r->colour != COLOUR_PALETTE) || (packed && (r->colour == COLOUR_GREY || r->colour == COLOUR_PALETTE))))
        return damaged(r, "no such kind of pixel");
    if (p[10] != 0 || p[11] != 0 || p[12] != 0) return damaged(r, "an unknown method");
    r->row_bytes = ((size_t)r->width * r->channels * r->depth + 7) / 8;
    r->pixel_bytes = r->depth < 8 ? 1 : r->channels * r->depth / 8;
    return 0;
}

/* Up to the first IDAT, which the inflater gets. */
static int read_front(struct reader *r)
{
    char type[5];
    const uint8_t *p;
    uint32_t n;
    int rc;

    while ((rc = next_chunk(r, type, &p, &n)) == 1) {
        if (strcmp(type, "IDAT") == 0) {
            if (r->colour == COLOUR_PALETTE && r->palette_count == 0) return damaged(r, "it has no palette");
            r->inflate.next_in = (uint8_t *)(uintptr_t)p; /* read only */
            r->inflate.avail_in = n;
            return 0;
        }
        if (strcmp(type, "PLTE") != 0) return damaged(r, "an unknown or misplaced part");
        if (n == 0 || n % 3 != 0 || n > sizeof r->palette || r->palette_count) return damaged(r, "a palette of a wrong size");
        memcpy(r->palette, p, n);
        r->palette_count = n / 3;
    }
    return rc < 0 ? rc : damaged(r, "it is cut off");
}

static int allocate(struct reader *r)
{
    const size_t line = r->row_bytes + 1, fit = STRIP_BYTES / line;

    r->strip_rows = fit < 1 ? 1 : fit > r->height ? r->height : (uint32_t)fit;
    const size_t strip = line * r->strip_rows + IMAGE_PNG_PAD, row = r->row_bytes + IMAGE_PNG_PAD, rgb = (size_t)r->width * 3 * r->strip_rows + IMAGE_PNG_PAD;
    r->memory = malloc(strip + 2 * row + rgb);
    if (!r->memory) return image_no_memory(r->width, r->height, r->why);
    r->strip = r->memory;
    r->above = r->strip + strip;
    r->row = r->above + row;
    r->rgb = r->row + row;
    memset(r->above, 0, row);
    memset(r->strip + line * r->strip_rows, 0, IMAGE_PNG_PAD);
    return 0;
}

/* Fills `bytes` of the strip. 0; -E_FORMAT. */
static int inflate(struct reader *r, size_t bytes)
{
    struct inflate_state *s = &r->inflate;
    char type[5];
    const uint8_t *p;
    uint32_t n;

    s->next_out = r->strip;
    s->avail_out = (uint32_t)bytes;
    while (s->avail_out > 0) {
        if (s->avail_in == 0 && !r->ended) {
            const int rc = next_chunk(r, type, &p, &n);
            if (rc < 0) return rc;
            r->ended = rc == 0 || strcmp(type, "IDAT") != 0;
            if (!r->ended) {
                s->next_in = (uint8_t *)(uintptr_t)p;
                s->avail_in = n;
                continue;
            }
        }
        const uint32_t in = s->avail_in, out = s->avail_out;
        const int rc = isal_inflate(s);
        if (rc == ISAL_INCORRECT_CHECKSUM) return damaged(r, "a checksum of its pixels is wrong");
        if (rc < 0 || (rc == ISAL_NAME_OVERFLOW)) return damaged(r, "its pixels are not packed as they should be");
        if (s->avail_out > 0 && (s->block_state == ISAL_BLOCK_FINISH || (s->avail_in == in && s->avail_out == out && r->ended))) return damaged(r, "it is cut off");
    }
    return 0;
}

/* ---- pixels to RGB ------------------------------------------------------------------------ */

static uint32_t packed_at(const uint8_t *row, uint32_t x, uint32_t depth)
{
    const uint32_t bit = x * depth;

    return row[bit / 8] >> (8 - depth - bit % 8) & ((1u << depth) - 1);
}

static int from_palette(struct reader *r, const uint8_t *row, uint8_t *rgb)
{
    for (uint32_t x = 0; x < r->width; x++, rgb += 3) {
        const uint32_t i = r->depth == 8 ? row[x] : packed_at(row, x, r->depth);
        if (i >= r->palette_count) return damaged(r, "a pixel's colour is not in the palette");
        memcpy(rgb, r->palette + 3 * i, 3);
    }
    return 0;
}

static void from_grey(const struct reader *r, const uint8_t *row, uint8_t *rgb)
{
    const uint32_t scale = r->depth < 8 ? 255u / ((1u << r->depth) - 1) : 1;

    for (uint32_t x = 0; x < r->width; x++, rgb += 3) rgb[0] = rgb[1] = rgb[2] = r->depth < 8 ? (uint8_t)(packed_at(row, x, r->depth) * scale) : row[(size_t)x * r->pixel_bytes];
}

/* Of 16 bits the upper 8; alpha is dropped. */
static void from_colour(const struct reader *r, const uint8_t *row, uint8_t *rgb)
{
    const size_t step = r->depth / 8;

    for (uint32_t x = 0; x < r->width; x++, rgb += 3, row += r->pixel_bytes) {
        rgb[0] = row[0];
        rgb[1] = row[step];
        rgb[2] = row[2 * step];
    }
}

static int expand(struct reader *r, const uint8_t *row, uint8_t *rgb)
{
    if (r->colour == COLOUR_PALETTE) return from_palette(r, row, rgb);
    if (r->channels < 3) from_grey(r, row, rgb);
    else from_colour(r, row, rgb);
    return 0;
}

/* The rows of a strip: RGB of 8 bits is unfiltered where it is handed on, everything else is expanded there. */
static int finish_strip(struct reader *r, uint32_t rows)
{
    const bool direct = r->colour == COLOUR_RGB && r->depth == 8;
    const uint8_t *in = r->strip, *above = r->above;

    for (uint32_t y = 0; y < rows; y++, in += r->row_bytes + 1) {
        uint8_t *rgb = r->rgb + (size_t)y * r->width * 3, *out = direct ? rgb : r->row;
        if (image_png_unfilter(in[0], in + 1, above, out, r->row_bytes, r->pixel_bytes) != 0) return damaged(r, "a row has an unknown filter");
        above = out;
        if (direct) continue;
        const int rc = expand(r, out, rgb);
        if (rc != 0) return rc;
        memcpy(r->above, r->row, r->row_bytes); /* they may not be the same memory */
        above = r->above;
    }
    if (direct) memcpy(r->above, above, r->row_bytes);
    return 0;
}

static int read_rows(struct reader *r, const struct image_sink *sink)
{
    for (uint32_t y = 0; y < r->height;) {
        const uint32_t rows = r->height - y < r->strip_rows ? r->height - y : r->strip_rows;
        int rc = inflate(r, (r->row_bytes + 1) * rows);
        if (rc == 0) rc = finish_strip(r, rows);
        if (rc != 0) return rc;
        sink->rows(sink->context, r->rgb, rows);
        y += rows;
    }
    return 0;
}

/* The checksum behind the last pixel; a file that ends before it has lost nothing that anybody sees. */
static int check_end(struct reader *r)
{
    uint8_t beyond[64];

    r->inflate.next_out = beyond;
    r->inflate.avail_out = sizeof beyond;
    return isal_inflate(&r->inflate) == ISAL_INCORRECT_CHECKSUM ? damaged(r, "a checksum of its pixels is wrong") : 0;
}

int image_png_decode_rows(const uint8_t *file, size_t bytes, const struct image_sink *sink, char why[IMAGE_ERROR_BYTES])
{
    struct reader *r = calloc(1, sizeof *r);

    if (!r) return image_fault(-E_NOMEM, why, "there is no memory for the PNG file");
    r->file = file;
    r->file_bytes = bytes;
    r->why = why;
    isal_inflate_init(&r->inflate);
    r->inflate.crc_flag = ISAL_ZLIB;
    int rc = read_header(r);
    if (rc == 0) rc = read_front(r);
    if (rc == 0) rc = allocate(r);
    if (rc == 0 && sink->begin(sink->context, r->width, r->height) != 0) rc = image_no_memory(r->width, r->height, why);
    if (rc == 0) rc = read_rows(r, sink);
    if (rc == 0) rc = check_end(r);
    free(r->memory);
    free(r);
    return rc;
}

#endif
