/* model/soft_rows.c - see soft_rows.h. */
#include "model/soft_rows.h"

#include "kernels/pool.h"
#include "shm/error.h"

#include <stdlib.h>

#define TASK_ROWS 16u                 /* enough that reading the weights for them is not all there is */

struct soft_rows {
    struct siglip_weights tower_weights;
    struct siglip *tower;             /* Gemma 3, or NULL: then the next ones are unused */
    struct soft_weights weights;
    struct pool *pool;
    const struct kernels *kernels;
    float *rows;                      /* [rows_max][hidden] */
    float *scratch;                   /* [threads][scratch_floats] */
    uint64_t scratch_floats;
    uint32_t rows_max, hidden;
};

struct job { struct soft_rows *rows; uint32_t first, count, columns; const uint8_t *blocks; const float *frames; int rc; };

static void make_task(void *context, uint32_t task, uint32_t thread)
{
    struct job *j = context;
    struct soft_rows *s = j->rows;
    const uint32_t from = task * TASK_ROWS, count = j->count - from < TASK_ROWS ? j->count - from : TASK_ROWS;
    float *scratch = s->scratch + thread * s->scratch_floats, *to = s->rows + (uint64_t)(j->first + from) * s->hidden;
    int rc;

    if (j->blocks) rc = soft_picture(&s->weights, s->kernels, j->blocks + (uint64_t)from * PICTURE_PATCH_BYTES, count, from, j->columns, scratch, to);
    else rc = soft_sound(&s->weights, s->kernels, j->frames + (uint64_t)from * s->weights.config.audio_frame, count, scratch, to);
    if (rc != 0) __atomic_store_n(&j->rc, rc, __ATOMIC_RELAXED);
}

static int make(struct job *j)
{
    if (j->first > j->rows->rows_max || j->count > j->rows->rows_max - j->first) return -E_RANGE;
    pool_run(j->rows->pool, make_task, j, (j->count + TASK_ROWS - 1) / TASK_ROWS);
    return j->rc;
}

static int embed_by_tower(struct soft_rows *s, uint32_t first, uint32_t count, const uint8_t *rgb)
{
    const struct siglip_config *c = &s->tower_weights.config;

    if (count != c->tokens_side * c->tokens_side || first > s->rows_max || count > s->rows_max - first) return -E_RANGE;
    siglip_embed(s->tower, rgb, s->rows + (uint64_t)first * s->hidden);
    return 0;
}

int soft_rows_picture(struct soft_rows *rows, uint32_t first, uint32_t count, const uint8_t *data, uint32_t columns)
{
    struct job j = {.rows = rows, .first = first, .count = count, .columns = columns, .blocks = data};

    return rows->tower ? embed_by_tower(rows, first, count, data) : make(&j);
}

int soft_rows_sound(struct soft_rows *rows, uint32_t first, uint32_t count, const float *frames)
{
    struct job j = {.rows = rows, .first = first, .count = count, .frames = frames};

    return rows->tower ? -E_RANGE : make(&j);
}

float *soft_rows_buffer(const struct soft_rows *rows) { return rows->rows; }

void soft_rows_set_progress(struct soft_rows *rows, void (*progress)(void *context), void *context)
{
    if (rows->tower) siglip_set_progress(rows->tower, progress, context);
}

int soft_rows_open(struct soft_rows **rows, const struct model_media *media, const struct model_files *files, uint32_t rows_max, uint32_t threads, struct model_error *err)
{
    struct soft_rows *s = calloc(1, sizeof *s);
    int rc;

    *rows = NULL;
    if (!s) return -E_NOMEM;
    s->rows_max = rows_max;
    s->kernels = kernels_get(KERNELS_BEST);
    s->scratch_floats = soft_scratch_floats(&media->soft, TASK_ROWS);
    s->hidden = media->soft.hidden;
    rc = media->siglip.image ? model_media_tower(&s->tower_weights, media, files, err) : model_media_weights(&s->weights, media, files, err);
    if (rc == 0) rc = pool_open(&s->pool, threads, 0);
    if (rc == 0 && media->siglip.image) rc = siglip_open(&s->tower, &s->tower_weights, s->kernels, s->pool);
    if (rc == 0) {
        s->rows = malloc((uint64_t)rows_max * s->hidden * sizeof *s->rows);
        s->scratch = malloc(pool_threads(s->pool) * (s->scratch_floats + 1) * sizeof *s->scratch);
        if (!s->rows || !s->scratch) rc = -E_NOMEM;
    }
    if (rc != 0) soft_rows_close(s);
    else *rows = s;
    return rc;
}

void soft_rows_close(struct soft_rows *s)
{
    siglip_close(s->tower);
    siglip_weights_free(&s->tower_weights);
    if (s->pool) pool_close(s->pool);
    soft_weights_free(&s->weights);
    free(s->rows);
    free(s->scratch);
    free(s);
}
