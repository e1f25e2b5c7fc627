/* kernels/cuda/soft.cu - see soft.h. */
#include "soft.h"
#include "launch.h"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <string.h>
#include <new>

int soft_input_open(struct soft_input *s, uint32_t rows_max, uint32_t hidden, uint32_t kind)
{
    const size_t bytes = (size_t)rows_max * hidden * sizeof *s->host;
    int rc;

    *s = {};
    s->rows_max = rows_max;
    s->hidden = hidden;
    if (kind == CUDA_SOFT_NONE) return 0;
    if (kind > CUDA_SOFT_MADE) return -E_RANGE;
    s->ahead = new (std::nothrow) uint16_t[rows_max]();
    s->is_soft = new (std::nothrow) uint8_t[rows_max]();
    if (!s->ahead || !s->is_soft) return -E_NOMEM;
    rc = kind == CUDA_SOFT_GIVEN ? launch_check(cudaMallocHost((void **)&s->host, bytes), "pinned memory") : 0;
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&s->device, bytes), "soft rows");
    if (rc == 0) rc = launch_check(cudaMallocHost((void **)&s->last_host, rows_max * sizeof *s->last_host), "pinned memory");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&s->last, rows_max * sizeof *s->last), "soft rows");
    return rc;
}

int soft_input_weights(struct soft_input *s, const struct cuda_soft_weights *weights)
{
    if (!s->device || s->host || s->make || weights->hidden != s->hidden) return -E_RANGE;
    return soft_make_open(&s->make, weights, s->rows_max);
}

void soft_input_close(struct soft_input *s)
{
    soft_make_close(s->make);
    if (s->host) cudaFreeHost(s->host);
    if (s->last_host) cudaFreeHost(s->last_host);
    cudaFree(s->device);
    cudaFree(s->last);
    delete[] s->ahead;
    delete[] s->is_soft;
}

static void clear(struct soft_input *s)
{
    if (s->any) {
        memset(s->ahead, 0, s->rows_max * sizeof *s->ahead);
        memset(s->is_soft, 0, s->rows_max);
    }
    s->any = s->any_ahead = false;
}

int soft_input_take(struct soft_input *s, const struct cuda_prefill_piece *pieces, uint32_t piece_count, void *stream)
{
    if (!s->host && !s->make) return -E_RANGE;
    const int rc = s->make ? soft_make_take(s->make, pieces, piece_count, stream) : 0;

    if (rc) return rc;
    clear(s);
    s->fresh = true;
    for (uint32_t i = 0; i < piece_count; i++) {
        const struct cuda_prefill_piece *p = &pieces[i];

        if (p->rows == 0 || p->first_row > s->rows_max || p->rows > s->rows_max - p->first_row || p->rows > UINT16_MAX) return -E_RANGE;
        if (s->host && !p->soft) return -E_RANGE;
        if (s->host) memcpy(s->host + (size_t)p->first_row * s->hidden, p->soft, (size_t)p->rows * s->hidden * sizeof *s->host);
        for (uint32_t r = 0; r < p->rows; r++) {
            s->is_soft[p->first_row + r] = 1;
            s->ahead[p->first_row + r] = p->sees_ahead ? (uint16_t)(p->rows - 1 - r) : 0;
        }
        s->any = true;
        s->any_ahead = s->any_ahead || p->sees_ahead;
    }
    return 0;
}

int soft_input_go(struct soft_input *s, void *stream) { return s->make ? soft_make_go(s->make, s->device, stream) : 0; }

void soft_input_begin(struct soft_input *s)
{
    if (!s->fresh) clear(s);
    s->fresh = false;
}

uint32_t soft_input_token(const struct soft_input *s, uint32_t row, uint32_t token) { return s->any && s->is_soft[row] ? SOFT_TOKEN + row : token; }
uint32_t soft_input_ahead(const struct soft_input *s, uint32_t row) { return s->any ? s->ahead[row] : 0; }

/* From the first soft row to the last: between them may stand text, whose rows nobody reads. */
int soft_input_send(struct soft_input *s, uint32_t rows, void *stream)
{
    uint32_t first = 0, end = rows;

    if (!s->any) return 0;
    while (first < rows && !s->is_soft[first]) first++;
    while (end > first && !s->is_soft[end - 1]) end--;
    const size_t at = (size_t)first * s->hidden, bytes = (size_t)(end - first) * s->hidden * sizeof *s->host;
    int rc = bytes && s->host ? launch_check(cudaMemcpyAsync(s->device + at, s->host + at, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream), "soft rows") : 0;
    if (rc == 0 && s->any_ahead) rc = launch_check(cudaMemcpyAsync(s->last, s->last_host, rows * sizeof *s->last, cudaMemcpyHostToDevice, (cudaStream_t)stream), "soft rows");
    return rc;
}
