/* kernels/cuda/draft_layout.c - the offsets of an assistant's weights in its arena (contract in draft_layout.h). */
#include "kernels/cuda/draft_layout.h"
#include "kernels/cuda/arena.h"
#include "shm/error.h"

#include <string.h>

#define BACKBONE_MAX 4096u
#define SLICES_MAX 8u                 /* partial sums that the kernel has room for */
#define VOCAB_MAX (1u << 18)

static void place(struct draft_plan *p, struct draft_matrix *m, uint32_t rows, uint32_t k, uint32_t format)
{
    m->offset = p->bytes;
    m->slices = 1;
    while (m->slices * DRAFT_SLICE < k) m->slices *= 2;        /* a power of two: it must divide the number of blocks */
    m->units = rows / TILE_ROWS * m->slices;
    p->bytes += ((uint64_t)m->units * draft_unit_bytes(format) + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

static uint64_t place_vector(struct draft_plan *p, uint32_t count)
{
    const uint64_t at = p->bytes;

    p->bytes += (4ull * count + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return at;
}

static int check(const struct cuda_draft_spec *s)
{
    if (s->hidden != DRAFT_HIDDEN || s->q_heads != DRAFT_HEADS || s->layers == 0 || s->layers > CUDA_DRAFT_LAYERS_MAX) return -E_UNSUPPORTED;
    if (s->format != WEIGHT_FP8 && s->format != WEIGHT_BF16) return -E_UNSUPPORTED;
    if (s->intermediate == 0 || s->intermediate % DRAFT_SLICE || s->intermediate > SLICES_MAX * DRAFT_SLICE) return -E_UNSUPPORTED;
    if (s->backbone_hidden == 0 || s->backbone_hidden % TILE_ROWS || s->backbone_hidden > BACKBONE_MAX) return -E_UNSUPPORTED;
    if (s->vocab == 0 || s->vocab % TILE_ROWS || s->vocab > VOCAB_MAX) return -E_UNSUPPORTED;
    if (s->choices % TILE_ROWS || s->choices > s->vocab) return -E_UNSUPPORTED;
    if (s->rope_turned[CUDA_SLIDING] > 128 || s->rope_turned[CUDA_FULL] > 256) return -E_UNSUPPORTED;
    for (uint32_t i = 0; i < s->layers; i++)
        if (s->layer_type[i] > CUDA_FULL) return -E_UNSUPPORTED;
    return 0;
}

int draft_plan_make(struct draft_plan *p, const struct cuda_draft_spec *s)
{
    const int rc = check(s);

    memset(p, 0, sizeof *p);
    if (rc) return rc;
    place(p, &p->pre, s->hidden, 2 * s->backbone_hidden, s->format);
    for (uint32_t i = 0; i < s->layers; i++) {
        struct draft_layer_plan *l = &p->layer[i];
        const uint32_t q_rows = DRAFT_HEADS * (s->layer_type[i] == CUDA_FULL ? 512 : 256);

        place(p, &l->q, q_rows, s->hidden, s->format);
        place(p, &l->o, s->hidden, q_rows, s->format);
        place(p, &l->gate_up, 2 * s->intermediate, s->hidden, s->format);
        place(p, &l->down, s->hidden, s->intermediate, s->format);
    }
    place(p, &p->post, s->backbone_hidden, s->hidden, s->format);
    place(p, &p->head, draft_head_rows(s), s->hidden, s->format);
    p->step_bytes = p->bytes;
    for (uint32_t i = 0; i < s->layers; i++) {
        struct draft_layer_plan *l = &p->layer[i];

        l->input_norm = place_vector(p, s->hidden);
        l->post_attention_norm = place_vector(p, s->hidden);
        l->pre_ff_norm = place_vector(p, s->hidden);
        l->post_ff_norm = place_vector(p, s->hidden);
        l->q_norm = place_vector(p, s->layer_type[i] == CUDA_FULL ? 512 : 256);
        l->scalar = place_vector(p, 1);
    }
    p->norm = place_vector(p, s->hidden);
    p->choice = place_vector(p, s->choices);
    return 0;
}

uint64_t cuda_draft_weights_bytes(const struct cuda_draft_spec *spec)
{
    struct draft_plan plan;

    return draft_plan_make(&plan, spec) == 0 ? plan.bytes : 0;
}
