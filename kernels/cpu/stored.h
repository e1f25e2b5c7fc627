/* kernels/cpu/stored.h - y = x W^T for W in FP8 or FP4 codes (kernels/stored.h), in the tiles and lanes of linear.h.
 *
 * Codes become f32 in registers, 32 of them at a time. E4M3 comes out of vec_load_e4m3 as 2^-8 of its value; the factor
 * 2^8 goes into the last multiplication of a sum, where it is exact. Three kinds, each a constant where tiles are inlined:
 * Many rows of x meet the same codes again and again: then a tile's rows of W are widened once into a scratch on the stack, to 16 bits,
 * which hold a code (times its group's scale) exactly, or to f32 (BLOCK), and the tiles of linear.h do the rest, with the same bits.
 * From how many blocks of rows on that pays stands beside the tile sizes (STORED_WIDE_LATE, STORED_WIDE_SCALED for BLOCK and GROUP).
 *   LATE    one scale for a row: it multiplies the sum
 *   BLOCK   a scale for 128 columns of 128 rows: multiplies the codes
 *   GROUP   a scale for 16 columns of a row, an E4M3 code itself: multiplies the codes, exactly; the global factor the sum */
#define STORED_KIND_LATE 0
#define STORED_KIND_BLOCK 1
#define STORED_KIND_GROUP 2
#define STORED_STEP 256u              /* GROUP: columns whose scales are widened together */
#define STORED_SCRATCH_K 16384u       /* longer rows are widened in registers each time */
#define STORED_CODE_FACTOR 256.0f     /* see above */

struct stored_rows {                  /* consecutive rows of W */
    const uint8_t *code;
    const uint8_t *group;             /* GROUP: of the first row */
    uint64_t row_bytes, group_stride;
};

VEC void stored_load2(vec *a, vec *b, const uint8_t *p, const int kind)
{
    if (kind == STORED_KIND_GROUP) vec_load2_e2m1(a, b, p);
    else vec_load2_e4m3(a, b, p);
}

/* The group scales of columns [from, to) of each row. Reads nothing beyond `to`. */
VEC void stored_groups(float scale[][STORED_STEP / STORED_GROUP], const struct stored_rows *w, const int n, uint32_t from, uint32_t to)
{
    UNROLL for (int a = 0; a < n; a++) {
        const uint8_t *group = w->group + a * w->group_stride + from / STORED_GROUP;
        uint8_t code[STORED_STEP / STORED_GROUP] = { 0 };

        if (to - from < STORED_STEP) {
            memcpy(code, group, (to - from) / STORED_GROUP);
            group = code;
        }
        vec_store(scale[a], vec_load_e4m3(group));
    }
}

/* The factor that codes of row a at column i take before they meet x. */
VEC vec stored_factor(const int kind, float scale[][STORED_STEP / STORED_GROUP], vec block, int a, uint32_t i)
{
    return kind == STORED_KIND_GROUP ? vec_set(scale[a][i % STORED_STEP / STORED_GROUP]) : block;
}

/* 16 columns that no pair of vectors covers: k % 32 == 16. */
VEC void stored_odd(vec *acc, const int n, const int m, const int kind, const float *x, uint64_t x_stride, const struct stored_rows *w,
                    float scale[][STORED_STEP / STORED_GROUP], vec block, uint32_t i)
{
    UNROLL for (int a = 0; a < n; a++) {
        const uint8_t *p = w->code + a * w->row_bytes + (kind == STORED_KIND_GROUP ? i / 2 : i);
        vec weight = kind == STORED_KIND_GROUP ? vec_load_e2m1(p) : vec_load_e4m3(p);

        if (kind != STORED_KIND_LATE) weight = vec_mul(weight, stored_factor(kind, scale, block, a, i));
        UNROLL for (int b = 0; b < m; b++) acc[a * m + b] = vec_fma(weight, vec_load(x + b * x_stride + i), acc[a * m + b]);
    }
}

