/* kernels/cuda/weights.cu - filling the weight arena: from plain tensors in device or host memory, or at random (contract in cuda_weights.h).
 *
 * Owns      per handle: two pinned host buffers with their device twins (made at the first cuda_weights_buffer), scratch for row scales, a stream.
 * Order     a put copies its host buffer to the twin and packs from there, all on one stream; an event tells when the host buffer is free again. */
#include "arena.h"
#include "cuda_weights.h"
#include "launch.h"
#include "pack.h"
#include "plain.h"
#include "powers.h"
#include "kernels/stored.h"
#include "shm/error.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <new>

struct staging {
    uint8_t *host, *device;           /* CUDA_WEIGHTS_BUFFER_BYTES of data, then SCALE_BYTES of row scales */
    cudaEvent_t read;                 /* the GPU has read `host` */
};

struct cuda_weights {
    struct cuda_model_spec spec;
    struct arena arena;               /* unused when plain */
    bool plain;                       /* shapes of plain.h: every tensor as the checkpoint has it */
    uint8_t *device;                  /* the arena; borrowed */
    cudaStream_t stream;
    float *scratch;                   /* [CUDA_WEIGHTS_ROWS_MAX] row scales of what is quantised; owned */
    struct staging staging[CUDA_WEIGHTS_BUFFERS];
    uint32_t turn;                    /* the buffer last given is turn - 1 */
    bool given;                       /* and not yet put */
};

#define SCALE_BYTES (4u * CUDA_WEIGHTS_ROWS_MAX)

/* ---- the handle ---- */

extern "C" void cuda_weights_close(struct cuda_weights *w)
{
    if (w == NULL) return;
    if (w->stream) cudaStreamSynchronize(w->stream);
    for (struct staging &s : w->staging) {
        if (s.read) cudaEventDestroy(s.read);
        cudaFreeHost(s.host);
        cudaFree(s.device);
    }
    cudaFree(w->scratch);
    if (w->stream) cudaStreamDestroy(w->stream);
    delete w;
}

extern "C" int cuda_weights_open(struct cuda_weights **weights, const struct cuda_model_spec *spec, void *weights_device)
{
    struct cuda_weights *w = new (std::nothrow) cuda_weights();

    if (w == NULL) return launch_fail(-E_NOMEM, "no memory for the loader");
    w->spec = *spec;
    w->device = (uint8_t *)weights_device;
    int rc = arena_plan(&w->arena, spec);
    if (rc == -E_UNSUPPORTED && plain_weights_bytes(spec) != 0) w->plain = true, rc = 0;
    if (rc) rc = launch_fail(rc, "the kernels are not made for the shapes of this model");
    if (rc == 0 && ((uintptr_t)weights_device == 0 || (uintptr_t)weights_device % ARENA_ALIGN)) rc = launch_fail(-E_RANGE, "the weight arena is not aligned");
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking), "stream");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&w->scratch, SCALE_BYTES), "scratch memory");
    if (rc) cuda_weights_close(w);
    else *weights = w;
    return rc;
}

/* ---- where a tensor goes ---- */

struct place { const struct arena_matrix *matrix; uint32_t rows, tile_first, half; };

static bool is_vector(enum cuda_tensor tensor) { return tensor >= CUDA_INPUT_NORM && tensor != CUDA_EMBED; }

/* Where a matrix goes; -E_NOT_FOUND for a v that the layer does not have. */
static int find_place(const struct cuda_weights *w, enum cuda_tensor tensor, uint32_t layer, struct place *p)
{
    const struct arena_layer *l = &w->arena.layer[layer];
    const uint32_t q = spec_q_rows(&w->spec, layer), kv = spec_kv_rows(&w->spec, layer);
    const struct place whole = { NULL, 0, 0, PACK_WHOLE };

    *p = whole;
    switch (tensor) {
    case CUDA_Q: p->matrix = &l->qkv, p->rows = q; break;
    case CUDA_K: p->matrix = &l->qkv, p->rows = kv, p->tile_first = q / TILE_ROWS; break;
    case CUDA_V:
        if (!w->spec.layer[layer].has_v) return -E_NOT_FOUND;
        p->matrix = &l->qkv, p->rows = kv, p->tile_first = (q + kv) / TILE_ROWS;
        break;
    case CUDA_O: p->matrix = &l->o, p->rows = l->o.rows; break;
    case CUDA_GATE: p->matrix = &l->gate_up, p->rows = w->spec.intermediate, p->half = 0; break;
    case CUDA_UP: p->matrix = &l->gate_up, p->rows = w->spec.intermediate, p->half = 1; break;
    case CUDA_DOWN: p->matrix = &l->down, p->rows = l->down.rows; break;
    case CUDA_EMBED: p->matrix = &w->arena.head, p->rows = w->spec.vocab; break;
    default: return -E_RANGE;
    }
    return 0;
}

