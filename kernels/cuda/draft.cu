/* kernels/cuda/draft.cu - the drafter's handle: scratch, page tables, questions in, answers out (contract in cuda_draft.h).
 *
 * A round is one cooperative launch whose questions travel as its parameters; the answers come back through mapped host memory with a flag. */
#include "arena.h"
#include "await.h"
#include "draft_plain.h"
#include "draft_round.h"
#include "handover.h"
#include "launch.h"
#include "setup.h"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <new>
#include <string.h>
#include <vector>

#define PAGE_TOKENS 32

struct cuda_draft {
    struct draft_plain *plain;        /* owned; an assistant of another shape: nothing below is used, everything is passed on */
    struct cuda_draft_spec spec;
    struct draft_round_args args;     /* what stays the same from round to round; owned pointers point into slab */
    uint32_t blocks, seqs_max, context_max, pages_stride[2];
    uint32_t *pages[2];               /* [seqs_max][pages_stride]; in slab */
    uint8_t *slab;                    /* owned */
    struct draft_result *result;      /* mapped; owned */
    cudaStream_t stream;              /* owned */
    uint64_t round;                   /* last launched */
    struct cuda_handover_record *handover;   /* borrowed; NULL: none */
    bool hands_over;                  /* the next round does */
    struct handover words;            /* what rounds wait for that follow a step */
    uint64_t follows;                 /* the step's tag, of the next round; 0: it follows none */
};

static int make_scratch(struct cuda_draft *d)
{
    const struct cuda_draft_spec *s = &d->spec;
    struct draft_round_args *a = &d->args;
    const uint64_t rows = CUDA_DRAFT_ROWS_MAX;
    const struct setup_part want[] = {
        { (void **)&a->control, sizeof *a->control },
        { (void **)&a->part, 4ull * 8 * rows * DRAFT_HIDDEN },
        { (void **)&a->q, 4ull * rows * DRAFT_HEADS * 512 },
        { (void **)&a->rope, sizeof *a->rope * rows * DRAFT_ROPE_PAIRS },
        { (void **)&a->attn_part, 4ull * rows * DRAFT_HEADS * DRAFT_CHUNKS_MAX * 512 },
        { (void **)&a->attn_ml, sizeof *a->attn_ml * rows * DRAFT_HEADS * DRAFT_CHUNKS_MAX },
        { (void **)&a->attn_out, 2ull * rows * DRAFT_HEADS * 512 },
        { (void **)&a->act, 2ull * rows * s->intermediate },
        { (void **)&a->lone_part, 4ull * 8 * DRAFT_HIDDEN },
        { (void **)&a->lone_q, 4ull * DRAFT_HEADS * 512 },
        { (void **)&a->lone_out, 4ull * DRAFT_HEADS * 512 },
        { (void **)&a->lone_act, 4ull * s->intermediate },
        { (void **)&a->hidden, 4ull * rows * s->backbone_hidden },
        { (void **)&a->top, sizeof *a->top * rows * DRAFT_CHUNKS_MAX },
        { (void **)&a->found, sizeof *a->found * rows * DRAFT_FOUND_MAX },
        { (void **)&a->picked, sizeof *a->picked * rows },
        { (void **)&a->inv_freq, 4ull * DRAFT_ROPE_PAIRS },
        { (void **)&a->logits, 4ull * rows * draft_head_rows(s) },
        { (void **)&a->tile_top, 4ull * rows * (draft_head_rows(s) / TILE_ROWS) },
        { (void **)&d->pages[0], 4ull * d->seqs_max * d->pages_stride[0] },
        { (void **)&d->pages[1], 4ull * d->seqs_max * d->pages_stride[1] },
    };

    int rc = setup_slab(&d->slab, want, sizeof want / sizeof *want, "the drafter's scratch memory");
    if (rc == 0) rc = setup_mapped((void **)&d->result, (void **)&a->result, sizeof *d->result);
    a->pages[0] = d->pages[0], a->pages[1] = d->pages[1];
    return rc;
}

