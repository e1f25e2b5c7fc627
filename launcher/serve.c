/* launcher/serve.c - `sluice serve`: creates what outlives the stages, starts them, and runs the poll loop.
 *
 * Order: options, run directory, listening socket, keeper (which reads the model),
 * then the segments, whose sizes follow from the model, then the other stages.
 * Stopping: gateway first, so that no new request arrives, then everything else. */
#include "launcher/server.h"

#include "shm/clock.h"
#include "shm/error.h"
#include "shm/stage.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS 1000000ull
#define TICK_MS 20
#define STOP_GRACE_MS 3000u
#define LISTEN_BACKLOG 1024

/* One write, and only when it cannot block: a reader of our log that has stopped reading must not stop supervision.
 * A pipe that polls writable takes PIPE_BUF bytes at once. */
void server_say(const char *format, ...)
{
    struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};
    char text[PIPE_BUF];
    va_list args;

    va_start(args, format);
    int bytes = vsnprintf(text, sizeof text - 1, format, args);
    va_end(args);
    if (bytes < 0 || poll(&out, 1, 0) != 1 || !(out.revents & POLLOUT)) return;
    if (bytes > (int)sizeof text - 2) bytes = (int)sizeof text - 2;
    text[bytes++] = '\n';
    const ssize_t ignored = write(STDERR_FILENO, text, (size_t)bytes);
    (void)ignored;
}

void server_log(const struct server *v, int level, const char *event, const char *format, ...)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    char text[1024];
    va_list args;

    if (level > (int)v->log_level) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    server_say("stage=launcher pid=%d level=%s event=%s %s", (int)getpid(), names[level], event, text);
}

void server_set_phase(struct server *v, enum pipeline_phase phase)
{
    v->phase = phase;
    if (v->table.board) shm_store_release(&v->table.board->phase, phase);
}

bool server_is_ready(const struct server *v)
{
    for (int role = 0; role < ROLE_COUNT; role++)
        if (v->child[role].enabled && !v->child[role].ready) return false;
    return true;
}

uint32_t server_live_slots(const struct server *v)
{
    uint32_t live = 0;

    for (uint32_t s = 0; v->model_known && s < v->table.limits.slot_count; s++) live += slot_live(&v->table, s) != 0;
    return live;
}

void server_stop(struct server *v, int exit_code, const char *why)
{
    if (v->exit_code >= 0) return;
    v->exit_code = exit_code;
    server_set_phase(v, PIPELINE_STOPPING);
    server_log(v, exit_code ? SERVER_LOG_ERROR : SERVER_LOG_INFO, "stop", "code=%d reason=\"%s\"", exit_code, why);
    child_ask_stop(&v->child[ROLE_GATEWAY], KILL_STOP, STOP_GRACE_MS);
}

/* ---- setting up --------------------------------------------------------------- */

