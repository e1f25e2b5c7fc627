/* kernels/cuda/handover.cu - waiting for a drafter on the device (contract in handover.h). */
#include "handover.h"
#include "launch.h"
#include "shm/error.h"
#include <cuda.h>
#include <cuda_runtime.h>
#include <string.h>

#define DRIVER_VERSION_MIN 12000      /* of the functions' versions */

typedef decltype(&cuStreamWaitValue64) wait_fn;
typedef decltype(&cuStreamWriteValue64) write_fn;

static __global__ void take_kernel(const cuda_handover_record *record, step_state *state, uint64_t *seen, uint32_t room, uint32_t vocab, uint64_t tag)
{
    const uint32_t lane = threadIdx.x;
    const bool mine = *(const volatile uint64_t *)&record->tag == tag;

    __threadfence();                  /* the tag before the drafts: they are those of the tag, or of nobody */
    const uint32_t count = mine ? *(const volatile uint32_t *)&record->count : 0;
    const uint32_t token = lane < CUDA_HANDOVER_TOKENS_MAX ? *(const volatile uint32_t *)&record->token[lane] : vocab;
    const uint32_t good = __ballot_sync(0xffffffffu, token < vocab && lane < count && lane < room);
    const uint32_t drafts = __ffs(~good) - 1;

    if (lane < drafts) state->row[1 + lane].token = token;
    if (lane == 0) state->rows = state->group[0].rows = 1 + drafts;
    __threadfence_system();
    __syncwarp();
    if (lane == 0) *(volatile uint64_t *)seen = tag;       /* -> cuda_backend_begun: rows and tokens are in host memory */
}

static int check(CUresult status, const char *what)
{
    return status == CUDA_SUCCESS ? 0 : launch_fail(-E_IO, "%s: driver error %d", what, (int)status);
}

static int find(const char *name, void **function)
{
    cudaDriverEntryPointQueryResult found;
    const int rc = launch_check(cudaGetDriverEntryPointByVersion(name, function, DRIVER_VERSION_MIN, cudaEnableDefault, &found), name);

    if (rc) return rc;
    return found == cudaDriverEntryPointSuccess && *function ? 0 : launch_fail(-E_UNSUPPORTED, "the driver has no %s", name);
}

int handover_open_follower(struct handover *h, struct cuda_handover_record *record)
{
    cudaStream_t side = NULL;
    int rc = find("cuStreamWaitValue64", &h->wait);

    if (rc == 0) rc = find("cuStreamWriteValue64", &h->write);
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking), "stream");
    h->side = side;
    if (rc == 0) h->record = record;
    return rc;
}

int handover_open(struct handover *h, struct cuda_handover_record *record)
{
    cudaFuncAttributes attributes;
    int rc = launch_prepare((const void *)take_kernel, 0);

    if (rc == 0) rc = launch_check(cudaFuncGetAttributes(&attributes, (const void *)take_kernel), "loading a kernel");      /* now: behind a stream's wait, loading would wait for that */
    if (rc == 0) rc = handover_open_follower(h, NULL);
    if (rc == 0) rc = launch_check(cudaMallocHost((void **)&h->seen, sizeof *h->seen), "pinned memory");
    if (rc == 0) *h->seen = 0;
    if (rc == 0) rc = launch_check(cudaMemset(record, 0, sizeof *record), "the drafts' memory");
    if (rc == 0) rc = launch_check(cudaDeviceSynchronize(), "the drafts' memory");
    if (rc == 0) h->record = record;
    return rc;
}

void handover_close(struct handover *h)
{
    if (h->seen) cudaFreeHost(h->seen);
    if (h->side) cudaStreamDestroy((cudaStream_t)h->side);
    memset(h, 0, sizeof *h);
}

static int wait_for(const struct handover *h, const uint64_t *word, uint64_t tag, void *stream, const char *what)
{
    return check(((wait_fn)h->wait)((CUstream)stream, (CUdeviceptr)word, tag, CU_STREAM_WAIT_VALUE_GEQ), what);
}

static int go_on(const struct handover *h, uint64_t *word, const char *what)
{
    return check(((write_fn)h->write)((CUstream)h->side, (CUdeviceptr)word, h->tag, CU_STREAM_WRITE_VALUE_DEFAULT), what);
}

int handover_await(struct handover *h, struct step_state *state, uint32_t vocab, uint64_t tag, void *stream)
{
    const int rc = wait_for(h, &h->record->word, tag, stream, "waiting for drafts");

    if (rc) return rc;
    h->tag = tag;
    take_kernel<<<1, 32, 0, (cudaStream_t)stream>>>(h->record, state, h->seen, state->rows - 1, vocab, tag);
    return launch_check(cudaGetLastError(), "taking drafts");
}

int handover_release(struct handover *h) { return go_on(h, &h->record->word, "going on without drafts"); }

int handover_follow(struct handover *h, uint64_t tag, void *stream)
{
    h->tag = tag;
    return wait_for(h, &h->record->next_word, tag, stream, "waiting for a step");
}

int handover_skip(struct handover *h) { return go_on(h, &h->record->next_word, "waiting for no step"); }