/* What does not turn keeps the slab's zeros. */
static int make_frequencies(struct cuda_draft *d)
{
    float *to = (float *)d->args.inv_freq;
    const int rc = setup_frequencies(to, d->spec.rope_theta[CUDA_SLIDING], 1.0, 2 * DRAFT_ROPE_SLIDING, d->spec.rope_turned[CUDA_SLIDING]);

    return rc ? rc : setup_frequencies(to + DRAFT_ROPE_SLIDING, d->spec.rope_theta[CUDA_FULL], 1.0, 2 * DRAFT_ROPE_FULL, d->spec.rope_turned[CUDA_FULL]);
}

static void set_phases(struct draft_round_args *a, const struct draft_plan *p, uint32_t layers)
{
    const struct draft_matrix *order[DRAFT_PHASES_MAX];
    uint32_t n = 0;

    order[n++] = &p->pre;
    for (uint32_t i = 0; i < layers; i++) order[n++] = &p->layer[i].q, order[n++] = &p->layer[i].o, order[n++] = &p->layer[i].gate_up, order[n++] = &p->layer[i].down;
    order[n++] = &p->post, order[n++] = &p->head;
    for (uint32_t i = 0; i < n; i++) a->phase[i] = draft_phase{ order[i]->offset, order[i]->units, order[i]->slices };
    a->phases = n;
    a->layers = layers;
}

/* Keys of an assistant's layer: those of the target's last layer of its type. False: there is none. */
static bool set_layer(struct draft_layer_args *to, const struct draft_layer_plan *l, uint32_t type, const struct cuda_model_spec *target, const uint8_t *weights)
{
    uint32_t from = target->layers;

    for (uint32_t i = 0; i < target->layers; i++)
        if (target->layer[i].type == type) from = i;
    if (from == target->layers) return false;
    *to = draft_layer_args{ (const float *)(weights + l->input_norm), (const float *)(weights + l->post_attention_norm), (const float *)(weights + l->pre_ff_norm),
                            (const float *)(weights + l->post_ff_norm), (const float *)(weights + l->q_norm), (const float *)(weights + l->scalar),
                            target->layer[from].k_offset, target->layer[from].v_offset, type };
    return true;
}

/* Tokens that are never proposed, as rows of the output table; those that are not in it need nothing. */
static int set_suppressed(struct draft_round_args *a, const struct cuda_model_spec *target)
{
    std::vector<uint32_t> choice(a->choice ? a->head_rows : 0);
    const int rc = a->choice ? launch_check(cudaMemcpy(choice.data(), a->choice, 4ull * a->head_rows, cudaMemcpyDeviceToHost), "the drafter's choices") : 0;

    a->suppress_count = 0;
    for (uint32_t i = 0; i < target->suppress_count && rc == 0; i++) {
        uint32_t row = a->choice ? 0 : target->suppress[i];

        while (a->choice && row < a->head_rows && choice[row] != target->suppress[i]) row++;
        if (row < a->head_rows) a->suppress[a->suppress_count++] = row;
    }
    for (uint32_t token : choice)
        if (token >= a->vocab) return -E_RANGE;
    return rc;
}

static int set_args(struct cuda_draft *d, const struct draft_plan *plan, const struct arena *arena, const struct cuda_model_spec *target, const struct cuda_draft_options *o)
{
    struct draft_round_args *a = &d->args;

    a->weights = (const uint8_t *)o->weights_device;
    set_phases(a, plan, d->spec.layers);
    for (uint32_t i = 0; i < d->spec.layers; i++)
        if (!set_layer(&a->layer[i], &plan->layer[i], d->spec.layer_type[i], target, a->weights)) return -E_UNSUPPORTED;
    a->norm = (const float *)(a->weights + plan->norm);
    a->head_rows = draft_head_rows(&d->spec), a->choice = d->spec.choices ? (const uint32_t *)(a->weights + plan->choice) : NULL;
    a->vocab = d->spec.vocab, a->backbone_hidden = d->spec.backbone_hidden, a->intermediate = d->spec.intermediate;
    a->eps = d->spec.norm_eps, a->softcap = d->spec.softcap, a->attention_scale = d->spec.attention_scale;
    a->table = (const uint8_t *)o->target_device + arena->head.offset;
    a->table_slice_k = arena->head.slice_k, a->table_slices = arena->head.k / arena->head.slice_k;
    a->embed_scale = target->embed_scale;
    a->states = o->states_device, a->states_rows = o->states_rows;
    for (int t = 0; t < 2; t++) a->pool[t] = (const uint8_t *)o->kv_device[t], a->page_bytes[t] = target->page_bytes[t], a->pages_stride[t] = d->pages_stride[t];
    a->window = target->window, a->context_keys = o->context_keys;
    a->kv_fp8 = spec_kv_bytes(target, 0) == 1;
    const int rc = set_suppressed(a, target);
    if (rc) return rc;
    a->ring_slots = o->ring_slots, a->lone_launch = o->lone_launch, a->context_max = o->context_max;
    d->handover = o->handover;
    const int opened = d->handover ? handover_open_follower(&d->words, d->handover) : 0;
    return opened == -E_UNSUPPORTED ? 0 : opened;      /* without those waits rounds begin when they are asked for */
}

