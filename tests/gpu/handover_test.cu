/* tests/gpu/handover_test.cu - drafts that go over the device (kernels/cuda/handover.h); exit 0 pass, 1 fail, 77 no GPU.
 *
 * A stream waits until a kernel of another stream has left drafts, or until it is released, and no longer; it takes the drafts of its own tag, as many as there is room for, up to
 * the first that is no token; drafts of another tag are none. A drafter's stream waits until a step has told what it sampled, or until it is skipped, and then knows token and position of
 * that step or that there are none. In memory as the keeper makes it. Prints how long a hand-over takes. */
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/handover.cuh"
#include "kernels/cuda/handover.h"
#include "kernels/cuda/launch.h"
#include "shm/error.h"
#include <algorithm>
#include <chrono>
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include <unistd.h>
#include <vector>

#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
#define OK(x) do { const int r_ = (x); if (r_ < 0) { fprintf(stderr, "%s:%d %s: error %d (%s)\n", __FILE__, __LINE__, #x, r_, launch_error()); exit(1); } } while (0)

#define VOCAB 1000u
#define ROOM 7u
#define WAIT_MS 2000
#define TIMED 200

struct rig {
    struct handover h, follower;
    struct cuda_handover_record *record;
    uint32_t *told;                   /* pinned: what the follower's kernel found, token and position; position 0: nothing */
    struct step_state *state;
    cudaStream_t verify, draft;
    uint64_t tag;
    int failures;
};

static __global__ void leave_kernel(cuda_handover_record *to, const __grid_constant__ cuda_handover hand, uint32_t count, uint32_t first)
{
    uint32_t token[CUDA_HANDOVER_TOKENS_MAX];
    float confidence[CUDA_HANDOVER_TOKENS_MAX];

    for (uint32_t i = 0; i < CUDA_HANDOVER_TOKENS_MAX; i++) token[i] = first + i, confidence[i] = 0.5f;
    handover_leave(to, hand, 0, count, token, confidence);
}

static void expect(struct rig *r, bool right, const char *what)
{
    printf("%-5s %s\n", right ? "ok" : "WRONG", what);
    r->failures += !right;
}

static uint64_t seen(const struct rig *r) { return *(const volatile uint64_t *)r->h.seen; }

/* A step that waits for the next tag, with room for so many drafts. */
static void wait_with_room(struct rig *r, uint32_t room)
{
    memset(r->state, 0, sizeof *r->state);
    r->state->rows = r->state->group[0].rows = 1 + room, r->state->groups = 1;
    r->state->row[0].token = 5;
    OK(handover_await(&r->h, r->state, VOCAB, ++r->tag, r->verify));
}

/* Did the stream come through, and with so many drafts, numbered from `first`? */
static bool came_with(struct rig *r, uint32_t drafts, uint32_t first)
{
    bool right = true;

    for (int ms = 0; ms < WAIT_MS && seen(r) != r->tag; ms++) usleep(1000);
    if (seen(r) != r->tag) {
        printf("      the stream still waits\n");
        OK(handover_release(&r->h));
        CHECK(cudaStreamSynchronize(r->verify));
        return false;
    }
    CHECK(cudaStreamSynchronize(r->verify));
    right = r->state->rows == 1 + drafts && r->state->group[0].rows == 1 + drafts && r->state->row[0].token == 5;
    for (uint32_t i = 0; i < drafts; i++) right = right && r->state->row[1 + i].token == first + i;
    if (!right) printf("      %u rows, tokens %u %u %u\n", r->state->rows, r->state->row[1].token, r->state->row[2].token, r->state->row[3].token);
    return right;
}

static void put(struct rig *r, const struct cuda_handover_record *record) { CHECK(cudaMemcpy(r->record, record, sizeof *record, cudaMemcpyHostToDevice)); }

static void leave(struct rig *r, uint64_t tag, uint32_t count, uint32_t first)
{
    struct cuda_handover hand = { tag, 0.0f, { 0 }, 0, 0, { 0 } };

    leave_kernel<<<1, 1, 0, r->draft>>>(r->record, hand, count, first);
    CHECK(cudaGetLastError());
}

