/* kernels/cpu/attention.h - softmax(q k^T) v over paged keys, for up to KERNELS_QUERIES_MAX queries of one kv head.
 *
 * Keys are reduced in segments of absolute positions [256 i, 256 i + 256): in each segment the maximum, the sum of exponentials
 * (in lanes by position, joined by the fixed tree) and the weighted sum of values (in order of position); then the
 * segments are joined in ascending order. The order is a function of positions alone, so that a row gets the same bits
 * in a prefill chunk, in a verify block and decoded alone. Positions that a query may not see are skipped, never
 * multiplied by zero: what stands in their pages may be anything. */

/* Of a weighted sum ATTENTION_Q queries times ATTENTION_D registers of a value row are in hand at a time (set beside LINEAR_N);
 * head_dim is a multiple of 16. ATTENTION_ODD: so many registers at once of a row with an odd number of them (SigLIP's 72 values are 5). */
#ifndef ATTENTION_ODD
#define ATTENTION_ODD 1
#endif
#define ATTENTION_D_MOST (ATTENTION_ODD > ATTENTION_D ? ATTENTION_ODD : ATTENTION_D)

struct attention_part { float top, sum; };        /* of one query and one segment */

VEC const char *attention_page(const struct attention_keys *keys, uint32_t position)
{
    const uint32_t page = keys->pages[position % keys->ring_tokens / keys->page_tokens];

    return (const char *)keys->arena + keys->pool_offset + page * keys->page_bytes;
}

/* Queries times 16 * vecs keys that stand dimension by dimension: sums in lanes, none across them, which for heads of 72 values take longer than the products. */
VEC void attention_turned_tile(const int queries, const int vecs, float *score, const float *q, uint32_t q_stride, const float *k, uint32_t dims, uint32_t stride)
{
    vec acc[ATTENTION_Q * ATTENTION_D];

    UNROLL for (int i = 0; i < queries * vecs; i++) acc[i] = vec_zero();
    for (uint32_t d = 0; d < dims; d++) {
        vec row[ATTENTION_D];

        UNROLL for (int j = 0; j < vecs; j++) row[j] = vec_load(k + (uint64_t)d * stride + 16 * j);
        UNROLL for (int a = 0; a < queries; a++) {
            const vec one = vec_set(q[a * q_stride + d]);

            UNROLL for (int j = 0; j < vecs; j++) acc[a * vecs + j] = vec_fma(one, row[j], acc[a * vecs + j]);
        }
    }
    UNROLL for (int a = 0; a < queries; a++)
        UNROLL for (int j = 0; j < vecs; j++) vec_store(score + a * KERNELS_SEGMENT + 16 * j, acc[a * vecs + j]);
}

/* The same for `n` keys (rounded up to a whole number of lanes: a page has room for them) and all queries. */
static void attention_turned(uint32_t count, const struct attention_keys *keys, struct attention_scratch *s, uint32_t at, const float *k, uint32_t n)
{
    for (uint32_t i = 0; i < n;) {
        const uint32_t vecs = n - i > 16 * (ATTENTION_D - 1) ? ATTENTION_D : 1;
        uint32_t q = 0;

        for (; vecs == ATTENTION_D && q + ATTENTION_Q <= count; q += ATTENTION_Q)
            attention_turned_tile(ATTENTION_Q, ATTENTION_D, &s->score[q][at + i], s->q[0] + q * keys->head_dim, keys->head_dim, k + i, keys->turned, keys->page_tokens);
        for (; q < count; q++) {
            if (vecs == 1) attention_turned_tile(1, 1, &s->score[q][at + i], s->q[0] + q * keys->head_dim, keys->head_dim, k + i, keys->turned, keys->page_tokens);
            else attention_turned_tile(1, ATTENTION_D, &s->score[q][at + i], s->q[0] + q * keys->head_dim, keys->head_dim, k + i, keys->turned, keys->page_tokens);
        }
        i += 16 * vecs;
    }
}

/* score[q][p - segment] = q . k * scale for the positions [from, to] of one segment, page by page. */
static void attention_scores(uint32_t count, const struct attention_keys *keys, struct attention_scratch *s,
                             uint32_t segment, uint32_t from, uint32_t to)
{
    const uint32_t element = kernels_dtype_bytes(keys->dtype);

    for (uint32_t p = keys->turned ? from & ~15u : from; p <= to;) {
        const uint32_t token = p % keys->page_tokens;
        const uint32_t room = keys->page_tokens - token, left = to - p + 1, n = room < left ? room : left;
        const char *k = attention_page(keys, p) + keys->k_offset + (uint64_t)token * (keys->turned ? 1 : keys->head_dim) * element;

        if (keys->turned) attention_turned(count, keys, s, p - segment, (const float *)k, n);
        else linear(&s->score[0][p - segment], KERNELS_SEGMENT, s->q[0], keys->head_dim, count, k, keys->dtype, keys->head_dim, 0, n);
        p += n;
    }
    for (uint32_t q = 0; q < count; q++)
        for (uint32_t i = from - segment; i <= to - segment; i++) s->score[q][i] *= keys->scale;
}