static bool fits(const struct cuda_draft_spec *s, const struct cuda_model_spec *t)
{
    return s->backbone_hidden == t->hidden && s->vocab == t->vocab && t->q_heads == DRAFT_HEADS && t->kv_heads[0] == 8 && t->kv_heads[1] == 1 && t->head_dim[0] == 256 && t->head_dim[1] == 512;
}

extern "C" int cuda_draft_open(struct cuda_draft **draft, const struct cuda_draft_spec *spec, const struct cuda_model_spec *target, const struct cuda_draft_options *options)
{
    struct draft_plan plan;
    struct arena arena;
    int rc = draft_plan_make(&plan, spec);

    *draft = NULL;
    if (rc == 0) rc = arena_plan(&arena, target);
    if (rc || !fits(spec, target)) return launch_fail(-E_UNSUPPORTED, "the drafter's kernel is not made for these shapes");
    if (!options->weights_device || !options->target_device || !options->kv_device[0] || !options->kv_device[1] || !options->states_device) return -E_RANGE;
    if (options->seqs_max == 0 || options->states_rows == 0 || options->context_max == 0 || options->ring_pages == 0) return -E_RANGE;
    struct cuda_draft *d = new (std::nothrow) cuda_draft();
    if (d == NULL) return -E_NOMEM;
    d->spec = *spec;
    d->seqs_max = options->seqs_max, d->context_max = options->context_max;
    d->pages_stride[CUDA_SLIDING] = options->ring_pages;
    d->pages_stride[CUDA_FULL] = (options->context_max + PAGE_TOKENS - 1) / PAGE_TOKENS;
    rc = draft_round_init(spec->format, spec_kv_bytes(target, 0) == 1, &d->blocks);
    if (rc == 0 && options->blocks && options->blocks < d->blocks) d->blocks = options->blocks;
    if (rc == 0) rc = make_scratch(d);
    if (rc == 0) rc = make_frequencies(d);
    if (rc == 0) rc = set_args(d, &plan, &arena, target, options);
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "stream");
    if (rc == 0) rc = launch_check(cudaDeviceSynchronize(), "opening the drafter");
    if (rc) cuda_draft_close(d);
    else *draft = d;
    return rc;
}

extern "C" int cuda_draft_plain_open(struct cuda_draft **draft, const struct assistant_weights *weights, const struct cuda_model_spec *target, const struct cuda_draft_options *options,
                                     struct cuda_left_out left_out)
{
    struct cuda_draft *d = new (std::nothrow) cuda_draft();
    const int rc = d ? draft_plain_open(&d->plain, weights, target, options, left_out) : -E_NOMEM;

    if (rc) delete d;
    *draft = rc ? NULL : d;
    return rc;
}

extern "C" void cuda_draft_close(struct cuda_draft *d)
{
    if (d == NULL) return;
    draft_plain_close(d->plain);
    if (d->stream) cudaStreamSynchronize(d->stream), cudaStreamDestroy(d->stream);
    cudaFree(d->slab);
    if (d->result) cudaFreeHost(d->result);
    handover_close(&d->words);
    delete d;
}

