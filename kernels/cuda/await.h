/* kernels/cuda/await.h - how the host waits for the device: for a word that a kernel writes into host memory, or for an event.
 *
 * Both give up after a time, and tell when the stream has failed: after a fault nobody would write the word. Any thread that may use the stream. */
#ifndef SLUICE_CUDA_AWAIT_H
#define SLUICE_CUDA_AWAIT_H

#include <stdint.h>

/* Spins until *word is `wanted`; what the kernel wrote before it (with a fence between) is visible then. 0; -E_CANCELLED: *gave_up (may be NULL) is `wanted`
 * first; -E_TIMEOUT; -E_IO: the stream has failed, `what` names the work in launch_error. */
int await_word(const uint64_t *word, uint64_t wanted, const uint64_t *gave_up, void *stream, uint32_t timeout_us, const char *what);

/* Sleeps until the event is complete. 0, -E_TIMEOUT, -E_IO. */
int await_event(void *event, uint32_t timeout_us, const char *what);

#endif
