/* kernels/cuda/cuda_backend.h - the decode step of Gemma 4 on a Hopper GPU: the interface of libsluice_cuda.so.
 *
 * Plain C, opened with dlopen so that the same programs start where there is no GPU driver. One handle serves one thread.
 * A step takes 1 to 128 rows (single decode rows of several sequences, or verify blocks of up to 8 rows of one), runs the whole model as one CUDA
 * graph, samples on the device (all of model/sampler.h) and writes the tokens into mapped host memory with a flag: no call waits for the GPU but cuda_backend_wait.
 *
 * Memory: the caller owns the weight arena, the KV pools and everything it passes in; they must outlive the handle. All
 * pointers named `device` may be of memory imported from another process. The handle owns its scratch buffers only: nothing of value is lost
 * with it. A process that dies in a step leaves KV pages of that step's positions half written; running the same step again writes the same bytes.
 *
 * Every function returns 0 or a count, or a negative -E_CODE (shm/error.h); cuda_backend_error() has the text. After
 * -E_IO from a launch or a wait the CUDA context is lost (sticky error): the process must end and be restarted. */
#ifndef SLUICE_CUDA_BACKEND_H
#define SLUICE_CUDA_BACKEND_H

#include "kernels/cuda/cuda_handover.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/state.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_BACKEND_VERSION 9
#define CUDA_LAYERS_MAX 128
#define CUDA_SUPPRESS_MAX 8

enum cuda_layer_type { CUDA_SLIDING = 0, CUDA_FULL = 1 };      /* as enum layer_type of model/config.h */

#define CUDA_MATRICES 8               /* q, k, v, o, gate, up, down as in enum cuda_tensor; the last is unused */

/* How the matrices of a layer are stored. Handed from the keeper to the stages as it is: an array of one for each layer. */
struct cuda_layer_format {
    uint8_t format[CUDA_MATRICES];    /* enum weight_format; 0: the spec's */
    uint8_t activation[CUDA_MATRICES];/* enum stored_activation (kernels/stored.h): how each matrix wants what it multiplies; matrices packed into one (q, k, v; gate, up) must agree, or the kernels for any shape take the model */
    float input_scale[CUDA_MATRICES]; /* STORED_STATIC */
};

struct cuda_layer_spec {
    uint32_t type;                    /* enum cuda_layer_type */
    uint32_t has_v;                   /* 0: the value is the key projection before norm and rotation */
    uint64_t k_offset, v_offset;      /* bytes from the start of a KV page of its type (struct kv_layer) */
    struct cuda_layer_format stored;
};

/* The model as the kernels need it. Gemma 4 12B's and Gemma 3 12B's shapes run on kernels made for them: 16 query heads; sliding layers 8 kv heads of 256; full
 * layers 1 kv head of 512 or 8 of 256; hidden and intermediate size and 16 * head size multiples of 3840 or of 4096. */
struct cuda_model_spec {
    uint32_t hidden, intermediate, vocab, layers;
    uint32_t q_heads, kv_heads[2], head_dim[2];   /* per layer type */
    uint32_t window;                  /* keys that a sliding layer sees, own included */
    uint32_t format;                  /* enum weight_format of matrices whose layer says nothing else; embedding and LM head are WEIGHT_BF16 or, plain.h only, WEIGHT_F32 */
    uint32_t norm_plus_one;           /* 1: norm weights are stored as w - 1 (gemma 3) */
    uint32_t has_v_norm;              /* 1: values are normed without weight (gemma 4) */
    float norm_eps, softcap, embed_scale, attention_scale;
    uint32_t full_ahead;              /* 1: rows of a picture see each other in full layers, too (gemma 3) */
    double rope_theta[2];             /* per layer type */
    double rope_divisor[2];           /* positions are divided by it (linear RoPE scaling); 1: none */
    uint32_t rope_turned[2];          /* pairs that turn: 128, and 64 of 256 (gemma 3: 128) */
    uint32_t suppress_count, suppress[CUDA_SUPPRESS_MAX];
    uint64_t page_bytes[2];           /* KV page of 32 positions, per layer type */
    struct cuda_layer_spec layer[CUDA_LAYERS_MAX];
};

