/* tests/gpu/check.h - what the GPU tests written in C share: a call that fails ends the program and says which; time. For programs of one file. */
#ifndef SLUICE_TESTS_GPU_CHECK_H
#define SLUICE_TESTS_GPU_CHECK_H

#include "kernels/cuda/cuda_backend.h"
#include "shm/error.h"
#include <cuda_runtime_api.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline void die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, " (%s)\n", cuda_backend_error());
    exit(1);
}

/* For calls that return 0 or more, or a negative code of shm/error.h. */
static inline void ok(int rc, const char *what)
{
    if (rc < 0) die("%s: %s", what, error_text(rc));
}

static inline void cuda_ok(cudaError_t status, const char *what)
{
    if (status != cudaSuccess) die("%s: %s", what, cudaGetErrorString(status));
}

static inline double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

#endif
