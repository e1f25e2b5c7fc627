/* tests/gpu/memory_test.cu - GPU memory by descriptor, and the loader: does it outlive its maker, and do both ways in write the same bytes?
 *
 * test_memory_survives   a child makes memory, fills it and is killed; we map its descriptor and find the bytes
 * test_read_only         a mapping that may not be written faults the process that writes (a child), and nobody else
 * test_pieces            rows put through the pinned buffers give the same arena as whole tensors packed from device memory, FP8 and BF16
 * Exit 0 passed, 1 failed, 77 no GPU. Prints how fast pieces go through the buffers. */
#include "kernels/cuda/arena.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/cuda_weights.h"
#include "shm/error.h"
#include <chrono>
#include <cuda_runtime.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
#define OK(x) do { const int r_ = (x); if (r_ < 0) { fprintf(stderr, "%s:%d %s: error %d (%s)\n", __FILE__, __LINE__, #x, r_, cuda_backend_error()); exit(1); } } while (0)
#define MUST(x) do { if (!(x)) { fprintf(stderr, "%s:%d failed: %s\n", __FILE__, __LINE__, #x); exit(1); } } while (0)

#define MEMORY_BYTES (5ull << 20)     /* not a multiple of the granularity */

extern "C" int cuda_fill_normal(void *out_bf16, uint64_t n, float deviation, uint64_t seed);

static void send_fd(int socket_fd, int fd)
{
    char byte = 1, control[CMSG_SPACE(sizeof(int))] = { 0 };
    struct iovec io = { &byte, 1 };
    struct msghdr m = {};

    m.msg_iov = &io, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    MUST(sendmsg(socket_fd, &m, 0) == 1);
}

static int receive_fd(int socket_fd)
{
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec io = { &byte, 1 };
    struct msghdr m = {};
    int fd;

    m.msg_iov = &io, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
    MUST(recvmsg(socket_fd, &m, 0) == 1 && CMSG_FIRSTHDR(&m) != NULL);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    return fd;
}

/* Runs `fn` in a new process before this one has touched CUDA; returns its wait status. */
static pid_t in_child(void (*fn)(int socket_fd), int *ours)
{
    int pair[2];

    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    const pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        close(pair[0]);
        fn(pair[1]);
        _exit(0);
    }
    close(pair[1]);
    *ours = pair[0];
    return pid;
}

static void make_and_wait(int socket_fd)
{
    struct cuda_device_facts facts;
    void *at = NULL;
    int fd = -1;

    OK(cuda_device_open(&facts));
    OK(cuda_memory_create(MEMORY_BYTES, &fd));
    OK(cuda_memory_map(fd, MEMORY_BYTES, 1, &at));
    CHECK(cudaMemset(at, 0x5a, MEMORY_BYTES));
    CHECK(cudaDeviceSynchronize());
    send_fd(socket_fd, fd);
    pause();
}

__global__ void write_kernel(int *p) { *p = 1; }

static void write_read_only(int socket_fd)
{
    const int fd = receive_fd(socket_fd);
    struct cuda_device_facts facts;
    void *at = NULL;

    OK(cuda_device_open(&facts));
    OK(cuda_memory_map(fd, MEMORY_BYTES, 0, &at));
    write_kernel<<<1, 1>>>((int *)at);
    _exit(cudaDeviceSynchronize() == cudaSuccess ? 1 : 42);
}

/* Two layers of the 12B's shapes and its vocabulary: a sliding and a full one. */
static struct cuda_model_spec make_spec(uint32_t format)
{
    struct cuda_model_spec s;

