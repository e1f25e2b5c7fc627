/* kernels/cuda/plain_held.cu - see plain_held.cuh. */
#include "plain_held.cuh"
#include "arena.h"
#include "launch.h"
#include "plain.h"
#include "plain_table.cuh"
#include "kernels/stored.h"
#include "shm/error.h"
#include <cuda_runtime.h>

extern "C" {
#include "model/drafter.h"
}

int plain_held_take(struct plain_held *h, uint64_t bytes, void **device)
{
    const int rc = launch_check(cudaMalloc(device, bytes), "the drafter's weights");

    if (rc == 0) h->owned.push_back(*device), h->bytes += bytes;
    return rc;
}

int plain_held_bytes(struct plain_held *h, const void *host, uint64_t bytes, const void **to)
{
    void *device = NULL;
    int rc = plain_held_take(h, bytes, &device);

    if (rc == 0) rc = launch_check(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "the drafter's weights");
    *to = device;
    return rc;
}

int plain_held_vector(struct plain_held *h, const float *values, uint32_t count, const float **to)
{
    return plain_held_bytes(h, values, 4ull * count, (const void **)to);
}

/* The scales of an E4M3 matrix as plain_linear.cuh takes them: f32 [rows][columns]. */
static int put_scales(struct plain_held *h, const struct stored_matrix *m, struct plain_held_matrix *to)
{
    const uint32_t columns = m->scale_columns == 0 ? 0 : (m->k + m->scale_columns - 1) / m->scale_columns;

    if (m->scale_rows == 0 || columns == 0 || (columns > 1 && m->scale_columns != WEIGHT_BLOCK)) return launch_fail(-E_UNSUPPORTED, "scales of %u x %u of a matrix of E4M3", m->scale_rows, m->scale_columns);
    std::vector<float> scales((uint64_t)m->rows * columns);

    to->format = columns == 1 ? WEIGHT_FP8 : WEIGHT_FP8_BLOCK;     /* one for a row multiplies the sum, as on the CPU */
    for (uint64_t row = 0; row < m->rows; row++)
        for (uint32_t c = 0; c < columns; c++) scales[row * columns + c] = m->scale[row / m->scale_rows * columns + c];
    return plain_held_bytes(h, scales.data(), 4 * scales.size(), &to->codes.scale);
}

static int put_groups(struct plain_held *h, const struct stored_matrix *m, struct plain_held_matrix *to)
{
    const std::vector<float> factor(m->rows, m->global_divides ? -m->global : m->global);
    const int rc = plain_held_bytes(h, m->group_scale, (uint64_t)m->rows * (m->k / STORED_GROUP), &to->codes.scale);

    to->format = WEIGHT_FP4;
    return rc ? rc : plain_held_vector(h, factor.data(), m->rows, &to->codes.factor);
}

int plain_held_put(struct plain_held *h, const struct stored_matrix *m, struct plain_held_matrix *to)
{
    int rc = m->rows % 16 || m->k % 16 ? launch_fail(-E_UNSUPPORTED, "a matrix of %u x %u: both must be multiples of 16", m->rows, m->k) : 0;

    *to = { { NULL, NULL, NULL }, m->rows, m->k, 0 };
    if (rc) return rc;
    switch (m->element) {
    case STORED_BF16: to->format = WEIGHT_BF16; break;
    case STORED_F32: to->format = WEIGHT_F32; break;
    case STORED_E4M3: rc = put_scales(h, m, to); break;
    case STORED_E2M1: rc = m->k % (2 * STORED_GROUP) ? launch_fail(-E_UNSUPPORTED, "FP4 with rows of %u", m->k) : put_groups(h, m, to); break;
    default: rc = launch_fail(-E_UNSUPPORTED, "a matrix of element format %u", m->element);
    }
    return rc ? rc : plain_held_bytes(h, m->data, stored_code_bytes(m->element, (uint64_t)m->rows * m->k), &to->codes.codes);
}

int plain_held_put_layer(struct plain_held *h, const struct drafter_layer *l, uint32_t hidden, uint32_t dim, struct plain_held_layer *to)
{
    int rc = plain_held_put(h, &l->q, &to->q);

    if (rc == 0) rc = plain_held_put(h, &l->o, &to->o);
    if (rc == 0) rc = plain_held_put(h, &l->gate, &to->gate);
    if (rc == 0) rc = plain_held_put(h, &l->up, &to->up);
    if (rc == 0) rc = plain_held_put(h, &l->down, &to->down);
    if (rc == 0 && to->gate.format != to->up.format) rc = launch_fail(-E_UNSUPPORTED, "gate and up projection in different formats");
    if (rc == 0) rc = plain_held_vector(h, l->q_norm, dim, &to->q_norm);
    if (rc == 0) rc = plain_held_vector(h, l->input_norm, hidden, &to->input_norm);
    if (rc == 0) rc = plain_held_vector(h, l->post_attention_norm, hidden, &to->post_attention_norm);
    if (rc == 0) rc = plain_held_vector(h, l->pre_feedforward_norm, hidden, &to->pre_ff_norm);
    if (rc == 0) rc = plain_held_vector(h, l->post_feedforward_norm, hidden, &to->post_ff_norm);
    return rc ? rc : plain_held_vector(h, &l->scalar, 1, &to->scalar);
}

int plain_held_left_out(struct plain_held *h, struct cuda_left_out out, uint32_t vocab, const uint32_t **to)
{
    std::vector<uint32_t> bits((vocab + 31) / 32);

    for (uint32_t i = 0; i < out.count; i++) {
        if (out.token[i] >= vocab) return -E_RANGE;
        bits[out.token[i] / 32] |= 1u << (out.token[i] % 32);
    }
    return plain_held_bytes(h, bits.data(), 4 * bits.size(), (const void **)to);
}

void plain_held_free(struct plain_held *h)
{
    for (void *device : h->owned) cudaFree(device);
    h->owned.clear();
    h->bytes = 0;
}

int plain_held_multiply(const struct plain_held_matrix *w, const struct plain_held_matrix *up, const float *in, float *out, uint64_t out_stride, uint32_t rows, void *stream)
{
    struct plain_linear a = {};

    a.x = in, a.w = w->codes, a.y = out, a.x_stride = w->k, a.y_stride = out_stride, a.rows = rows, a.n = w->rows, a.k = w->k, a.format = w->format;
    if (up) a.up = up->codes;
    return plain_linear_launch(&a, stream);
}

int plain_table_of(const struct cuda_model_spec *target, const void *target_device, struct plain_table *table)
{
    struct arena packed;
    struct plain_arena plain;

    *table = {};
    if (target_device == NULL) return -E_RANGE;
    if (arena_plan(&packed, target) == 0) {
        table->packed = (const uint8_t *)target_device + packed.head.offset;
        table->slice_k = packed.head.slice_k, table->slices = packed.head.k / packed.head.slice_k;
        return 0;
    }
    if (plain_plan(&plain, target) != 0) return launch_fail(-E_UNSUPPORTED, "a target of unknown layout");
    table->rows = (const uint8_t *)target_device + plain.embed, table->element_bytes = plain.weight_bytes;
    return 0;
}
