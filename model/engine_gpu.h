/* model/engine_gpu.h - what every stage does that computes on the GPU: opens library and device, maps the keeper's memory, leaves when the context is gone.
 *
 * For the stage's main thread. Fails: no library, no device, no memory: the process exits with the reason (100, 111; 112: EXIT_GPU). */
#ifndef SLUICE_MODEL_ENGINE_GPU_H
#define SLUICE_MODEL_ENGINE_GPU_H

#include "model/cuda_library.h"
#include "shm/stage.h"

/* The library that the wiring names, and device 0. Exits on failure. */
void engine_gpu_open(struct cuda_library *lib, struct cuda_device_facts *facts, struct stage *s);

/* The memory behind a descriptor of the wiring, mapped on the device until the process ends. Exits on failure. */
void *engine_gpu_map(const struct cuda_library *lib, struct stage *s, const char *name, uint64_t bytes, bool writable);

/* Format of the packed weights (enum weight_format) that the wiring names. Exits when it is none. */
uint32_t engine_gpu_weights_format(struct stage *s);

/* The context is gone, and with it every further call: says so where the launcher looks, and leaves without the destructors of a dead driver. */
void engine_gpu_lost(const struct cuda_library *lib, struct stage *s, const char *what, int rc) __attribute__((noreturn));

#endif
