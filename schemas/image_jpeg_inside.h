/* schemas/image_jpeg_inside.h - libjpeg-turbo's own structures (jpegint.h), for those who take a step of its work out of its hands.
 *
 * Inside the library nothing is promised from one version to the next: IMAGE_JPEG_INSIDE is defined where the header is there and of the version that the tests have seen. Elsewhere
 * the library does all of it itself, and who includes this leaves it alone. */
#ifndef SLUICE_SCHEMAS_IMAGE_JPEG_INSIDE_H
#define SLUICE_SCHEMAS_IMAGE_JPEG_INSIDE_H

#include <stdio.h>

#include <jpeglib.h>

#if defined(__has_include)
#if __has_include(<jpegint.h>) && LIBJPEG_TURBO_VERSION_NUMBER / 1000 == 2001
#include <jpegint.h>
#define IMAGE_JPEG_INSIDE
#endif
#endif

#endif
