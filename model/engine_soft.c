/* model/engine_soft.c - the engine's pictures and sound: weights out of the checkpoint's files, and soft tokens on the host (contract in engine.h). */
#include "kernels/cuda/cuda_prefill.h"
#include "model/engine.h"
#include "schemas/media.h"
#include "shm/error.h"
#include "shm/must.h"

__attribute__((noreturn)) static void refuse(struct engine *e, int rc, const struct model_error *err)
{
    stage_exit(e->stage, rc == -E_NOMEM || rc == -E_IO ? EXIT_MISSING : EXIT_CONFIG, "pictures and sound of the model cannot be used: %s", err->text[0] ? err->text : error_text(rc));
}

/* false: the server takes text alone. */
static bool load_media(struct engine *e, struct model_media *media)
{
    const struct wiring *w = &e->stage->wiring;
    struct model_error err = {""};

    if (wiring_u64(w, "table.media_tokens_max", 0) == 0) return false;
    const int rc = model_media_load(media, &e->config, &e->files, &err);
    if (rc != 0) refuse(e, rc, &err);
    media->random = wiring_text(w, "model.random", "")[0] != '\0';
    return true;
}

static void beat(void *stage) { stage_beat(stage); }

struct soft_rows *engine_open_soft(struct engine *e)
{
    struct model_error err = {""};
    struct model_media media;
    struct soft_rows *soft;

    if (!load_media(e, &media)) return NULL;
    const int rc = soft_rows_open(&soft, &media, &e->files, e->rows_max, (uint32_t)wiring_u64(&e->stage->wiring, "threads", 1), &err);
    if (rc != 0) refuse(e, rc, &err);
    soft_rows_set_progress(soft, beat, e->stage);
    return soft;
}

void engine_soft_rows(struct engine *e, struct soft_rows *soft, const struct engine_piece *pieces, uint32_t piece_count)
{
    for (uint32_t i = 0; i < piece_count; i++) {
        const struct engine_piece *p = &pieces[i];
        const int rc = p->kind == MEDIA_SOUND ? soft_rows_sound(soft, p->row, p->rows, p->data) : soft_rows_picture(soft, p->row, p->rows, p->data, p->columns);
        must(rc == 0); /* vision and prefill have checked the sizes */
        stage_beat(e->stage);
    }
}

/* ---- for a GPU --------------------------------------------------------------------------------- */

static struct cuda_soft_matrix describe(const struct stored_matrix *m) { return (struct cuda_soft_matrix){*m, engine_matrix_format(m)}; }

bool engine_load_senses(struct engine *e, struct engine_senses *s)
{
    struct model_error err = {""};
    struct model_media media;

    if (!load_media(e, &media)) return false;
    s->by_tower = media.siglip.image != 0;
    const int rc = s->by_tower ? model_media_tower(&s->tower, &media, &e->files, &err) : model_media_weights(&s->soft, &media, &e->files, &err);
    if (rc != 0) refuse(e, rc, &err);
    return true;
}

void engine_free_senses(struct engine_senses *s)
{
    if (s->by_tower) siglip_weights_free(&s->tower);
    else soft_weights_free(&s->soft);
}

void engine_describe_soft(struct cuda_soft_weights *out, const struct soft_weights *w)
{
    const struct soft_config *c = &w->config;

    *out = (struct cuda_soft_weights){
        .hidden = c->hidden, .picture_dim = c->picture_dim, .picture_positions = c->picture_positions, .audio_frame = c->audio_frame, .picture_eps = c->picture_eps, .audio_eps = c->audio_eps,
        .ln1_weight = w->ln1_weight, .ln1_bias = w->ln1_bias, .dense_bias = w->dense_bias, .ln2_weight = w->ln2_weight, .ln2_bias = w->ln2_bias,
        .position = w->position, .position_weight = w->position_weight, .position_bias = w->position_bias,
        .dense = describe(&w->dense), .projection = describe(&w->projection), .audio_projection = describe(&w->audio_projection),
    };
}
