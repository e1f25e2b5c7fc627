/* kernels/pool.h - a fixed set of threads that share the tasks of one parallel loop at a time.
 *
 * The caller's thread takes part. Tasks are handed out by one counter, so that a thread that the
 * kernel has put aside holds up nobody: which thread runs a task never changes a result.
 * Idle threads sleep on a futex; they first spin for a few microseconds only where CPUs are plenty, because
 * on a small machine the spinning would take the CPU from the process that has the work. */
#ifndef SLUICE_KERNELS_POOL_H
#define SLUICE_KERNELS_POOL_H

#include <stdint.h>

#define POOL_THREADS_MAX 256

struct pool;

/* task: 0 .. task_count-1. thread: 0 .. threads-1, the caller is 0; for scratch space. */
typedef void pool_task_fn(void *context, uint32_t task, uint32_t thread);

/* threads 0: one per CPU this process may use. 0, -E_RANGE, -E_NOMEM, -E_IO (a thread could not be made). */
int pool_open(struct pool **pool, uint32_t threads, int pin);
void pool_close(struct pool *pool);
uint32_t pool_threads(const struct pool *pool);

/* Runs all tasks and returns when the last is done. Only one call at a time, by one thread. */
void pool_run(struct pool *pool, pool_task_fn *fn, void *context, uint32_t task_count);

#endif
