/* shm/atomic.h - the only place where shared words are loaded and stored.
 *
 * Every word in shared memory has one writing process. Loads that decide what
 * other memory may be read are acquires, stores that make other memory visible
 * are releases; each pair is named where it is used (A1 <- R1). C and nvcc read
 * the same builtins. Source of the discipline: the C11 memory model. */
#ifndef SLUICE_SHM_ATOMIC_H
#define SLUICE_SHM_ATOMIC_H

#include <stdint.h>

static inline uint64_t shm_load_relaxed(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
static inline uint64_t shm_load_acquire(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void shm_store_relaxed(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }
static inline void shm_store_release(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

/* Both sides of the sleep handshake need it: my store is visible before my next load (store-load order). */
static inline void shm_fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* For records that are marked invalid while they are written: what follows the first store is not seen before it; what is read is read before the second look. */
static inline void shm_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void shm_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }

static inline void shm_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

#endif
