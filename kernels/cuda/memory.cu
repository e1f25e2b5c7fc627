/* kernels/cuda/memory.cu - device memory by descriptor: CUDA's virtual memory API (contract in cuda_memory.h).
 *
 * The driver's functions are asked for by name at run time, so that the library starts where there is no driver. Reads and owns nothing but a
 * table of them; every mapping stays until the process, or its context, ends. */
#include "cuda_memory.h"
#include "launch.h"
#include "shm/error.h"
#include <cuda.h>
#include <cuda_runtime.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DRIVER_VERSION_MIN 12000      /* the versions of the functions below */
#define DEVICE 0

struct driver {
    decltype(&cuMemGetAllocationGranularity) granularity;
    decltype(&cuMemCreate) create;
    decltype(&cuMemRelease) release;
    decltype(&cuMemExportToShareableHandle) export_handle;
    decltype(&cuMemImportFromShareableHandle) import_handle;
    decltype(&cuMemAddressReserve) reserve;
    decltype(&cuMemAddressFree) unreserve;
    decltype(&cuMemMap) map;
    decltype(&cuMemUnmap) unmap;
    decltype(&cuMemSetAccess) set_access;
    decltype(&cuGetErrorName) error_name;
    decltype(&cuGetErrorString) error_string;
};

static struct driver driver;

static int find(const char *name, void **function)
{
    cudaDriverEntryPointQueryResult found;
    const cudaError_t rc = cudaGetDriverEntryPointByVersion(name, function, DRIVER_VERSION_MIN, cudaEnableDefault, &found);

    if (rc != cudaSuccess) return launch_check(rc, name);
    return found == cudaDriverEntryPointSuccess && *function ? 0 : launch_fail(-E_UNSUPPORTED, "the driver has no %s: it is older than CUDA 12", name);
}

static int find_all(void)
{
    const struct { const char *name; void **function; } want[] = {
        { "cuMemGetAllocationGranularity", (void **)&driver.granularity }, { "cuMemCreate", (void **)&driver.create },
        { "cuMemRelease", (void **)&driver.release }, { "cuMemExportToShareableHandle", (void **)&driver.export_handle },
        { "cuMemImportFromShareableHandle", (void **)&driver.import_handle }, { "cuMemAddressReserve", (void **)&driver.reserve },
        { "cuMemAddressFree", (void **)&driver.unreserve }, { "cuMemMap", (void **)&driver.map }, { "cuMemUnmap", (void **)&driver.unmap },
        { "cuMemSetAccess", (void **)&driver.set_access }, { "cuGetErrorName", (void **)&driver.error_name },
        { "cuGetErrorString", (void **)&driver.error_string },
    };
    int rc = 0;

    if (driver.error_string) return 0;
    for (size_t i = 0; i < sizeof want / sizeof *want && rc == 0; i++) rc = find(want[i].name, want[i].function);
    return rc;
}

static int check(CUresult status, const char *what)
{
    const char *name = NULL, *text = NULL;

    if (status == CUDA_SUCCESS) return 0;
    driver.error_name(status, &name);
    driver.error_string(status, &text);
    return launch_fail(status == CUDA_ERROR_OUT_OF_MEMORY ? -E_NOMEM : -E_IO, "%s: %s (%s)", what, name ? name : "?", text ? text : "?");
}

/* The one kind of memory this file makes: on the device, to be exported as a descriptor. */
static CUmemAllocationProp kind(void)
{
    CUmemAllocationProp p;

    memset(&p, 0, sizeof p);
    p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    p.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    p.location.id = DEVICE;
    return p;
}