static struct packed_matrix packed(const struct cuda_weights *w, const struct arena_matrix *m)
{
    const struct packed_matrix p = { w->device + m->offset, m->rows, m->k, m->slice_k, m->format };

    return p;
}

static int find_vector(const struct cuda_weights *w, enum cuda_tensor tensor, uint32_t layer, uint64_t *offset, uint32_t *count)
{
    const struct arena_layer *l = &w->arena.layer[layer];

    *count = w->spec.hidden;
    switch (tensor) {
    case CUDA_INPUT_NORM: *offset = l->input_norm; break;
    case CUDA_POST_ATTENTION_NORM: *offset = l->post_attention_norm; break;
    case CUDA_PRE_FF_NORM: *offset = l->pre_ff_norm; break;
    case CUDA_POST_FF_NORM: *offset = l->post_ff_norm; break;
    case CUDA_FINAL_NORM: *offset = w->arena.final_norm; break;
    case CUDA_Q_NORM: *offset = l->q_norm, *count = spec_head_dim(&w->spec, layer); break;
    case CUDA_K_NORM: *offset = l->k_norm, *count = spec_head_dim(&w->spec, layer); break;
    case CUDA_LAYER_SCALAR: *offset = l->scalar, *count = 1; break;
    default: return -E_RANGE;
    }
    return 0;
}

/* ---- one tensor, or rows of it ---- */

__global__ void to_bf16_kernel(const float *from, __nv_bfloat16 *to, uint32_t count, float bias)
{
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    if (i < count) to[i] = __float2bfloat16_rn(from[i] - bias);
}

__global__ void to_f32_kernel(const __nv_bfloat16 *from, float *to) { *to = __bfloat162float(*from); }

/* In the arena norms are bf16, as the checkpoint has them: w - 1 where the spec says so (f32 sources have the 1 added: cuda_weights.h); the layer's scalar is f32. */
static int pack_vector(struct cuda_weights *w, enum cuda_tensor tensor, uint32_t layer, const void *source, uint32_t format, uint32_t given)
{
    uint64_t offset = 0;
    uint32_t count = 0;
    const int rc = find_vector(w, tensor, layer, &offset, &count);

    if (rc) return rc;
    if (given != count) return launch_fail(-E_RANGE, "a vector of %u values where %u belong", given, count);
    void *to = w->device + offset;
    if (format == WEIGHT_BF16 && tensor == CUDA_LAYER_SCALAR) to_f32_kernel<<<1, 1, 0, w->stream>>>((const __nv_bfloat16 *)source, (float *)to);
    else if (format == WEIGHT_F32 && tensor != CUDA_LAYER_SCALAR) to_bf16_kernel<<<(count + 255) / 256, 256, 0, w->stream>>>((const float *)source, (__nv_bfloat16 *)to, count, spec_norm_bias(&w->spec));
    else if (format == WEIGHT_BF16 || format == WEIGHT_F32) return launch_check(cudaMemcpyAsync(to, source, (format == WEIGHT_F32 ? 4ull : 2ull) * count, cudaMemcpyDeviceToDevice, w->stream), "vector");
    else return launch_fail(-E_UNSUPPORTED, "a vector of format %u", format);
    return launch_check(cudaGetLastError(), "vector");
}

static int pack_rows(struct cuda_weights *w, const struct place *p, uint32_t first_row, uint32_t rows, const void *source, uint32_t format,
                     const float *scale, uint32_t stride, float *scratch)
{
    const struct packed_matrix to = packed(w, p->matrix);
    const uint32_t rows_per_tile = p->half == PACK_WHOLE ? TILE_ROWS : TILE_ROWS / 2;
    const uint8_t *group = format == WEIGHT_FP4 ? (const uint8_t *)source + (uint64_t)rows * to.k / 2 : NULL;
    const struct pack_source from = { source, scale, stride, format, rows, p->tile_first + first_row / rows_per_tile, p->half, group };

    return pack_launch(&to, &from, scratch, w->stream);
}