/* acc[n][m] += lanes of W[n] . x[m] over [from, to), whose scales are `block` or the groups'. */
VEC void stored_lanes(vec *acc, const int n, const int m, const int kind, const float *x, uint64_t x_stride, const struct stored_rows *w,
                      vec block, uint32_t from, uint32_t to, const int ahead)
{
    float scale[LINEAR_N1][STORED_STEP / STORED_GROUP];
    uint32_t i;

    if (kind == STORED_KIND_GROUP) stored_groups(scale, w, n, from, to);
    for (i = from; i + 32 <= to; i += 32) {
        const uint32_t at = kind == STORED_KIND_GROUP ? i / 2 : i;

        UNROLL for (int a = 0; a < n; a++) {
            const uint8_t *p = w->code + a * w->row_bytes + at;
            vec low, high;

            if (ahead && at % 64 == 0) __builtin_prefetch(p + n * w->row_bytes, 0, 2);
            stored_load2(&low, &high, p, kind);
            if (kind != STORED_KIND_LATE) {
                low = vec_mul(low, stored_factor(kind, scale, block, a, i));
                high = vec_mul(high, stored_factor(kind, scale, block, a, i + 16));
            }
            UNROLL for (int b = 0; b < m; b++) acc[a * m + b] = vec_fma(low, vec_load(x + b * x_stride + i), acc[a * m + b]);
            UNROLL for (int b = 0; b < m; b++) acc[a * m + b] = vec_fma(high, vec_load(x + b * x_stride + i + 16), acc[a * m + b]);
        }
    }
    if (i < to) stored_odd(acc, n, m, kind, x, x_stride, w, scale, block, i);
}

/* A complete sum of row `row`, scaled. */
VEC float stored_finish(float sum, const int kind, const struct stored_matrix *w, uint32_t row)
{
    sum *= STORED_CODE_FACTOR;
    if (kind == STORED_KIND_LATE) return sum * w->scale[row / w->scale_rows];
    if (kind == STORED_KIND_GROUP) return w->global_divides ? sum / w->global : sum * w->global;
    return sum;
}

/* n rows of W from row `row` on, m rows of x. BLOCK: all n rows have one block's scales. */
VEC void stored_tile(const int n, const int m, const int kind, float *y, uint64_t y_stride, const float *x, uint64_t x_stride, const float *x_scale,
                     const struct stored_matrix *w, uint32_t row, const int ahead)
{
    vec acc[LINEAR_N * LINEAR_M > LINEAR_N1 ? LINEAR_N * LINEAR_M : LINEAR_N1];
    struct stored_rows rows = { .row_bytes = kind == STORED_KIND_GROUP ? w->k / 2 : w->k, .group_stride = w->k / STORED_GROUP };
    const uint32_t step = kind == STORED_KIND_LATE ? w->k : kind == STORED_KIND_BLOCK ? STORED_BLOCK : STORED_STEP;
    const float *block = kind == STORED_KIND_BLOCK ? w->scale + (uint64_t)(row / STORED_BLOCK) * stored_scale_stride(w) : NULL;

    rows.code = (const uint8_t *)w->data + row * rows.row_bytes;
    rows.group = kind == STORED_KIND_GROUP ? w->group_scale + row * rows.group_stride : NULL;
    UNROLL for (int i = 0; i < n * m; i++) acc[i] = vec_zero();
    for (uint32_t i = 0; i < w->k; i += step)
        stored_lanes(acc, n, m, kind, x, x_stride, &rows, kind == STORED_KIND_BLOCK ? vec_set(block[i / STORED_BLOCK]) : vec_zero(), i,
                     w->k - i < step ? w->k : i + step, ahead);
    UNROLL for (int a = 0; a < n; a++)
        UNROLL for (int b = 0; b < m; b++) {
            const float sum = stored_finish(vec_sum(acc[a * m + b]), kind, w, row + a);

            y[b * y_stride + a] = x_scale ? sum * x_scale[b] : sum;
        }
}