    memset(&s, 0, sizeof s);
    s.hidden = 3840, s.intermediate = 15360, s.vocab = 262144, s.layers = 2, s.q_heads = 16, s.format = format, s.window = 1024, s.has_v_norm = 1;
    s.kv_heads[0] = 8, s.kv_heads[1] = 1, s.head_dim[0] = 256, s.head_dim[1] = 512, s.rope_turned[0] = 128, s.rope_turned[1] = 64;
    s.rope_theta[0] = 1e4, s.rope_theta[1] = 1e6, s.rope_divisor[0] = s.rope_divisor[1] = 1.0;
    s.norm_eps = 1e-6f, s.softcap = 30.0f, s.embed_scale = 62.0f, s.attention_scale = 1.0f;
    s.page_bytes[0] = 2 * 8 * 256 * 32 * 2, s.page_bytes[1] = 2 * 512 * 32 * 2;
    s.layer[0].has_v = 1, s.layer[0].v_offset = s.page_bytes[0] / 2;
    s.layer[1].type = CUDA_FULL, s.layer[1].v_offset = s.page_bytes[1] / 2;
    return s;
}

struct part { enum cuda_tensor tensor; uint32_t layer, rows, k; };   /* k 0: a vector */

static std::vector<struct part> parts_of(void)
{
    std::vector<struct part> all = { { CUDA_EMBED, 0, 262144, 3840 }, { CUDA_FINAL_NORM, 0, 3840, 0 } };

    for (uint32_t l = 0; l < 2; l++) {
        const uint32_t q = l ? 8192 : 4096, kv = l ? 512 : 2048, d = l ? 512 : 256;
        const struct part layer[] = { { CUDA_Q, l, q, 3840 }, { CUDA_K, l, kv, 3840 }, { CUDA_O, l, 3840, q }, { CUDA_GATE, l, 15360, 3840 }, { CUDA_UP, l, 15360, 3840 },
                                      { CUDA_DOWN, l, 3840, 15360 }, { CUDA_INPUT_NORM, l, 3840, 0 }, { CUDA_POST_ATTENTION_NORM, l, 3840, 0 }, { CUDA_PRE_FF_NORM, l, 3840, 0 },
                                      { CUDA_POST_FF_NORM, l, 3840, 0 }, { CUDA_Q_NORM, l, d, 0 }, { CUDA_K_NORM, l, d, 0 }, { CUDA_LAYER_SCALAR, l, 1, 0 } };

        all.insert(all.end(), layer, layer + sizeof layer / sizeof *layer);
        if (l == 0) all.push_back({ CUDA_V, 0, kv, 3840 });
    }
    return all;
}

static void put_part(struct cuda_weights *w, const struct part *p, const uint16_t *host)
{
    const uint32_t piece = p->k ? CUDA_WEIGHTS_BUFFER_BYTES / (2 * p->k) / 16 * 16 : p->rows;

    for (uint32_t row = 0; row < p->rows; row += piece) {
        const uint32_t rows = p->rows - row < piece ? p->rows - row : piece;
        uint64_t room;
        void *to;

        OK(cuda_weights_buffer(w, &to, &room));
        if (p->k) memcpy(to, host + (uint64_t)row * p->k, 2ull * rows * p->k);
        for (uint32_t i = 0; i < rows && !p->k; i++) {
            const uint32_t bits = (uint32_t)host[i] << 16;
            memcpy((uint8_t *)to + 4 * i, &bits, 4);
        }
        OK(cuda_weights_put(w, p->tensor, p->layer, row, rows, p->k ? WEIGHT_BF16 : WEIGHT_F32, NULL, 0));
    }
}

