/* kernels/cuda/draft_weights.cu - filling the drafter's weight arena, from host tensors or at random (contract in cuda_draft.h).
 *
 * Owns nothing between two calls: a call makes the device copies that it packs from and frees them. */
#include "draft_layout.h"
#include "launch.h"
#include "pack.h"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <math.h>
#include <vector>

#define CHUNK_ROWS 8192u              /* copied and packed at once; a multiple of 16 */

struct target { const struct draft_matrix *matrix; uint32_t rows, k, half; };   /* rows, k: of the tensor */

static int find_matrix(const struct cuda_draft_spec *s, const struct draft_plan *p, enum cuda_draft_tensor tensor, uint32_t layer, struct target *to)
{
    const struct draft_layer_plan *l = &p->layer[layer];
    const uint32_t q_rows = DRAFT_HEADS * (s->layer_type[layer] == CUDA_FULL ? 512 : 256);

    to->half = PACK_WHOLE;
    switch (tensor) {
    case CUDA_DRAFT_Q: to->matrix = &l->q, to->rows = q_rows, to->k = s->hidden; break;
    case CUDA_DRAFT_O: to->matrix = &l->o, to->rows = s->hidden, to->k = q_rows; break;
    case CUDA_DRAFT_GATE: to->matrix = &l->gate_up, to->rows = s->intermediate, to->k = s->hidden, to->half = 0; break;
    case CUDA_DRAFT_UP: to->matrix = &l->gate_up, to->rows = s->intermediate, to->k = s->hidden, to->half = 1; break;
    case CUDA_DRAFT_DOWN: to->matrix = &l->down, to->rows = s->hidden, to->k = s->intermediate; break;
    case CUDA_DRAFT_PRE: to->matrix = &p->pre, to->rows = s->hidden, to->k = 2 * s->backbone_hidden; break;
    case CUDA_DRAFT_POST: to->matrix = &p->post, to->rows = s->backbone_hidden, to->k = s->hidden; break;
    case CUDA_DRAFT_HEAD: to->matrix = &p->head, to->rows = draft_head_rows(s), to->k = s->hidden; break;
    default: return -E_NOT_FOUND;
    }
    return 0;
}

static int find_vector(const struct cuda_draft_spec *s, const struct draft_plan *p, enum cuda_draft_tensor tensor, uint32_t layer, uint64_t *offset, uint32_t *count)
{
    const struct draft_layer_plan *l = &p->layer[layer];

    *count = s->hidden;
    switch (tensor) {
    case CUDA_DRAFT_INPUT_NORM: *offset = l->input_norm; break;
    case CUDA_DRAFT_POST_ATTENTION_NORM: *offset = l->post_attention_norm; break;
    case CUDA_DRAFT_PRE_FF_NORM: *offset = l->pre_ff_norm; break;
    case CUDA_DRAFT_POST_FF_NORM: *offset = l->post_ff_norm; break;
    case CUDA_DRAFT_Q_NORM: *offset = l->q_norm, *count = s->layer_type[layer] == CUDA_FULL ? 512 : 256; break;
    case CUDA_DRAFT_LAYER_SCALAR: *offset = l->scalar, *count = 1; break;
    case CUDA_DRAFT_FINAL_NORM: *offset = p->norm; break;
    case CUDA_DRAFT_CHOICE: *offset = p->choice, *count = s->choices; break;
    default: return -E_NOT_FOUND;
    }
    return 0;
}

/* Rows [first, first + rows) from the host: padded with zero columns to whole slices, then packed. */
static int put_rows(const struct cuda_draft_spec *s, uint8_t *arena, const struct target *to, uint32_t first, uint32_t rows, const uint8_t *source, uint32_t format,
                    const float *scale, uint32_t scale_stride, uint8_t *room, float *scales)
{
    const uint32_t element = format == WEIGHT_FP8 ? 1 : 2, padded = to->matrix->slices * DRAFT_SLICE, per_tile = to->half == PACK_WHOLE ? TILE_ROWS : TILE_ROWS / 2;
    const packed_matrix m = { arena + to->matrix->offset, to->matrix->units / to->matrix->slices * TILE_ROWS, padded, DRAFT_SLICE, s->format };
    const pack_source from = { room, format == WEIGHT_FP8 ? scales : NULL, scale_stride, format, rows, first / per_tile, to->half, NULL };
    int rc = 0;

    if (padded != to->k) rc = launch_check(cudaMemset(room, 0, (uint64_t)rows * padded * element), "drafter's weights");
    if (rc == 0)
        rc = launch_check(cudaMemcpy2D(room, (uint64_t)padded * element, source + (uint64_t)first * to->k * element, (uint64_t)to->k * element, (uint64_t)to->k * element, rows, cudaMemcpyHostToDevice),
                          "drafter's weights");
    if (rc == 0 && format == WEIGHT_FP8)
        rc = launch_check(cudaMemcpy(scales, scale + (scale_stride ? first : 0), 4ull * (scale_stride ? rows : 1), cudaMemcpyHostToDevice), "drafter's scales");
    if (rc == 0) rc = pack_launch(&m, &from, scales, NULL);
    return rc ? rc : launch_check(cudaDeviceSynchronize(), "drafter's weights");
}