#define STORED_CASE(m) case m: stored_tile(LINEAR_N, m, kind, y, y_stride, x, x_stride, x_scale, w, row, 1); return

VEC void stored_few(const int kind, float *y, uint64_t y_stride, const float *x, uint64_t x_stride, const float *x_scale, uint32_t rows,
                    const struct stored_matrix *w, uint32_t row)
{
    switch (rows) {
    STORED_CASE(1);
#if LINEAR_M > 2
    STORED_CASE(2);
#endif
#if LINEAR_M > 3
    STORED_CASE(3);
    STORED_CASE(4);
    STORED_CASE(5);
#endif
    default: stored_tile(LINEAR_N, LINEAR_M, kind, y, y_stride, x, x_stride, x_scale, w, row, 1);
    }
}

/* 16 columns of a row, from column i on, as the scratch holds them. */
VEC void stored_widen16(const int kind, void *to, const uint8_t *p, vec factor)
{
    if (kind == STORED_KIND_LATE) vec_half_e4m3(to, p);
    else if (kind == STORED_KIND_GROUP) vec_cut_bf16(to, vec_mul(vec_load_e2m1(p), factor));
    else vec_store(to, vec_mul(vec_load_e4m3(p), factor));
}

/* LINEAR_N rows of W from row `row` on. */
VEC void stored_widen(const int kind, void *to, const struct stored_matrix *w, uint32_t row)
{
    const uint64_t row_bytes = kind == STORED_KIND_GROUP ? w->k / 2 : w->k;
    float scale[1][STORED_STEP / STORED_GROUP];

    for (uint32_t a = 0; a < LINEAR_N; a++) {
        const struct stored_rows one = { .code = (const uint8_t *)w->data + (row + a) * row_bytes, .row_bytes = row_bytes,
                                         .group = kind == STORED_KIND_GROUP ? w->group_scale + (uint64_t)(row + a) * (w->k / STORED_GROUP) : NULL };
        const float *block = kind == STORED_KIND_BLOCK ? w->scale + (uint64_t)((row + a) / STORED_BLOCK) * stored_scale_stride(w) : NULL;
        char *out = (char *)to + (uint64_t)a * w->k * (kind == STORED_KIND_BLOCK ? 4 : 2);

        for (uint32_t i = 0; i < w->k; i += 16) {
            const uint8_t *p = one.code + (kind == STORED_KIND_GROUP ? i / 2 : i);

            if (i % (kind == STORED_KIND_GROUP ? 128 : 64) == 0) __builtin_prefetch(p + LINEAR_N * row_bytes, 0, 2);
            if (kind == STORED_KIND_GROUP && i % STORED_STEP == 0) stored_groups(scale, &one, 1, i, w->k - i < STORED_STEP ? w->k : i + STORED_STEP);
            stored_widen16(kind, out + i * (kind == STORED_KIND_BLOCK ? 4u : 2u), p,
                           stored_factor(kind, scale, kind == STORED_KIND_BLOCK ? vec_set(block[i / STORED_BLOCK]) : vec_zero(), 0, i));
        }
    }
}

/* LINEAR_N columns of y for many rows of x, from widened rows of W. */
#define STORED_WIDE(name, dtype) \
    static __attribute__((noinline)) void name(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, uint32_t rows, const void *wide, uint32_t k, uint32_t block) \
    { \
        for (uint32_t r = 0; r < rows; r += block) linear_few(y + r * y_stride, y_stride, x + r * x_stride, x_stride, rows - r < block ? rows - r : block, wide, dtype, k); \
    }
STORED_WIDE(stored_wide_late, LINEAR_HALF)
STORED_WIDE(stored_wide_group, KERNELS_BF16)
STORED_WIDE(stored_wide_block, KERNELS_F32)