/* Memory for outputs of layers that a drafter reads, laid out as model/features.h says; sequence s has place s % places. */
struct cuda_features {
    void *device;                     /* NULL: there is none */
    uint64_t row_bytes;
    uint32_t places, rows;            /* rows of a place: positions */
    uint32_t sources_max;             /* layers that a row has room for */
    uint32_t element_bytes;           /* 2: bf16, 4: f32 */
};

struct cuda_left_out {                /* tokens that a drafter never proposes; host */
    const uint32_t *token;
    uint32_t count;
};

struct cuda_options {
    void *weights_device;             /* cuda_weights_bytes(spec), 256-byte aligned; contents kept, packed or not yet */
    void *kv_device[2];               /* pool of pages per layer type: page p at p * page_bytes[type] */
    uint32_t seqs_max;                /* page tables */
    uint32_t context_max;             /* longest sequence, tokens */
    uint32_t ring_pages;              /* pages of a sliding ring: position p is in entry (p / 32) % ring_pages */
    uint32_t graph_rows_mask;         /* bit i: make the graph for 2^i rows, up to 128; 0 means all of 1, 2, 4, 8, 16. The largest one sizes the scratch memory */
    uint32_t ring_slots, window_slots, wait_slots;   /* tuning of rowmm; 0: the measured best */
    uint32_t l2_slots;                /* of gate_up and each block, into the L2 while o waits for attention; 0: none, CUDA_L2_DEFAULT: the measured best */
    uint32_t l2_stride, l2_pace_ns;   /* every how many slots one; pause between two half slots; 0: the measured best */
    float *states_device;             /* [seqs_max][16][hidden] as model/states.h says: steps leave the states of their rows there. NULL: nowhere */
    uint32_t soft_rows;               /* enum cuda_soft_rows: does prefill take soft tokens (cuda_prefill_soft)? */
    struct cuda_features features;    /* where cuda_backend_outputs and cuda_prefill_outputs let them be kept */
};
#define CUDA_L2_DEFAULT 0xffffffffu
enum cuda_soft_rows { CUDA_SOFT_NONE = 0, CUDA_SOFT_GIVEN = 1, CUDA_SOFT_MADE = 2 };   /* made: on the device, from blocks and frames (cuda_prefill_soft_weights) */


enum cuda_tensor {
    CUDA_Q, CUDA_K, CUDA_V, CUDA_O, CUDA_GATE, CUDA_UP, CUDA_DOWN,                          /* matrices of a layer */
    CUDA_INPUT_NORM, CUDA_POST_ATTENTION_NORM, CUDA_PRE_FF_NORM, CUDA_POST_FF_NORM,         /* [hidden] bf16 */
    CUDA_Q_NORM, CUDA_K_NORM,                                                               /* [head size] bf16 */
    CUDA_LAYER_SCALAR,                                                                      /* [1] bf16 */
    CUDA_EMBED, CUDA_FINAL_NORM,                                                            /* layer ignored */
    CUDA_TENSORS
};

struct cuda_backend;                  /* opaque */

/* Bytes of the weight arena (cuda_weights.h fills it). 0: the spec is not supported. */
uint64_t cuda_weights_bytes(const struct cuda_model_spec *spec);

/* Makes scratch, page tables and graphs on the current CUDA device. 0, -E_UNSUPPORTED, -E_RANGE, -E_NOMEM, -E_IO. */
int cuda_backend_open(struct cuda_backend **backend, const struct cuda_model_spec *spec, const struct cuda_options *options);
void cuda_backend_close(struct cuda_backend *backend);

/* Sets entries [first, first + count) of a sequence's page table. Takes effect for steps launched later. */
int cuda_backend_pages(struct cuda_backend *backend, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count);

/* Sets a sequence's logit_bias; rows say by bias_count how many entries count. A token may come more than once. Takes effect for steps launched later. */
int cuda_backend_bias(struct cuda_backend *backend, uint32_t seq, const struct step_bias *bias, uint32_t count);

/* Sets the tokens at positions [first, first + count) of a sequence's history, which penalties count; STEP_NO_TOKEN: none. Steps write their rows' tokens
 * at their positions themselves, so only what no step of this handle has read must be set: the prompt, and after a restart the output so far. */
