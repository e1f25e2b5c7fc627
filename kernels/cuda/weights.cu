/* kernels/cuda/weights.cu - filling the weight arena: from plain tensors, or at random (contract in cuda_backend.h). */
#include "chain.h"
#include "launch.h"
#include "pack.h"
#include "shm/error.h"

struct place { const struct arena_matrix *matrix; uint32_t rows, tile_first, half; };

/* Where a tensor of a layer goes; -E_NOT_FOUND for a v that the layer does not have. */
static int find_place(const struct cuda_backend *b, enum cuda_tensor tensor, uint32_t layer, struct place *p)
{
    const struct arena_layer *l = &b->arena.layer[layer];
    const uint32_t q = spec_q_rows(&b->spec, layer), kv = spec_kv_rows(&b->spec, layer);
    const struct place whole = { NULL, 0, 0, PACK_WHOLE };

    *p = whole;
    switch (tensor) {
    case CUDA_Q: p->matrix = &l->qkv, p->rows = q; break;
    case CUDA_K: p->matrix = &l->qkv, p->rows = kv, p->tile_first = q / TILE_ROWS; break;
    case CUDA_V:
        if (!b->spec.layer[layer].has_v) return -E_NOT_FOUND;
        p->matrix = &l->qkv, p->rows = kv, p->tile_first = (q + kv) / TILE_ROWS;
        break;
    case CUDA_O: p->matrix = &l->o, p->rows = l->o.rows; break;
    case CUDA_GATE: p->matrix = &l->gate_up, p->rows = b->spec.intermediate, p->half = 0; break;
    case CUDA_UP: p->matrix = &l->gate_up, p->rows = b->spec.intermediate, p->half = 1; break;
    case CUDA_DOWN: p->matrix = &l->down, p->rows = l->down.rows; break;
    case CUDA_EMBED: p->matrix = &b->arena.head, p->rows = b->spec.vocab; break;
    default: return -E_RANGE;
    }
    return 0;
}

static struct packed_matrix packed(const struct cuda_backend *b, const struct arena_matrix *m)
{
    const struct packed_matrix p = { (const uint8_t *)b->options.weights_device + m->offset, m->rows, m->k, m->slice_k, m->format };

    return p;
}

static int find_vector(const struct cuda_backend *b, enum cuda_tensor tensor, uint32_t layer, uint64_t *offset, uint32_t *count)
{
    const struct arena_layer *l = &b->arena.layer[layer];

    *count = b->spec.hidden;
    switch (tensor) {
    case CUDA_INPUT_NORM: *offset = l->input_norm; break;
    case CUDA_POST_ATTENTION_NORM: *offset = l->post_attention_norm; break;
    case CUDA_PRE_FF_NORM: *offset = l->pre_ff_norm; break;
    case CUDA_POST_FF_NORM: *offset = l->post_ff_norm; break;
    case CUDA_FINAL_NORM: *offset = b->arena.final_norm; break;
    case CUDA_Q_NORM: *offset = l->q_norm, *count = spec_head_dim(&b->spec, layer); break;
    case CUDA_K_NORM: *offset = l->k_norm, *count = spec_head_dim(&b->spec, layer); break;
    default: return -E_RANGE;
    }
    return 0;
}

__global__ void widen_kernel(const __nv_bfloat16 *from, float *to) { *to = __bfloat162float(*from); }

static int load_vector(struct cuda_backend *b, enum cuda_tensor tensor, uint32_t layer, const void *source)
{
    uint8_t *arena = (uint8_t *)b->options.weights_device;
    uint64_t offset;
    uint32_t count;

    if (tensor == CUDA_LAYER_SCALAR) {
        widen_kernel<<<1, 1, 0, b->stream>>>((const __nv_bfloat16 *)source, (float *)(arena + b->arena.layer[layer].scalar));
        return launch_check(cudaGetLastError(), "layer scalar");
    }
    const int rc = find_vector(b, tensor, layer, &offset, &count);
    return rc ? rc : launch_check(cudaMemcpyAsync(arena + offset, source, 2ull * count, cudaMemcpyDeviceToDevice, b->stream), "norm weights");
}

extern "C" int cuda_backend_load(struct cuda_backend *b, enum cuda_tensor tensor, uint32_t layer, const void *source, uint32_t source_format,
                                 const void *scale, uint32_t scale_stride)
{
    struct place p;
    float *scratch = NULL;
    int rc;

    if (tensor == CUDA_EMBED || tensor == CUDA_FINAL_NORM) layer = 0;
    if (layer >= b->spec.layers || source == NULL) return -E_RANGE;
    if (tensor >= CUDA_INPUT_NORM && tensor != CUDA_EMBED) {
        rc = source_format == WEIGHT_BF16 ? load_vector(b, tensor, layer, source) : -E_UNSUPPORTED;
    } else {
        rc = find_place(b, tensor, layer, &p);
        if (rc) return rc;
        const struct packed_matrix to = packed(b, p.matrix);
        const struct pack_source from = { source, (const float *)scale, scale_stride, source_format, p.rows, p.tile_first, p.half };

        rc = launch_check(cudaMalloc((void **)&scratch, 4ull * p.rows), "scratch memory");
        if (rc == 0) rc = pack_launch(&to, &from, scratch, b->stream);
    }
    const int done = launch_check(cudaStreamSynchronize(b->stream), "load");
    cudaFree(scratch);
    return rc ? rc : done;
}

