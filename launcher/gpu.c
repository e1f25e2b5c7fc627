/* launcher/gpu.c - how the stages share the GPU: under a private MPS daemon, or by turns.
 *
 * Owns     one process, nvidia-cuda-mps-control, in the foreground (it starts the MPS server itself and takes it along when it dies), its
 *          directory below the run directory, and what every GPU stage's environment says about MPS. The keeper stays outside.
 * Reads    the daemon's log, whose line about a fatal fault is the first sign of one. All clients lose their contexts with it and see the same
 *          error; the client that the line names is not always the one that made it (seen on an H200), so it accuses nobody.
 * Faults   a lost context is ordinary: the GPU stages that still run are killed (they cannot compute any more), all requests in hand are suspects, and
 *          when all stages are reaped they start again apart, outside MPS: there a fault is its maker's alone, so that a second one tells whose
 *          it is. When nothing has happened for a while they go back. A daemon that dies is started again, the stages after it.
 * Fails    no daemon to be had: --gpu-sharing auto goes on by turns and says so once; mps ends the server (exit 111). */
#include "launcher/server.h"

#include "shm/clock.h"
#include "shm/error.h"
#include "shm/remove.h"
#include "shm/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS 1000000ull
#define MPS_CONTROL "nvidia-cuda-mps-control"
#define MPS_PATH_MAX 80u         /* of its directory: the longest socket in it must fit a sockaddr_un */
#define MPS_START_MS 5000u       /* measured: 25 ms */
#define MPS_DEATHS_MAX 5u        /* in a row, each within MPS_STEADY_MS of its start */
#define MPS_STEADY_MS 60000u
#define MPS_STOP_MS 1000u
#define MPS_GONE_MS 20u          /* a killed daemon's clients may notice before it can be waited for */
#define VERIFY_FIRST_MS 1000u    /* streams wait for verify, and contexts that are made at once wait for each other: two take 0.24 s, one 0.12 */
#define APART_MS 60000u          /* without a fault, and nobody to be disturbed: back under MPS */
#define APART_MAX_MS 600000u     /* back even if responses run: they pause for some 0.3 s */

bool gpu_is_used(const struct server *v) { return strcmp(wiring_text(&v->base, "device", "cpu"), "cuda") == 0; }

bool gpu_is_stage(const struct server *v, int role)
{
    return gpu_is_used(v) && (role == ROLE_PREFILL || role == ROLE_VERIFY || (role == ROLE_DRAFT && drafter_is_neural(v)));
}

/* ---- the daemon -------------------------------------------------------------------------------- */

static bool find_daemon(char *path, size_t bytes)
{
    static const char *const driver_dirs[] = {"/usr/local/nvidia/bin", "/usr/bin", "/opt/nvidia/bin"};
    const char *list = getenv("PATH");

    while (list && *list) {
        const size_t n = strcspn(list, ":");
        if (n > 0 && snprintf(path, bytes, "%.*s/" MPS_CONTROL, (int)n, list) < (int)bytes && access(path, X_OK) == 0) return true;
        list += n + (list[n] == ':');
    }
    for (size_t i = 0; i < sizeof driver_dirs / sizeof *driver_dirs; i++)
        if (snprintf(path, bytes, "%s/" MPS_CONTROL, driver_dirs[i]) < (int)bytes && access(path, X_OK) == 0) return true;
    return false;
}

__attribute__((noreturn)) static void become_daemon(const char *path, const char *dir, pid_t launcher, int out_fd)
{
    char *const argv[] = {(char *)(uintptr_t)path, "-f", NULL};
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher) _exit(0);
    setpgid(0, 0);
    const int null_fd = open("/dev/null", O_RDONLY);
    dup2(null_fd, 0);
    dup2(out_fd, 1);
    dup2(out_fd, 2);
    setenv("CUDA_MPS_PIPE_DIRECTORY", dir, 1);
    setenv("CUDA_MPS_LOG_DIRECTORY", dir, 1);
    execv(path, argv);
    dprintf(2, "%s\n", strerror(errno));
    _exit(1);
}