extern "C" int cuda_draft_weights_put(const struct cuda_draft_spec *s, void *weights_device, enum cuda_draft_tensor tensor, uint32_t layer, uint32_t rows, uint32_t k,
                                      const void *source, uint32_t source_format, const float *scale, uint32_t scale_stride)
{
    struct draft_plan plan;
    struct target to;
    uint64_t offset;
    uint32_t count;
    int rc = draft_plan_make(&plan, s);

    if (rc) return rc;
    if (tensor >= CUDA_DRAFT_TENSORS || layer >= s->layers) return -E_RANGE;
    if (find_vector(s, &plan, tensor, layer, &offset, &count) == 0) {
        if (source_format != WEIGHT_F32 || rows != count) return -E_RANGE;
        return launch_check(cudaMemcpy((uint8_t *)weights_device + offset, source, 4ull * count, cudaMemcpyHostToDevice), "drafter's vector");
    }
    rc = find_matrix(s, &plan, tensor, layer, &to);
    if (rc) return rc;
    if (rows != to.rows || k != to.k || (source_format != WEIGHT_BF16 && source_format != WEIGHT_FP8) || (source_format == WEIGHT_FP8 && !scale)) return -E_RANGE;
    const uint32_t chunk = rows < CHUNK_ROWS ? rows : CHUNK_ROWS;
    uint8_t *room = NULL;
    float *scales = NULL;

    rc = launch_check(cudaMalloc((void **)&room, (uint64_t)chunk * to.matrix->slices * DRAFT_SLICE * 2), "room for the drafter's weights");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&scales, 4ull * chunk), "room for the drafter's scales");
    for (uint32_t first = 0; first < rows && rc == 0; first += chunk)
        rc = put_rows(s, (uint8_t *)weights_device, &to, first, rows - first < chunk ? rows - first : chunk, (const uint8_t *)source, source_format, scale, scale_stride, room, scales);
    cudaFree(room);
    cudaFree(scales);
    return rc;
}

/* ---- random weights ---- */

static int fill_matrix(const struct cuda_draft_spec *s, uint8_t *arena, const struct draft_matrix *m, uint64_t seed)
{
    const uint32_t tiles = m->units / m->slices, k = m->slices * DRAFT_SLICE, chunk = CHUNK_ROWS / TILE_ROWS < tiles ? CHUNK_ROWS / TILE_ROWS : tiles;
    const packed_matrix to = { arena + m->offset, tiles * TILE_ROWS, k, DRAFT_SLICE, s->format };
    uint8_t *room = NULL;
    float *scales = NULL;
    int rc = launch_check(cudaMalloc((void **)&room, (uint64_t)chunk * TILE_ROWS * k * 2), "room for random weights");

    if (rc == 0) rc = launch_check(cudaMalloc((void **)&scales, 4ull * chunk * TILE_ROWS), "room for random weights");
    for (uint32_t tile = 0; tile < tiles && rc == 0; tile += chunk) {
        const uint32_t rows = (tiles - tile < chunk ? tiles - tile : chunk) * TILE_ROWS;
        const pack_source from = { room, NULL, 0, WEIGHT_BF16, rows, tile, PACK_WHOLE, NULL };

        rc = fill_normal_launch(room, (uint64_t)rows * k, 1.0f / sqrtf((float)k), seed * 1000003 + m->offset + tile, NULL);
        if (rc == 0) rc = pack_launch(&to, &from, scales, NULL);
    }
    if (rc == 0) rc = launch_check(cudaDeviceSynchronize(), "random weights");
    cudaFree(room);
    cudaFree(scales);
    return rc;
}

static int fill_vector(uint8_t *arena, uint64_t offset, uint32_t count, float value)
{
    const std::vector<float> values(count, value);

    return launch_check(cudaMemcpy(arena + offset, values.data(), 4ull * count, cudaMemcpyHostToDevice), "random norms");
}

/* Tokens all over the vocabulary. */
static int fill_choice(const struct cuda_draft_spec *s, uint8_t *to)
{
    std::vector<uint32_t> choice(s->choices);

    for (uint32_t i = 0; i < s->choices; i++) choice[i] = (uint32_t)((uint64_t)i * s->vocab / s->choices);
    return launch_check(cudaMemcpy(to, choice.data(), 4ull * s->choices, cudaMemcpyHostToDevice), "random choices");
}

extern "C" int cuda_draft_weights_fill_random(const struct cuda_draft_spec *s, void *weights_device, uint64_t seed)
{
    uint8_t *arena = (uint8_t *)weights_device;
    struct draft_plan p;
    int rc = draft_plan_make(&p, s);

    if (rc == 0) rc = fill_matrix(s, arena, &p.pre, seed);
    for (uint32_t i = 0; i < s->layers && rc == 0; i++) {
        const struct draft_layer_plan *l = &p.layer[i];
        const struct draft_matrix *matrix[] = { &l->q, &l->o, &l->gate_up, &l->down };
        const uint64_t vector[] = { l->input_norm, l->post_attention_norm, l->pre_ff_norm, l->post_ff_norm };
        const uint32_t dim = s->layer_type[i] == CUDA_FULL ? 512 : 256;

        for (const struct draft_matrix *m : matrix) rc = rc ? rc : fill_matrix(s, arena, m, seed);
        for (uint64_t offset : vector) rc = rc ? rc : fill_vector(arena, offset, s->hidden, 1.0f);
        if (rc == 0) rc = fill_vector(arena, l->q_norm, dim, 1.0f / sqrtf((float)dim));   /* scores near 1 with keys near 1 */
        if (rc == 0) rc = fill_vector(arena, l->scalar, 1, 1.0f);
    }
    if (rc == 0) rc = fill_matrix(s, arena, &p.post, seed);
    if (rc == 0) rc = fill_matrix(s, arena, &p.head, seed);
    if (rc == 0) rc = fill_choice(s, arena + p.choice);
    return rc ? rc : fill_vector(arena, p.norm, s->hidden, 1.0f);
}
