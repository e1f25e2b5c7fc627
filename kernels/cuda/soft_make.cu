/* kernels/cuda/soft_make.cu - see soft_make.h. */
#include "soft_make.h"
#include "launch.h"
#include "plain_linear.cuh"
#include "plain_math.cuh"
#include "soft_matrix.h"
#include "soft_norm.cuh"
#include "tower.h"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <new>

#define PATCH_BYTES 6912u             /* PICTURE_PATCH_BYTES: 48 x 48 pixels */
#define BATCH 512u                    /* rows of a launch */
#define THREADS 256
#define LN_EPS 1e-5f                  /* of LayerNorm, as in model/soft.c */

struct soft_make {
    struct tower *tower;              /* owned; Gemma 3: it does everything, and the rest is unused */
    uint32_t hidden, dim, positions, frame, rows_max;
    float picture_eps, audio_eps;
    float *ln1[2], *ln2[2], *ln3[2];  /* device, owned, and so is all that follows: weight, bias */
    float *dense_bias, *position;
    struct soft_matrix dense, projection, sound;
    uint8_t *data;                    /* [rows_max][data_row_bytes]: of the pieces in hand */
    float *wide, *x;                  /* [BATCH][PATCH_BYTES or frame], [BATCH][dim] */
    uint64_t data_row_bytes;
    struct cuda_prefill_piece *piece; /* host, owned: [rows_max]; their pointers are not read */
    uint32_t piece_count;
};

/* ---- kernels: a block a row ------------------------------------------------------------------- */

/* pixels[r] = LN1(levels of block r / 255), which are bf16 numbers when `narrow`. */
__global__ void __launch_bounds__(THREADS) soft_pixels_kernel(const uint8_t *data, uint64_t data_row_bytes, float *pixels, const float *weight, const float *bias, bool narrow)
{
    __shared__ float row[PATCH_BYTES];
    const uint8_t *level = data + blockIdx.x * data_row_bytes;

    for (uint32_t i = threadIdx.x; i < PATCH_BYTES; i += THREADS) {
        const float value = plain_mul((float)level[i], (float)(1.0 / 255.0));

        row[i] = narrow ? plain_widen(plain_narrow(value)) : value;
    }
    __syncthreads();
    soft_layer_norm(row, weight, bias, PATCH_BYTES, LN_EPS);
    for (uint32_t i = threadIdx.x; i < PATCH_BYTES; i += THREADS) pixels[(uint64_t)blockIdx.x * PATCH_BYTES + i] = row[i];
}

struct norms_args {
    float *x;                         /* [rows][dim], in place */
    const float *bias, *ln2_weight, *ln2_bias, *ln3_weight, *ln3_bias;
    const float *position;            /* [positions][2][dim] */
    uint32_t dim, first, columns;     /* first: number in its picture of the first row */
    float eps;
};

__global__ void __launch_bounds__(THREADS) soft_norms_kernel(const __grid_constant__ norms_args a)
{
    extern __shared__ float row[];
    const uint32_t at = a.first + blockIdx.x;
    float *x = a.x + (uint64_t)blockIdx.x * a.dim;
    const float *column_position = a.position + (uint64_t)(at % a.columns) * 2 * a.dim, *row_position = a.position + ((uint64_t)(at / a.columns) * 2 + 1) * a.dim;

    for (uint32_t i = threadIdx.x; i < a.dim; i += THREADS) row[i] = plain_add(x[i], a.bias[i]);
    __syncthreads();
    soft_layer_norm(row, a.ln2_weight, a.ln2_bias, a.dim, LN_EPS);
    for (uint32_t i = threadIdx.x; i < a.dim; i += THREADS) row[i] = plain_add(row[i], plain_add(column_position[i], row_position[i]));
    __syncthreads();
    soft_layer_norm(row, a.ln3_weight, a.ln3_bias, a.dim, LN_EPS);
    const float scale = soft_rms_scale(row, a.dim, a.eps);
    for (uint32_t i = threadIdx.x; i < a.dim; i += THREADS) x[i] = plain_mul(row[i], scale);
}

/* x[r] = frame r / rms, its samples bf16 numbers when `narrow`. */
__global__ void __launch_bounds__(THREADS) soft_frames_kernel(const uint8_t *data, uint64_t data_row_bytes, float *x, uint32_t frame, float eps, bool narrow)
{
    extern __shared__ float row[];
    const float *sample = (const float *)(data + blockIdx.x * data_row_bytes);

    for (uint32_t i = threadIdx.x; i < frame; i += THREADS) row[i] = narrow ? plain_widen(plain_narrow(sample[i])) : sample[i];
    __syncthreads();
    const float scale = soft_rms_scale(row, frame, eps);
    for (uint32_t i = threadIdx.x; i < frame; i += THREADS) x[(uint64_t)blockIdx.x * frame + i] = plain_mul(row[i], scale);
}