extern "C" int cuda_draft_pages(struct cuda_draft *d, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count)
{
    if (d->plain) return draft_plain_pages(d->plain, seq, type, first, pages, count);
    if (type > CUDA_FULL || seq >= d->seqs_max || first > d->pages_stride[type] || count > d->pages_stride[type] - first) return -E_RANGE;
    return launch_check(cudaMemcpyAsync(d->pages[type] + (uint64_t)seq * d->pages_stride[type] + first, pages, 4ull * count, cudaMemcpyHostToDevice, d->stream), "pages");
}

static bool is_sound(const struct cuda_draft *d, const struct cuda_draft_question *q)
{
    if (q->seq >= d->seqs_max || q->token >= d->spec.vocab || q->position == 0 || q->position >= d->context_max) return false;
    return q->steps >= 1 && q->steps <= CUDA_DRAFT_STEPS_MAX && q->temperature >= 0 && q->temperature <= 100;       /* false for NaN */
}

extern "C" int cuda_draft_round(struct cuda_draft *d, const struct cuda_draft_question *questions, uint32_t count)
{
    struct draft_round_args *a = &d->args;

    if (d->plain) return draft_plain_round(d->plain, questions, count);
    const uint64_t follows = d->follows;
    int rc = 0;

    a->handover = d->hands_over && count == 1 ? d->handover : NULL;
    a->follows = follows ? d->handover : NULL, a->follows_tag = follows;
    d->hands_over = false, d->follows = 0;    /* also of a round that is refused */
    if (follows && count != 1) return -E_RANGE;
    if (count == 0 || count > CUDA_DRAFT_ROWS_MAX) return -E_RANGE;
    a->steps = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!is_sound(d, &questions[i])) return -E_RANGE;
        if (questions[i].steps > a->steps) a->steps = questions[i].steps;
    }
    if (d->round && __atomic_load_n(&d->result->round, __ATOMIC_ACQUIRE) != d->round && __atomic_load_n(&d->result->gave_up, __ATOMIC_ACQUIRE) != d->round) return -E_BUSY;
    memset(a->question, 0, sizeof a->question);
    memcpy(a->question, questions, count * sizeof *questions);
    a->rows = count;
    a->round = ++d->round;
    if (follows) rc = handover_follow(&d->words, follows, d->stream);
    return rc ? rc : draft_round_launch(a, d->spec.format, d->blocks, d->stream);
}

extern "C" int cuda_draft_follow(struct cuda_draft *d, uint64_t tag)
{
    if (!d->words.record) return -E_UNSUPPORTED;
    if (tag == 0) return -E_RANGE;
    d->follows = tag;
    return 0;
}

extern "C" int cuda_draft_skip(struct cuda_draft *d) { return d->words.record && d->words.tag ? handover_skip(&d->words) : -E_RANGE; }

extern "C" int cuda_draft_hand_over(struct cuda_draft *d, const struct cuda_handover *hand)
{
    if (!d->handover || hand->tag == 0) return -E_RANGE;
    d->args.hand = *hand;
    d->hands_over = true;
    return 0;
}

extern "C" int cuda_draft_wait(struct cuda_draft *d, uint32_t timeout_us, struct cuda_draft_answer *answers)
{
    if (d->plain) return draft_plain_wait(d->plain, timeout_us, answers);
    /* W1 <- leave() in draft_round.cu: the answers are in host memory before the flag. */
    const int rc = await_word(&d->result->round, d->round, &d->result->gave_up, d->stream, timeout_us, "draft round");

    if (rc) return rc;
    memcpy(answers, d->result->answer, d->args.rows * sizeof *answers);
    return 0;
}

extern "C" const float *cuda_draft_hidden(const struct cuda_draft *d) { return d->plain ? draft_plain_hidden(d->plain) : d->args.hidden; }
extern "C" const float *cuda_draft_logits(const struct cuda_draft *d) { return d->plain ? draft_plain_logits(d->plain) : d->args.logits; }
extern "C" void *cuda_draft_stream(struct cuda_draft *d) { return d->plain ? draft_plain_stream(d->plain) : d->stream; }
extern "C" void cuda_draft_trace(struct cuda_draft *d, void *words_device) { d->args.trace = (unsigned long long *)words_device; }
