/* kernels/cuda/launch.h - launching a kernel as a link of a chain (programmatic dependent launch). */
#ifndef SLUICE_CUDA_LAUNCH_H
#define SLUICE_CUDA_LAUNCH_H

#include <stdint.h>

#define LAUNCH_SHARED_MAX (227 * 1024)      /* dynamic shared memory of one block on sm_90 */

/* Raises a kernel's dynamic shared memory limit and asks for the largest carveout: when kernels of a chain ask for
 * different carveouts, an SM must drain before it can switch. 0 or -E_IO. */
int launch_prepare(const void *fn, uint32_t shared_bytes);

/* Launches on a capturing or running stream; may start before its predecessor in the stream has ended. 0 or -E_IO. */
int launch_chained(const void *fn, uint32_t blocks, uint32_t threads, uint32_t shared_bytes, void **params, void *stream);

/* The same for clusters of so many blocks; `blocks` is a multiple of it. */
int launch_clusters(const void *fn, uint32_t blocks, uint32_t cluster, uint32_t threads, uint32_t shared_bytes, void **params, void *stream);

/* The same for the first kernel of a chain: starts when everything before it in the stream is complete. */
int launch_first(const void *fn, uint32_t blocks, uint32_t threads, uint32_t shared_bytes, void **params, void *stream);

/* The last CUDA failure in this process as text, for log lines; never NULL. */
const char *launch_error(void);

/* Turns a CUDA status into 0 or -E_IO (-E_NOMEM for memory) and remembers it for launch_error. */
int launch_check(int cuda_status, const char *what);

/* Remembers a text of our own for launch_error and returns `code`. */
int launch_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