static void test_what_is_there(struct rig *r)
{
    struct cuda_handover_record record;

    memset(&record, 0, sizeof record);
    for (uint32_t i = 0; i < CUDA_HANDOVER_TOKENS_MAX; i++) record.token[i] = 100 + i;
    record.word = record.tag = r->tag + 1, record.count = 3;
    put(r, &record);
    wait_with_room(r, ROOM);
    expect(r, came_with(r, 3, 100), "three drafts of its own tag are taken");
    record.word = record.tag = r->tag + 1, record.count = 5;
    put(r, &record);
    wait_with_room(r, 2);
    expect(r, came_with(r, 2, 100), "no more than there is room for");
    record.word = r->tag + 1, record.tag = r->tag;
    put(r, &record);
    wait_with_room(r, ROOM);
    expect(r, came_with(r, 0, 0), "those of another tag are none");
    record.word = record.tag = r->tag + 1, record.count = 0xffffffffu;
    put(r, &record);
    wait_with_room(r, ROOM);
    expect(r, came_with(r, ROOM, 100), "a count that is none ends at the room there is");
    record.word = record.tag = r->tag + 1, record.count = 5, record.token[2] = VOCAB;
    put(r, &record);
    wait_with_room(r, ROOM);
    expect(r, came_with(r, 2, 100), "what is no token ends them");
}

static void test_waiting(struct rig *r)
{
    wait_with_room(r, ROOM);
    usleep(20000);
    expect(r, seen(r) != r->tag && cudaStreamQuery(r->verify) == cudaErrorNotReady, "it waits");
    leave(r, r->tag - 1, 4, 300);
    CHECK(cudaStreamSynchronize(r->draft));
    usleep(20000);
    expect(r, seen(r) != r->tag, "a late answer to another question does not end it");
    leave(r, r->tag, 4, 200);
    expect(r, came_with(r, 4, 200), "a kernel of another stream does, with its drafts");
    wait_with_room(r, ROOM);
    usleep(5000);
    OK(handover_release(&r->h));
    expect(r, came_with(r, 0, 0), "released, it goes on without any");
    leave(r, r->tag, 4, 400);
    CHECK(cudaStreamSynchronize(r->draft));
    wait_with_room(r, ROOM);
    usleep(5000);
    expect(r, seen(r) != r->tag, "a drafter that comes behind the release does not end the next wait");
    leave(r, r->tag, 1, 500);
    expect(r, came_with(r, 1, 500), "and that one's drafts are its own");
}

/* ---- the other way ---- */

static __global__ void tell_kernel(const step_state *s, const uint32_t *sampled) { handover_tell(s, sampled); }

static __global__ void told_kernel(const cuda_handover_record *record, uint64_t tag, uint32_t *to)
{
    uint32_t token = 0, position = 0;

    handover_told(record, tag, &token, &position);
    to[0] = token, to[1] = position;
}

static void follow(struct rig *r, uint64_t tag)
{
    r->told[0] = r->told[1] = 0xffffffffu;
    OK(handover_follow(&r->follower, tag, r->draft));
    told_kernel<<<1, 1, 0, r->draft>>>(r->record, tag, r->told);
    CHECK(cudaGetLastError());
}

/* A step of `rows` rows from position 50 on whose drafts were 200, 201 ..; of what it sampled the first `right` are those. */
static void tell(struct rig *r, uint64_t tag, uint32_t rows, uint32_t right)
{
    static uint32_t *sampled;

    if (!sampled) CHECK(cudaMallocHost((void **)&sampled, 4 * STEP_GROUP_ROWS_MAX));
    memset(r->state, 0, sizeof *r->state);
    r->state->rows = r->state->group[0].rows = rows, r->state->groups = 1;
    r->state->handed = (uint64_t)r->record, r->state->handed_tag = tag;
    for (uint32_t i = 0; i < rows; i++) {
        r->state->row[i].token = i ? 199 + i : 5, r->state->row[i].position = 50 + i;
        sampled[i] = i < right ? 200 + i : 900 + i;
    }
    tell_kernel<<<1, 1, 0, r->verify>>>(r->state, sampled);
    CHECK(cudaGetLastError());
    CHECK(cudaStreamSynchronize(r->verify));
}

