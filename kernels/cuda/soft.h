/* kernels/cuda/soft.h - the soft rows of a prefill's next call: what cuda_prefill_soft was given, on its way to the device.
 *
 * Both prefills (the one for Gemma 4 12B's shapes and plain.h's) hold one. Host side only: the kernels get the two device arrays. */
#ifndef SLUICE_CUDA_SOFT_H
#define SLUICE_CUDA_SOFT_H

#include "cuda_prefill.h"
#include <stdbool.h>

/* A row's token of this value or above: its embedding is row (token - SOFT_TOKEN) of soft. */
#define SOFT_TOKEN 0x80000000u

struct soft_input {
    uint32_t rows_max, hidden;
    float *host, *device;             /* [rows_max][hidden]; pinned, and on the device. NULL: this handle takes none */
    uint32_t *last_host, *last;       /* [rows_max]: last position that the row sees in sliding layers; pinned, and on the device */
    uint16_t *ahead;                  /* [rows_max] of the next call, owned: rows behind it that it sees */
    uint8_t *is_soft;                 /* [rows_max], owned */
    bool fresh;                       /* taken for a call that has not begun */
    bool any, any_ahead;              /* of the next call, or the one in hand */
};

/* 0, -E_NOMEM, -E_IO; nothing is made when options say that there are no soft rows. */
int soft_input_open(struct soft_input *s, uint32_t rows_max, uint32_t hidden, bool wanted);
void soft_input_close(struct soft_input *s);

/* What the next call will bring. 0, -E_RANGE. The caller has made sure that the last call is over. */
int soft_input_take(struct soft_input *s, const struct cuda_prefill_piece *pieces, uint32_t piece_count);

/* A call begins: what was taken is for it; nothing taken: it is all text. Then token and ahead of its rows, and the copies, in stream order. */
void soft_input_begin(struct soft_input *s);
uint32_t soft_input_token(const struct soft_input *s, uint32_t row, uint32_t token);
uint32_t soft_input_ahead(const struct soft_input *s, uint32_t row);
int soft_input_send(struct soft_input *s, uint32_t rows, void *stream);

#endif