/* ---- powers of two of the activations ---- */

static int put_powers(struct cuda_weights *w, uint32_t layer, float *scratch)
{
    const struct arena_layer *l = &w->arena.layer[layer];
    const uint32_t kv = spec_kv_rows(&w->spec, layer);
    const struct powers_args a = { (const __nv_bfloat16 *)(w->device + l->input_norm), (const __nv_bfloat16 *)(w->device + l->pre_ff_norm), spec_norm_bias(&w->spec), w->spec.hidden,
                                   spec_head_dim(&w->spec, layer), packed(w, &l->qkv), packed(w, &l->gate_up), l->qkv.rows - kv, w->spec.has_v_norm,
                                   l->qkv.activation != STORED_AS_IS, l->gate_up.activation != STORED_AS_IS, (struct row_power *)(w->device + l->powers), scratch };

    return powers_launch(&a, w->stream);
}

/* What the powers of its layer follow from. */
static bool moves_powers(const struct cuda_weights *w, enum cuda_tensor tensor)
{
    if (tensor == CUDA_GATE || tensor == CUDA_UP || tensor == CUDA_INPUT_NORM || tensor == CUDA_PRE_FF_NORM) return true;
    return !w->spec.has_v_norm && (tensor == CUDA_K || tensor == CUDA_V);
}

static int put_all_powers(struct cuda_weights *w)
{
    int rc = 0;

    for (uint32_t i = 0; i < w->spec.layers && rc == 0 && !w->plain; i++) rc = put_powers(w, i, w->scratch);
    return rc;
}

/* ---- a whole tensor that is on the device ---- */

extern "C" int cuda_weights_load(struct cuda_weights *w, enum cuda_tensor tensor, uint32_t layer, const void *source, uint32_t source_format,
                                 const void *scale, uint32_t scale_stride)
{
    struct place p;
    float *scratch = NULL;
    uint64_t offset;
    uint32_t count = 0;
    int rc;

    if (tensor == CUDA_EMBED || tensor == CUDA_FINAL_NORM) layer = 0;
    if (layer >= w->spec.layers || source == NULL) return -E_RANGE;
    if (w->plain) {
        rc = plain_weights_put(&w->spec, w->device, tensor, layer, 0, plain_tensor_rows(&w->spec, tensor, layer), source, source_format, (const float *)scale, scale_stride, w->stream);
    } else if (is_vector(tensor)) {
        rc = find_vector(w, tensor, layer, &offset, &count);
        if (rc == 0) rc = pack_vector(w, tensor, layer, source, source_format, count);
    } else {
        rc = find_place(w, tensor, layer, &p);
        if (rc) return rc;
        rc = launch_check(cudaMalloc((void **)&scratch, 4ull * p.rows), "scratch memory");
        if (rc == 0) rc = pack_rows(w, &p, 0, p.rows, source, source_format, (const float *)scale, scale_stride, scratch);
    }
    if (rc == 0 && !w->plain && moves_powers(w, tensor)) rc = put_powers(w, layer, w->scratch);
    const int done = launch_check(cudaStreamSynchronize(w->stream), "load");
    cudaFree(scratch);
    return rc ? rc : done;
}

/* ---- from the host, piece by piece ---- */

static int make_staging(struct staging *s)
{
    const uint64_t bytes = (uint64_t)CUDA_WEIGHTS_BUFFER_BYTES + SCALE_BYTES;
    int rc = 0;

    if (!s->host) rc = launch_check(cudaMallocHost((void **)&s->host, bytes), "pinned memory");
    if (rc == 0 && !s->device) rc = launch_check(cudaMalloc((void **)&s->device, bytes), "staging memory");
    if (rc == 0 && !s->read) rc = launch_check(cudaEventCreateWithFlags(&s->read, cudaEventDisableTiming), "event");
    return rc;
}