static int test_pieces(uint32_t format)
{
    const struct cuda_model_spec spec = make_spec(format);
    const uint64_t bytes = cuda_weights_bytes(&spec), largest = 2ull * 262144 * 3840;
    uint8_t *arena[2], *source;
    uint16_t *host;
    struct cuda_weights *w[2];
    uint64_t seed = 1, put_bytes = 0;
    double put_s = 0;

    MUST(bytes != 0);
    CHECK(cudaMalloc(&source, largest));
    CHECK(cudaMallocHost(&host, largest));
    for (int i = 0; i < 2; i++) {
        CHECK(cudaMalloc(&arena[i], bytes));
        CHECK(cudaMemset(arena[i], 0, bytes));
        OK(cuda_weights_open(&w[i], &spec, arena[i]));
    }
    for (const struct part &p : parts_of()) {
        const uint64_t n = (uint64_t)p.rows * (p.k ? p.k : 1);

        OK(cuda_fill_normal(source, (n + 1) / 2 * 2, 1.0f, seed++));
        CHECK(cudaMemcpy(host, source, 2 * n, cudaMemcpyDeviceToHost));
        OK(cuda_weights_load(w[0], p.tensor, p.layer, source, WEIGHT_BF16, NULL, 0));
        const auto a = std::chrono::steady_clock::now();
        put_part(w[1], &p, host);
        OK(cuda_weights_finish(w[1]));
        put_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - a).count();
        put_bytes += 2 * n;
    }
    std::vector<uint8_t> packed(bytes), pieces(bytes);
    CHECK(cudaMemcpy(packed.data(), arena[0], bytes, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(pieces.data(), arena[1], bytes, cudaMemcpyDeviceToHost));
    const int bad = memcmp(packed.data(), pieces.data(), bytes) != 0;
    void *unused;
    uint64_t room;
    OK(cuda_weights_buffer(w[0], &unused, &room));
    MUST(cuda_weights_put(w[0], CUDA_Q, 0, 8, 16, WEIGHT_BF16, NULL, 0) == -E_RANGE);       /* not a tile's first row */
    OK(cuda_weights_buffer(w[0], &unused, &room));
    MUST(cuda_weights_put(w[0], CUDA_V, 1, 0, 16, WEIGHT_BF16, NULL, 0) == -E_NOT_FOUND);   /* a full layer has no v */
    OK(cuda_weights_buffer(w[0], &unused, &room));
    MUST(cuda_weights_buffer(w[0], &unused, &room) == -E_BUSY);
    printf("%-4s pieces, %s: %.1f GB/s through one copying thread\n", bad ? "FAIL" : "ok", format == WEIGHT_FP8 ? "fp8" : "bf16", put_bytes / put_s / 1e9);
    for (int i = 0; i < 2; i++) {
        cuda_weights_close(w[i]);
        CHECK(cudaFree(arena[i]));
    }
    CHECK(cudaFree(source));
    CHECK(cudaFreeHost(host));
    return bad;
}

static int test_memory(void)
{
    struct cuda_device_facts facts;
    int maker_socket, writer_socket, status;
    const pid_t maker = in_child(make_and_wait, &maker_socket), writer = in_child(write_read_only, &writer_socket);
    std::vector<uint8_t> bytes(MEMORY_BYTES);
    void *at = NULL;

    const int fd = receive_fd(maker_socket);
    kill(maker, SIGKILL);
    MUST(waitpid(maker, &status, 0) == maker && WIFSIGNALED(status));
    send_fd(writer_socket, fd);
    MUST(waitpid(writer, &status, 0) == writer);
    const bool refused = WIFEXITED(status) && WEXITSTATUS(status) == 42;
    OK(cuda_device_open(&facts));
    OK(cuda_memory_map(fd, MEMORY_BYTES, 0, &at));
    close(fd);
    CHECK(cudaMemcpy(bytes.data(), at, MEMORY_BYTES, cudaMemcpyDeviceToHost));
    uint64_t same = 0;
    for (uint8_t b : bytes) same += b == 0x5a;
    const int bad = same != MEMORY_BYTES;
    printf("%-4s memory of a killed process: %llu of %llu bytes are there\n", bad ? "FAIL" : "ok", (unsigned long long)same, (unsigned long long)MEMORY_BYTES);
    printf("%-4s a read-only mapping %s\n", refused ? "ok" : "FAIL", refused ? "cannot be written" : "was written");
    printf("     %s, %u SMs, compute %u.%u, %.1f of %.1f GB free, driver %u\n", facts.name, facts.sm_count, facts.major, facts.minor, facts.memory_free / 1e9,
           facts.memory_total / 1e9, facts.driver_version);
    return bad + !refused;
}

int main()
{
    /* No CUDA call before the children are forked: a process must not fork with a context. */
    if (access("/dev/nvidiactl", R_OK) != 0) return printf("skip: no GPU\n"), 77;
    int bad = test_memory();

    bad += test_pieces(WEIGHT_FP8);
    bad += test_pieces(WEIGHT_BF16);
    OK(cuda_device_close());
    return bad ? 1 : 0;
}
