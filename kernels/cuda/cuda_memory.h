/* kernels/cuda/cuda_memory.h - GPU memory that belongs to a descriptor, not to a process: made by one, mapped by others.
 *
 * CUDA's virtual memory API: an allocation is exported as a POSIX file descriptor and lives until the last descriptor and mapping are gone,
 * whatever happens to the process that made it. Sizes are rounded up to the device's granularity on both sides, so pass the same
 * number everywhere. Functions return 0 or a negative -E_CODE; cuda_backend_error() has the text. */
#ifndef SLUICE_CUDA_MEMORY_H
#define SLUICE_CUDA_MEMORY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_device_facts {
    char name[64];
    uint64_t memory_total, memory_free;   /* bytes */
    uint32_t sm_count, major, minor;      /* compute capability major.minor */
    uint32_t driver_version;              /* as cuDriverGetVersion: 13000 is 13.0 */
};

/* Creates this process's context on device 0. -E_NOT_FOUND: no driver or no device (the text says which); -E_UNSUPPORTED: not Hopper, or
 * no shareable memory; -E_IO. */
int cuda_device_open(struct cuda_device_facts *facts);

/* Destroys it: mappings go, memory that descriptors hold stays. No other call of the library may follow but cuda_device_open. 0, -E_IO. */
int cuda_device_close(void);

/* Device memory that a descriptor (owned by the caller, close-on-exec) holds. Contents undefined. -E_NOMEM, -E_IO. */
int cuda_memory_create(uint64_t bytes, int *fd);

/* Maps it; the descriptor may be closed afterwards. The mapping lasts as long as the process. -E_IO, -E_NOMEM. */
int cuda_memory_map(int fd, uint64_t bytes, int writable, void **device);

#ifdef __cplusplus
}
#endif
#endif
