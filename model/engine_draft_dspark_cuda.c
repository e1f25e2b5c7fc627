/* model/engine_draft_dspark_cuda.c - a DSpark head beside a target on the GPU: the outputs of layers lie in device memory (arena.features), the head is computed by
 * engine_draft_dspark.c.
 *
 * Owns     the CUDA library's handle
 * Fails    no library, no device: exit 100 or 111 with the reason. */
#include "model/cuda_library.h"
#include "model/engine_draft.h"
#include "model/engine_gpu.h"

#include <stdlib.h>

void engine_draft_open_dspark_cuda(struct engine_draft *d)
{
    static struct cuda_library lib;
    struct cuda_device_facts facts;

    setenv("CUDA_MODULE_LOADING", "EAGER", 0); /* a kernel that is loaded at its first use stops the whole device then */
    engine_gpu_open(&lib, &facts, d->stage);
    engine_draft_open_dspark(d, &lib);
}