/* 0, or why not. */
static int start_daemon(struct server *v, char *why, size_t why_bytes)
{
    struct gpu_sharing *g = &v->gpu;
    char path[PATH_MAX];
    const pid_t launcher = getpid();
    int out[2];

    if (!find_daemon(path, sizeof path)) {
        snprintf(why, why_bytes, "no " MPS_CONTROL " was found in PATH or beside the driver");
        return -E_NOT_FOUND;
    }
    if (strlen(g->dir) > MPS_PATH_MAX) {
        snprintf(why, why_bytes, "the run directory's path is too long for MPS (%u characters at most)", MPS_PATH_MAX);
        return -E_LIMIT;
    }
    remove_flat_dir(g->dir); /* of a predecessor that was killed */
    if ((mkdir(g->dir, 0700) != 0 && errno != EEXIST) || pipe2(out, O_CLOEXEC | O_NONBLOCK) != 0) {
        snprintf(why, why_bytes, "%s cannot be made: %s", g->dir, strerror(errno));
        return -E_IO;
    }
    fcntl(out[1], F_SETFL, 0);
    g->pid = fork();
    if (g->pid == 0) become_daemon(path, g->dir, launcher, out[1]);
    close(out[1]);
    if (g->pid < 0) {
        close(out[0]);
        g->pid = 0;
        snprintf(why, why_bytes, "no process could be made: %s", strerror(errno));
        return -E_IO;
    }
    g->log_fd = out[0];
    g->started_ns = clock_ns();
    g->state = GPU_MPS_STARTING;
    server_log(v, SERVER_LOG_INFO, "mps-start", "pid=%d exe=%s dir=%s", (int)g->pid, path, g->dir);
    return 0;
}

static void forget_daemon(struct gpu_sharing *g)
{
    if (g->log_fd >= 0) close(g->log_fd);
    g->log_fd = -1;
    g->log_bytes = 0;
    g->pid = 0;
}

static void kill_daemon(struct gpu_sharing *g)
{
    if (g->pid == 0) return;
    kill(g->pid, SIGKILL); /* its server ends with it */
    waitpid(g->pid, NULL, 0);
    forget_daemon(g);
}

