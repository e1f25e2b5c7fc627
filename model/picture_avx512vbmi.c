/* model/picture_avx512vbmi.c - the passes of picture_resize with AVX-512: bytes picked from anywhere in 64 (VBMI), multiplied in pairs and summed (VNNI).
 *
 * Along rows five pixels of the result are made at once, three channels each, one sum of 32 bits a channel: 15 of a register's 16. Their taps are taken in pairs:
 * one instruction picks the two bytes of every sum from 64 loaded ones, the next multiplies and adds. Where the bytes lie is the same for every pair, six
 * bytes further on each, and the same for all rows: it is worked out once a picture (arrange). Up to a picture 2.3 times as wide as its result one load holds
 * the bytes of all pairs; beyond that each pair has its own. Weights so far apart that a load does not hold the bytes of one pair for five
 * pixels (more than about 4.8 times as wide) are left to AVX2. */
#include "model/picture_passes.h"

#include "shm/error.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#define PIXELS 5u                     /* of a block */
#define LANES 16u
#define BLOCK_BYTES (PIXELS * PICTURE_CHANNELS)
#define LOAD_BYTES 64u
#define PAIR_BYTES (2 * PICTURE_CHANNELS)
#define ROWS 8u                       /* that share a load of weights */
#define EVERY_BYTE (~(__mmask64)0)
#define EVEN_BYTES ((__mmask64)0x5555555555555555ull)

struct block {
    uint8_t pick[LOAD_BYTES];         /* for the 16-bit value at 2 i: its byte in the load; odd ones are zeroed */
    const int16_t *weight;            /* [pairs][LANES][2], borrowed from the plan */
    uint32_t base, pairs, span;       /* first byte of its first load in a row; bytes from there to the last that any pair picks */
    uint8_t pad[44];
};
_Static_assert(sizeof(struct block) % LOAD_BYTES == 0, "picks are aligned");

struct plan {
    uint32_t blocks;
    uint8_t pad[60];
    struct block block[];             /* and the weights behind them */
};

static uint32_t last_of(uint32_t block, uint32_t out_width)
{
    const uint32_t end = (block + 1) * PIXELS;

    return (end < out_width ? end : out_width) - 1;
}

/* The most pairs of any of its pixels; UINT32_MAX: its bytes do not fit into a load. */
static uint32_t pairs_of(const struct picture_taps *t, uint32_t block, uint32_t out_width)
{
    const uint32_t first = block * PIXELS, last = last_of(block, out_width);
    uint32_t most = 0;

    if ((t->first[last] - t->first[first]) * PICTURE_CHANNELS + PAIR_BYTES > LOAD_BYTES) return UINT32_MAX;
    for (uint32_t i = first; i <= last; i++)
        if ((t->count[i] + 1) / 2 > most) most = (t->count[i] + 1) / 2;
    return most;
}

static void fill(struct block *b, int16_t *weight, const struct picture_taps *t, uint32_t first, uint32_t last)
{
    b->base = t->first[first] * PICTURE_CHANNELS;
    b->weight = weight;
    for (uint32_t i = first; i <= last; i++)
        for (uint32_t c = 0; c < PICTURE_CHANNELS; c++) {
            const uint32_t lane = (i - first) * PICTURE_CHANNELS + c, at = (t->first[i] - t->first[first]) * PICTURE_CHANNELS + c;
            b->pick[4 * lane] = (uint8_t)at;
            b->pick[4 * lane + 2] = (uint8_t)(at + PICTURE_CHANNELS);
            for (uint32_t j = 0; j < t->count[i]; j++) weight[(j / 2 * LANES + lane) * 2 + j % 2] = t->weight[(size_t)i * t->stride + j];
        }
}

