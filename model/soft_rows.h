/* model/soft_rows.h - the soft tokens of one call of prefill, made on the host by several threads: by model/soft.h, or Gemma 3's by model/siglip.h.
 *
 * Row i of the result belongs to row i of the call. The CPU's forward pass takes them as they are, a GPU gets a copy. The bits of a row do not
 * depend on the threads, nor on what else is in the call. Owns weights, threads, scratch and rows, all made at the start. */
#ifndef SLUICE_MODEL_SOFT_ROWS_H
#define SLUICE_MODEL_SOFT_ROWS_H

#include "model/media.h"

struct soft_rows;

/* rows_max: of a call. 0, and as model_media_weights; -E_NOMEM, -E_IO (no threads). */
int soft_rows_open(struct soft_rows **rows, const struct model_media *media, const struct model_files *files, uint32_t rows_max, uint32_t threads, struct model_error *err);
void soft_rows_close(struct soft_rows *rows);

/* Called again and again while a tower works on a picture, which takes seconds on a few cores. */
void soft_rows_set_progress(struct soft_rows *rows, void (*progress)(void *context), void *context);

/* [rows_max][hidden], borrowed. */
float *soft_rows_buffer(const struct soft_rows *rows);

/* A whole picture into rows [first, first + count): blocks, `columns` in a row, or what the tower takes. 0, -E_RANGE. */
int soft_rows_picture(struct soft_rows *rows, uint32_t first, uint32_t count, const uint8_t *data, uint32_t columns);
/* Frames of sound. 0, -E_RANGE. */
int soft_rows_sound(struct soft_rows *rows, uint32_t first, uint32_t count, const float *frames);

#endif
