/* kernels/cuda/arena.c - the offsets of all weights in the arena (contract in arena.h). */
#include "kernels/cuda/arena.h"
#include "kernels/cuda/plain.h"
#include "kernels/stored.h"
#include "shm/error.h"
#include <math.h>
#include <string.h>

#define HIDDEN_MAX 3840               /* norm.cu: 15 warps x 2 x 128 */
#define VOCAB_MAX (17u * 16 * 1024)   /* SAMPLE_VOCAB_MAX of sample.h */

static int place(struct arena *a, struct arena_matrix *m, uint32_t rows, uint32_t k, uint32_t format)
{
    const uint32_t slice = packed_slice_k(k), slices = slice ? k / slice : 0;

    if (rows == 0 || rows % TILE_ROWS || (slices != 1 && slices != 2 && slices != 4)) return -E_UNSUPPORTED;
    m->offset = a->bytes;
    m->rows = rows;
    m->k = k;
    m->slice_k = slice;
    m->format = format;
    a->bytes += (packed_bytes(format, rows, k) + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return 0;
}

static uint64_t place_vector(struct arena *a, uint64_t bytes)
{
    const uint64_t at = a->bytes;

    a->bytes += (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return at;
}

static int check(const struct cuda_model_spec *s)
{
    if (s->layers == 0 || s->layers > CUDA_LAYERS_MAX || s->hidden == 0 || s->hidden % 128 || s->hidden > HIDDEN_MAX) return -E_UNSUPPORTED;
    if (s->vocab == 0 || s->vocab % TILE_ROWS || s->vocab > VOCAB_MAX || s->suppress_count > CUDA_SUPPRESS_MAX) return -E_UNSUPPORTED;
    if (s->window == 0 || s->window > 1024 || s->rope_turned[CUDA_SLIDING] > 128 || s->rope_turned[CUDA_FULL] > s->head_dim[CUDA_FULL] / 2) return -E_UNSUPPORTED;
    if (s->rope_turned[CUDA_SLIDING] % 4 || s->rope_turned[CUDA_FULL] % 4) return -E_UNSUPPORTED;
    if (s->q_heads != 16 || s->kv_heads[0] != 8 || s->head_dim[0] != 256) return -E_UNSUPPORTED;
    if (!(s->kv_heads[1] == 1 && s->head_dim[1] == 512) && !(s->kv_heads[1] == 8 && s->head_dim[1] == 256)) return -E_UNSUPPORTED;
    if (s->full_ahead && s->head_dim[1] != 256) return -E_UNSUPPORTED;      /* prefill_attn.cu: segments of keys have no row that sees ahead */
    if (!(s->rope_divisor[0] > 0.0) || !(s->rope_divisor[1] > 0.0)) return -E_UNSUPPORTED;
    for (uint32_t i = 0; i < s->layers; i++) {
        const struct cuda_layer_spec *l = &s->layer[i];

        if (l->type > CUDA_FULL || l->k_offset % 16 || l->v_offset % 16) return -E_UNSUPPORTED;
        if (!l->has_v && s->kv_heads[l->type] != 1) return -E_UNSUPPORTED;
        if (spec_kv_bytes(s, i) != 2 && spec_kv_bytes(s, i) != 1) return -E_UNSUPPORTED;   /* an f32 cache */
        if (spec_kv_bytes(s, i) != spec_kv_bytes(s, 0)) return -E_UNSUPPORTED;
    }
    return s->page_bytes[0] % 16 || s->page_bytes[1] % 16 ? -E_UNSUPPORTED : 0;
}

/* Matrices that are packed into one are stored alike and want the same of what they multiply. */
static int alike(const struct cuda_model_spec *s, uint32_t i, enum cuda_tensor a, enum cuda_tensor b)
{
    const struct cuda_layer_format *f = &s->layer[i].stored;

    return spec_format(s, i, a) == spec_format(s, i, b) && f->activation[a] == f->activation[b] && (f->activation[a] != STORED_STATIC || f->input_scale[a] == f->input_scale[b]);
}

/* Activations are rounded to FP8 for FP8 weights with a scale for each row (or one for all) only: no known format wants it elsewhere. */
static int rule_fits(const struct cuda_model_spec *s, uint32_t i, enum cuda_tensor t)
{
    const struct cuda_layer_format *f = &s->layer[i].stored;

    if (f->activation[t] == STORED_AS_IS || spec_format(s, i, t) == WEIGHT_BF16) return 1;
    if (f->activation[t] > STORED_STATIC || spec_format(s, i, t) != WEIGHT_FP8) return 0;
    return f->activation[t] == STORED_TOKEN || (f->input_scale[t] > 0.0f && isfinite(f->input_scale[t]));
}

static int check_formats(const struct cuda_model_spec *s, uint32_t i)
{
    if (!alike(s, i, CUDA_Q, CUDA_K) || (s->layer[i].has_v && !alike(s, i, CUDA_Q, CUDA_V)) || !alike(s, i, CUDA_GATE, CUDA_UP)) return -E_UNSUPPORTED;
    for (int t = CUDA_Q; t <= CUDA_DOWN; t++) {
        const uint32_t format = spec_format(s, i, (enum cuda_tensor)t);

        if (format == 0 || format >= WEIGHT_FORMATS || format == WEIGHT_F32 || ((t != CUDA_V || s->layer[i].has_v) && !rule_fits(s, i, (enum cuda_tensor)t))) return -E_UNSUPPORTED;
    }
    return 0;
}

/* As the kernels for any shape have it, BF16 weights take activations as they are. */
static void put_rule(struct arena_matrix *m, const struct cuda_layer_format *f, enum cuda_tensor t)
{
    if (m->format == WEIGHT_BF16) return;
    m->activation = f->activation[t];
    m->input_scale = f->activation[t] == STORED_STATIC ? f->input_scale[t] : 0.0f;
}

int arena_plan(struct arena *arena, const struct cuda_model_spec *spec)
{
    int rc = check(spec);

    memset(arena, 0, sizeof *arena);
    for (uint32_t i = 0; i < spec->layers && rc == 0; i++) {
        struct arena_layer *l = &arena->layer[i];
        const uint32_t qkv_rows = spec_q_rows(spec, i) + (spec->layer[i].has_v ? 2 : 1) * spec_kv_rows(spec, i);

        rc = check_formats(spec, i);
        if (rc == 0) rc = place(arena, &l->qkv, qkv_rows, spec->hidden, spec_format(spec, i, CUDA_Q));
        if (rc == 0) rc = place(arena, &l->o, spec->hidden, spec_q_rows(spec, i), spec_format(spec, i, CUDA_O));
        if (rc == 0) rc = place(arena, &l->gate_up, 2 * spec->intermediate, spec->hidden, spec_format(spec, i, CUDA_GATE));
        if (rc == 0) rc = place(arena, &l->down, spec->hidden, spec->intermediate, spec_format(spec, i, CUDA_DOWN));
        put_rule(&l->qkv, &spec->layer[i].stored, CUDA_Q);
        put_rule(&l->o, &spec->layer[i].stored, CUDA_O);
        put_rule(&l->gate_up, &spec->layer[i].stored, CUDA_GATE);
        put_rule(&l->down, &spec->layer[i].stored, CUDA_DOWN);
    }
    if (rc == 0) rc = place(arena, &arena->head, spec->vocab, spec->hidden, WEIGHT_BF16);
    if (rc == 0 && arena->head.k != arena->head.slice_k) rc = -E_UNSUPPORTED;
    if (rc) return rc;
    for (uint32_t i = 0; i < spec->layers; i++) {
        struct arena_layer *l = &arena->layer[i];

        l->input_norm = place_vector(arena, 2 * spec->hidden);
        l->post_attention_norm = place_vector(arena, 2 * spec->hidden);
        l->pre_ff_norm = place_vector(arena, 2 * spec->hidden);
        l->post_ff_norm = place_vector(arena, 2 * spec->hidden);
        l->q_norm = place_vector(arena, 2 * spec_head_dim(spec, i));
        l->k_norm = place_vector(arena, 2 * spec_head_dim(spec, i));
        l->scalar = place_vector(arena, sizeof(float));
        l->powers = place_vector(arena, POWERS * sizeof(struct row_power));
    }
    arena->final_norm = place_vector(arena, 2 * spec->hidden);
    return 0;
}

uint64_t cuda_weights_bytes(const struct cuda_model_spec *spec)
{
    struct arena arena;

    return arena_plan(&arena, spec) == 0 ? arena.bytes : plain_weights_bytes(spec);
}
