/* launcher/gpu.c - how the stages share the GPU: under a private MPS daemon, or by turns.
 *
 * Owns     one process, nvidia-cuda-mps-control, in the foreground (it starts the MPS server itself and takes it along when it dies), its
 *          directory below the run directory, and what every GPU stage's environment says about MPS. The keeper stays outside.
 * Reads    the daemon's log: only it says which client made a fatal fault. All clients lose their context with it and see the same error.
 * Faults   a lost context is ordinary: the GPU stages that still run are killed (they cannot compute any more), and start again when all
 *          are reaped and the MPS server has put its own context away: it lets nobody in before. A daemon that dies is started again, the stages after it.
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
#define MPS_DEATHS_MAX 5u        /* before its start succeeds */
#define MPS_STOP_MS 1000u
#define MPS_RECOVERY_MS 5000u    /* after a fault: a stage that does not get ready is not to blame */
#define MPS_RESET_MS 1500u       /* for the server to get over a fault; measured: 30 ms behind the last client. One that comes too early is turned away */
#define MPS_LOG_WAIT_MS 50u       /* for the line that blames, when the stage was quicker */

bool gpu_is_used(const struct server *v) { return strcmp(wiring_text(&v->base, "device", "cpu"), "cuda") == 0; }

bool gpu_is_stage(const struct server *v, int role) { return gpu_is_used(v) && (role == ROLE_PREFILL || role == ROLE_VERIFY); }

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
    server_say("sluice: the GPU stages take turns, which costs about 0.3 ms a step: %s (--gpu-sharing time-slice says the same without this line)", why);
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
    struct gpu_sharing *g = &v->gpu;
    const pid_t pid = gpu_fault_pid(g->log);

    server_log(v, pid ? SERVER_LOG_WARN : SERVER_LOG_DEBUG, "mps", "line=\"%s\"", g->log);
    if (strstr(g->log, "Destroy server context")) g->reset_ns = 0;
    if (pid == 0 || !is_our_client(v, pid)) return;
    g->fault_pid = pid;
    g->reset_ns = clock_ns();
    kill_stages(v); /* at once: they would only find out what we know */
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
    const bool shared = (g->state == GPU_MPS || g->state == GPU_MPS_STARTING) && gpu_is_stage(v, role);
    setenv("CUDA_MPS_PIPE_DIRECTORY", shared ? g->dir : none, 1);
    unsetenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"); /* prompts and steps share the time (model/turns.h), not the multiprocessors */
    unsetenv("CUDA_MPS_CLIENT_PRIORITY");          /* measured: a prefill of lower priority never ends while sequences run */
}

void gpu_started(struct server *v, int role)
{
    if (gpu_is_stage(v, role)) v->gpu.fault_pid = 0, v->gpu.reset_ns = 0;
}

bool gpu_may_start(const struct server *v, int role)
{
    if (!gpu_is_stage(v, role)) return true;
    if (v->gpu.state == GPU_MPS_STARTING) return false;
    if (v->gpu.state == GPU_MPS && v->gpu.reset_ns && clock_ns() - v->gpu.reset_ns < MPS_RESET_MS * MS) return false;
    for (int other = 0; other < ROLE_COUNT; other++)
        if (gpu_is_stage(v, other) && v->child[other].pid && v->child[other].kill_reason == KILL_GPU) return false;
    return true;
}

static bool daemon_is_gone(const struct gpu_sharing *g)
{
    siginfo_t info = {0};

    return g->pid == 0 || (waitid(P_PID, (id_t)g->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0);
}

enum gpu_blame gpu_blame(struct server *v, const struct child *c)
{
    struct gpu_sharing *g = &v->gpu;

    if (g->state == GPU_TIME_SLICE) return GPU_BLAME_THIS;
    for (unsigned ms = 0; ms < MPS_LOG_WAIT_MS && g->fault_pid == 0 && !daemon_is_gone(g); ms += 5) {
        if (ms) usleep(5000);
        gpu_read_log(v);
    }
    if (g->fault_pid == 0) return g->state != GPU_MPS || daemon_is_gone(g) ? GPU_BLAME_OTHER : GPU_BLAME_UNKNOWN;
    return g->fault_pid == c->pid ? GPU_BLAME_THIS : GPU_BLAME_OTHER;
}

void gpu_lost(struct server *v)
{
    if (v->gpu.state == GPU_MPS || v->gpu.state == GPU_MPS_STARTING) kill_stages(v);
}

/* A time slice, or the first of those that died together, counts; the others do not. */
bool gpu_counts(struct server *v, uint64_t now_ns)
{
    const bool counts = v->gpu.state != GPU_MPS || now_ns - v->gpu.lost_ns > 1000 * MS;

    if (counts) v->gpu.lost_ns = now_ns;
    return counts;
}

bool gpu_recovers(const struct server *v, int role, uint64_t now_ns)
{
    return gpu_is_stage(v, role) && v->gpu.lost_ns && now_ns - v->gpu.lost_ns < MPS_RECOVERY_MS * MS;
}

static void daemon_died(struct server *v)
{
    struct gpu_sharing *g = &v->gpu;
    char why[256];

    forget_daemon(g);
    g->reset_ns = 0;
    if (v->exit_code >= 0) return;
    server_log(v, SERVER_LOG_WARN, "mps-death", "deaths=%u", g->deaths + 1);
    kill_stages(v);
    if (++g->deaths >= MPS_DEATHS_MAX) take_turns(v, "its daemon dies again and again");
    else if (start_daemon(v, why, sizeof why) != 0) take_turns(v, why);
}

void gpu_tick(struct server *v, uint64_t now_ns)
{
    struct gpu_sharing *g = &v->gpu;
    char path[sizeof g->dir + 16];

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
        g->fault_pid = 0;
    } else if (now_ns - g->started_ns > MPS_START_MS * MS) {
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
    if (g->state == GPU_MPS || g->state == GPU_MPS_STARTING) remove_flat_dir(g->dir);
}

const char *gpu_sharing_name(const struct server *v)
{
    static const char *const names[] = {[GPU_NONE] = "none", [GPU_TIME_SLICE] = "time-slice", [GPU_MPS_STARTING] = "mps", [GPU_MPS] = "mps"};

    return names[v->gpu.state];
}
