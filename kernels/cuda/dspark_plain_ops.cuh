/* dspark_plain_ops: what stands between the products of a DSpark head of any shape, with the bits of model/dspark.c.
 *   gather   sources[row] = outputs of layers of an absorbed position as f32, from the memory of model/features.h; row[row] for the kernels of plain_ops.cuh.
 *            A row that is another's, or changed meanwhile: zeros, and low[place] = its position + 1 if that is more
 *   start    the block's rows: h = E[token] * scale, where each stands and what it sees; markov[s] = W1[newest token]
 *   pick     guess g of each sequence from base + z as model/sampler.c picks it, then markov[s] = W1[guess]
 *   confide  the two sums of each guess's confidence; the host adds them and takes the sigmoid
 *   publish  guesses, sums and low to mapped host memory, then the flag
 *   unpack   a packed table [vocab][hidden], row-major
 * gather, start and unpack begin a chain, the others are links. Never synchronize.
 * Checked   tests/gpu/dspark_plain_test.c, in whole rounds. */
#ifndef SLUICE_CUDA_DSPARK_PLAIN_OPS_CUH
#define SLUICE_CUDA_DSPARK_PLAIN_OPS_CUH

#include "cuda_dspark.h"
#include "dspark_plain_weights.cuh"
#include "plain.h"

struct dspark_plain_gather {
    struct cuda_features features;
    uint64_t layers;                  /* what rows must say */
    uint32_t floats;                  /* of a row: sources * hidden */
    float *sources;                   /* [rows][floats] */
    struct plain_row *row;
    uint32_t *low;                    /* [places] */
    struct { uint32_t place, generation, position; } item[CUDA_DSPARK_ABSORB_MAX];
};
int dspark_plain_gather_launch(const struct dspark_plain_gather *args, uint32_t rows, void *stream);

struct dspark_plain_question {
    uint32_t place, token, position, guesses;
    uint32_t least;                   /* the first position that the window leaves */
    float temperature, top_p, min_p;
    uint32_t top_k, pad;
    uint64_t seed;
};

/* Of a round. */
struct dspark_plain_step {
    struct dspark_plain_question question[CUDA_DSPARK_ROWS_MAX];
    uint32_t count, block, mask, hidden, vocab, rank;
    struct plain_table embed, markov_in;
    float embed_scale;
    const uint32_t *low;              /* [places] */
    struct plain_row *row;            /* [count * block] */
    uint32_t *first;                  /* [count * block]: the first position that a row sees */
    float *h;                         /* [count * block][hidden] */
    float *markov;                    /* [count][rank]; rank 0: no Markov head */
    const float *base, *z;            /* [count * block][vocab], [count][vocab] (NULL: zeros) */
    uint32_t *guess;                  /* [count][CUDA_DSPARK_GUESSES_MAX] */
    const uint32_t *left_out;         /* bit t % 32 of word t / 32: token t is never guessed */
    const float *x;                   /* [count * block][hidden]: what met the output matrix */
    const float *confidence;          /* [hidden (+ rank)]; NULL: no confidence head */
    uint32_t sees_token;
    float *seen, *heard;              /* [count][CUDA_DSPARK_GUESSES_MAX]: sums over the row, over W1 of the token before */
};
int dspark_plain_start_launch(const struct dspark_plain_step *step, void *stream);
int dspark_plain_pick_launch(const struct dspark_plain_step *step, uint32_t index, void *stream);
int dspark_plain_confide_launch(const struct dspark_plain_step *step, void *stream);

struct dspark_plain_result {          /* mapped host memory */
    uint32_t low[CUDA_DSPARK_ROWS_MAX], token[CUDA_DSPARK_ROWS_MAX][CUDA_DSPARK_GUESSES_MAX];
    float seen[CUDA_DSPARK_ROWS_MAX][CUDA_DSPARK_GUESSES_MAX], heard[CUDA_DSPARK_ROWS_MAX][CUDA_DSPARK_GUESSES_MAX];
    uint64_t round;                   /* the flag */
};
int dspark_plain_publish_launch(const struct dspark_plain_step *step, struct dspark_plain_result *result, uint64_t number, void *stream);

/* to [vocab][hidden] bf16. */
int dspark_plain_unpack_launch(const struct plain_table *table, uint16_t *to, uint32_t vocab, uint32_t hidden, void *stream);

/* Once per process, before the first launch. 0 or -E_IO. */
int dspark_plain_ops_init(void);

#endif
