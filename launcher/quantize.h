/* launcher/quantize.h - `sluice quantize IN OUT --format F`: a BF16 checkpoint written in one of the FP8 and FP4 layouts.
 *
 * Fills OUT.partial and renames it to OUT when all is on disk: OUT is whole or not there. Started again after an
 * interruption, it empties OUT.partial and writes it anew; two at once: the second refuses. IN is only read. */
#ifndef SLUICE_LAUNCHER_QUANTIZE_H
#define SLUICE_LAUNCHER_QUANTIZE_H

#include "kernels/pool.h"
#include "model/quantize.h"
#include "model/safetensors_write.h"
#include "model/weights.h"

struct quantize {
    const char *in, *out, *calibration;        /* directories; a text file or NULL; borrowed from argv */
    enum quantize_format format;
    bool least_squares;
    uint32_t threads;
    struct model_files files;
    struct model_config config;
    struct generation_config generation;
    struct safetensors index;
    struct model_weights weights;
    struct pool *pool;
    float largest[MODEL_LAYERS_MAX][MODEL_MATRICES];        /* size of weights; -1: not measured yet */
    float input_largest[MODEL_LAYERS_MAX][MODEL_MATRICES];  /* size of what met the matrix in calibration */
    int dir_fd;                                /* OUT.partial */
    uint64_t bytes_done, bytes_total;          /* read from IN */
    struct model_error err;
};

/* argv after the command word. 0: OUT is written; 1: it is not, with the reason on stderr; EXIT_CONFIG: wrong use. */
int quantize_command(int argc, char **argv);

/* quantize_config.c: config.json of the result (owned by the caller), and the metadata of its files; NULL: no memory. */
json_t *quantize_config(const struct quantize *q, json_t *config);
json_t *quantize_metadata(const struct quantize *q);
/* hf_quant_config.json, or NULL when the format has none. */
json_t *quantize_hf_config(const struct quantize *q);

/* quantize_calibrate.c: runs the model over q->calibration and fills input_largest. 0 or -E_CODE with q->err. */
int quantize_calibrate(struct quantize *q);

#endif
