/* schemas/image_jpeg_entropy.c - Huffman codes of a sequential JPEG, code and value at once (contract in image_jpeg_entropy.h).
 *
 * Data goes piece by piece from the file into `clean`, without stuffed bytes and up to the next marker; behind its end stand zeros, more than one unit (MCU) can
 * take, so that a unit is read without looking at the end: whether it went too far is asked once, afterwards. */
#include "schemas/image_jpeg_entropy.h"

#include "schemas/image_jpeg_inside.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef IMAGE_JPEG_INSIDE

#define LOOK_BITS 11u                 /* looked up at once; codes and values that are longer together take a second step */
#define LOOK (1u << LOOK_BITS)
#define CODE_BITS_MAX 16u
#define VALUE_BITS_MAX 15u
#define SYMBOLS_MAX 256u
#define REFILL_BITS 56u               /* sure after a refill */
#define FAST_MAX (REFILL_BITS / LOOK_BITS)
#define UNIT_BYTES_MAX (D_MAX_BLOCKS_IN_MCU * DCTSIZE2 * (CODE_BITS_MAX + VALUE_BITS_MAX + 1) / 8)
#define CLEAN_BYTES (32u << 10)
#define PLACES (2 * DCTSIZE2 + 16)    /* a run may lead 15 places too far, the end of a block behind it 65 more, on purpose or not */
#define RUN_TO_END DCTSIZE2

_Static_assert(BITS_IN_JSAMPLE == 8 && UNIT_BYTES_MAX < CLEAN_BYTES, "a unit fits");

/* A coefficient in one word: its value (16 bits, signed), how many zeros come before it (8; RUN_TO_END: there are no more), and how many bits code and value
 * take (8; 0: more than LOOK_BITS; then there stand the symbol (8) and the bits of its code (8) in front, or zeros: that one is too long, too, or it is no code). */
struct table {
    uint32_t two[LOOK];               /* by the next bits, of AC codes: see below */
    uint32_t coefficient[LOOK];       /* by the next bits: see above */
    int32_t last[CODE_BITS_MAX + 2];  /* the largest code of so many bits; -1: there is none */
    int32_t offset[CODE_BITS_MAX + 1]; /* of a code's symbol: symbol[code + offset] */
    uint8_t symbol[SYMBOLS_MAX];
};

/* Two coefficients in one word of the other table, since most take four or five bits; small, for a table that falls out of the nearest cache costs more than it saves.
 * From the top the first value (9 bits) and the second (7), places from the first to the second (6; TO_END: the block ends), zeros before the first (4), bits of both (6;
 * 0: not even the first is whole, or it does not fit). Where the second is not whole it has the place of the first. */
#define FIRST_SHIFT 23u
#define SECOND_SHIFT 16u
#define SECOND_MAX 63
#define FIRST_MAX 255
#define STEP_SHIFT 10u
#define STEP_MASK 63u
#define TO_END STEP_MASK
#define RUN_SHIFT 6u
#define RUN_MASK 15u
#define BITS_MASK 63u

struct reader { const uint8_t *at; uint64_t bits; uint32_t count; };   /* bits: those that come next, from the top; count of them are sure */

struct codes {
    struct jpeg_entropy_decoder library; /* first: the library holds a pointer to it */
    struct reader r;
    const uint8_t *end;               /* of what is clean */
    const uint8_t *from, *stop;       /* of the file: what is to be cleaned */
    bool ended;                       /* from is at a marker, or at stop */
    bool damaged;
    uint32_t units_left, until_restart, restart;
    int last_dc[MAX_COMPS_IN_SCAN];
    struct table *dc[NUM_HUFF_TBLS], *ac[NUM_HUFF_TBLS];
    struct { const struct table *dc, *ac; int *last_dc; } block[D_MAX_BLOCKS_IN_MCU]; /* of a unit */
    uint8_t clean[CLEAN_BYTES + UNIT_BYTES_MAX + 16];
};

/* In the order of the code; behind them the last place again and again. */
static const uint8_t place[PLACES] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    [DCTSIZE2 ... PLACES - 1] = 63};

/* ---- tables ---------------------------------------------------------------------------- */

/* The number that `bits` bits stand for: those that begin with 0 are negative. */
static inline int value_of(uint32_t code, uint32_t bits)
{
    return bits == 0 ? 0 : code >> (bits - 1) ? (int)code : (int)code - (1 << bits) + 1;
}

static inline uint32_t size_of(uint32_t symbol, bool is_dc) { return is_dc ? symbol : symbol & 15; }