extern "C" int cuda_weights_buffer(struct cuda_weights *w, void **host, uint64_t *bytes)
{
    struct staging *s = &w->staging[w->turn % CUDA_WEIGHTS_BUFFERS];
    int rc = w->given ? launch_fail(-E_BUSY, "the last buffer was not put") : make_staging(s);

    if (rc == 0) rc = launch_check(cudaEventSynchronize(s->read), "load");   /* an event never recorded is complete */
    if (rc) return rc;
    w->turn++;
    w->given = true;
    *host = s->host;
    *bytes = CUDA_WEIGHTS_BUFFER_BYTES;
    return 0;
}

/* Of rows of a matrix in a buffer: codes, and FP4's group scales behind them. */
static uint64_t source_bytes(uint32_t format, uint64_t elements)
{
    return format == WEIGHT_F32 ? 4 * elements : format == WEIGHT_BF16 ? 2 * elements : format == WEIGHT_FP4 ? elements / 2 + elements / WEIGHT_GROUP : elements;
}

static bool has_scales(uint32_t format) { return format != WEIGHT_BF16 && format != WEIGHT_F32; }

/* Floats that stand beside rows of a matrix. */
static uint64_t source_scales(uint32_t format, uint32_t rows, uint32_t stride)
{
    if (format == WEIGHT_FP8_BLOCK) return (uint64_t)((rows + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK) * stride;
    return !has_scales(format) ? 0 : format == WEIGHT_FP8 && stride ? rows : 1;
}

/* Vectors are given as they multiply here, never as w - 1. */
static int plain_put(struct cuda_weights *w, enum cuda_tensor tensor, uint32_t layer, uint32_t first_row, uint32_t rows, const void *source, uint32_t format, const float *scale, uint32_t stride)
{
    struct cuda_model_spec spec = w->spec;

    spec.norm_plus_one = 0;
    const int rc = plain_weights_put(&spec, w->device, tensor, layer, first_row, rows, source, format, scale, stride, w->stream);
    return rc == -E_UNSUPPORTED ? launch_fail(rc, "this model's kernels take its weights only as its checkpoint has them") : rc;
}

struct extent { struct place place; uint32_t rows, k; };      /* place: not when plain */

static int find_rows(const struct cuda_weights *w, enum cuda_tensor tensor, uint32_t layer, struct extent *e)
{
    if (w->plain) {
        e->rows = plain_tensor_rows(&w->spec, tensor, layer);
        e->k = tensor == CUDA_O ? w->spec.q_heads * w->spec.head_dim[w->spec.layer[layer].type] : tensor == CUDA_DOWN ? w->spec.intermediate : w->spec.hidden;
        return e->rows ? 0 : launch_fail(-E_NOT_FOUND, "layer %u has no such tensor", layer);
    }
    const int rc = find_place(w, tensor, layer, &e->place);
    if (rc) return launch_fail(rc, "layer %u has no such tensor", layer);
    e->rows = e->place.rows, e->k = e->place.matrix->k;
    return 0;
}

/* Checks a piece of a matrix; its bytes. */
static int check_rows(const struct extent *p, uint32_t first_row, uint32_t rows, uint32_t format, uint64_t *bytes)
{
    if (rows == 0 || rows > CUDA_WEIGHTS_ROWS_MAX || first_row > p->rows || rows > p->rows - first_row || first_row % TILE_ROWS) return launch_fail(-E_RANGE, "rows %u of %u", first_row, p->rows);
    if (rows % TILE_ROWS && first_row + rows != p->rows) return launch_fail(-E_RANGE, "%u rows are not whole tiles", rows);
    if (format == WEIGHT_FP8_BLOCK && first_row % WEIGHT_BLOCK) return launch_fail(-E_RANGE, "row %u cuts a block of scales", first_row);
    *bytes = source_bytes(format, (uint64_t)rows * p->k);
    return *bytes > CUDA_WEIGHTS_BUFFER_BYTES ? launch_fail(-E_RANGE, "%u rows do not fit the buffer", rows) : 0;
}

extern "C" int cuda_weights_put(struct cuda_weights *w, enum cuda_tensor tensor, uint32_t layer, uint32_t first_row, uint32_t rows,
                                uint32_t source_format, const float *scale, uint32_t scale_stride)
{
    struct staging *s = &w->staging[(w->turn - 1) % CUDA_WEIGHTS_BUFFERS];
    const uint64_t scales = source_scales(source_format, rows, scale_stride);
    uint64_t bytes = 4ull * rows;
    struct extent e;
    int rc = 0;

    if (!w->given || tensor >= CUDA_TENSORS) return launch_fail(-E_RANGE, "nothing to put");
    w->given = false;
    if (tensor == CUDA_EMBED || tensor == CUDA_FINAL_NORM) layer = 0;
    if (layer >= w->spec.layers || has_scales(source_format) != (scale != NULL) || scales > CUDA_WEIGHTS_ROWS_MAX) return launch_fail(-E_RANGE, "layer %u or the scales", layer);
    if (!is_vector(tensor)) {
        rc = find_rows(w, tensor, layer, &e);
        if (rc == 0) rc = check_rows(&e, first_row, rows, source_format, &bytes);
    } else if (first_row != 0 || source_format != WEIGHT_F32 || bytes > CUDA_WEIGHTS_BUFFER_BYTES) {
        rc = launch_fail(-E_RANGE, "a vector is put whole, as f32");
    }
    if (rc) return rc;
    for (uint64_t i = 0; i < scales; i++) ((float *)(s->host + CUDA_WEIGHTS_BUFFER_BYTES))[i] = scale[i];
    rc = launch_check(cudaMemcpyAsync(s->device, s->host, bytes, cudaMemcpyHostToDevice, w->stream), "copy to the device");
    if (rc == 0 && scales) rc = launch_check(cudaMemcpyAsync(s->device + CUDA_WEIGHTS_BUFFER_BYTES, s->host + CUDA_WEIGHTS_BUFFER_BYTES, 4ull * scales, cudaMemcpyHostToDevice, w->stream), "copy to the device");
    if (rc == 0) rc = launch_check(cudaEventRecord(s->read, w->stream), "event");
    if (rc) return rc;
    const float *scale_device = scales ? (const float *)(s->device + CUDA_WEIGHTS_BUFFER_BYTES) : NULL;
    if (w->plain) return plain_put(w, tensor, layer, first_row, rows, s->device, source_format, scale_device, scale_stride);
    if (is_vector(tensor)) return pack_vector(w, tensor, layer, s->device, source_format, rows);
    return pack_rows(w, &e.place, first_row, rows, s->device, source_format, scale_device, scale_stride, w->scratch);
}

extern "C" int cuda_weights_finish(struct cuda_weights *w)
{
    const int rc = put_all_powers(w), done = launch_check(cudaStreamSynchronize(w->stream), "load");

    return rc ? rc : done;
}

/* ---- for tests and benches ---- */

extern "C" int cuda_weights_unpack(struct cuda_weights *w, enum cuda_tensor tensor, uint32_t layer, void *out)
{
    struct place p;

    if (w->plain) return plain_weights_unpack(&w->spec, w->device, tensor, layer, out, w->stream);
    const int rc = layer < w->spec.layers ? find_place(w, tensor, layer, &p) : -E_RANGE;

    if (rc) return rc;
    const struct packed_matrix from = packed(w, p.matrix);
    const int launched = unpack_launch(&from, (float *)out, w->stream);
    return launched ? launched : launch_check(cudaStreamSynchronize(w->stream), "unpack");
}

#define FILL_ROWS 32768u              /* at a time: the LM head would need 2 GB of plain weights */

struct fill {                         /* scratch of fill_random */
    void *plain;                      /* bf16 of FILL_ROWS rows */
    uint8_t *codes;                   /* and what they become */
    float *scale;                     /* [largest of FILL_ROWS and blocks of a piece], [1] */
};

/* Rows of FP8_BLOCK and FP4 as a checkpoint would have them. */
static int quantise(const struct cuda_weights *w, const struct fill *f, struct pack_source *from, const struct packed_matrix *to)
{
    const float factor = 8.0f / (sqrtf((float)to->k) * 6.0f * 448.0f);      /* no value is beyond 8 deviations */
    int rc = quantise_launch(to->format, f->plain, from->rows, to->k, f->codes, f->scale, factor, w->stream);

    if (rc == 0 && to->format == WEIGHT_FP4) rc = launch_check(cudaMemcpyAsync(f->scale, &factor, sizeof factor, cudaMemcpyHostToDevice, w->stream), "factor");
    from->data = f->codes, from->scale = f->scale, from->scale_stride = to->k / WEIGHT_BLOCK, from->format = to->format;
    from->group = to->format == WEIGHT_FP4 ? f->codes + (uint64_t)from->rows * to->k / 2 : NULL;
    return rc;
}

/* Deviations that keep every layer's output near 1, as in a trained model: 1 / sqrt(k). */
static int fill_matrix(struct cuda_weights *w, const struct arena_matrix *m, const struct fill *f, uint64_t seed)
{
    const struct packed_matrix to = packed(w, m);
    int rc = 0;

    for (uint32_t row = 0; row < m->rows && rc == 0; row += FILL_ROWS) {
        const uint32_t rows = m->rows - row < FILL_ROWS ? m->rows - row : FILL_ROWS;
        struct pack_source from = { f->plain, NULL, 0, WEIGHT_BF16, rows, row / TILE_ROWS, PACK_WHOLE, NULL };

        rc = fill_normal_launch(f->plain, (uint64_t)rows * m->k, 1.0f / sqrtf((float)m->k), seed + row, w->stream);
        if (rc == 0 && (m->format == WEIGHT_FP8_BLOCK || m->format == WEIGHT_FP4)) rc = quantise(w, f, &from, &to);
        if (rc == 0) rc = pack_launch(&to, &from, f->scale, w->stream);
    }
    return rc;
}

static int fill_vectors(struct cuda_weights *w, uint32_t layer)
{
    uint8_t *arena = w->device;
    const float one = 1.0f;
    int rc = 0;

    for (int t = CUDA_INPUT_NORM; t < CUDA_TENSORS && rc == 0; t++) {
        uint64_t offset;
        uint32_t count;

        if (t == CUDA_LAYER_SCALAR || t == CUDA_EMBED) continue;
        rc = find_vector(w, (enum cuda_tensor)t, layer, &offset, &count);
        if (rc == 0) rc = fill_constant_launch(arena + offset, count, 1.0f - spec_norm_bias(&w->spec), w->stream);
    }
    return rc ? rc : launch_check(cudaMemcpyAsync(arena + w->arena.layer[layer].scalar, &one, sizeof one, cudaMemcpyHostToDevice, w->stream), "layer scalar");
}

static int fill_layer(struct cuda_weights *w, uint32_t i, const struct fill *f, uint64_t seed)
{
    const struct arena_layer *l = &w->arena.layer[i];
    int rc = fill_matrix(w, &l->qkv, f, seed + 8 * i);

    if (rc == 0) rc = fill_matrix(w, &l->o, f, seed + 8 * i + 1);
    if (rc == 0) rc = fill_matrix(w, &l->gate_up, f, seed + 8 * i + 2);
    if (rc == 0) rc = fill_matrix(w, &l->down, f, seed + 8 * i + 3);
    return rc ? rc : fill_vectors(w, i);
}

extern "C" int cuda_weights_fill_random(struct cuda_weights *w, uint64_t seed)
{
    uint64_t largest = (uint64_t)FILL_ROWS * w->arena.head.k;
    struct fill f = {};
    int rc;

    if (w->plain) return plain_weights_fill(&w->spec, w->device, seed, w->stream);
    for (uint32_t i = 0; i < w->spec.layers; i++) {
        const struct arena_layer *l = &w->arena.layer[i];
        const struct arena_matrix *all[] = { &l->qkv, &l->o, &l->gate_up, &l->down };

        for (const struct arena_matrix *m : all)
            if ((uint64_t)m->rows * m->k > largest) largest = (uint64_t)m->rows * m->k;
    }
    rc = launch_check(cudaMalloc(&f.plain, 2 * largest), "scratch memory");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&f.codes, largest), "scratch memory");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&f.scale, 4 * (FILL_ROWS + largest / (WEIGHT_BLOCK * WEIGHT_BLOCK))), "scratch memory");
    for (uint32_t i = 0; i < w->spec.layers && rc == 0; i++) rc = fill_layer(w, i, &f, seed);
    if (rc == 0) rc = fill_matrix(w, &w->arena.head, &f, seed + 8 * CUDA_LAYERS_MAX);
    if (rc == 0) rc = put_all_powers(w);
    const int done = launch_check(cudaStreamSynchronize(w->stream), "fill");
    cudaFree(f.plain);
    cudaFree(f.codes);
    cudaFree(f.scale);
    return rc ? rc : done;
}