VEC void stored_many(const int kind, float *y, uint64_t y_stride, const float *x, uint64_t x_stride, const float *x_scale, uint32_t rows,
                     const struct stored_matrix *w, uint32_t row, uint32_t block)
{
    float wide[LINEAR_N * STORED_SCRATCH_K / (kind == STORED_KIND_BLOCK ? 1 : 2)] __attribute__((aligned(64)));

    stored_widen(kind, wide, w, row);
    if (kind == STORED_KIND_LATE) stored_wide_late(y, y_stride, x, x_stride, rows, wide, w->k, block);
    else if (kind == STORED_KIND_GROUP) stored_wide_group(y, y_stride, x, x_stride, rows, wide, w->k, block);
    else stored_wide_block(y, y_stride, x, x_stride, rows, wide, w->k, block);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t a = 0; a < LINEAR_N; a++) {
            const float sum = stored_finish(y[r * y_stride + a], kind, w, row + a);

            y[r * y_stride + a] = x_scale ? sum * x_scale[r] : sum;
        }
}

/* All columns for one group of rows of x, cut as in linear_group. */
VEC void stored_group(const int kind, float *y, uint64_t y_stride, const float *x, uint64_t x_stride, const float *x_scale, uint32_t rows,
                      const struct stored_matrix *w, uint32_t n, uint32_t n_end)
{
    const uint32_t blocks = (rows + LINEAR_M - 1) / LINEAR_M, block = (rows + blocks - 1) / blocks;

    for (; kind == STORED_KIND_BLOCK && n % LINEAR_N1 != 0 && n < n_end; n++)      /* tiles of N1 or N rows never straddle blocks then */
        for (uint32_t r = 0; r < rows; r++) stored_tile(1, 1, kind, y + r * y_stride + n, y_stride, x + r * x_stride, x_stride, x_scale ? x_scale + r : x_scale, w, n, 0);
    for (; rows == 1 && n + LINEAR_N1 <= n_end; n += LINEAR_N1) stored_tile(LINEAR_N1, 1, kind, y + n, y_stride, x, x_stride, x_scale, w, n, 1);
    for (; n + LINEAR_N <= n_end; n += LINEAR_N) {
        if (blocks >= (kind == STORED_KIND_LATE ? STORED_WIDE_LATE : STORED_WIDE_SCALED) && w->k <= STORED_SCRATCH_K) stored_many(kind, y + n, y_stride, x, x_stride, x_scale, rows, w, n, block);
        else for (uint32_t r = 0; r < rows; r += block)
            stored_few(kind, y + r * y_stride + n, y_stride, x + r * x_stride, x_stride, x_scale ? x_scale + r : x_scale, rows - r < block ? rows - r : block, w, n);
    }
    for (; n < n_end; n++)
        for (uint32_t r = 0; r < rows; r++) stored_tile(1, 1, kind, y + r * y_stride + n, y_stride, x + r * x_stride, x_stride, x_scale ? x_scale + r : x_scale, w, n, 0);
}

static void linear_stored(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, const float *x_scale, uint32_t rows,
                          const struct stored_matrix *w, uint32_t n_begin, uint32_t n_end)
{
    const uint32_t fit = LINEAR_GROUP_BYTES / (w->k * (uint32_t)sizeof(float)), least = LINEAR_GROUP_BLOCKS * LINEAR_M, group = fit > least ? fit : least;

    for (uint32_t r = 0; r < rows; r += group) {
        const uint32_t count = rows - r < group ? rows - r : group;
        const float *scale = x_scale ? x_scale + r : NULL;

        if (w->element == STORED_E2M1) stored_group(STORED_KIND_GROUP, y + r * y_stride, y_stride, x + r * x_stride, x_stride, scale, count, w, n_begin, n_end);
        else if (stored_scale_is_late(w)) stored_group(STORED_KIND_LATE, y + r * y_stride, y_stride, x + r * x_stride, x_stride, scale, count, w, n_begin, n_end);
        else stored_group(STORED_KIND_BLOCK, y + r * y_stride, y_stride, x + r * x_stride, x_stride, scale, count, w, n_begin, n_end);
    }
}
