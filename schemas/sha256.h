/* schemas/sha256.h - SHA-256 (FIPS 180-4): names the content of a file so that nobody can make another of the same name. */
#ifndef SLUICE_SCHEMAS_SHA256_H
#define SLUICE_SCHEMAS_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32u

struct sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
    int fast;                         /* 1: by the processor's own instructions; tests set 0 to compare */
};

void sha256_begin(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *data, size_t bytes);
void sha256_end(struct sha256 *s, uint8_t out[SHA256_BYTES]);

#endif
