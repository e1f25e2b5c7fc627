/* kernels/cuda/soft_matrix.cu - see soft_matrix.h. */
#include "soft_matrix.h"
#include "launch.h"
#include "plain_linear.cuh"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>

#define PART_ALIGN 256

static uint64_t aligned(uint64_t bytes) { return (bytes + PART_ALIGN - 1) / PART_ALIGN * PART_ALIGN; }

/* One block along k: a row has one scale, and the CPU multiplies the sum by it. */
static uint32_t format_of(const struct cuda_soft_matrix *from)
{
    return from->format == WEIGHT_FP8_BLOCK && from->stored.k <= WEIGHT_BLOCK ? (uint32_t)WEIGHT_FP8 : from->format;
}

static bool is_known(const struct cuda_soft_matrix *from)
{
    const struct stored_matrix *m = &from->stored;

    if (!m->data || m->rows == 0 || m->rows % 8 || m->k == 0 || m->k % 16) return false;
    switch (from->format) {
    case WEIGHT_BF16: return m->element == STORED_BF16;
    case WEIGHT_F32: return m->element == STORED_F32;
    case WEIGHT_FP8: case WEIGHT_FP8_BLOCK: return m->element == STORED_E4M3 && m->scale && m->scale_rows && m->scale_columns;
    case WEIGHT_FP4: return m->element == STORED_E2M1 && m->group_scale && m->k % (2 * WEIGHT_GROUP) == 0;
    default: return false;
    }
}

/* What plain_linear.cuh wants: a scale for each row, or for each row and block of k. */
static void lay_scales(float *to, const struct stored_matrix *m, uint32_t columns)
{
    const uint32_t stride = stored_scale_stride(m);

    for (uint32_t r = 0; r < m->rows; r++)
        for (uint32_t c = 0; c < columns; c++) to[(uint64_t)r * columns + c] = m->scale[(uint64_t)(r / m->scale_rows) * stride + (stride > 1 ? c : 0)];
}

static int send_scales(struct soft_matrix *m, const struct stored_matrix *from)
{
    const uint32_t columns = m->format == WEIGHT_FP8_BLOCK ? (m->k + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK : 1;
    const uint64_t count = (uint64_t)m->rows * columns;
    float *host = (float *)malloc(count * sizeof *host);

    if (!host) return -E_NOMEM;
    if (m->format == WEIGHT_FP4)
        for (uint32_t r = 0; r < m->rows; r++) host[r] = from->global_divides ? -from->global : from->global;
    else lay_scales(host, from, columns);
    int rc = launch_check(cudaMemcpy(m->memory + (m->format == WEIGHT_FP4 ? m->factor_at : m->scale_at), host, count * sizeof *host, cudaMemcpyHostToDevice), "scales");
    if (rc == 0 && m->format == WEIGHT_FP4)
        rc = launch_check(cudaMemcpy(m->memory + m->scale_at, from->group_scale, (uint64_t)m->rows * (m->k / WEIGHT_GROUP), cudaMemcpyHostToDevice), "scales");
    free(host);
    return rc;
}

int soft_matrix_open(struct soft_matrix *m, const struct cuda_soft_matrix *from)
{
    *m = {};
    if (!is_known(from)) return launch_fail(-E_UNSUPPORTED, "a matrix [%u, %u] of pictures or sound is stored in a format that the GPU does not compute", from->stored.rows, from->stored.k);
    m->rows = from->stored.rows;
    m->k = from->stored.k;
    m->format = format_of(from);
    const uint64_t codes = stored_code_bytes(from->stored.element, (uint64_t)m->rows * m->k);
    const uint64_t scales = m->format == WEIGHT_FP8 ? 4ull * m->rows : m->format == WEIGHT_FP8_BLOCK ? 4ull * m->rows * ((m->k + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK)
                            : m->format == WEIGHT_FP4 ? (uint64_t)m->rows * (m->k / WEIGHT_GROUP) : 0;
    m->scale_at = aligned(codes);
    m->factor_at = m->scale_at + aligned(scales);
    int rc = launch_check(cudaMalloc((void **)&m->memory, m->factor_at + 4ull * m->rows), "weights of pictures and sound");
    if (rc == 0) rc = launch_check(cudaMemcpy(m->memory, from->stored.data, codes, cudaMemcpyHostToDevice), "weights of pictures and sound");
    if (rc == 0 && scales) rc = send_scales(m, &from->stored);
    if (rc) soft_matrix_close(m);
    return rc;
}

void soft_matrix_close(struct soft_matrix *m)
{
    cudaFree(m->memory);
    m->memory = NULL;
}

int soft_matrix_multiply(const struct soft_matrix *m, const float *x, uint32_t rows, float *y, uint64_t y_stride, void *stream)
{
    const struct plain_codes codes = { m->memory, m->memory + m->scale_at, (const float *)(m->memory + m->factor_at) };
    const struct plain_linear a = { x, NULL, codes, {}, y, m->k, y_stride, rows, m->rows, m->k, m->format };

    return plain_linear_launch(&a, stream);
}

int soft_vector_open(float **device, const float *host, uint64_t n)
{
    const int rc = launch_check(cudaMalloc((void **)device, n * sizeof **device), "weights of pictures and sound");

    return rc ? rc : launch_check(cudaMemcpy(*device, host, n * sizeof **device, cudaMemcpyHostToDevice), "weights of pictures and sound");
}