/* Turns the scores of [from, to] into exponentials against their maximum. */
VEC struct attention_part attention_softmax(float *score, uint32_t segment, uint32_t from, uint32_t to)
{
    const uint32_t begin = (from - segment) & ~15u, end = (to - segment + 16) & ~15u;
    vec top = vec_set(-INFINITY), sum = vec_zero();
    struct attention_part part;

    for (uint32_t i = begin; i < from - segment; i++) score[i] = -INFINITY;
    for (uint32_t i = to - segment + 1; i < end; i++) score[i] = -INFINITY;
    for (uint32_t i = begin; i < end; i += 16) top = vec_max(vec_load(score + i), top);
    part.top = vec_top(top);
    for (uint32_t i = begin; i < end; i += 16) {
        const vec e = ops_exp1(vec_sub(vec_load(score + i), vec_set(part.top)));

        vec_store(score + i, e);
        sum = vec_add(sum, e);
    }
    part.sum = vec_sum(sum);
    return part;
}

/* part[q0 + q][d..] += score[q0 + q][at + i] * value[i][d..] for i in [from, to), q < queries; queries, dims, dtype are constants here. */
VEC void attention_add(const int queries, const int dims, struct attention_scratch *s, uint32_t q0, uint32_t d, const char *v, uint32_t dim,
                       const enum kernels_dtype dtype, uint32_t at, uint32_t from, uint32_t to)
{
    vec acc[ATTENTION_Q * ATTENTION_D_MOST];

    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int j = 0; j < dims; j++) acc[q * dims + j] = vec_load(s->part[q0 + q] + d + 16 * j);
    for (uint32_t i = from; i < to; i++) {
        vec row[ATTENTION_D_MOST];

        UNROLL for (int j = 0; j < dims; j++) row[j] = linear_weight(v, (uint64_t)i * dim + d + 16 * j, dtype);
        UNROLL for (int q = 0; q < queries; q++) {
            const vec e = vec_set(s->score[q0 + q][at + i]);

            UNROLL for (int j = 0; j < dims; j++) acc[q * dims + j] = vec_fma(e, row[j], acc[q * dims + j]);
        }
    }
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int j = 0; j < dims; j++) vec_store(s->part[q0 + q] + d + 16 * j, acc[q * dims + j]);
}

/* The same over a whole value row. */
VEC void attention_add_rows(const int queries, struct attention_scratch *s, uint32_t q0, const char *v, uint32_t dim,
                            const enum kernels_dtype dtype, uint32_t at, uint32_t from, uint32_t to)
{
    uint32_t d = 0;

    if (from >= to) return;
    if (dim % 32 && dim >= 16 * ATTENTION_ODD) {
        attention_add(queries, ATTENTION_ODD, s, q0, d, v, dim, dtype, at, from, to);
        d += 16 * ATTENTION_ODD;
    } else if (dim % 32) {
        attention_add(queries, 1, s, q0, d, v, dim, dtype, at, from, to);
        d += 16;
    }
    for (; d + 16 * ATTENTION_D <= dim; d += 16 * ATTENTION_D) attention_add(queries, ATTENTION_D, s, q0, d, v, dim, dtype, at, from, to);
    for (; d < dim; d += 32) attention_add(queries, 2, s, q0, d, v, dim, dtype, at, from, to);
}

/* The tokens of one page piece, [at, at + n) of the segment, for `queries` neighbours: what all see goes together, each one's own
 * beginning and end alone. Every query still adds its tokens in order. */
VEC void attention_neighbours(const int queries, struct attention_scratch *s, const uint32_t *first, const uint32_t *last, uint32_t q0,
                              const char *v, uint32_t dim, const enum kernels_dtype dtype, uint32_t at, uint32_t n)
{
    uint32_t from[ATTENTION_Q], to[ATTENTION_Q], low = 0, high = n;

    for (int q = 0; q < queries; q++) {
        from[q] = first[q0 + q] > at ? first[q0 + q] - at : 0;
        to[q] = last[q0 + q] < at ? 0 : last[q0 + q] - at + 1 < n ? last[q0 + q] - at + 1 : n;
        low = from[q] > low ? from[q] : low;
        high = to[q] < high ? to[q] : high;
    }
    if (queries == 1) {
        attention_add_rows(1, s, q0, v, dim, dtype, at, from[0], to[0]);
        return;
    }
    if (low > high) low = high = n;      /* no token that all see */
    for (int q = 0; q < queries; q++) attention_add_rows(1, s, q0 + q, v, dim, dtype, at, from[q], to[q] < low ? to[q] : low);
    attention_add_rows(queries, s, q0, v, dim, dtype, at, low, high);
    for (int q = 0; q < queries; q++) attention_add_rows(1, s, q0 + q, v, dim, dtype, at, high > from[q] ? high : from[q], to[q]);
}