int cuda_backend_history(struct cuda_backend *backend, uint32_t seq, uint32_t first, const uint32_t *tokens, uint32_t count);

/* Steps launched later keep the outputs of these layers (bit i: layer i; 0: none) in options.features, under the generation that each sequence was given. A change of
 * layers makes the graphs anew, which takes some ten milliseconds: not while a step is under way (-E_BUSY). -E_RANGE: they do not fit there: none are kept. */
int cuda_backend_outputs(struct cuda_backend *backend, uint64_t layers);
int cuda_backend_generation(struct cuda_backend *backend, uint32_t seq, uint32_t generation);

/* Checks the rows and launches the smallest graph that holds them. The caller must have seen the previous step's flag.
 * 0, -E_RANGE (a row, a group or a sampling field out of its limits: nothing was launched), -E_BUSY, -E_IO. */
int cuda_backend_step(struct cuda_backend *backend, const struct step_state *state);

/* Waits for the flag of `step`. 0, -E_TIMEOUT, -E_IO. */
int cuda_backend_wait(struct cuda_backend *backend, uint64_t step, uint32_t timeout_us, struct step_result *result);

/* Drafts that come over the device (cuda_handover.h). hand_over: record in device memory, borrowed while the handle is open; -E_UNSUPPORTED: the driver cannot wait like that.
 * step_behind: a step of one group whose rows behind the first are as many drafts at most, their tokens placeholders; it begins when the drafter has left drafts of this tag,
 * or when release is called, and scores what there is. No row of it may need the second sampling kernel. -E_RANGE otherwise.
 * begun: 1 once its rows are settled. scored, behind its flag: their tokens; returns their number. release, by the thread that waits: at any time, more than once. */
int cuda_backend_hand_over(struct cuda_backend *backend, struct cuda_handover_record *record_device);
int cuda_backend_step_behind(struct cuda_backend *backend, const struct step_state *state, uint64_t tag);
int cuda_backend_begun(const struct cuda_backend *backend);
int cuda_backend_release(struct cuda_backend *backend);
uint32_t cuda_backend_scored(const struct cuda_backend *backend, uint32_t *tokens);

/* Device memory that later stages read; valid after the step's flag. */
enum cuda_buffer {
    CUDA_LOGITS,                      /* f32 [rows][vocab] after the softcap, suppressed tokens too */
    CUDA_HIDDEN,                      /* bf16 [rows][hidden] after the final norm (the input of the LM head) */
    CUDA_RESIDUAL                     /* f32 [rows][hidden] */
};
void *cuda_backend_buffer(struct cuda_backend *backend, enum cuda_buffer which);

/* Copies one row of CUDA_LOGITS to the host, [vocab] f32, and waits for it: for what the device cannot sample. 0, -E_RANGE, -E_IO. */
int cuda_backend_logits(struct cuda_backend *backend, uint32_t row, float *logits);

/* For benches: the stream (cudaStream_t), and one part of the step as a graph of its own (cudaGraphExec_t, owned by the caller):
 * `part` is a bit set of 1 << enum cuda_part. */
enum cuda_part { CUDA_PART_EMBED, CUDA_PART_QKV, CUDA_PART_ATTN, CUDA_PART_O, CUDA_PART_NORM, CUDA_PART_GATE_UP, CUDA_PART_DOWN, CUDA_PART_HEAD, CUDA_PART_SAMPLE, CUDA_PARTS };
void *cuda_backend_stream(struct cuda_backend *backend);
int cuda_backend_graph(struct cuda_backend *backend, uint32_t rows, uint32_t parts, void **graph_exec);
/* Graphs made after this call write, per kernel in chain order, 8 words of times in ns (device.cuh); NULL: no longer. */
void cuda_backend_trace(struct cuda_backend *backend, void *words_device);
/* Copies the state to the device without a launch (the graphs of parts do not). */
int cuda_backend_put_state(struct cuda_backend *backend, const struct step_state *state);

const char *cuda_backend_error(void);

/* CUDA_BACKEND_VERSION of the library; another one than the caller was built with: do not call anything else. */
uint32_t cuda_backend_version(void);

#ifdef __cplusplus
}
#endif
#endif
