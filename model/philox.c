/* model/philox.c - see philox.h: ten rounds of two 32x32 multiplications, keys stepped by Weyl constants. */
#include "model/philox.h"

struct philox_block philox4x32_10(struct philox_block counter, uint32_t key0, uint32_t key1)
{
    uint32_t *x = counter.word;

    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xd2511f53u * x[0], b = (uint64_t)0xcd9e8d57u * x[2];
        const uint32_t x0 = (uint32_t)(b >> 32) ^ x[1] ^ key0, x2 = (uint32_t)(a >> 32) ^ x[3] ^ key1;

        x[1] = (uint32_t)b;
        x[3] = (uint32_t)a;
        x[0] = x0;
        x[2] = x2;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return counter;
}
