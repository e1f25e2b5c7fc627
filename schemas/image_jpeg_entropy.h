/* schemas/image_jpeg_entropy.h - reads the Huffman codes of a sequential JPEG in libjpeg-turbo's place; all else stays the library's.
 *
 * Half of what the library takes for a photograph, and three quarters when it is decoded at a fraction, are its codes, one lookup for a code and then the bits of its value. Here a code
 * and its value are looked up together, in a stream from which stuffed bytes are gone. The library calls through its own structure (jpegint.h), so that
 * its headers, inverse transform, upsampling and colours, and with them every byte of the result, stay what they are. What is not sequential, 8 bits and one scan the
 * library reads itself. A stream that is not clean (a code that is none, data that end too early or too late, a restart marker that is not where it belongs) is
 * counted as a warning, as the library counts it: the file is then refused. */
#ifndef SLUICE_SCHEMAS_IMAGE_JPEG_ENTROPY_H
#define SLUICE_SCHEMAS_IMAGE_JPEG_ENTROPY_H

#include <stdio.h>

#include <jpeglib.h>

/* After jpeg_start_decompress, before the first row; the source is the whole file in memory (jpeg_mem_src). Memory is the library's, until jpeg_destroy. */
void image_jpeg_read_codes(j_decompress_ptr jpeg);

#endif
