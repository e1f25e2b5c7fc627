/* kernels/cpu/linear.h - y = x w^T, w [n, k] in bf16 or f32, sums in the lanes of kernels/kernels.h.
 *
 * A tile is LINEAR_N rows of w times up to LINEAR_M (6, or 2) rows of x, one register of lanes for each pair. For decoding the
 * weights stream through once and memory is the limit. For prefill a panel of LINEAR_PANEL rows of w is cut along k into
 * pieces that stay in the first-level cache, and the lanes of the panel wait in `lanes` between the pieces: they are
 * stored and loaded as they are, which changes no bit. */
#define LINEAR_PANEL 32               /* rows of w that share a pass over a piece of x; a multiple of LINEAR_N */
#define LINEAR_PIECE 512              /* elements of k in a piece: x 6 * 2 KiB, w 32 * 1 KiB */

VEC vec linear_weight(const void *w, uint64_t i, const enum kernels_dtype dtype)
{
    return dtype == KERNELS_BF16 ? vec_load_bf16((const uint16_t *)w + i) : vec_load((const float *)w + i);
}

/* acc[n][m] += lanes of w[n] . x[m] over [k0, k1); n, m, dtype are constants where this is inlined. */
VEC void linear_lanes(vec *acc, const int n, const int m, const float *x, uint64_t x_stride, const void *w,
                      const enum kernels_dtype dtype, uint64_t k, uint32_t k0, uint32_t k1)
{
    for (uint32_t i = k0; i < k1; i += 16) {
        UNROLL for (int a = 0; a < n; a++) {
            const vec weight = linear_weight(w, a * k + i, dtype);

            UNROLL for (int b = 0; b < m; b++) acc[a * m + b] = vec_fma(weight, vec_load(x + b * x_stride + i), acc[a * m + b]);
        }
    }
}

/* One tile over the whole of k. */
VEC void linear_tile(const int n, const int m, float *y, uint64_t y_stride, const float *x, uint64_t x_stride,
                     const void *w, const enum kernels_dtype dtype, uint32_t k)
{
    vec acc[LINEAR_N * LINEAR_M > LINEAR_N1 ? LINEAR_N * LINEAR_M : LINEAR_N1];

    UNROLL for (int i = 0; i < n * m; i++) acc[i] = vec_zero();
    linear_lanes(acc, n, m, x, x_stride, w, dtype, k, 0, k);
    UNROLL for (int a = 0; a < n; a++)
        UNROLL for (int b = 0; b < m; b++) y[b * y_stride + a] = vec_sum(acc[a * m + b]);
}

/* One tile over [k0, k1): lanes come from and go to memory, but for the first and the last piece. */
VEC void linear_piece(const int n, const int m, vec *lanes, float *y, uint64_t y_stride, const float *x, uint64_t x_stride,
                      const void *w, const enum kernels_dtype dtype, uint32_t k, uint32_t k0, uint32_t k1)
{
    vec acc[LINEAR_N * LINEAR_M];

    UNROLL for (int i = 0; i < n * m; i++) acc[i] = k0 == 0 ? vec_zero() : lanes[i];
    linear_lanes(acc, n, m, x, x_stride, w, dtype, k, k0, k1);
    if (k1 < k) {
        UNROLL for (int i = 0; i < n * m; i++) lanes[i] = acc[i];
        return;
    }
    UNROLL for (int a = 0; a < n; a++)
        UNROLL for (int b = 0; b < m; b++) y[b * y_stride + a] = vec_sum(acc[a * m + b]);
}

/* LINEAR_M rows against a whole panel. */
VEC void linear_panel(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, const char *w,
                      const enum kernels_dtype dtype, uint32_t k)
{
    const uint64_t element = dtype == KERNELS_BF16 ? 2 : 4;
    vec lanes[LINEAR_PANEL * LINEAR_M];

    for (uint32_t k0 = 0; k0 < k; k0 += LINEAR_PIECE) {
        const uint32_t k1 = k - k0 > LINEAR_PIECE ? k0 + LINEAR_PIECE : k;

        for (uint32_t j = 0; j < LINEAR_PANEL; j += LINEAR_N)
            linear_piece(LINEAR_N, LINEAR_M, lanes + j * LINEAR_M, y + j, y_stride, x, x_stride, w + j * k * element,
                         dtype, k, k0, k1);
    }
}

#define LINEAR_CASE(m) case m: linear_tile(LINEAR_N, m, y, y_stride, x, x_stride, w, dtype, k); return

/* LINEAR_N rows of w against `rows` < LINEAR_M rows. */
VEC void linear_few(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, uint32_t rows, const void *w,
                    const enum kernels_dtype dtype, uint32_t k)
{
    switch (rows) {
    LINEAR_CASE(1);
#if LINEAR_M > 2
    LINEAR_CASE(2);
    LINEAR_CASE(3);
    LINEAR_CASE(4);
    LINEAR_CASE(5);
#endif
    default: linear_tile(LINEAR_N, LINEAR_M, y, y_stride, x, x_stride, w, dtype, k);
    }
}

VEC void linear_typed(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, uint32_t rows, const char *w,
                      const enum kernels_dtype dtype, uint32_t k, uint32_t n, uint32_t n_end)
{
    const uint64_t element = dtype == KERNELS_BF16 ? 2 : 4;
    uint32_t r;

    for (; rows > LINEAR_M && n + LINEAR_PANEL <= n_end; n += LINEAR_PANEL) {
        for (r = 0; r + LINEAR_M <= rows; r += LINEAR_M)
            linear_panel(y + r * y_stride + n, y_stride, x + r * x_stride, x_stride, w + n * k * element, dtype, k);
        for (uint32_t j = 0; j < LINEAR_PANEL && r < rows; j += LINEAR_N)
            linear_few(y + r * y_stride + n + j, y_stride, x + r * x_stride, x_stride, rows - r, w + (n + j) * k * element, dtype, k);
    }
    for (; rows == 1 && n + LINEAR_N1 <= n_end; n += LINEAR_N1)
        linear_tile(LINEAR_N1, 1, y + n, y_stride, x, x_stride, w + n * k * element, dtype, k);
    for (; n + LINEAR_N <= n_end; n += LINEAR_N)
        for (r = 0; r < rows; r += LINEAR_M)
            linear_few(y + r * y_stride + n, y_stride, x + r * x_stride, x_stride, rows - r, w + n * k * element, dtype, k);
    for (; n < n_end; n++)
        for (r = 0; r < rows; r++) linear_tile(1, 1, y + r * y_stride + n, y_stride, x + r * x_stride, x_stride, w + n * k * element, dtype, k);
}

static void linear(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, uint32_t rows,
                   const void *w, enum kernels_dtype dtype, uint32_t k, uint32_t n_begin, uint32_t n_end)
{
    if (dtype == KERNELS_BF16) linear_typed(y, y_stride, x, x_stride, rows, w, KERNELS_BF16, k, n_begin, n_end);
    else linear_typed(y, y_stride, x, x_stride, rows, w, KERNELS_F32, k, n_begin, n_end);
}