/* ---- a call --------------------------------------------------------------------------------------- */

static int check_piece(const struct soft_make *m, const struct cuda_prefill_piece *p)
{
    if (!p->data || p->rows == 0 || p->first_row > m->rows_max || p->rows > m->rows_max - p->first_row) return -E_RANGE;
    if (p->columns == 0) return m->frame ? 0 : -E_RANGE;
    return m->dim && p->columns <= m->positions && (p->rows - 1) / p->columns < m->positions ? 0 : -E_RANGE;
}

int soft_make_take(struct soft_make *m, const struct cuda_prefill_piece *pieces, uint32_t piece_count, void *stream)
{
    int rc = 0;

    if (m->tower) return tower_take(m->tower, pieces, piece_count, stream);
    if (piece_count > m->rows_max) return -E_RANGE;
    for (uint32_t i = 0; i < piece_count; i++)
        if ((rc = check_piece(m, &pieces[i])) != 0) return rc;
    for (uint32_t i = 0; i < piece_count && rc == 0; i++) { /* from pageable memory: the call returns when the bytes have been taken */
        const struct cuda_prefill_piece *p = &pieces[i];
        const uint64_t row_bytes = p->columns ? PATCH_BYTES : m->frame * sizeof(float);

        m->piece[i] = *p;
        rc = launch_check(cudaMemcpy2DAsync(m->data + p->first_row * m->data_row_bytes, m->data_row_bytes, p->data, row_bytes, row_bytes, p->rows, cudaMemcpyHostToDevice, (cudaStream_t)stream), "pictures and sound");
    }
    m->piece_count = rc ? 0 : piece_count;
    return rc;
}

/* Rows [from, from + count) of a picture. */
static int go_picture(const struct soft_make *m, const struct cuda_prefill_piece *p, uint32_t from, uint32_t count, float *out, cudaStream_t stream)
{
    const struct norms_args norms = { m->x, m->dense_bias, m->ln2[0], m->ln2[1], m->ln3[0], m->ln3[1], m->position, m->dim, from, p->columns, m->picture_eps };

    soft_pixels_kernel<<<count, THREADS, 0, stream>>>(m->data + (p->first_row + from) * m->data_row_bytes, m->data_row_bytes, m->wide, m->ln1[0], m->ln1[1], m->dense.format != WEIGHT_F32);
    int rc = launch_check(cudaGetLastError(), "pixels");
    if (rc == 0) rc = soft_matrix_multiply(&m->dense, m->wide, count, m->x, m->dim, stream);
    if (rc) return rc;
    soft_norms_kernel<<<count, THREADS, m->dim * sizeof(float), stream>>>(norms);
    rc = launch_check(cudaGetLastError(), "norms of pictures");
    return rc ? rc : soft_matrix_multiply(&m->projection, m->x, count, out, m->hidden, stream);
}

static int go_sound(const struct soft_make *m, const struct cuda_prefill_piece *p, uint32_t from, uint32_t count, float *out, cudaStream_t stream)
{
    soft_frames_kernel<<<count, THREADS, m->frame * sizeof(float), stream>>>(m->data + (p->first_row + from) * m->data_row_bytes, m->data_row_bytes, m->wide, m->frame, m->audio_eps, m->sound.format != WEIGHT_F32);
    const int rc = launch_check(cudaGetLastError(), "frames of sound");

    return rc ? rc : soft_matrix_multiply(&m->sound, m->wide, count, out, m->hidden, stream);
}

int soft_make_go(struct soft_make *m, float *out, void *stream)
{
    int rc = 0;

    if (m->tower) return tower_go(m->tower, out, stream);
    if (m->piece_count == 0) return -E_RANGE;
    for (uint32_t i = 0; i < m->piece_count; i++)
        for (uint32_t from = 0; from < m->piece[i].rows && rc == 0; from += BATCH) {
            const struct cuda_prefill_piece *p = &m->piece[i];
            const uint32_t count = p->rows - from < BATCH ? p->rows - from : BATCH;
            float *to = out + (uint64_t)(p->first_row + from) * m->hidden;

            rc = p->columns ? go_picture(m, p, from, count, to, (cudaStream_t)stream) : go_sound(m, p, from, count, to, (cudaStream_t)stream);
        }
    m->piece_count = 0;
    return rc;
}