static inline uint32_t pack(int value, uint32_t symbol, uint32_t bits, bool is_dc)
{
    const uint32_t run = is_dc ? 0 : symbol < 15 << 4 && (symbol & 15) == 0 ? RUN_TO_END : symbol >> 4;

    return (uint32_t)value << 16 | run << 8 | bits;
}

static inline int value_in(uint32_t coefficient) { return (int16_t)(coefficient >> 16); }
static inline uint32_t run_in(uint32_t coefficient) { return coefficient >> 8 & 0xff; }

/* Entries of one code of `bits` bits: for each beginning of a value that fits behind it. */
static void enter(struct table *t, uint32_t code, uint32_t bits, uint32_t symbol, bool is_dc)
{
    const uint32_t size = size_of(symbol, is_dc), room = LOOK_BITS - bits;

    for (uint32_t rest = 0; rest < 1u << room; rest++)
        t->coefficient[code << room | rest] = size > room ? symbol << 24 | bits << 16 : pack(value_of(rest >> (room - size), size), symbol, bits + size, is_dc);
}

static bool is_within(int value, int most) { return value >= -most && value <= most; }

static void pair_up(struct table *t)
{
    for (uint32_t next = 0; next < LOOK; next++) {
        const uint32_t first = t->coefficient[next], bits = first & 0xff, more = t->coefficient[next << bits & (LOOK - 1)];
        const bool ends = run_in(first) == RUN_TO_END;
        const bool two = !ends && (more & 0xff) && bits + (more & 0xff) <= LOOK_BITS && is_within(value_in(more), SECOND_MAX);
        const uint32_t step = ends || (two && run_in(more) == RUN_TO_END) ? TO_END : two ? run_in(more) + 1 : 0;
        if (bits == 0 || !is_within(value_in(first), FIRST_MAX)) continue;
        t->two[next] = (uint32_t)value_in(first) << FIRST_SHIFT | ((uint32_t)value_in(two ? more : 0) & 127) << SECOND_SHIFT | step << STEP_SHIFT | (ends ? 0 : run_in(first)) << RUN_SHIFT |
                       (two ? bits + (more & 0xff) : bits);
    }
}

/* The library has looked at the table before: its counts are possible. */
static struct table *make_table(j_decompress_ptr j, const JHUFF_TBL *from, bool is_dc)
{
    struct table *t = j->mem->alloc_large((j_common_ptr)j, JPOOL_IMAGE, sizeof *t);
    uint32_t code = 0, index = 0;

    memset(t, 0, sizeof *t);
    memcpy(t->symbol, from->huffval, sizeof t->symbol);
    for (uint32_t bits = 1; bits <= CODE_BITS_MAX; bits++, code <<= 1) {
        t->offset[bits] = (int32_t)index - (int32_t)code;
        for (uint32_t i = 0; i < from->bits[bits] && index < SYMBOLS_MAX; i++, code++, index++)
            if (bits <= LOOK_BITS && code < 1u << bits) enter(t, code, bits, from->huffval[index], is_dc);
        t->last[bits] = from->bits[bits] ? (int32_t)code - 1 : -1;
    }
    t->last[CODE_BITS_MAX + 1] = INT32_MAX;
    if (!is_dc) pair_up(t);
    return t;
}

/* ---- data ------------------------------------------------------------------------------------ */

static void damage(j_decompress_ptr j, struct codes *c)
{
    c->damaged = true;
    c->library.insufficient_data = TRUE;
    j->err->num_warnings++;
}

/* Bytes of the file up to `room`, without what is stuffed; sets ended. Where the next one goes. */
static uint8_t *clean_some(struct codes *c, uint8_t *to, const uint8_t *room)
{
    while (to < room) {
        const size_t left = (size_t)(c->stop - c->from), most = left < (size_t)(room - to) ? left : (size_t)(room - to);
        const uint8_t *mark = memchr(c->from, 0xff, most);
        const size_t n = mark ? (size_t)(mark - c->from) : most;

        memcpy(to, c->from, n);
        to += n;
        c->from += n;
        if (c->from == c->stop) break;
        if (!mark) continue;
        if (c->stop - c->from >= 2 && c->from[1] == 0) {
            *to++ = 0xff;
            c->from += 2;
        } else {                      /* a marker, with any number of these in front; or nothing that may stand here */
            while (c->stop - c->from >= 2 && c->from[1] == 0xff) c->from++;
            c->ended = true;
            return to;
        }
    }
    c->ended = c->from == c->stop;
    return to;
}

