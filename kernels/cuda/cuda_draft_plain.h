/* kernels/cuda/cuda_draft_plain.h - the MTP assistant of any shape on the GPU, step by step, with the very bits of model/assistant.h: a part of libsluice_cuda.so.
 *
 * For shapes that cuda_draft.h is not made for (the demo model). The host brings embeddings, hidden states and page tables and takes logits and hidden states
 * back: speed comes second. Matrices lie on the device as the checkpoint has them, in every format of kernels/stored.h. The target's keys are read from
 * its pools, device memory; nothing is written there. Plain C; one handle serves one thread.
 *
 * Functions return 0 or a negative -E_CODE; cuda_backend_error() has the text. After -E_IO the CUDA context is lost. */
#ifndef SLUICE_CUDA_DRAFT_PLAIN_H
#define SLUICE_CUDA_DRAFT_PLAIN_H

#include "kernels/cuda/cuda_draft.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_draft_plain_row {
    const float *embedding, *hidden;  /* host, [backbone_hidden] each */
    uint32_t position, key_count;     /* as struct assistant_row */
    uint32_t seq;                     /* index in seqs */
};

struct cuda_draft_plain_seq {         /* page numbers, host */
    const uint32_t *pages[2];         /* per layer type */
    uint32_t page_count[2];
};

struct cuda_draft_plain;              /* opaque */

struct assistant_weights;             /* model/assistant.h */

/* Copies the weights to the device; they may be freed when it returns. options: kv_device, seqs_max (of one step), context_max, ring_pages count.
 * 0, -E_UNSUPPORTED (a shape or format; cuda_backend_error() says which), -E_RANGE, -E_NOMEM, -E_IO. */
int cuda_draft_plain_open(struct cuda_draft_plain **draft, const struct assistant_weights *weights, const struct cuda_model_spec *target, const struct cuda_draft_options *options,
                          uint32_t rows_max);
void cuda_draft_plain_close(struct cuda_draft_plain *draft);

/* One step, finished on return: logits [count][vocab], hidden [count][backbone_hidden], host (hidden may be where the rows' hidden states stand).
 * -E_RANGE: a row, or a page that it lacks; nothing was written. */
int cuda_draft_plain_step(struct cuda_draft_plain *draft, const struct cuda_draft_plain_row *rows, uint32_t count, const struct cuda_draft_plain_seq *seqs, uint32_t seq_count,
                          float *logits, float *hidden);

/* Copies f32 from device memory (a state row) to the host. */
int cuda_draft_plain_read(struct cuda_draft_plain *draft, const float *from_device, float *to, uint32_t count);

#ifdef __cplusplus
}
#endif
#endif