static int arrange(struct picture_taps *t, uint32_t out_width)
{
    const uint32_t blocks = (out_width + PIXELS - 1) / PIXELS;
    uint64_t pairs = 0;

    for (uint32_t b = 0; b < blocks; b++) {
        const uint32_t n = pairs_of(t, b, out_width);
        if (n == UINT32_MAX) return 0;
        pairs += n;
    }
    const size_t bytes = sizeof(struct plan) + blocks * sizeof(struct block) + pairs * LANES * 2 * sizeof(int16_t);
    struct plan *p = aligned_alloc(LOAD_BYTES, bytes);
    if (!p) return -E_NOMEM;
    memset(p, 0, bytes);
    p->blocks = blocks;
    int16_t *weight = (int16_t *)&p->block[blocks];
    for (uint32_t b = 0; b < blocks; b++) {
        const uint32_t last = last_of(b, out_width);
        p->block[b].pairs = pairs_of(t, b, out_width);
        p->block[b].span = (t->first[last] - t->first[b * PIXELS]) * PICTURE_CHANNELS + p->block[b].pairs * PAIR_BYTES;
        fill(&p->block[b], weight, t, b * PIXELS, last);
        weight += p->block[b].pairs * LANES * 2;
    }
    t->plan = p;
    return 0;
}

static inline __m128i to_bytes(__m512i sum, __m128i bits)
{
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_sra_epi32(sum, bits), _mm512_setzero_si512()));
}

enum reach { REACH_ONE_LOAD, REACH_LOADS, REACH_ROW_END };

struct strip {                        /* rows that are narrowed together, and where in them the next block begins */
    const uint8_t *in;
    uint8_t *out;
    size_t in_bytes, out_bytes;       /* of a row */
    uint32_t bits;
};

/* One block of ROWS rows, or of one. room: bytes of a row from the block's base on; with REACH_ROW_END fewer than its loads would take. */
static inline __attribute__((always_inline)) void make_block(const struct block *b, const struct strip *s, uint32_t room, enum reach reach, uint32_t rows)
{
    const __m512i step = _mm512_set1_epi8(PAIR_BYTES);
    const __m128i shift = _mm_cvtsi32_si128((int)s->bits);
    const uint8_t *from = s->in + b->base;
    __m512i pick = _mm512_load_si512(b->pick), sum[ROWS], loaded[ROWS];

#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++) {
        sum[r] = _mm512_set1_epi32(1 << (s->bits - 1));
        loaded[r] = reach == REACH_ONE_LOAD ? _mm512_loadu_si512(from + r * s->in_bytes) : _mm512_setzero_si512();
    }
    for (uint32_t p = 0, at = 0; p < b->pairs; p++, at += PAIR_BYTES) {
        const __m512i weight = _mm512_loadu_si512(b->weight + p * LANES * 2);
        const __mmask64 here = room >= at + LOAD_BYTES ? EVERY_BYTE : room > at ? EVERY_BYTE >> (LOAD_BYTES - (room - at)) : 0;
#pragma GCC unroll 8
        for (uint32_t r = 0; r < rows; r++) {
            if (reach == REACH_LOADS) loaded[r] = _mm512_loadu_si512(from + r * s->in_bytes + at);
            else if (reach == REACH_ROW_END) loaded[r] = _mm512_maskz_loadu_epi8(here, from + r * s->in_bytes + at);
            sum[r] = _mm512_dpwssd_epi32(sum[r], _mm512_maskz_permutexvar_epi8(EVEN_BYTES, pick, loaded[r]), weight);
        }
        if (reach == REACH_ONE_LOAD) pick = _mm512_add_epi8(pick, step);
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++) {
        if (reach == REACH_ROW_END) _mm_mask_storeu_epi8(s->out + r * s->out_bytes, (__mmask16)((1u << BLOCK_BYTES) - 1), to_bytes(sum[r], shift));
        else _mm_storeu_si128((__m128i *)(s->out + r * s->out_bytes), to_bytes(sum[r], shift)); /* the 16th byte is the next block's, which comes next */
    }
}

/* The block at the end of a row, which may have fewer pixels. */
static void make_last(const struct block *b, const struct strip *s, uint32_t rows, uint32_t bytes)
{
    for (uint32_t r = 0; r < rows; r++) {
        uint8_t whole[BLOCK_BYTES];
        const struct strip one = {s->in + r * s->in_bytes, whole, s->in_bytes, sizeof whole, s->bits};
        make_block(b, &one, (uint32_t)s->in_bytes - b->base, REACH_ROW_END, 1);
        memcpy(s->out + r * s->out_bytes, whole, bytes);
    }
}