static void attention_values_typed(struct attention_scratch *s, const uint32_t *first, const uint32_t *last, uint32_t count,
                                   const char *v, uint32_t dim, const enum kernels_dtype dtype, uint32_t at, uint32_t n)
{
    uint32_t q = 0;

    for (; q + ATTENTION_Q <= count; q += ATTENTION_Q) attention_neighbours(ATTENTION_Q, s, first, last, q, v, dim, dtype, at, n);
#if ATTENTION_Q > 2
    for (; q + 2 <= count; q += 2) attention_neighbours(2, s, first, last, q, v, dim, dtype, at, n);
#endif
    for (; q < count; q++) attention_neighbours(1, s, first, last, q, v, dim, dtype, at, n);
}

/* part[q] = the weighted sum of the values of each query's own positions first[q] .. last[q] (relative to the segment). */
static void attention_values(const uint32_t *first, const uint32_t *last, uint32_t count, const struct attention_keys *keys,
                             struct attention_scratch *s, uint32_t segment, uint32_t from, uint32_t to)
{
    const uint32_t dim = keys->head_dim, element = kernels_dtype_bytes(keys->dtype);

    for (uint32_t q = 0; q < count; q++) memset(s->part[q], 0, dim * sizeof(float));
    for (uint32_t p = from; p <= to;) {
        const uint32_t token = p % keys->page_tokens;
        const uint32_t room = keys->page_tokens - token, left = to - p + 1, n = room < left ? room : left;
        const char *v = attention_page(keys, p) + keys->v_offset + (uint64_t)token * dim * element;

        if (keys->dtype == KERNELS_BF16) attention_values_typed(s, first, last, count, v, dim, KERNELS_BF16, p - segment, n);
        else if (keys->dtype == KERNELS_E4M3) attention_values_typed(s, first, last, count, v, dim, KERNELS_E4M3, p - segment, n);
        else attention_values_typed(s, first, last, count, v, dim, KERNELS_F32, p - segment, n);
        p += n;
    }
}

/* Joins a segment's part to what came before it: the larger maximum rescales the other side. */
VEC void attention_join(struct attention_part *all, float *acc, struct attention_part part, const float *values, uint32_t dim)
{
    const float top = part.top > all->top ? part.top : all->top;
    float scales[16] = { all->top - top, part.top - top };
    vec old, new;

    vec_store(scales, ops_exp1(vec_load(scales)));
    old = vec_set(scales[0]);
    new = vec_set(scales[1]);
    for (uint32_t d = 0; d < dim; d += 16)
        vec_store(acc + d, vec_fma(vec_load(values + d), new, vec_mul(vec_load(acc + d), old)));
    all->sum = __builtin_fmaf(part.sum, scales[1], all->sum * scales[0]);
    all->top = top;
}

static void attention(const struct attention_query *query, uint32_t count, const struct attention_keys *keys,
                      struct attention_scratch *s)
{
    struct attention_part all[KERNELS_QUERIES_MAX];
    uint32_t lowest = UINT32_MAX, highest = 0;

    for (uint32_t q = 0; q < count; q++) {
        lowest = query[q].first < lowest ? query[q].first : lowest;
        highest = query[q].last > highest ? query[q].last : highest;
        memcpy(s->q[0] + q * keys->head_dim, query[q].q, keys->head_dim * sizeof(float));
    }
    for (uint32_t segment = lowest / KERNELS_SEGMENT * KERNELS_SEGMENT; segment <= highest; segment += KERNELS_SEGMENT) {
        const uint32_t end = segment + KERNELS_SEGMENT - 1;
        const uint32_t from = segment > lowest ? segment : lowest, to = end < highest ? end : highest;
        uint32_t first[KERNELS_QUERIES_MAX], last[KERNELS_QUERIES_MAX];
        struct attention_part part[KERNELS_QUERIES_MAX];

        attention_scores(count, keys, s, segment, from, to);
        for (uint32_t q = 0; q < count; q++) {
            first[q] = (query[q].first > segment ? query[q].first : segment) - segment;
            last[q] = (query[q].last < end ? query[q].last : end) - segment;
            if (query[q].first > end || query[q].last < segment) first[q] = 1, last[q] = 0;   /* sees nothing here */
            else part[q] = attention_softmax(s->score[q], 0, first[q], last[q]);
        }
        attention_values(first, last, count, keys, s, segment, from, to);
        for (uint32_t q = 0; q < count; q++) {
            if (first[q] > last[q]) continue;
            if (query[q].first >= segment) {     /* its first segment: nothing to join */
                all[q] = part[q];
                memcpy(s->acc[q], s->part[q], keys->head_dim * sizeof(float));
            } else attention_join(&all[q], s->acc[q], part[q], s->part[q], keys->head_dim);
        }
    }
    for (uint32_t q = 0; q < count; q++)
        for (uint32_t d = 0; d < keys->head_dim; d += 16)
            vec_store(query[q].out + d, vec_div(vec_load(s->acc[q] + d), vec_set(all[q].sum)));
}
