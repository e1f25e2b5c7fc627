/* bench/cuda/measure.cuh - what every bench of kernels needs: checked calls, medians, and how fast this GPU's memory can be read. */
#ifndef SLUICE_BENCH_MEASURE_CUH
#define SLUICE_BENCH_MEASURE_CUH

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
/* For calls of the CUDA backend (cuda_backend.h). */
#define OK(x) do { const int r_ = (x); if (r_ < 0) { fprintf(stderr, "%s:%d %s: error %d (%s)\n", __FILE__, __LINE__, #x, r_, cuda_backend_error()); exit(1); } } while (0)

template <typename T> static inline double median(std::vector<T> t)
{
    std::sort(t.begin(), t.end());
    return t[t.size() / 2];
}

/* The most that any kernel here can reach: all of p, 16 bytes a load, eight loads of a thread on their way. */
static __global__ void __launch_bounds__(512) read_kernel(const uint4 *p, uint64_t n, uint32_t *sink)
{
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
    uint32_t x = 0;

    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i + 7 * stride < n; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(p + i + j * stride);
#pragma unroll
        for (int j = 0; j < 8; j++) x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (x == 0x12345678u) *sink = x;
}

/* GB/s over p (device memory, much more than the L2), median of 10. */
static inline double read_gbps(const void *p, uint64_t bytes)
{
    cudaEvent_t a, b;
    std::vector<double> t;
    uint32_t *sink;
    int sms;

    CHECK(cudaMalloc(&sink, 4));
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    CHECK(cudaEventCreate(&a));
    CHECK(cudaEventCreate(&b));
    for (int i = 0; i < 12; i++) {
        float ms;

        CHECK(cudaEventRecord(a));
        read_kernel<<<sms * 4, 512>>>((const uint4 *)p, bytes / 16, sink);
        CHECK(cudaEventRecord(b));
        CHECK(cudaEventSynchronize(b));
        CHECK(cudaEventElapsedTime(&ms, a, b));
        if (i >= 2) t.push_back(ms);
    }
    CHECK(cudaFree(sink));
    return (double)bytes / median(t) / 1e6;
}

#endif
