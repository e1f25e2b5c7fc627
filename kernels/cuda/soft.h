/* kernels/cuda/soft.h - the soft rows of a prefill's next call: what cuda_prefill_soft was given, on its way to the device, or made there (soft_make.h).
 *
 * Both prefills (the one for Gemma 4 12B's shapes and plain.h's) hold one. Host side only: the kernels get the two device arrays. */
#ifndef SLUICE_CUDA_SOFT_H
#define SLUICE_CUDA_SOFT_H

#include "cuda_prefill.h"
#include "soft_make.h"
#include <stdbool.h>

/* A row's token of this value or above: its embedding is row (token - SOFT_TOKEN) of soft. */
#define SOFT_TOKEN 0x80000000u

struct soft_input {
    uint32_t rows_max, hidden;
    float *host, *device;             /* [rows_max][hidden]; pinned (NULL: rows are made on the device), and on the device (NULL: this handle takes none) */
    struct soft_make *make;           /* owned; NULL: rows are given, or soft_input_weights is still to come */
    uint32_t *last_host, *last;       /* [rows_max]: last position that the row sees; pinned, and on the device */
    uint16_t *ahead;                  /* [rows_max] of the next call, owned: rows behind it that it sees */
    uint8_t *is_soft;                 /* [rows_max], owned */
    bool fresh;                       /* taken for a call that has not begun */
    bool any, any_ahead;              /* of the next call, or the one in hand */
};

/* kind: cuda_options.soft_rows. 0, -E_NOMEM, -E_IO; nothing is made when there are no soft rows. */
int soft_input_open(struct soft_input *s, uint32_t rows_max, uint32_t hidden, uint32_t kind);
/* CUDA_SOFT_MADE: what makes them. -E_RANGE (another kind, or done before), and as soft_make_open. */
int soft_input_weights(struct soft_input *s, const struct cuda_soft_weights *weights);
void soft_input_close(struct soft_input *s);

/* What the next call will bring. 0, -E_RANGE, -E_IO. The caller has made sure that the last call is over. */
int soft_input_take(struct soft_input *s, const struct cuda_prefill_piece *pieces, uint32_t piece_count, void *stream);
/* Launches the next part of making them. As soft_make_go; rows that were given: 0. */
int soft_input_go(struct soft_input *s, void *stream);

/* A call begins: what was taken is for it; nothing taken: it is all text. Then token and ahead of its rows, and the copies, in stream order. */
void soft_input_begin(struct soft_input *s);
uint32_t soft_input_token(const struct soft_input *s, uint32_t row, uint32_t token);
uint32_t soft_input_ahead(const struct soft_input *s, uint32_t row);
int soft_input_send(struct soft_input *s, uint32_t rows, void *stream);

#endif
