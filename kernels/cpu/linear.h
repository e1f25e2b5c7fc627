/* kernels/cpu/linear.h - y = x w^T, w [n, k] in bf16 or f32 (keys of a cache also in E4M3), sums in the lanes of kernels/kernels.h.
 *
 * A tile is LINEAR_N rows of w times up to LINEAR_M rows of x, one register of lanes for each pair. For a few rows of x the
 * weights stream through once and memory is the limit; the tile that comes next is asked for while this one is in
 * hand, since the hardware's own guesses stop at each row of w (Zen 4, one thread, weights beyond the caches: 16.7 -> 21.6 GB/s for one
 * row of x, 9.0 -> 14.5 for six). Many rows go in groups whose x stays in the second-level cache, a tile of w
 * meets the whole group. Cutting along k as well, with the lanes kept in memory between the pieces, was slower: 80 against
 * 105 GFLOP/s at 64 rows. */
#define LINEAR_GROUP_BYTES (512u << 10)
#define LINEAR_GROUP_BLOCKS 4         /* a group is at least this many tiles of rows, however long they are */

#define LINEAR_HALF 16                /* as dtype: the 16 bits that vec_load_half takes, from stored.h only */
#define LINEAR_BYTES(dtype) ((dtype) == KERNELS_F32 ? 4u : (dtype) == KERNELS_E4M3 ? 1u : 2u)

VEC vec linear_weight(const void *w, uint64_t i, const uint32_t dtype)
{
    if (dtype == LINEAR_HALF) return vec_load_half((const uint16_t *)w + i);
    if (dtype == KERNELS_E4M3) return vec_mul(vec_load_e4m3((const uint8_t *)w + i), vec_set(0x1p8f));
    return dtype == KERNELS_BF16 ? vec_load_bf16((const uint16_t *)w + i) : vec_load((const float *)w + i);
}

/* acc[n][m] += lanes of w[n] . x[m]; n, m, dtype are constants where this is inlined.
 * ahead: the next n rows of w will be needed soon. */
VEC void linear_lanes(vec *acc, const int n, const int m, const float *x, uint64_t x_stride, const void *w,
                      const uint32_t dtype, uint64_t k, const int ahead)
{
    for (uint32_t i = 0; i < k; i += 16) {
        UNROLL for (int a = 0; a < n; a++) {
            const vec weight = linear_weight(w, a * k + i, dtype);

            if (ahead && i % 32 == 0) __builtin_prefetch((const char *)w + ((a + n) * k + i) * LINEAR_BYTES(dtype), 0, 2);
            UNROLL for (int b = 0; b < m; b++) acc[a * m + b] = vec_fma(weight, vec_load(x + b * x_stride + i), acc[a * m + b]);
        }
    }
}

/* One tile over the whole of k. */
VEC void linear_tile(const int n, const int m, float *y, uint64_t y_stride, const float *x, uint64_t x_stride,
                     const void *w, const uint32_t dtype, uint32_t k, const int ahead)
{
    vec acc[LINEAR_N * LINEAR_M > LINEAR_N1 ? LINEAR_N * LINEAR_M : LINEAR_N1];

    UNROLL for (int i = 0; i < n * m; i++) acc[i] = vec_zero();
    linear_lanes(acc, n, m, x, x_stride, w, dtype, k, ahead);
    UNROLL for (int a = 0; a < n; a++)
        UNROLL for (int b = 0; b < m; b++) y[b * y_stride + a] = vec_sum(acc[a * m + b]);
}

#define LINEAR_CASE(m) case m: linear_tile(LINEAR_N, m, y, y_stride, x, x_stride, w, dtype, k, 1); return

/* LINEAR_N rows of w against up to LINEAR_M rows. */
VEC void linear_few(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, uint32_t rows, const void *w,
                    const uint32_t dtype, uint32_t k)
{
    switch (rows) {
    LINEAR_CASE(1);
#if LINEAR_M > 2
    LINEAR_CASE(2);
#endif
#if LINEAR_M > 3
    LINEAR_CASE(3);
    LINEAR_CASE(4);
    LINEAR_CASE(5);
#endif
    default: linear_tile(LINEAR_N, LINEAR_M, y, y_stride, x, x_stride, w, dtype, k, 1);
    }
}

/* All columns for one group of rows. */
VEC void linear_group(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, uint32_t rows, const char *w,
                      const uint32_t dtype, uint32_t k, uint32_t n, uint32_t n_end)
{
    const uint64_t row_bytes = (uint64_t)k * LINEAR_BYTES(dtype);
    const uint32_t blocks = (rows + LINEAR_M - 1) / LINEAR_M, block = (rows + blocks - 1) / blocks;   /* 8 rows: 4 and 4, not 6 and 2 */

    for (; rows == 1 && n + LINEAR_N1 <= n_end; n += LINEAR_N1)
        linear_tile(LINEAR_N1, 1, y + n, y_stride, x, x_stride, w + n * row_bytes, dtype, k, 1);
    for (; n + LINEAR_N <= n_end; n += LINEAR_N)
        for (uint32_t r = 0; r < rows; r += block)
            linear_few(y + r * y_stride + n, y_stride, x + r * x_stride, x_stride, rows - r < block ? rows - r : block, w + n * row_bytes, dtype, k);
    for (; n < n_end; n++)
        for (uint32_t r = 0; r < rows; r++) linear_tile(1, 1, y + r * y_stride + n, y_stride, x + r * x_stride, x_stride, w + n * row_bytes, dtype, k, 0);
}

static void linear(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, uint32_t rows,
                   const void *w, enum kernels_dtype dtype, uint32_t k, uint32_t n_begin, uint32_t n_end)
{
    const uint32_t fit = LINEAR_GROUP_BYTES / (k * (uint32_t)sizeof(float)), least = LINEAR_GROUP_BLOCKS * LINEAR_M, group = fit > least ? fit : least;

    for (uint32_t r = 0; r < rows; r += group) {
        const uint32_t count = rows - r < group ? rows - r : group;

        if (dtype == KERNELS_BF16) linear_group(y + r * y_stride, y_stride, x + r * x_stride, x_stride, count, w, KERNELS_BF16, k, n_begin, n_end);
        else if (dtype == KERNELS_E4M3) linear_group(y + r * y_stride, y_stride, x + r * x_stride, x_stride, count, w, KERNELS_E4M3, k, n_begin, n_end);
        else linear_group(y + r * y_stride, y_stride, x + r * x_stride, x_stride, count, w, KERNELS_F32, k, n_begin, n_end);
    }
}