static bool was_told(struct rig *r, uint32_t token, uint32_t position)
{
    for (int ms = 0; ms < WAIT_MS && cudaStreamQuery(r->draft) == cudaErrorNotReady; ms++) usleep(1000);
    if (cudaStreamQuery(r->draft) != cudaSuccess) {
        printf("      the stream still waits\n");
        OK(handover_skip(&r->follower));
        CHECK(cudaStreamSynchronize(r->draft));
        return false;
    }
    if (r->told[0] != token || r->told[1] != position) printf("      told %u at %u\n", r->told[0], r->told[1]);
    return r->told[0] == token && r->told[1] == position;
}

static void test_following(struct rig *r)
{
    follow(r, ++r->tag);
    usleep(20000);
    expect(r, cudaStreamQuery(r->draft) == cudaErrorNotReady, "a drafter waits for the step that it follows");
    tell(r, r->tag - 1, 1, 0);
    usleep(20000);
    expect(r, cudaStreamQuery(r->draft) == cudaErrorNotReady, "a step before that one does not end it");
    tell(r, r->tag, 4, 2);
    expect(r, was_told(r, 902, 53), "that one does: two of three drafts were right, what was sampled behind them is the newest token");
    follow(r, ++r->tag);
    tell(r, r->tag, 4, 3);
    expect(r, was_told(r, 903, 54), "all drafts were right");
    follow(r, ++r->tag);
    tell(r, r->tag, 1, 0);
    expect(r, was_told(r, 900, 51), "a step without drafts");
    follow(r, ++r->tag);
    usleep(5000);
    OK(handover_skip(&r->follower));
    expect(r, was_told(r, 0, 0), "skipped, it is told nothing");
    tell(r, r->tag, 1, 0);
    follow(r, ++r->tag);
    usleep(5000);
    expect(r, cudaStreamQuery(r->draft) == cudaErrorNotReady, "a step that comes behind the skip does not end the next wait");
    tell(r, r->tag + 5, 2, 0);
    expect(r, was_told(r, 0, 0), "a later step does, but what it tells is not this one's");
    r->tag += 5;
}

/* From the launch of the kernel that leaves drafts to settled rows, as the host sees them. */
static void time_it(struct rig *r)
{
    std::vector<double> t;

    for (int i = 0; i < TIMED; i++) {
        wait_with_room(r, ROOM);
        std::this_thread::sleep_for(std::chrono::microseconds(200));
        const auto begin = std::chrono::steady_clock::now();
        leave(r, r->tag, 7, 100);
        while (seen(r) != r->tag) continue;
        t.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
        CHECK(cudaStreamSynchronize(r->verify));
    }
    std::sort(t.begin(), t.end());
    printf("      launch of a kernel that leaves drafts to settled rows, seen by the host: %.1f us (p90 %.1f)\n", t[TIMED / 2], t[TIMED * 9 / 10]);
}

int main(void)
{
    struct cuda_device_facts facts;
    cudaFuncAttributes attributes;
    struct rig r = {};
    void *memory = NULL;
    int fd = -1;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (cuda_device_open(&facts) != 0) return printf("SKIP: %s\n", launch_error()), 77;
    OK(cuda_memory_create(CUDA_HANDOVER_BYTES, &fd));
    OK(cuda_memory_map(fd, CUDA_HANDOVER_BYTES, 1, &memory));
    r.record = (struct cuda_handover_record *)memory;
    CHECK(cudaMemset(r.record, 0xff, sizeof *r.record));       /* what a dead server left: opening clears it */
    CHECK(cudaFuncGetAttributes(&attributes, (const void *)leave_kernel));      /* or its loading would wait for the stream that waits for it */
    CHECK(cudaFuncGetAttributes(&attributes, (const void *)told_kernel));
    CHECK(cudaFuncGetAttributes(&attributes, (const void *)tell_kernel));
    OK(handover_open(&r.h, r.record));
    OK(handover_open_follower(&r.follower, r.record));
    CHECK(cudaMallocHost((void **)&r.told, 8));
    CHECK(cudaMallocHost((void **)&r.state, sizeof *r.state));
    CHECK(cudaStreamCreateWithFlags(&r.verify, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&r.draft, cudaStreamNonBlocking));
    r.tag = 1ull << 40;
    test_what_is_there(&r);
    test_waiting(&r);
    test_following(&r);
    time_it(&r);
    handover_close(&r.follower);
    handover_close(&r.h);
    printf(r.failures ? "%d failed\n" : "handover: passed\n", r.failures);
    return r.failures != 0;
}
