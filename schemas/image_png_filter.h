/* schemas/image_png_filter.h - undoes the filters of PNG's rows (PNG specification, section 9), as image_png_rows.c needs it. */
#ifndef SLUICE_SCHEMAS_IMAGE_PNG_FILTER_H
#define SLUICE_SCHEMAS_IMAGE_PNG_FILTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMAGE_PNG_PAD 16u /* bytes behind the end of every row that may be read, and of `out` that may be written */

enum image_png_filter { FILTER_NONE = 0, FILTER_SUB = 1, FILTER_UP = 2, FILTER_AVERAGE = 3, FILTER_PAETH = 4 };

/* One row: `out` = the filtered bytes `in` put right, from the row above (zeros above the first). pixel_bytes: 1, 2, 3, 4, 6 or 8.
 * 0, or -E_FORMAT: no such filter. Different memory for in, above and out. */
int image_png_unfilter(uint8_t filter, const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes, size_t pixel_bytes);

#if defined(__x86_64__)
/* Did it? It knows pixels of three and four bytes, and "up". Only where there is AVX2. */
bool image_png_unfilter_avx2(uint8_t filter, const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes, size_t pixel_bytes);
#endif

#endif
