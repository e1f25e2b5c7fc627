/* dspark_markov: the guesses of DSpark blocks (model/dspark.h), one after the other, in one launch.
 *   z[t]     = base[i][t] + w2[t] . w1[previous]            previous: the newest token, then the guess before
 *   guess[i] = the largest of z / temperature + Gumbel noise of (seed, position + 1 + i, t); greedy: of z, the lowest t among equals
 *   chance[i] = sigmoid(confidence . [h[i] ; w1[previous]] + bias)
 *   base [guesses][rows] f32, behind the softcap; w1 [vocab][256] bf16, looked up; w2 [rows][256] E4M3 with a scale for each row, or bf16, read once for each guess
 * One block per SM, all resident at once: after each guess they meet at a barrier in memory. The sequence of rows turns round with every guess, so that what the L2 still
 * holds of w2 (67 MB in FP8, of them a half and more) is read from there. Sums in f32. top_k, top_p and penalties are not looked at: advice.
 * dspark_markov_many does it for 2 to 8 sequences at once, each with its own newest token, noise and number of guesses: w2 (E4M3 only) is read once for all of them and
 * multiplied on the tensor cores, with w1's rows as f16.
 * Needs     rank 256, rows % 16 == 0, 1 <= guesses <= 16, `scratch` of DSPARK_MARKOV_SCRATCH bytes. A peer that does not come within seconds: trap. Never synchronizes.
 * Checked   bench/cuda/dspark_bench.cu, against a plain kernel on the same inputs, before it measures.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_DSPARK_MARKOV_H
#define SLUICE_CUDA_DSPARK_MARKOV_H

#include "dspark_newest.h"
#include "layout.h"
#include <cuda_bf16.h>

#define DSPARK_RANK 256u
#define DSPARK_GUESSES_MAX 16u
#define DSPARK_MARKOV_SCRATCH (8u * 8u * DSPARK_GUESSES_MAX + 128)

struct dspark_markov_args {
    const float *base;
    const __nv_bfloat16 *w1;
    const void *w2;
    const float *w2_scale;            /* [rows]; NULL: w2 is bf16 */
    const __nv_bfloat16 *hidden;      /* [guesses][hidden_size] */
    const __nv_bfloat16 *confidence;  /* [hidden_size + 256]; NULL: none is wanted */
    float confidence_bias;
    uint32_t hidden_size;             /* multiple of 8 */
    uint32_t vocab, guesses;          /* vocab: rows of w1 */
    uint32_t rows;                    /* of base and w2: tokens that may be guessed */
    const uint32_t *choice;           /* [rows]: the token of each; NULL: its number */
    uint32_t token, position;         /* the newest token */
    uint64_t seed;
    float temperature;                /* 0: greedy */
    uint32_t *guess;                  /* [guesses], device; out */
    float *chance;                    /* [guesses], device; out */
    void *scratch;                    /* device */
    const float *hidden_power;        /* device: hidden is f16, what it stands for is so many times that; NULL: bf16 */
    const struct dspark_newest *newest;     /* device: token and position stand there (not for dspark_markov_many); NULL: here */
};

#define DSPARK_MARKOV_SEQS 8u
struct dspark_markov_many_args {
    struct dspark_markov_args common; /* token, position, guesses, seed and temperature are not looked at; base [count][block][rows], hidden [count][block][hidden_size], guess and
                                         chance [count][DSPARK_GUESSES_MAX] */
    uint32_t count, block;
    struct { uint32_t token, position, guesses; float temperature; uint64_t seed; } seq[DSPARK_MARKOV_SEQS];
};

/* Bytes that must cross HBM when nothing stays in the L2. */
static inline uint64_t dspark_markov_bytes(uint32_t rows, uint32_t guesses, int fp8)
{
    return (uint64_t)guesses * rows * (DSPARK_RANK * (fp8 ? 1 : 2) + (fp8 ? 4 : 0) + 4);
}

#ifdef __cplusplus
extern "C"
#endif
/* 0, -E_RANGE, -E_IO. */
int dspark_markov_launch(const struct dspark_markov_args *args, uint32_t sm_count, void *stream);

#ifdef __cplusplus
extern "C"
#endif
int dspark_markov_many_launch(const struct dspark_markov_many_args *args, uint32_t sm_count, void *stream);

#endif