static int open_run_dir(struct server *v, char *err, size_t err_bytes)
{
    snprintf(v->run_dir, sizeof v->run_dir, "%s", v->options.value[OPT_RUN_DIR]);
    if (mkdir(v->run_dir, 0700) == 0) v->made_run_dir = true;
    else if (errno != EEXIST) {
        snprintf(err, err_bytes, "run directory %s cannot be made: %s; give another with --run-dir", v->run_dir, strerror(errno));
        return -E_CONFIG;
    }
    struct stat st;
    if (stat(v->run_dir, &st) != 0 || !S_ISDIR(st.st_mode) || st.st_uid != getuid()) {
        snprintf(err, err_bytes, "run directory %s is not a directory of this user; give another with --run-dir", v->run_dir);
        return -E_CONFIG;
    }
    return control_open(v, err, err_bytes);
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
    return address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

static int check_exposure(const struct server *v, const struct sockaddr *address, char *err, size_t err_bytes)
{
    if (is_loopback(address) || v->options.value[OPT_API_KEY_FILE][0] || options_u64(&v->options, OPT_ALLOW_UNAUTHENTICATED) ||
        strcmp(v->options.value[OPT_ALLOW_UNAUTHENTICATED], "true") == 0)
        return 0;
    snprintf(err, err_bytes, "--host %s would let other machines in without a key: give --api-key-file, or --allow-unauthenticated if that is meant",
             v->options.value[OPT_HOST]);
    return -E_CONFIG;
}

static int open_listener(struct server *v, char *err, size_t err_bytes)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    const char *host = v->options.value[OPT_HOST], *port = v->options.value[OPT_PORT];
    struct addrinfo *found;
    const int one = 1, rc = getaddrinfo(host, port, &hints, &found);

    if (rc != 0) {
        snprintf(err, err_bytes, "--host %s: %s", host, gai_strerror(rc));
        return -E_CONFIG;
    }
    int code = check_exposure(v, found->ai_addr, err, err_bytes);
    if (code == 0) {
        v->listen_fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        setsockopt(v->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (v->listen_fd < 0 || bind(v->listen_fd, found->ai_addr, found->ai_addrlen) != 0 || listen(v->listen_fd, LISTEN_BACKLOG) != 0) {
            snprintf(err, err_bytes, "cannot listen on %s port %s: %s; choose another with --port, 0 takes any free one", host, port, strerror(errno));
            code = -E_CONFIG;
        }
    }
    freeaddrinfo(found);
    if (code) return code;

    struct sockaddr_storage bound;
    socklen_t bytes = sizeof bound;
    char number[16], name[128];
    getsockname(v->listen_fd, (struct sockaddr *)&bound, &bytes);
    getnameinfo((struct sockaddr *)&bound, bytes, name, sizeof name, number, sizeof number, NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(v->address, sizeof v->address, bound.ss_family == AF_INET6 ? "http://[%s]:%s" : "http://%s:%s", name, number);
    wiring_add_fd(&v->base, "socket.listen", v->listen_fd);
    return 0;
}

static int open_key_file(struct server *v, char *err, size_t err_bytes)
{
    const char *path = v->options.value[OPT_API_KEY_FILE];

    if (!*path) return 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        snprintf(err, err_bytes, "--api-key-file %s cannot be read: %s", path, strerror(errno));
        return -E_CONFIG;
    }
    wiring_add_fd(&v->base, "file.api_keys", fd);
    return 0;
}

static void executable_dir(char *out, size_t bytes)
{
    char path[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);

    path[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(path, '/');
    if (slash) *slash = '\0';
    snprintf(out, bytes, "%s", path);
}

/* The demo model lies beside the build folder of a checkout, or inside a copied tree (make dist). */
static int find_model(struct server *v, const char *exe_dir, char *err, size_t err_bytes)
{
    char path[PATH_MAX + 64], real[PATH_MAX];

    if (v->options.value[OPT_MODEL][0]) {
        if (!realpath(v->options.value[OPT_MODEL], path)) {
            snprintf(err, err_bytes, "--model %s: %s", v->options.value[OPT_MODEL], strerror(errno));
            return -E_CONFIG;
        }
    } else {
        snprintf(path, sizeof path, "%s/model/demo", exe_dir); /* of make dist: before what somebody else may have beside that folder */
        if (access(path, R_OK) != 0) snprintf(path, sizeof path, "%s/../model/demo", exe_dir);
        if (access(path, R_OK) != 0) {
            snprintf(err, err_bytes, "the demo model is not at %s; give a checkpoint with --model DIR", path);
            return -E_CONFIG;
        }
        if (realpath(path, real)) snprintf(path, sizeof path, "%s", real); /* for those who read it: no build/../ */
        wiring_set(&v->base, "model.name", v->options.value[OPT_RANDOM_WEIGHTS][0] ? v->options.value[OPT_RANDOM_WEIGHTS] : "sluice-demo");
    }
    if (strlen(path) >= WIRING_VALUE_BYTES) {
        snprintf(err, err_bytes, "the path of the model is longer than %u characters", WIRING_VALUE_BYTES - 1);
        return -E_CONFIG;
    }
    wiring_set(&v->base, "model.dir", path);
    return 0;
}

static int block_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* here and, inherited, in the stages: memory beyond ulimit -f is refused with a reason, not with a death */
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void set_base_options(struct server *v)
{
    const struct options *o = &v->options;
    struct wiring *w = &v->base;
    uint64_t threads = options_u64(o, OPT_THREADS);
    const char *level = o->value[OPT_LOG_LEVEL];

    if (threads == 0) threads = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
    v->log_level = level[0] == 'e' ? SERVER_LOG_ERROR : level[0] == 'w' ? SERVER_LOG_WARN : level[0] == 'i' ? SERVER_LOG_INFO : SERVER_LOG_DEBUG;
    wiring_setf(w, "log.level", "%d", (int)v->log_level);
    wiring_setf(w, "threads", "%llu", (unsigned long long)threads);
    wiring_set(w, "spin_us", o->value[OPT_SPIN_US]);
    wiring_set(w, "request.max_context", o->value[OPT_MAX_CONTEXT]);
    wiring_set(w, "max_sequences", o->value[OPT_MAX_SEQUENCES]);
    wiring_set(w, "table.slots", o->value[OPT_SLOTS]);
    wiring_setf(w, "table.request_bytes_max", "%llu", ((unsigned long long)options_u64(o, OPT_MESSAGE_MIB) << 20) + 65536);
    wiring_set(w, "kv.cache_dtype", o->value[OPT_KV_CACHE_DTYPE]);
    wiring_set(w, "kv.cache_mib", o->value[OPT_KV_CACHE_MIB]);
    wiring_set(w, "prefill.chunk", o->value[OPT_PREFILL_CHUNK]);
    wiring_set(w, "draft.dtype", o->value[OPT_DRAFT_DTYPE]);
    wiring_set(w, "draft.context", o->value[OPT_DRAFT_CONTEXT]);
    wiring_set(w, "draft.tokens", o->value[OPT_DRAFT_TOKENS]);
    wiring_set(w, "draft.when", o->value[OPT_DRAFT_WHEN]);
    wiring_set(w, "draft.vocab", o->value[OPT_DRAFT_VOCAB]);
    wiring_set(w, "draft.signals", o->value[OPT_DRAFT_SIGNALS]);
    wiring_set(w, "prefix.cache", o->value[OPT_PREFIX_CACHE]);
    wiring_set(w, "prefix.cache_mib", o->value[OPT_PREFIX_CACHE_MIB]);
    wiring_set(w, "prefill.share", o->value[OPT_PREFILL_SHARE]);
    uint64_t workers = options_u64(o, OPT_VISION_WORKERS);
    if (workers == 0) workers = sysconf(_SC_NPROCESSORS_ONLN) >= 4 ? 2 : 1;
    wiring_setf(w, "media.workers", "%llu", (unsigned long long)workers);
    wiring_set(w, "media.cache_mib", o->value[OPT_MEDIA_CACHE_MIB]);
    wiring_set(w, "media.jpeg_scaling", o->value[OPT_JPEG_SCALING]);
    wiring_setf(w, "media.fetch", "%d", options_on(o, OPT_IMAGE_FETCH));
    wiring_set(w, "fetch.allow", o->value[OPT_IMAGE_FETCH_ALLOW]);
    wiring_set(w, "media.tokens_asked", o->value[OPT_MEDIA_TOKENS]);
    wiring_set(w, "media.crops", o->value[OPT_PAN_AND_SCAN]);
    wiring_set(w, "gateway.queue_max", o->value[OPT_QUEUE]);
    wiring_setf(w, "gateway.message_bytes_max", "%llu", (unsigned long long)options_u64(o, OPT_MESSAGE_MIB) << 20);
    wiring_setf(w, "gateway.grace_ms", "%llu", (unsigned long long)options_u64(o, OPT_GRACE) * 1000);
    wiring_set(w, "gateway.address", v->address);
    wiring_set(w, "gateway.origins", o->value[OPT_ORIGINS]);
    wiring_set(w, "device.asked", o->value[OPT_DEVICE]);
    wiring_set(w, "weights.dtype", o->value[OPT_WEIGHTS_DTYPE]);
    wiring_set(w, "activations", o->value[OPT_ACTIVATIONS]);
    wiring_set(w, "model.random", o->value[OPT_RANDOM_WEIGHTS]);
    snprintf(v->gpu.dir, sizeof v->gpu.dir, "%s/mps", v->run_dir);
    if (strlen(v->gpu.dir) < WIRING_VALUE_BYTES) wiring_set(w, "run.mps_dir", v->gpu.dir);
    wiring_set(w, "run.control_path", v->control_path);
    if (v->made_run_dir) wiring_set(w, "run.made_dir", v->run_dir);
}

/* ---- when the keeper has read the model ---------------------------------------- */

static int create_table(struct server *v, char *err, size_t err_bytes)
{
    const uint64_t context = wiring_u64(&v->base, "model.context_max", 0);

    if (context == 0 || context > 1u << 24) {
        snprintf(err, err_bytes, "the keeper did not say how long the context is");
        return -E_FORMAT;
    }
    wiring_setf(&v->base, "table.log_bytes_max", "%u", table_log_bytes((uint32_t)context));
    const struct table_limits limits = {
        .slot_count = (uint32_t)options_u64(&v->options, OPT_SLOTS),
        .context_max = (uint32_t)context,
        .request_bytes_max = (uint32_t)wiring_u64(&v->base, "table.request_bytes_max", 0),
        .full_pages_max = (uint32_t)wiring_u64(&v->base, "kv.full_pages_per_seq", 0),
        .sliding_pages_max = (uint32_t)wiring_u64(&v->base, "kv.sliding_pages_per_seq", 0),
        .log_bytes_max = table_log_bytes((uint32_t)context),
        .media_tokens_max = (uint32_t)wiring_u64(&v->base, "table.media_tokens_max", 0),
    };
    table_init(&v->table, &limits);
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (role == ROLE_KEEPER) continue;
        const uint64_t stride = v->table.stride[role];
        const int rc = segment_create(v, role, stride, stride ? limits.slot_count : 0, role == ROLE_LAUNCHER ? LAUNCHER_BOARD_BYTES : 0, err, err_bytes);
        if (rc) return rc;
    }
    v->table.board = (struct launcher_board *)(v->segment[ROLE_LAUNCHER] + segment_slots_offset(ROLE_LAUNCHER));
    v->table.board->started_ns = v->started_ns;
    children_to_board(v); /* the keeper, which may have been ready before there was a board */
    return 0;
}

static void say_where(struct server *v)
{
    const char *why = wiring_text(&v->base, "device.why", "");

    if (!gpu_is_used(v) && strcmp(v->options.value[OPT_DEVICE], "auto") == 0)
        server_say("sluice: computing on the CPU: %s (--device cpu says the same without this line)", why);
}

static void start_pipeline(struct server *v)
{
    char err[512];

    if (create_table(v, err, sizeof err) != 0) {
        server_say("sluice: %s", err);
        server_stop(v, 111, "shared memory cannot be made");
        return;
    }
    v->model_known = true;
    v->child[ROLE_VISION].enabled = v->table.limits.media_tokens_max > 0; /* nothing to do for a model of text alone */
    v->child[ROLE_FETCH].enabled = v->table.limits.media_tokens_max > 0 && options_on(&v->options, OPT_IMAGE_FETCH);
    say_where(v);
    gpu_begin(v);
    server_set_phase(v, PIPELINE_STARTING); /* now for the board, too */
    for (int role = 0; role < ROLE_COUNT; role++)
        if (v->child[role].enabled && v->child[role].pid == 0) v->child[role].restart_ns = 1; /* children_tick: as soon as the GPU is free for it */
}

static void announce(struct server *v)
{
    v->announced = true;
    if (v->phase == PIPELINE_STARTING) server_set_phase(v, PIPELINE_SERVING);
    char where[256];
    if (gpu_is_used(v)) snprintf(where, sizeof where, "%s, %s weights, %s", wiring_text(&v->base, "gpu.name", "?"), wiring_text(&v->base, "gpu.weights_format", "?"), gpu_sharing_name(v));
    else snprintf(where, sizeof where, "cpu, %s threads", wiring_text(&v->base, "threads", "?"));
    printf("sluice: serving %s at %s (context %s, %s, ready in %.1f s)\n", wiring_text(&v->base, "model.name", "?"), v->address,
           wiring_text(&v->base, "model.context_max", "?"), where, (double)(clock_ns() - v->started_ns) / 1e9);
    fflush(stdout);
}

/* ---- the loop -------------------------------------------------------------------- */

static void on_signal(struct server *v)
{
    struct signalfd_siginfo info;

    while (read(v->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGCHLD) continue; /* pidfds and the tick see it */
        if (v->phase == PIPELINE_DRAINING || v->phase == PIPELINE_STOPPING) {
            server_stop(v, 0, "asked twice");
            continue;
        }
        const uint32_t live = server_live_slots(v);
        if (live) server_say("sluice: draining, %u responses still run; once more stops at once", live);
        server_set_phase(v, PIPELINE_DRAINING);
        v->drain_until_ns = clock_ns() + options_u64(&v->options, OPT_DRAIN_TIMEOUT) * 1000 * MS;
    }
}

static void tick(struct server *v)
{
    if (!v->model_known && v->exit_code < 0 && v->model_told && v->phase == PIPELINE_STARTING && trial_is_over(v)) start_pipeline(v); /* not when somebody wants us to end: see below */
    const uint64_t now = clock_ns(); /* behind it: nothing that was started is younger */

    gpu_tick(v, now);
    children_tick(v, now);
    load_show(v);
    for (int role = 0; role < ROLE_COUNT; role++)
        if (v->child[role].pid) child_reap(v, &v->child[role]); /* also where pidfd_open is missing */
    if (v->phase == PIPELINE_DRAINING && (server_live_slots(v) == 0 || now >= v->drain_until_ns))
        server_stop(v, 0, now >= v->drain_until_ns ? "the drain timeout is over" : "drained");
    if (v->exit_code >= 0 && v->child[ROLE_GATEWAY].pid == 0) /* the gateway has said goodbye to its clients */
        for (int role = 0; role < ROLE_COUNT; role++)
            if (v->child[role].kill_reason != KILL_STOP) child_ask_stop(&v->child[role], KILL_STOP, STOP_GRACE_MS);
    if (!v->announced && v->model_known && server_is_ready(v)) announce(v);
}

static bool all_gone(const struct server *v)
{
    for (int role = 0; role < ROLE_COUNT; role++)
        if (v->child[role].pid) return false;
    return true;
}

#define DESCRIPTORS_MIN 256u /* ours, the wiring's, what stages open */

enum { POLL_SIGNAL, POLL_CONTROL, POLL_GPU, POLL_CLIENTS, POLL_CHILDREN = POLL_CLIENTS + CLIENTS_MAX, POLL_COUNT = POLL_CHILDREN + 3 * ROLE_COUNT };
_Static_assert(POLL_COUNT <= DESCRIPTORS_MIN && WIRING_FDS_MAX <= DESCRIPTORS_MIN, "poll refuses more places than descriptors, a stage receives all of its own at once");

static void poll_once(struct server *v)
{
    struct pollfd p[POLL_COUNT];

    for (int i = 0; i < POLL_COUNT; i++) p[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    p[POLL_SIGNAL].fd = v->signal_fd;
    p[POLL_CONTROL].fd = v->control_fd;
    p[POLL_GPU].fd = v->gpu.log_fd;
    for (unsigned i = 0; i < CLIENTS_MAX; i++) p[POLL_CLIENTS + i].fd = v->client[i].fd;
    for (int role = 0; role < ROLE_COUNT; role++) {
        p[POLL_CHILDREN + 3 * role].fd = v->child[role].log_fd;
        p[POLL_CHILDREN + 3 * role + 1].fd = v->child[role].control_fd;
        p[POLL_CHILDREN + 3 * role + 2].fd = v->child[role].pidfd;
    }
    if (poll(p, POLL_COUNT, TICK_MS) <= 0) return;
    if (p[POLL_SIGNAL].revents) on_signal(v);
    if (p[POLL_CONTROL].revents) control_accept(v);
    if (p[POLL_GPU].revents) gpu_read_log(v);
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        if (p[POLL_CLIENTS + i].revents && v->client[i].fd >= 0) control_read(v, &v->client[i]);
    for (int role = 0; role < ROLE_COUNT; role++) {
        struct child *c = &v->child[role];
        if (p[POLL_CHILDREN + 3 * role].revents && c->log_fd >= 0) child_log(c);
        if (p[POLL_CHILDREN + 3 * role + 1].revents && c->control_fd >= 0) child_message(v, c);
        if (p[POLL_CHILDREN + 3 * role + 2].revents && c->pid) child_reap(v, c);
    }
}

static int set_up(struct server *v, const char *exe_dir, char *err, size_t err_bytes)
{
    int rc;

    if ((rc = find_model(v, exe_dir, err, err_bytes)) != 0) return rc;
    if ((rc = drafter_choose(v, &v->drafter, v->options.value[OPT_DRAFT], err, err_bytes)) != 0) return rc;
    v->drafter_first = v->drafter;
    children_init(v, exe_dir);
    if (options_on(&v->options, OPT_IMAGE_FETCH) && access(v->child[ROLE_FETCH].exe, X_OK) != 0) {
        snprintf(err, err_bytes, "--allow-image-fetch: there is no %s; this tree was made without it (make dist FETCH=no)", v->child[ROLE_FETCH].exe);
        return -E_CONFIG;
    }
    if ((rc = open_listener(v, err, err_bytes)) != 0) return rc;
    if ((rc = open_key_file(v, err, err_bytes)) != 0) return rc;
    v->signal_fd = block_signals(); /* not before: looking up a host may be interrupted; from here on there is something to put away */
    if ((rc = open_run_dir(v, err, err_bytes)) != 0) return rc;
    v->gateway_event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->gateway_event_fd < 0) return -E_IO;
    wiring_add_fd(&v->base, "event.gateway", v->gateway_event_fd);
    v->vision_event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->vision_event_fd < 0) return -E_IO;
    wiring_add_fd(&v->base, "event.vision", v->vision_event_fd);
    if (options_on(&v->options, OPT_IMAGE_FETCH)) { /* kept open here, so that it outlives both stages */
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return -E_IO;
        wiring_add_fd(&v->base, "fetch.vision", pair[0]);
        wiring_add_fd(&v->base, "fetch.stage", pair[1]);
    }
    set_base_options(v);
    trial_begin(v);
    return segment_create(v, ROLE_KEEPER, 0, 0, 0, err, err_bytes);
}