static int round_up(uint64_t *bytes)
{
    const CUmemAllocationProp p = kind();
    size_t unit = 0;
    const int rc = check(driver.granularity(&unit, &p, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "allocation granularity");

    if (rc) return rc;
    if (*bytes == 0 || *bytes > UINT64_MAX - unit) return launch_fail(-E_RANGE, "%llu bytes of device memory", (unsigned long long)*bytes);
    *bytes = (*bytes + unit - 1) / unit * unit;
    return 0;
}

extern "C" int cuda_device_open(struct cuda_device_facts *facts)
{
    struct cudaDeviceProp prop;
    size_t free_bytes = 0, total_bytes = 0;
    int count = 0, version = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);

    memset(facts, 0, sizeof *facts);
    if (found == cudaErrorInsufficientDriver) {
        cudaDriverGetVersion(&version);
        return version == 0 ? launch_fail(-E_NOT_FOUND, "there is no NVIDIA driver on this machine")
                            : launch_fail(-E_NOT_FOUND, "the NVIDIA driver is too old (CUDA %d.%d)", version / 1000, version % 1000 / 10);
    }
    if (found == cudaErrorNoDevice || (found == cudaSuccess && count == 0)) return launch_fail(-E_NOT_FOUND, "the NVIDIA driver sees no GPU");
    int rc = launch_check(found, "looking for a GPU");
    if (rc == 0) rc = launch_check(cudaGetDeviceProperties(&prop, DEVICE), "device properties");
    if (rc) return rc;
    snprintf(facts->name, sizeof facts->name, "%.63s", prop.name);
    facts->major = (uint32_t)prop.major, facts->minor = (uint32_t)prop.minor, facts->sm_count = (uint32_t)prop.multiProcessorCount;
    if (prop.major != 9) return launch_fail(-E_UNSUPPORTED, "%s has compute capability %d.%d, the kernels are made for 9.0 (Hopper)", prop.name, prop.major, prop.minor);
    rc = launch_check(cudaDriverGetVersion(&version), "driver version");
    if (rc == 0) rc = launch_check(cudaSetDevice(DEVICE), "opening the GPU");
    if (rc == 0) rc = launch_check(cudaMemGetInfo(&free_bytes, &total_bytes), "opening the GPU");
    if (rc == 0) rc = find_all();
    facts->memory_free = free_bytes, facts->memory_total = total_bytes, facts->driver_version = (uint32_t)version;
    return rc;
}

extern "C" int cuda_device_close(void) { return launch_check(cudaDeviceReset(), "closing the GPU"); }

extern "C" int cuda_memory_create(uint64_t bytes, int *fd)
{
    const CUmemAllocationProp p = kind();
    CUmemGenericAllocationHandle handle;
    int own = -1, rc = find_all();

    if (rc == 0) rc = round_up(&bytes);
    if (rc == 0) rc = check(driver.create(&handle, bytes, &p, 0), "device memory");
    if (rc) return rc;
    rc = check(driver.export_handle(&own, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0), "exporting device memory");
    driver.release(handle);               /* the descriptor holds the memory now */
    if (rc == 0 && fcntl(own, F_SETFD, FD_CLOEXEC) != 0) {
        close(own);
        rc = launch_fail(-E_IO, "the descriptor of device memory cannot be set up");
    }
    if (rc == 0) *fd = own;
    return rc;
}

extern "C" int cuda_memory_map(int fd, uint64_t bytes, int writable, void **device)
{
    CUmemGenericAllocationHandle handle;
    CUmemAccessDesc access;
    CUdeviceptr at = 0;
    int rc = find_all();

    if (rc == 0) rc = launch_check(cudaSetDevice(DEVICE), "opening the GPU");
    if (rc == 0) rc = round_up(&bytes);
    if (rc == 0) rc = check(driver.import_handle(&handle, (void *)(uintptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR), "importing device memory");
    if (rc) return rc;
    rc = check(driver.reserve(&at, bytes, 0, 0, 0), "addresses for device memory");
    if (rc == 0) {
        rc = check(driver.map(at, bytes, 0, handle, 0), "mapping device memory");
        memset(&access, 0, sizeof access);
        access.location = kind().location;
        access.flags = writable ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ;
        if (rc == 0 && (rc = check(driver.set_access(at, bytes, &access, 1), "access to device memory")) != 0) driver.unmap(at, bytes);
        if (rc) driver.unreserve(at, bytes);
    }
    driver.release(handle);               /* the mapping holds the memory now */
    if (rc == 0) *device = (void *)at;
    return rc;
}
