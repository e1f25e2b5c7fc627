/* kernels/cuda/await.cu - see await.h. */
#include "await.h"
#include "launch.h"
#include "shm/clock.h"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <time.h>

#define SPINS 1024u                         /* looks at the word between two at the clock and the stream */
#define PAUSE_NS 10000                      /* between two looks at an event */

int await_word(const uint64_t *word, uint64_t wanted, const uint64_t *gave_up, void *stream, uint32_t timeout_us, const char *what)
{
    const uint64_t end = clock_ns() + 1000ull * timeout_us;

    for (uint32_t spins = 0; __atomic_load_n(word, __ATOMIC_ACQUIRE) != wanted; spins++) { /* the partner is named where we are called */
        if (gave_up && __atomic_load_n(gave_up, __ATOMIC_ACQUIRE) == wanted) return -E_CANCELLED;
        if (spins % SPINS != SPINS - 1) continue;
        const cudaError_t status = cudaStreamQuery((cudaStream_t)stream);

        if (status != cudaSuccess && status != cudaErrorNotReady) return launch_check(status, what);
        if (clock_ns() > end) return -E_TIMEOUT;
    }
    return 0;
}

int await_event(void *event, uint32_t timeout_us, const char *what)
{
    const struct timespec pause = { 0, PAUSE_NS };
    const uint64_t end = clock_ns() + 1000ull * timeout_us;
    cudaError_t status;

    while ((status = cudaEventQuery((cudaEvent_t)event)) == cudaErrorNotReady) {
        if (clock_ns() >= end) return -E_TIMEOUT;
        nanosleep(&pause, NULL);
    }
    return launch_check(status, what);
}