extern "C" int cuda_backend_unpack(struct cuda_backend *b, enum cuda_tensor tensor, uint32_t layer, void *out)
{
    struct place p;
    const int rc = layer < b->spec.layers ? find_place(b, tensor, layer, &p) : -E_RANGE;

    if (rc) return rc;
    const struct packed_matrix from = packed(b, p.matrix);
    const int launched = unpack_launch(&from, (float *)out, b->stream);
    return launched ? launched : launch_check(cudaStreamSynchronize(b->stream), "unpack");
}

/* Deviations that keep every layer's output near 1, as in a trained model: 1 / sqrt(k). */
static int fill_matrix(struct cuda_backend *b, const struct arena_matrix *m, void *plain, float *scratch, uint64_t seed)
{
    const struct packed_matrix to = packed(b, m);
    const uint32_t piece = 32768;      /* rows at a time: the LM head would need 2 GB of plain weights */
    int rc = 0;

    for (uint32_t row = 0; row < m->rows && rc == 0; row += piece) {
        const uint32_t rows = m->rows - row < piece ? m->rows - row : piece;
        const struct pack_source from = { plain, NULL, 0, WEIGHT_BF16, rows, row / TILE_ROWS, PACK_WHOLE };

        rc = fill_normal_launch(plain, (uint64_t)rows * m->k, 1.0f / sqrtf((float)m->k), seed + row, b->stream);
        if (rc == 0) rc = pack_launch(&to, &from, scratch, b->stream);
    }
    return rc;
}

static int fill_vectors(struct cuda_backend *b, uint32_t layer)
{
    uint8_t *arena = (uint8_t *)b->options.weights_device;
    const float one = 1.0f;
    int rc = 0;

    for (int t = CUDA_INPUT_NORM; t < CUDA_TENSORS && rc == 0; t++) {
        uint64_t offset;
        uint32_t count;

        if (t == CUDA_LAYER_SCALAR || t == CUDA_EMBED) continue;
        rc = find_vector(b, (enum cuda_tensor)t, layer, &offset, &count);
        if (rc == 0) rc = fill_constant_launch(arena + offset, count, 1.0f, b->stream);
    }
    return rc ? rc : launch_check(cudaMemcpyAsync(arena + b->arena.layer[layer].scalar, &one, sizeof one, cudaMemcpyHostToDevice, b->stream), "layer scalar");
}

extern "C" int cuda_backend_fill_random(struct cuda_backend *b, uint64_t seed)
{
    uint64_t largest = 0;
    void *plain = NULL;
    float *scratch = NULL;
    int rc;

    for (uint32_t i = 0; i < b->spec.layers; i++) {
        const struct arena_layer *l = &b->arena.layer[i];
        const struct arena_matrix *all[] = { &l->qkv, &l->o, &l->gate_up, &l->down };

        for (const struct arena_matrix *m : all)
            if ((uint64_t)m->rows * m->k > largest) largest = (uint64_t)m->rows * m->k;
    }
    if (32768ull * b->arena.head.k > largest) largest = 32768ull * b->arena.head.k;
    rc = launch_check(cudaMalloc(&plain, 2 * largest), "scratch memory");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&scratch, 4 * 32768), "scratch memory");
    for (uint32_t i = 0; i < b->spec.layers && rc == 0; i++) {
        const struct arena_layer *l = &b->arena.layer[i];

        rc = fill_matrix(b, &l->qkv, plain, scratch, seed + 8 * i);
        if (rc == 0) rc = fill_matrix(b, &l->o, plain, scratch, seed + 8 * i + 1);
        if (rc == 0) rc = fill_matrix(b, &l->gate_up, plain, scratch, seed + 8 * i + 2);
        if (rc == 0) rc = fill_matrix(b, &l->down, plain, scratch, seed + 8 * i + 3);
        if (rc == 0) rc = fill_vectors(b, i);
    }
    if (rc == 0) rc = fill_matrix(b, &b->arena.head, plain, scratch, seed + 8 * CUDA_LAYERS_MAX);
    const int done = launch_check(cudaStreamSynchronize(b->stream), "fill");
    cudaFree(plain);
    cudaFree(scratch);
    return rc ? rc : done;
}
