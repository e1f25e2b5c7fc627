/* model/cuda_library.h - the CUDA backend, opened when it is needed: one struct of its functions.
 *
 * libsluice_cuda.so is no part of any executable, so that the same stages start where there is neither GPU nor driver. Only
 * the keeper (to decide), prefill and verify (to compute) open it. Found beside the executable: in ../lib, .., lib or the same
 * directory; the environment variable SLUICE_CUDA_LIBRARY names another one. It stays open until the process ends. */
#ifndef SLUICE_MODEL_CUDA_LIBRARY_H
#define SLUICE_MODEL_CUDA_LIBRARY_H

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_draft.h"
#include "kernels/cuda/cuda_draft_plain.h"
#include "kernels/cuda/cuda_dspark.h"
#include "kernels/cuda/cuda_dspark_plain.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/cuda_prefill.h"
#include "kernels/cuda/cuda_weights.h"

#include <stddef.h>

#define CUDA_LIBRARY_NAME "libsluice_cuda.so"
#define CUDA_LIBRARY_PATH_BYTES 512u

/* Every function that a stage calls: cuda_NAME is the member NAME. */
#define CUDA_LIBRARY_FUNCTIONS(F) \
    F(backend_version) F(backend_error) F(backend_open) F(backend_close) F(backend_pages) F(backend_step) F(backend_wait) F(backend_bias) F(backend_history) F(backend_outputs) F(backend_generation) F(backend_hand_over) F(backend_step_behind) F(backend_begun) F(backend_release) F(backend_scored) \
    F(prefill_open) F(prefill_close) F(prefill_pages) F(prefill_copy) F(prefill_soft_weights) F(prefill_soft) F(prefill_soft_go) F(prefill_outputs) F(prefill_outputs_copy) F(prefill_generation) F(prefill_begin) F(prefill_go) F(prefill_wait) \
    F(device_open) F(device_close) F(memory_create) F(memory_map) \
    F(weights_bytes) F(weights_open) F(weights_close) F(weights_buffer) F(weights_put) F(weights_finish) F(weights_fill_random) \
    F(draft_weights_bytes) F(draft_weights_put) F(draft_open) F(draft_close) F(draft_pages) F(draft_round) F(draft_hand_over) F(draft_follow) F(draft_skip) F(draft_wait) \
    F(draft_plain_open) \
    F(dspark_weights_bytes) F(dspark_weights_put) F(dspark_weights_head) F(dspark_open) F(dspark_plain_open) F(dspark_place) F(dspark_absorb) F(dspark_round) F(dspark_hand_over) F(dspark_follow) F(dspark_skip) F(dspark_wait)

struct cuda_library {
    void *handle;                     /* of dlopen; never closed: the driver's threads may still run in it */
    char path[CUDA_LIBRARY_PATH_BYTES];
#define CUDA_LIBRARY_MEMBER(name) __typeof__(cuda_##name) *name;
    CUDA_LIBRARY_FUNCTIONS(CUDA_LIBRARY_MEMBER)
#undef CUDA_LIBRARY_MEMBER
};

/* Opens the library at `path`, or where it is looked for when path is NULL. 0; -E_NOT_FOUND: no such file anywhere; -E_IO: it is there
 * and cannot be loaded; -E_VERSION: it was built for another layout, or lacks a function. `err` names the paths that were tried and why. */
int cuda_library_open(struct cuda_library *lib, const char *path, char *err, size_t err_bytes);

#endif