/* What is not read yet moves to the front, and as much as fits comes behind it. The reader keeps the bits that it has. */
static void clean_more(struct codes *c)
{
    const size_t left = (size_t)(c->end - c->r.at);

    memmove(c->clean, c->r.at, left);
    uint8_t *end = clean_some(c, c->clean + left, c->clean + CLEAN_BYTES);
    if (c->ended) memset(end, 0, UNIT_BYTES_MAX + 16);
    c->r.at = c->clean;
    c->end = end;
}

/* Clean bytes that no code has used, the last one of which a bit was used not among them; negative: codes went beyond the end. */
static int64_t unused(const struct codes *c)
{
    return (c->end - c->r.at) + (int64_t)(c->r.count / 8);
}

static void begin_interval(struct codes *c)
{
    c->r = (struct reader){.at = c->clean};
    c->end = c->clean;
    c->ended = false;
    c->until_restart = c->restart;
    memset(c->last_dc, 0, sizeof c->last_dc);
    clean_more(c);
}

/* Every so many units the codes begin anew behind a marker with a number that goes round. */
static bool restart(j_decompress_ptr j, struct codes *c)
{
    if (unused(c) != 0 || !c->ended || c->stop - c->from < 2 || c->from[1] != JPEG_RST0 + j->marker->next_restart_num) return false;
    c->from += 2;
    j->marker->next_restart_num = (j->marker->next_restart_num + 1) & 7;
    begin_interval(c);
    return true;
}

/* The library goes on at the marker behind the codes. A few bytes too many are nobody's harm (it has read them, too). */
static void end_codes(j_decompress_ptr j, struct codes *c)
{
    if (unused(c) > (int64_t)sizeof c->r.bits) damage(j, c);
    j->src->next_input_byte = c->from;
    j->src->bytes_in_buffer = (size_t)(c->stop - c->from);
}

/* ---- codes -------------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) void refill(struct reader *r)
{
    uint64_t next;

    memcpy(&next, r->at, sizeof next);
    r->bits |= __builtin_bswap64(next) >> r->count;
    r->at += (63 - r->count) >> 3;
    r->count |= REFILL_BITS;
}

static inline __attribute__((always_inline)) void drop(struct reader *r, uint32_t bits)
{
    r->bits <<= bits;
    r->count -= bits;
}

/* One that the table does not hold whole; known: what it says. 0: it is no code. */
static __attribute__((noinline)) uint32_t read_long(uint64_t next, const struct table *t, uint32_t known, bool is_dc)
{
    uint32_t bits = known >> 16 & 0xff, symbol = known >> 24;

    if (bits == 0) {
        bits = LOOK_BITS + 1;
        while (bits <= CODE_BITS_MAX && (int32_t)(next >> (64 - bits)) > t->last[bits]) bits++;
        if (bits > CODE_BITS_MAX) return 0;
        symbol = t->symbol[((int32_t)(next >> (64 - bits)) + t->offset[bits]) & (int32_t)(SYMBOLS_MAX - 1)];
    }
    const uint32_t size = size_of(symbol, is_dc);
    return pack(size ? value_of((uint32_t)(next << bits >> (64 - size)), size) : 0, symbol, bits + size, is_dc);
}

/* After a refill. 0: no code. */
static inline __attribute__((always_inline)) uint32_t read_one(struct reader *r, const struct table *t, bool is_dc)
{
    uint32_t c = t->coefficient[r->bits >> (64 - LOOK_BITS)];

    if ((c & 0xff) == 0) c = read_long(r->bits, t, c, is_dc);
    drop(r, c & 0xff);
    return c;
}

/* The reader by value while it works: in registers. A refill is good for FAST_MAX lookups, so that most are made without asking how many bits are left, which nobody could
 * predict. Whether a block ended with the first of two coefficients, so that the second is the next block's, is asked once, behind its end. */