static int run(struct server *v, int argc, char **argv)
{
    char err[1536] = "", exe_dir[PATH_MAX];
    int rc = options_read(&v->options, argc, argv, err, sizeof err);

    if (rc == 1) return 0;
    executable_dir(exe_dir, sizeof exe_dir);
    if (rc == 0) rc = set_up(v, exe_dir, err, sizeof err);
    if (rc != 0) {
        fprintf(stderr, "sluice: %s\n", err[0] ? err : error_text(rc));
        if (v->control_fd >= 0) control_close(v);
        return rc == -E_CONFIG || rc == -E_BUSY ? EXIT_CONFIG : EXIT_MISSING;
    }
    if (v->options.value[OPT_RANDOM_WEIGHTS][0]) server_say("sluice: random weights in the shape of %s", v->options.value[OPT_RANDOM_WEIGHTS]);
    else server_say("sluice: reading %s", wiring_text(&v->base, "model.dir", ""));
    child_start(v, &v->child[ROLE_KEEPER]);
    while (v->exit_code < 0 || !all_gone(v)) {
        poll_once(v);
        tick(v);
    }
    gpu_end(v);
    control_close(v);
    if (v->exit_code == 0) server_say("sluice: stopped");
    return v->exit_code;
}

/* As many as we may have: the gateway inherits the limit, one descriptor a connection. False, said why: too few to serve with. */
static bool open_descriptors(void)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return true;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_max >= DESCRIPTORS_MIN) return true;
    fprintf(stderr, "sluice: a process may open %llu files here, a server needs %u; raise the limit (ulimit -Hn)\n", (unsigned long long)files.rlim_max, DESCRIPTORS_MIN);
    return false;
}

int serve(int argc, char **argv)
{
    struct server *v = calloc(1, sizeof *v);

    if (!v) return EXIT_MISSING;
    v->exit_code = v->listen_fd = v->gateway_event_fd = v->vision_event_fd = v->control_fd = v->signal_fd = v->gpu.log_fd = -1;
    v->started_ns = clock_ns();
    for (int role = 0; role < ROLE_COUNT; role++) v->segment_fd[role] = v->segment_ro_fd[role] = -1;
    for (unsigned i = 0; i < CLIENTS_MAX; i++) v->client[i].fd = -1;
    const int code = open_descriptors() ? run(v, argc, argv) : EXIT_MISSING;
    drafter_serve(v, NULL);
    drafter_forget(v->drafter_first);
    free(v);
    return code;
}