static bool daemon_is_gone(const struct gpu_sharing *g)
{
    siginfo_t info = {0};

    return g->pid == 0 || (waitid(P_PID, (id_t)g->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0);
}

/* The same for one whose client has just lost its context: the daemon's files are closed a moment before its end can be seen. */
static bool daemon_has_gone(const struct gpu_sharing *g)
{
    for (unsigned ms = 0; ms < MPS_GONE_MS && !daemon_is_gone(g); ms++) usleep(1000);
    return daemon_is_gone(g);
}

static void take_turns(struct server *v, const char *why)
{
    struct gpu_sharing *g = &v->gpu;

    kill_daemon(g);
    remove_flat_dir(g->dir);
    if (strcmp(v->options.value[OPT_GPU_SHARING], "mps") == 0) {
        server_say("sluice: --gpu-sharing mps: %s; --gpu-sharing time-slice serves without it", why);
        server_stop(v, EXIT_MISSING, "the GPU cannot be shared as asked");
        return;
    }
    server_say("sluice: the GPU stages take turns: %s (--gpu-sharing time-slice says the same without this line)", why);
    g->state = GPU_TIME_SLICE;
}

/* ---- its log ------------------------------------------------------------------------------------- */

int gpu_fault_pid(const char *line)
{
    const char *client = strstr(line, "Client {PID: ");
    char *end;

    if (!client || !strstr(client, "encountered a fatal GPU error")) return 0;
    const long pid = strtol(client + strlen("Client {PID: "), &end, 10);
    return *end == ',' && pid > 0 && pid <= INT32_MAX ? (int)pid : 0;
}

/* Under MPS nobody's context survives another's fault; a stage that is idle would notice only in its next step. */
static void kill_stages(struct server *v)
{
    for (int role = 0; role < ROLE_COUNT; role++) {
        struct child *c = &v->child[role];
        if (!gpu_is_stage(v, role) || c->pid == 0 || c->kill_reason != KILL_NONE) continue;
        c->kill_reason = KILL_GPU;
        kill(c->pid, SIGKILL);
    }
}

static bool is_our_client(const struct server *v, pid_t pid)
{
    for (int role = 0; role < ROLE_COUNT; role++)
        if (gpu_is_stage(v, role) && v->child[role].pid == pid) return true;
    return false;
}

static void take_line(struct server *v)
{
    const pid_t pid = gpu_fault_pid(v->gpu.log);

    server_log(v, pid ? SERVER_LOG_WARN : SERVER_LOG_DEBUG, "mps", "line=\"%s\"", v->gpu.log);
    if (pid && is_our_client(v, pid)) gpu_lost(v); /* at once: the stages would only find out what we know */
}

void gpu_read_log(struct server *v)
{
    struct gpu_sharing *g = &v->gpu;

    while (g->log_fd >= 0) {
        const ssize_t got = read(g->log_fd, g->log + g->log_bytes, sizeof g->log - 1 - g->log_bytes);
        if (got <= 0) return; /* its end is seen by waitpid */
        g->log_bytes += (unsigned)got;
        for (;;) {
            char *end = memchr(g->log, '\n', g->log_bytes);
            if (!end && g->log_bytes < sizeof g->log - 1) break;
            const unsigned used = end ? (unsigned)(end - g->log) + 1 : g->log_bytes;
            g->log[end ? used - 1 : used] = '\0';
            take_line(v);
            g->log_bytes -= used < g->log_bytes ? used : g->log_bytes;
            memmove(g->log, g->log + used, g->log_bytes);
        }
    }
}

/* ---- what the launcher's loop calls ------------------------------------------------------------------ */

void gpu_begin(struct server *v)
{
    struct gpu_sharing *g = &v->gpu;
    char why[256];

    if (!gpu_is_used(v)) return;
    if (strcmp(v->options.value[OPT_GPU_SHARING], "time-slice") == 0) g->state = GPU_TIME_SLICE;
    else if (start_daemon(v, why, sizeof why) != 0) take_turns(v, why);
}

void gpu_environment(const struct server *v, int role)
{
    const struct gpu_sharing *g = &v->gpu;
    char none[sizeof g->dir + 8];

    snprintf(none, sizeof none, "%s.none", g->dir); /* a directory without a daemon: no other server's MPS either */
    if (!gpu_is_used(v) && role != ROLE_KEEPER) return;
    setenv("CUDA_MPS_PIPE_DIRECTORY", gpu_is_shared(v, role) ? g->dir : none, 1);
    unsetenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"); /* prompts and steps share the time (schemas/turns.h), not the multiprocessors */
    unsetenv("CUDA_MPS_CLIENT_PRIORITY");          /* measured: a prefill of lower priority never ends while sequences run */
}

bool gpu_is_shared(const struct server *v, int role)
{
    return gpu_is_stage(v, role) && (v->gpu.state == GPU_MPS || v->gpu.state == GPU_MPS_STARTING);
}

/* Verify has died and is not yet back. */
static bool verify_comes_back(const struct server *v)
{
    const struct child *c = &v->child[ROLE_VERIFY];

    return c->enabled && !c->ready && c->died_ns && clock_ns() - c->died_ns < VERIFY_FIRST_MS * MS;
}

bool gpu_may_start(const struct server *v, int role)
{
    if (!gpu_is_stage(v, role)) return true;
    if (role != ROLE_VERIFY && verify_comes_back(v)) return false;
    if (v->gpu.state == GPU_MPS_STARTING || (v->gpu.state == GPU_MPS && daemon_is_gone(&v->gpu))) return false;
    for (int other = 0; other < ROLE_COUNT; other++)
        if (gpu_is_stage(v, other) && v->child[other].pid && v->child[other].kill_reason == KILL_GPU) return false;
    return true;
}

enum gpu_blame gpu_blame(const struct server *v, const struct child *c, bool by_itself)
{
    if (!by_itself) return v->gpu.faulted ? GPU_BLAME_UNKNOWN : GPU_BLAME_OTHER; /* we killed it: for a fault, or to start it elsewhere */
    if (!c->under_mps) return GPU_BLAME_THIS;
    return daemon_has_gone(&v->gpu) ? GPU_BLAME_OTHER : GPU_BLAME_UNKNOWN;
}

void gpu_lost(struct server *v)
{
    if (v->gpu.state != GPU_MPS || daemon_is_gone(&v->gpu)) return; /* that is no fault: gpu_tick starts everything again */
    v->gpu.faulted = true;
    v->gpu.apart_ns = clock_ns();
    v->gpu.state = GPU_APART;
    kill_stages(v);
}

/* Contexts that were lost together count once. */
bool gpu_counts(struct server *v, const struct child *c, bool by_itself, uint64_t now_ns)
{
    if (!c->under_mps) return by_itself;
    const bool counts = now_ns - v->gpu.lost_ns > 1000 * MS;

    if (counts) v->gpu.lost_ns = now_ns;
    return counts;
}

/* Apart for long enough? Stages are replaced once more, under MPS again. */
static void come_together(struct server *v, uint64_t now_ns)
{
    struct gpu_sharing *g = &v->gpu;
    const uint64_t apart_ns = now_ns - g->apart_ns;
    char why[256];

    if (apart_ns < APART_MS * MS || (apart_ns < APART_MAX_MS * MS && server_live_slots(v) > 0)) return;
    server_log(v, SERVER_LOG_INFO, "mps-again", "apart_s=%.0f", (double)apart_ns / 1e9);
    g->faulted = false;
    g->state = GPU_MPS;
    if (g->pid == 0 && start_daemon(v, why, sizeof why) != 0) take_turns(v, why);
    else kill_stages(v);
}

static void daemon_died(struct server *v)
{
    struct gpu_sharing *g = &v->gpu;
    char why[256];

    forget_daemon(g);
    if (v->exit_code >= 0 || g->state == GPU_APART) return; /* apart nobody needs it: come_together starts another one */
    if (clock_ns() - g->started_ns > MPS_STEADY_MS * MS) g->deaths = 0;
    server_log(v, SERVER_LOG_WARN, "mps-death", "deaths=%u", g->deaths + 1);
    g->faulted = false;
    kill_stages(v);
    if (++g->deaths >= MPS_DEATHS_MAX) take_turns(v, "its daemon dies again and again");
    else if (start_daemon(v, why, sizeof why) != 0) take_turns(v, why);
}

void gpu_tick(struct server *v, uint64_t now_ns)
{
    struct gpu_sharing *g = &v->gpu;
    char path[sizeof g->dir + 16];

    if (g->state == GPU_APART) come_together(v, now_ns);
    if (g->pid == 0) return;
    gpu_read_log(v);
    if (waitpid(g->pid, NULL, WNOHANG) == g->pid) {
        daemon_died(v);
        return;
    }
    if (g->state != GPU_MPS_STARTING) return;
    snprintf(path, sizeof path, "%s/control", g->dir);
    if (access(path, F_OK) == 0) {
        g->state = GPU_MPS;
    } else if (now_ns > g->started_ns + MPS_START_MS * MS) { /* it may have been started behind now_ns */
        take_turns(v, "its daemon does not start");
    }
}

void gpu_end(struct server *v)
{
    struct gpu_sharing *g = &v->gpu;

    if (g->pid) {
        kill(g->pid, SIGTERM);
        for (unsigned ms = 0; ms < MPS_STOP_MS && waitpid(g->pid, NULL, WNOHANG) != g->pid; ms += 10) usleep(10000);
        forget_daemon(g);
    }
    if (g->state != GPU_NONE && g->state != GPU_TIME_SLICE) remove_flat_dir(g->dir);
}

const char *gpu_sharing_name(const struct server *v)
{
    static const char *const names[] = {[GPU_NONE] = "none", [GPU_TIME_SLICE] = "time-slice", [GPU_MPS_STARTING] = "mps", [GPU_MPS] = "mps", [GPU_APART] = "apart"};

    return names[v->gpu.state];
}