/* ---- open and close -------------------------------------------------------------------------------- */

static int pair(float *to[2], const float *weight, const float *bias, uint64_t n)
{
    const int rc = soft_vector_open(&to[0], weight, n);

    return rc ? rc : soft_vector_open(&to[1], bias, n);
}

static int open_pictures(struct soft_make *m, const struct cuda_soft_weights *w)
{
    int rc = pair(m->ln1, w->ln1_weight, w->ln1_bias, PATCH_BYTES);

    if (w->dense.stored.k != PATCH_BYTES || w->dense.stored.rows != m->dim || w->projection.stored.k != m->dim || w->projection.stored.rows != m->hidden) return -E_RANGE;
    if (rc == 0) rc = pair(m->ln2, w->ln2_weight, w->ln2_bias, m->dim);
    if (rc == 0) rc = pair(m->ln3, w->position_weight, w->position_bias, m->dim);
    if (rc == 0) rc = soft_vector_open(&m->dense_bias, w->dense_bias, m->dim);
    if (rc == 0) rc = soft_vector_open(&m->position, w->position, (uint64_t)m->positions * 2 * m->dim);
    if (rc == 0) rc = soft_matrix_open(&m->dense, &w->dense);
    if (rc == 0) rc = soft_matrix_open(&m->projection, &w->projection);
    return rc ? rc : launch_prepare((const void *)soft_norms_kernel, m->dim * (uint32_t)sizeof(float));
}

static int open_sound(struct soft_make *m, const struct cuda_soft_weights *w)
{
    if (w->audio_projection.stored.k != m->frame || w->audio_projection.stored.rows != m->hidden) return -E_RANGE;
    const int rc = soft_matrix_open(&m->sound, &w->audio_projection);

    return rc ? rc : launch_prepare((const void *)soft_frames_kernel, m->frame * (uint32_t)sizeof(float));
}

static int open_all(struct soft_make *m, const struct cuda_soft_weights *w)
{
    const uint64_t frame_bytes = m->frame * sizeof(float), wide = m->dim && PATCH_BYTES > m->frame ? PATCH_BYTES : m->frame;
    int rc = plain_linear_init();

    if (m->dim > LAUNCH_SHARED_MAX / 4 - 64 || m->frame > LAUNCH_SHARED_MAX / 4 - 64) return launch_fail(-E_UNSUPPORTED, "soft tokens of %u numbers", m->dim > m->frame ? m->dim : m->frame);
    m->data_row_bytes = m->dim && PATCH_BYTES > frame_bytes ? PATCH_BYTES : frame_bytes;
    m->piece = new (std::nothrow) cuda_prefill_piece[m->rows_max];
    if (!m->piece) return -E_NOMEM;
    if (rc == 0 && m->dim) rc = open_pictures(m, w);
    if (rc == 0 && m->frame) rc = open_sound(m, w);
    if (rc == 0) rc = launch_prepare((const void *)soft_pixels_kernel, 0);
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&m->data, m->rows_max * m->data_row_bytes), "pictures and sound");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&m->wide, BATCH * wide * sizeof(float)), "pictures and sound");
    if (rc == 0 && m->dim) rc = launch_check(cudaMalloc((void **)&m->x, (uint64_t)BATCH * m->dim * sizeof(float)), "pictures and sound");
    return rc;
}

int soft_make_open(struct soft_make **make, const struct cuda_soft_weights *w, uint32_t rows_max)
{
    struct soft_make *m = new (std::nothrow) soft_make();

    *make = NULL;
    if (!m) return -E_NOMEM;
    m->hidden = w->hidden;
    m->dim = w->picture_dim;
    m->positions = w->picture_positions;
    m->frame = w->audio_frame;
    m->picture_eps = w->picture_eps;
    m->audio_eps = w->audio_eps;
    m->rows_max = rows_max;
    const int rc = w->tower ? tower_open(&m->tower, w->tower, rows_max) : open_all(m, w);
    if (rc) soft_make_close(m);
    else *make = m;
    return rc;
}

void soft_make_close(struct soft_make *m)
{
    if (!m) return;
    tower_close(m->tower);
    void *const all[] = { m->ln1[0], m->ln1[1], m->ln2[0], m->ln2[1], m->ln3[0], m->ln3[1], m->dense_bias, m->position, m->data, m->wide, m->x };

    for (void *memory : all) cudaFree(memory);
    soft_matrix_close(&m->dense);
    soft_matrix_close(&m->projection);
    soft_matrix_close(&m->sound);
    delete[] m->piece;
    delete m;
}