static inline __attribute__((always_inline)) void make_rows(const struct plan *p, struct strip s, uint32_t rows)
{
    for (uint32_t i = 0; i + 1 < p->blocks; i++, s.out += BLOCK_BYTES) {
        const struct block *b = &p->block[i];
        const uint32_t room = (uint32_t)s.in_bytes - b->base;
        if (room < b->pairs * PAIR_BYTES + LOAD_BYTES) make_block(b, &s, room, REACH_ROW_END, rows);
        else if (b->span <= LOAD_BYTES) make_block(b, &s, room, REACH_ONE_LOAD, rows);
        else make_block(b, &s, room, REACH_LOADS, rows);
    }
    make_last(&p->block[p->blocks - 1], &s, rows, (uint32_t)s.out_bytes - (p->blocks - 1) * BLOCK_BYTES);
}

static void across(const uint8_t *in, uint32_t width, uint32_t rows, uint8_t *out, uint32_t out_width, const struct picture_taps *t)
{
    struct strip s = {in, out, (size_t)width * PICTURE_CHANNELS, (size_t)out_width * PICTURE_CHANNELS, t->bits};

    if (!t->plan) {
        picture_passes_avx2.across(in, width, rows, out, out_width, t);
        return;
    }
    for (; rows >= ROWS; rows -= ROWS, s.in += ROWS * s.in_bytes, s.out += ROWS * s.out_bytes) make_rows(t->plan, s, ROWS);
    for (; rows > 0; rows--, s.in += s.in_bytes, s.out += s.out_bytes) make_rows(t->plan, s, 1);
}

/* 64 bytes of row `row` of the result (fewer: the mask's). Two rows' bytes beside each other, widened, are the pairs that are multiplied. */
static inline void down_block(const uint8_t *top, uint32_t bytes, uint8_t *out, __mmask64 here, const struct picture_taps *t, uint32_t row)
{
    const int16_t *w = t->weight + (size_t)row * t->stride;
    const uint32_t count = t->count[row];
    const __m128i bits = _mm_cvtsi32_si128((int)t->bits);
    const __m512i zero = _mm512_setzero_si512();
    __m512i s0 = _mm512_set1_epi32(1 << (t->bits - 1)), s1 = s0, s2 = s0, s3 = s0;

    for (uint32_t j = 0; j < count; j += 2, top += 2 * (size_t)bytes) {
        const __m512i a = _mm512_maskz_loadu_epi8(here, top), b = j + 1 < count ? _mm512_maskz_loadu_epi8(here, top + bytes) : a; /* an odd last tap has a weight of 0 beside it */
        const __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
        int32_t pair;
        memcpy(&pair, w + j, sizeof pair);
        const __m512i weight = _mm512_set1_epi32(pair);
        s0 = _mm512_dpwssd_epi32(s0, _mm512_unpacklo_epi8(low, zero), weight);
        s1 = _mm512_dpwssd_epi32(s1, _mm512_unpackhi_epi8(low, zero), weight);
        s2 = _mm512_dpwssd_epi32(s2, _mm512_unpacklo_epi8(high, zero), weight);
        s3 = _mm512_dpwssd_epi32(s3, _mm512_unpackhi_epi8(high, zero), weight);
    }
    const __m512i low = _mm512_packs_epi32(_mm512_sra_epi32(s0, bits), _mm512_sra_epi32(s1, bits)), high = _mm512_packs_epi32(_mm512_sra_epi32(s2, bits), _mm512_sra_epi32(s3, bits));
    _mm512_mask_storeu_epi8(out, here, _mm512_packus_epi16(low, high));
}

static void down(const uint8_t *top, uint32_t bytes, uint8_t *out, uint32_t row, const struct picture_taps *t)
{
    uint32_t x = 0;

    for (; x + LOAD_BYTES <= bytes; x += LOAD_BYTES) down_block(top + x, bytes, out + x, EVERY_BYTE, t, row);
    if (x < bytes) down_block(top + x, bytes, out + x, EVERY_BYTE >> (LOAD_BYTES - (bytes - x)), t, row);
}

bool picture_avx512vbmi_is_here(void)
{
    return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

const struct picture_passes picture_passes_avx512vbmi = {arrange, across, down};

#endif