static inline __attribute__((always_inline)) bool read_block(struct reader *reader, const struct table *dc, const struct table *ac, int *last_dc, JCOEF *block)
{
    struct reader r = *reader;
    uint32_t k = 1;

    refill(&r);
    uint32_t c = read_one(&r, dc, true);
    if (c == 0) return false;
    *last_dc = (int)((unsigned)*last_dc + (unsigned)value_in(c));
    block[0] = (JCOEF)*last_dc;
    do {
        refill(&r);
#pragma GCC unroll 5
        for (uint32_t i = 0; i < FAST_MAX; i++) {
            const struct reader before = r;
            const uint32_t two = ac->two[r.bits >> (64 - LOOK_BITS)];
            if (__builtin_expect(two == 0, 0)) {
                refill(&r);
                c = read_one(&r, ac, false);
                if (c == 0) return false;
                k += run_in(c);
                block[place[k]] = (JCOEF)value_in(c);
                k++;
                break;
            }
            drop(&r, two & BITS_MASK);
            const uint32_t first = k + (two >> RUN_SHIFT & RUN_MASK), step = two >> STEP_SHIFT & STEP_MASK;
            k = first + step;
            block[place[k]] = (JCOEF)((int32_t)(two << (32 - FIRST_SHIFT)) >> (32 - FIRST_SHIFT + SECOND_SHIFT));
            block[place[first]] = (JCOEF)((int32_t)two >> FIRST_SHIFT); /* last, for both may have one place. The end of a block and runs of 16 write a zero where one is */
            if (++k < DCTSIZE2) continue;
            if (first >= DCTSIZE2 - 1 && step > 0) {
                r = before;
                drop(&r, ac->coefficient[r.bits >> (64 - LOOK_BITS)] & 0xff);
            }
            break;
        }
    } while (k < DCTSIZE2);
    *reader = r;
    return true;
}

static inline __attribute__((always_inline)) boolean read_unit(j_decompress_ptr j, JBLOCKROW *blocks)
{
    struct codes *c = (struct codes *)j->entropy;

    if (c->damaged) return TRUE;      /* zeros: the file is refused */
    if (c->restart && c->until_restart-- == 0) {
        if (!restart(j, c)) {
            damage(j, c);
            return TRUE;
        }
        c->until_restart--;
    }
    if ((size_t)(c->end - c->r.at) < UNIT_BYTES_MAX + 8 && !c->ended) clean_more(c);
    struct reader r = c->r;           /* in registers from block to block */
    for (int b = 0; b < j->blocks_in_MCU; b++)
        if (!read_block(&r, c->block[b].dc, c->block[b].ac, c->block[b].last_dc, *blocks[b])) {
            damage(j, c);
            return TRUE;
        }
    c->r = r;
    if (unused(c) < 0) damage(j, c);
    else if (--c->units_left == 0) end_codes(j, c);
    return TRUE;
}

static boolean decode_unit(j_decompress_ptr j, JBLOCKROW *blocks) { return read_unit(j, blocks); }

#if defined(__x86_64__)
/* Shifts by a register in one step, without the flags. */
static __attribute__((target("bmi2"))) boolean decode_unit_bmi2(j_decompress_ptr j, JBLOCKROW *blocks) { return read_unit(j, blocks); }
#endif

void image_jpeg_read_codes(j_decompress_ptr j)
{
    if (j->progressive_mode || j->arith_code || j->data_precision != 8 || jpeg_has_multiple_scans(j) || j->unread_marker || j->MCUs_per_row == 0 || j->MCU_rows_in_scan == 0) return;
    struct codes *c = j->mem->alloc_large((j_common_ptr)j, JPOOL_IMAGE, sizeof *c);
    memset(c, 0, offsetof(struct codes, clean));
    for (int i = 0; i < j->comps_in_scan; i++) { /* the library has refused tables that are not there */
        const jpeg_component_info *component = j->cur_comp_info[i];
        struct table **dc = &c->dc[component->dc_tbl_no], **ac = &c->ac[component->ac_tbl_no];
        if (!*dc) *dc = make_table(j, j->dc_huff_tbl_ptrs[component->dc_tbl_no], true);
        if (!*ac) *ac = make_table(j, j->ac_huff_tbl_ptrs[component->ac_tbl_no], false);
    }
    for (int b = 0; b < j->blocks_in_MCU; b++) {
        const jpeg_component_info *component = j->cur_comp_info[j->MCU_membership[b]];
        c->block[b].dc = c->dc[component->dc_tbl_no];
        c->block[b].ac = c->ac[component->ac_tbl_no];
        c->block[b].last_dc = &c->last_dc[j->MCU_membership[b]];
    }
    c->library = *j->entropy;
    c->library.decode_mcu = decode_unit;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("bmi2")) c->library.decode_mcu = decode_unit_bmi2;
#endif
    c->from = j->src->next_input_byte;
    c->stop = c->from + j->src->bytes_in_buffer;
    c->units_left = j->MCUs_per_row * j->MCU_rows_in_scan;
    c->restart = j->restart_interval;
    begin_interval(c);
    j->entropy = &c->library;
}

#else

void image_jpeg_read_codes(j_decompress_ptr j) { (void)j; } /* without the library's own header, or with another version of it, it reads them itself */

#endif
