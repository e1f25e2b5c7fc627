/* schemas/image_jpeg.c - JPEG by libjpeg-turbo: baseline and progressive, grey, YCbCr, RGB, CMYK and YCCK.
 *
 * Codes of the usual kind are read by image_jpeg_entropy.c, half of the work, and its usual colours are made by image_jpeg_rgb.c; the settings are the library's defaults (accurate integer transform, fancy upsampling), which are also those of the reference's
 * loader: the same version of the library gives the same bytes. Errors of the library come back by longjmp: nothing with a
 * destructor lives between. A progressive file of very many scans is stopped: each costs a pass over the whole picture. */
#include "schemas/image.h"

#include "schemas/image_jpeg_entropy.h"
#include "schemas/image_jpeg_rgb.h"
#include "shm/error.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#define STRIP_ROWS 16u
#define EXIF_HEAD_BYTES 6u /* "Exif\0\0" in front of the TIFF header */

struct decoder {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf back;
    uint32_t scans_max;
    int code;
    char *why;
};

static void on_error(j_common_ptr jpeg)
{
    struct decoder *d = jpeg->client_data;
    char text[JMSG_LENGTH_MAX];

    if (d->code == 0) {
        d->errors.format_message(jpeg, text);
        d->code = image_fault(-E_FORMAT, d->why, "the JPEG file cannot be decoded: %.100s", text);
    }
    longjmp(d->back, 1);
}

static void on_warning(j_common_ptr jpeg, int level)
{
    if (level < 0) jpeg->err->num_warnings++;
}

static void on_message(j_common_ptr jpeg)
{
    (void)jpeg;
}

static void on_progress(j_common_ptr jpeg)
{
    struct decoder *d = jpeg->client_data;

    if (d->jpeg.input_scan_number <= (int)d->scans_max) return;
    d->code = image_fault(-E_LIMIT, d->why, "the JPEG file has more than %u scans", d->scans_max);
    longjmp(d->back, 1);
}

/* Follow with setjmp(d->back) before any other call. */
static void decoder_init(struct decoder *d, uint32_t scans_max, char *why)
{
    memset(d, 0, sizeof *d);
    d->why = why;
    d->scans_max = scans_max;
    d->jpeg.err = jpeg_std_error(&d->errors);
    d->errors.error_exit = on_error;
    d->errors.emit_message = on_warning;
    d->errors.output_message = on_message;
    d->progress.progress_monitor = on_progress;
    d->jpeg.client_data = d;
}

static void decoder_begin(struct decoder *d, const uint8_t *file, size_t bytes)
{
    jpeg_create_decompress(&d->jpeg);
    d->jpeg.progress = &d->progress;
    jpeg_mem_src(&d->jpeg, file, bytes);
}

static void read_exif(const struct decoder *d, struct image_info *info)
{
    for (const struct jpeg_marker_struct *m = d->jpeg.marker_list; m; m = m->next)
        if (m->marker == JPEG_APP0 + 1 && m->data_length > EXIF_HEAD_BYTES && memcmp(m->data, "Exif\0\0", EXIF_HEAD_BYTES) == 0) {
            info->orientation = image_exif_orientation(m->data + EXIF_HEAD_BYTES, m->data_length - EXIF_HEAD_BYTES);
            return;
        }
}

int image_jpeg_probe(const uint8_t *file, size_t bytes, struct image_info *info, char why[IMAGE_ERROR_BYTES])
{
    struct decoder d;

    decoder_init(&d, UINT16_MAX, why);
    if (setjmp(d.back) == 0) {
        decoder_begin(&d, file, bytes);
        jpeg_save_markers(&d.jpeg, JPEG_APP0 + 1, 0xffff);
        if (jpeg_read_header(&d.jpeg, TRUE) == JPEG_HEADER_OK) {
            info->width = d.jpeg.image_width;
            info->height = d.jpeg.image_height;
            read_exif(&d, info);
        }
    }
    jpeg_destroy_decompress(&d.jpeg);
    return d.code;
}

/* Adobe's programs store CMYK upside down, and say so by their marker: 255 is no ink. */
static void from_cmyk(uint8_t *rgb, const uint8_t *cmyk, uint32_t width, bool inverted)
{
    for (uint32_t x = 0; x < width; x++, rgb += 3, cmyk += 4) {
        const uint32_t k = inverted ? cmyk[3] : 255u - cmyk[3]; /* what the black ink lets through */
        for (int i = 0; i < 3; i++) {
            const uint32_t ink = inverted ? 255u - cmyk[i] : cmyk[i], t = ink * k + 128;
            rgb[i] = (uint8_t)(k - (((t >> 8) + t) >> 8));
        }
    }
}

/* A few rows at a time, which are still in the cache when the sink looks at them. Longjmps out of it come to image_jpeg_decode. */
static void read_rows(struct decoder *d, uint8_t *strip, uint8_t *line, const struct image_sink *sink)
{
    const bool cmyk = d->jpeg.out_color_space == JCS_CMYK, inverted = d->jpeg.saw_Adobe_marker;
    const size_t row_bytes = (size_t)d->jpeg.output_width * 3;

    while (d->jpeg.output_scanline < d->jpeg.output_height) {
        uint32_t rows = 0;
        while (rows < STRIP_ROWS && d->jpeg.output_scanline < d->jpeg.output_height) {
            uint8_t *rgb = strip + rows * row_bytes;
            JSAMPROW row = cmyk ? line : rgb;
            if (jpeg_read_scanlines(&d->jpeg, &row, 1) != 1) return;
            if (cmyk) from_cmyk(rgb, line, d->jpeg.output_width, inverted);
            rows++;
        }
        sink->rows(sink->context, strip, rows);
    }
}

static void decode(struct decoder *d, uint8_t *volatile *memory, uint32_t shrink, const struct image_sink *sink)
{
    jpeg_read_header(&d->jpeg, TRUE);
    d->jpeg.scale_num = 1;
    d->jpeg.scale_denom = shrink;
    d->jpeg.out_color_space = d->jpeg.jpeg_color_space == JCS_CMYK || d->jpeg.jpeg_color_space == JCS_YCCK ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&d->jpeg);
    image_jpeg_read_codes(&d->jpeg);
    image_jpeg_make_rgb(&d->jpeg);
    const uint32_t width = d->jpeg.output_width, height = d->jpeg.output_height;
    uint8_t *strip = *memory = malloc((size_t)width * (3 * STRIP_ROWS + 4));
    if (!strip || sink->begin(sink->context, width, height) != 0) d->code = image_no_memory(width, height, d->why);
    else {
        read_rows(d, strip, strip + (size_t)width * 3 * STRIP_ROWS, sink);
        jpeg_finish_decompress(&d->jpeg);
    }
}

int image_jpeg_decode(const uint8_t *file, size_t bytes, uint32_t scans_max, uint32_t shrink, const struct image_sink *sink, char why[IMAGE_ERROR_BYTES])
{
    struct decoder d;
    uint8_t *volatile memory = NULL;

    decoder_init(&d, scans_max, why);
    if (setjmp(d.back) == 0) {
        decoder_begin(&d, file, bytes);
        decode(&d, &memory, shrink, sink);
    }
    if (d.code == 0 && d.errors.num_warnings > 0) d.code = image_fault(-E_FORMAT, why, "the JPEG file is damaged or cut off");
    jpeg_destroy_decompress(&d.jpeg);
    free(memory);
    return d.code;
}
