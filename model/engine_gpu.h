/* model/engine_gpu.h - what every stage does that computes on the GPU: opens library and device, maps the keeper's memory, leaves when the context is gone.
 *
 * For the stage's main thread. Fails: no library, no device, no memory: the process exits with the reason (100, 111; 112: EXIT_GPU). */
#ifndef SLUICE_MODEL_ENGINE_GPU_H
#define SLUICE_MODEL_ENGINE_GPU_H

#include "model/cuda_library.h"
#include "model/engine.h"
#include "shm/stage.h"

/* The library that the wiring names, and device 0. Exits on failure. */
void engine_gpu_open(struct cuda_library *lib, struct cuda_device_facts *facts, struct stage *s);

/* The memory behind a descriptor of the wiring, mapped on the device until the process ends. Exits on failure. */
void *engine_gpu_map(const struct cuda_library *lib, struct stage *s, const char *name, uint64_t bytes, bool writable);

/* The model as the keeper has laid it out: option gpu.table_format, descriptor gpu.formats (struct cuda_layer_format for each layer). Exits when they are missing or
 * the GPU cannot run it, with the reason. */
void engine_gpu_spec(struct stage *s, struct cuda_model_spec *spec, const struct model_config *config, const struct generation_config *generation, const struct kv_geometry *geometry);
/* The formats alone, [layers]. */
void engine_gpu_formats(struct stage *s, struct cuda_layer_format *formats, uint32_t layers);

/* Where outputs of layers are kept for a drafter (arena.features), mapped; device NULL: this server keeps none. layout may be NULL. */
struct features;
void engine_gpu_features(const struct cuda_library *lib, struct stage *s, const struct model_config *config, uint32_t context_max, bool writable, struct cuda_features *out,
                         struct features *layout);

/* Where drafts go over the device (arena.signals; kernels/cuda/cuda_handover.h). NULL: option draft.signals is "host", or "auto" and we are outside MPS, where the GPU is given from process
 * to process by turns anyway. Exits on failure. */
struct cuda_handover_record *engine_gpu_signals(const struct cuda_library *lib, struct stage *s);

/* Device memory of the process's own, mapped until it ends; `what` is it for? Exits on failure. */
void *engine_gpu_own(const struct cuda_library *lib, struct stage *s, uint64_t bytes, const char *what);

/* What the library answered to a call whose arguments were checked before. No memory: exits, nobody's request is accused; a lost context: leaves as below; anything else is our own mistake. */
void engine_gpu_check(const struct cuda_library *lib, struct stage *s, const char *what, int rc);

/* The context is gone, and with it every further call: says so where the launcher looks, and leaves without the destructors of a dead driver. */
void engine_gpu_lost(const struct cuda_library *lib, struct stage *s, const char *what, int rc) __attribute__((noreturn));

#endif
