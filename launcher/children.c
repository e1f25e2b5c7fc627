/* launcher/children.c - starts stages, learns of their deaths, replaces them.
 *
 * Death is known, never guessed: a stage is replaced only after waitpid. A stage
 * whose heartbeat stands still is killed first. Restarts come at once, then with
 * growing delay; too many within a minute, or a stage that never gets ready, ends
 * the server (exit code 1). */
#include "launcher/server.h"

#include "shm/clock.h"
#include "shm/error.h"
#include "shm/must.h"
#include "shm/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS 1000000ull
#define START_TIMEOUT_MS 120000u /* a heart that stands still so long before readiness hangs; the keeper beats while it loads */
#define WATCH_GAP_MAX_MS 100u     /* between two looks at the children; we look every 20 ms */
#define STARVE_LOOK_FROM 4u       /* of the silence that is a hang, the part after which it is looked into */
#define STARVED_MOST 10u          /* times that silence: then it is a hang, whatever it waited for */
#define SWAP_GRACE_MS 1000u      /* for the old stage to leave */
#define SWAP_READY_MS 15000u     /* for the new one to get ready */
#define LOG_READS_MAX 16u
#define UNREADY_DEATHS_MAX 5u
#define RESTART_DELAY_MAX_MS 1000u
#define BUDGET_WINDOW_NS (60000 * MS)

/* Does this configuration want nobody in the role? */
static bool is_off(const struct server *v, const struct child *c)
{
    if (c->role == ROLE_FETCH && (!options_on(&v->options, OPT_IMAGE_FETCH) || v->table.limits.media_tokens_max == 0)) return true;
    return c->role == ROLE_LAUNCHER || (c->role == ROLE_VISION && v->table.limits.media_tokens_max == 0) || (c->role == ROLE_DRAFT && drafter_is_none(v) && strcmp(c->exe, c->default_exe) == 0);
}

void children_init(struct server *v, const char *exe_dir)
{
    for (int role = 0; role < ROLE_COUNT; role++) {
        struct child *c = &v->child[role];
        memset(c, 0, sizeof *c);
        c->role = role;
        c->pidfd = c->control_fd = c->log_fd = c->swap_client = -1;
        snprintf(c->default_exe, sizeof c->default_exe, "%s/stages/%s", exe_dir, role_name(role));
        memcpy(c->exe, c->default_exe, sizeof c->exe);
        c->enabled = !is_off(v, c);
    }
}

/* Which descriptors a role is given: its needs, nothing more. */
static bool role_gets(int role, const char *name)
{
    const bool tensors = strstr(name, ".safetensors") != NULL;

    if (strncmp(name, "file.api_keys", 13) == 0 || strncmp(name, "socket.", 7) == 0) return role == ROLE_GATEWAY;
    if (strncmp(name, "fetch.", 6) == 0) return role == (strcmp(name, "fetch.stage") == 0 ? ROLE_FETCH : ROLE_VISION);
    if (role == ROLE_FETCH) return false; /* it has the network: there is nothing else that it may know */
    if (strcmp(name, "event.vision") == 0) return role == ROLE_GATEWAY || role == ROLE_VISION;
    if (strncmp(name, "event.", 6) == 0) return role == ROLE_GATEWAY || role == ROLE_TOKENIZE || role == ROLE_DETOKENIZE;
    if (role == ROLE_KEEPER) return true; /* draft.*: see wire() */
    if (strncmp(name, "gpu.", 4) == 0 || strncmp(name, "arena.", 6) == 0 || tensors) return role == ROLE_PREFILL || role == ROLE_VERIFY || role == ROLE_DRAFT;
    if (role == ROLE_VISION) return false; /* what it needs to know of the model are numbers: options media.* */
    if (role == ROLE_GATEWAY) return strcmp(name, "file.tokenizer.json") == 0;
    return strncmp(name, "file.", 5) == 0;
}

static void wire(const struct server *v, const struct child *c, struct wiring *w)
{
    char name[WIRING_NAME_BYTES];

    *w = v->base;
    w->role = c->role;
    w->fd_count = 0;
    for (unsigned i = 0; i < v->base.fd_count; i++)
        if (role_gets(c->role, v->base.fd_name[i])) wiring_add_fd(w, v->base.fd_name[i], v->base.fd[i]);
    if (c->role == ROLE_DRAFT || c->role == ROLE_KEEPER) drafter_wire(v->drafter, w);
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (v->segment_fd[role] < 0 || (c->role == ROLE_FETCH && role != ROLE_FETCH)) continue;
        snprintf(name, sizeof name, "segment.%s", role_name(role));
        wiring_add_fd(w, name, role == c->role ? v->segment_fd[role] : v->segment_ro_fd[role]);
    }
}

/* In the new process: nothing of the launcher's but one socket and one pipe. */
__attribute__((noreturn)) static void become(const struct server *v, const struct child *c, pid_t launcher, int control_fd, int log_fd)
{
    char number[16];
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* the keeper lives a moment longer: it removes the control socket of a launcher that was killed */
    prctl(PR_SET_PDEATHSIG, c->role == ROLE_KEEPER ? SIGTERM : SIGKILL);
    if (getppid() != launcher) _exit(0);
    setpgid(0, 0); /* Ctrl-C is for the launcher, which stops us in order */
    const int null_fd = open("/dev/null", O_RDONLY);
    dup2(null_fd, 0);
    dup2(log_fd, 1);
    dup2(log_fd, 2);
    fcntl(control_fd, F_SETFD, 0);
    snprintf(number, sizeof number, "%d", control_fd);
    setenv("SLUICE_STAGE_FD", number, 1);
    gpu_environment(v, c->role);
    execl(c->exe, c->exe, (char *)NULL);
    dprintf(2, "level=error event=exec exe=%s reason=\"%s\"\n", c->exe, strerror(errno));
    _exit(errno == ENOENT || errno == EACCES || errno == ENOEXEC ? 100 : 111);
}

static void close_fd(int *fd)
{
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void forget_process(struct child *c)
{
    close_fd(&c->pidfd);
    close_fd(&c->control_fd);
    close_fd(&c->log_fd);
    c->pid = 0;
    c->ready = false;
    c->sigkill_ns = 0;
}

static void show_on_board(struct server *v, const struct child *c)
{
    if (!v->table.board) return;
    shm_store_release(&v->table.board->pid[c->role], (uint64_t)c->pid);
    shm_store_release(&v->table.board->up_since_ns[c->role], c->up_since_ns);
    shm_store_release(&v->table.board->restarts[c->role], c->deaths);
}

static void set_up_since(struct server *v, struct child *c, uint64_t up_since_ns)
{
    c->up_since_ns = up_since_ns;
    show_on_board(v, c);
}

void children_to_board(struct server *v)
{
    for (int role = 0; role < ROLE_COUNT; role++)
        if (v->child[role].pid || v->child[role].deaths) show_on_board(v, &v->child[role]);
}

static void note_beat(struct server *v, struct child *c, uint64_t beat)
{
    c->heartbeat = beat;
    c->heartbeat_ns = v->watched_ns;
    c->starve = (struct starve){0};
    c->starved_told = false;
}

int child_start(struct server *v, struct child *c)
{
    int control[2] = {-1, -1}, log[2] = {-1, -1};
    const pid_t launcher = getpid();
    struct wiring *w = malloc(sizeof *w);
    pid_t pid = -1;

    must(c->pid == 0);
    c->under_mps = gpu_is_shared(v, c->role);
    if (!w || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0 || pipe2(log, O_CLOEXEC | O_NONBLOCK) != 0) goto failed;
    fcntl(log[1], F_SETFL, 0); /* a stage may block on its own log line, never lose it */
    pid = fork();
    if (pid == 0) become(v, c, launcher, control[1], log[1]);
    if (pid < 0) goto failed;
    close(control[1]);
    close(log[1]);
    c->pid = pid;
    c->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    c->control_fd = control[0];
    c->log_fd = log[0];
    c->ready = false;
    c->started_ns = clock_ns();
    note_beat(v, c, c->heartbeat);
    c->restart_ns = 0;
    c->sigkill_ns = 0;
    c->kill_reason = KILL_NONE;
    c->log_bytes = 0;
    c->last_words[0] = '\0';
    wire(v, c, w);
    const int rc = wiring_send(c->control_fd, "wiring", w);
    if (rc != 0) server_log(v, SERVER_LOG_WARN, "wiring", "stage=%s reason=\"%s\"", role_name(c->role), error_text(rc)); /* its death follows */
    free(w);
    set_up_since(v, c, 0);
    server_log(v, SERVER_LOG_INFO, "start", "stage=%s pid=%d exe=%s", role_name(c->role), (int)pid, c->exe);
    return 0;
failed:
    server_log(v, SERVER_LOG_ERROR, "start", "stage=%s reason=\"%s\"", role_name(c->role), strerror(errno));
    free(w);
    close_fd(&control[0]), close_fd(&control[1]), close_fd(&log[0]), close_fd(&log[1]);
    c->restart_ns = clock_ns() + RESTART_DELAY_MAX_MS * MS; /* out of processes or descriptors: try again */
    return -E_IO;
}

/* Now, or when the GPU is free for it (children_tick). */
static void start_or_wait(struct server *v, struct child *c)
{
    if (gpu_may_start(v, c->role)) child_start(v, c);
    else c->restart_ns = 1;
}

/* The keeper has read the model: its facts and descriptors become part of what every stage is told. */
static void take_model(struct server *v, struct wiring *w)
{
    for (unsigned i = 0; i < w->option_count; i++) wiring_set(&v->base, w->option[i].name, w->option[i].value);
    for (unsigned i = 0; i < w->fd_count; i++) {
        if (wiring_fd(&v->base, w->fd_name[i]) >= 0) close(w->fd[i]);
        else wiring_add_fd(&v->base, w->fd_name[i], w->fd[i]);
    }
}

static void ready(struct server *v, struct child *c)
{
    const uint64_t now = clock_ns();

    c->ready = true;
    c->unready_deaths = 0;
    if (c->died_ns) c->recovery_ns = now - c->died_ns;
    if (c->died_ns) server_log(v, SERVER_LOG_INFO, "recovered", "stage=%s ms=%.1f", role_name(c->role), (double)c->recovery_ns / 1e6);
    c->died_ns = 0;
    set_up_since(v, c, now);
    if (c->swap_client >= 0 && c->kill_reason != KILL_SWAP) { /* else it is the one that is to go: it had only just been started */
        control_reply(v, c->swap_client, "{\"ok\":true}\n");
        c->swap_client = -1;
    }
}

void child_message(struct server *v, struct child *c)
{
    char type[32];
    struct wiring *w = malloc(sizeof *w);

    if (!w) return;
    const int rc = wiring_receive(c->control_fd, false, type, w);
    if (rc == 1 && strcmp(type, "model") == 0 && c->role == ROLE_KEEPER && !v->model_told) {
        take_model(v, w);
        v->model_told = true;
    } else if (rc == 1) {
        for (unsigned i = 0; i < w->fd_count; i++) close(w->fd[i]);
        if (strcmp(type, "ready") == 0) ready(v, c);
    } else if (rc < 0) {
        close_fd(&c->control_fd); /* its death follows, or it talks nonsense and must go */
        if (rc != -E_PEER && c->pid > 0) kill(c->pid, SIGKILL);
    }
    free(w);
}

/* A stage that cannot work says why before it exits; who asked for a swap is told. */
static void note_last_words(struct child *c, const char *line, unsigned bytes)
{
    const char *reason = memmem(line, bytes, "event=exit ", 11) ? memmem(line, bytes, "reason=\"", 8) : NULL;

    if (!reason) return;
    unsigned n = 0;
    for (const char *at = reason + 8; at + 1 < line + bytes && n + 1 < sizeof c->last_words; at++)
        c->last_words[n++] = *at == '"' || *at == '\\' || (unsigned char)*at < ' ' ? '\'' : *at; /* it goes into a JSON string */
    c->last_words[n] = '\0';
}

void child_log(struct child *c)
{
    for (unsigned reads = 0; reads < LOG_READS_MAX; reads++) { /* a stage that floods its log does not hold up the others */
        const ssize_t got = read(c->log_fd, c->log + c->log_bytes, sizeof c->log - c->log_bytes);
        if (got <= 0) {
            if (got == 0 || (errno != EAGAIN && errno != EINTR)) close_fd(&c->log_fd);
            return;
        }
        c->log_bytes += (unsigned)got;
        for (;;) {
            char *end = memchr(c->log, '\n', c->log_bytes);
            if (!end && c->log_bytes < sizeof c->log) break;
            const unsigned line_bytes = end ? (unsigned)(end - c->log) : c->log_bytes;
            server_say("stage=%s pid=%d %.*s", role_name(c->role), (int)c->pid, (int)line_bytes, c->log);
            note_last_words(c, c->log, line_bytes);
            const unsigned used = end ? line_bytes + 1 : line_bytes;
            memmove(c->log, c->log + used, c->log_bytes - used);
            c->log_bytes -= used;
            if (c->log_bytes == 0) break;
        }
    }
}

void child_ask_stop(struct child *c, enum kill_reason reason, uint64_t grace_ms)
{
    if (c->pid == 0) return;
    c->kill_reason = reason;
    c->sigkill_ns = clock_ns() + grace_ms * MS;
    kill(c->pid, SIGTERM);
    kill(c->pid, SIGCONT); /* a stopped process could not hear it */
}

static void begin_swap(struct server *v, struct child *c, int client)
{
    c->quick_deaths = c->unready_deaths = 0;
    c->enabled = !is_off(v, c);
    server_log(v, SERVER_LOG_INFO, "swap", "stage=%s exe=%s%s%s", role_name(c->role), c->exe, c->role == ROLE_DRAFT ? " drafter=" : "",
               c->role != ROLE_DRAFT ? "" : v->drafter->dir[0] ? v->drafter->dir : v->drafter->kind);
    if (!c->enabled) {
        c->restart_ns = 0;
        child_ask_stop(c, KILL_STOP, SWAP_GRACE_MS);
        control_reply(v, client, "{\"ok\":true}\n");
        return;
    }
    c->swap_client = client;
    if (c->pid) child_ask_stop(c, KILL_SWAP, SWAP_GRACE_MS);
    else start_or_wait(v, c);
}

int child_swap(struct server *v, struct child *c, const char *exe, int client, char *err, size_t err_bytes)
{
    const bool to_default = strcmp(exe, "--default") == 0;

    if (c->swap_client >= 0) {
        snprintf(err, err_bytes, "another swap of %s is under way; try again when it is done", role_name(c->role));
        return -E_BUSY;
    }
    if (c->role == ROLE_VISION && v->model_known && v->table.limits.media_tokens_max == 0) {
        snprintf(err, err_bytes, "the model takes text alone: there is no vision stage");
        return -E_CONFIG;
    }
    if (c->role == ROLE_FETCH && is_off(v, c)) {
        snprintf(err, err_bytes, "this server fetches no pictures: it was started without --allow-image-fetch");
        return -E_CONFIG;
    }
    struct stat st;
    if (!to_default && (access(exe, X_OK) != 0 || stat(exe, &st) != 0 || !S_ISREG(st.st_mode))) {
        snprintf(err, err_bytes, "%s cannot be executed: %s", exe, access(exe, X_OK) == 0 ? "it is not a file" : strerror(errno));
        return -E_CONFIG;
    }
    snprintf(c->exe, sizeof c->exe, "%s", to_default ? c->default_exe : exe);
    c->swapped = !to_default;
    if (c->role == ROLE_DRAFT && to_default) drafter_serve(v, v->drafter_first);
    begin_swap(v, c, client);
    return 0;
}

int child_swap_drafter(struct server *v, const char *word, int client, char *err, size_t err_bytes)
{
    struct child *c = &v->child[ROLE_DRAFT];
    struct drafter_choice *d = NULL;

    if (c->swap_client >= 0) {
        snprintf(err, err_bytes, "another swap of draft is under way; try again when it is done");
        return -E_BUSY;
    }
    const int rc = drafter_choose(v, &d, word, err, err_bytes);
    if (rc != 0) return rc;
    drafter_serve(v, d);
    memcpy(c->exe, c->default_exe, sizeof c->exe);
    c->swapped = true; /* until the next start with what the server began with: if it does not work, back to that */
    begin_swap(v, c, client);
    return 0;
}

/* A swapped-in executable that does not work: back to our own, and say so to whoever asked. */
static void revert_swap(struct server *v, struct child *c, const char *why)
{
    char line[PATH_MAX + 1024];

    const char *what = c->role == ROLE_DRAFT && v->drafter->dir[0] && strcmp(c->exe, c->default_exe) == 0 ? v->drafter->dir : c->exe;

    server_log(v, SERVER_LOG_ERROR, "swap-failed", "stage=%s what=%s reason=\"%s\"", role_name(c->role), what, why);
    if (c->swap_client >= 0) {
        if (c->last_words[0]) snprintf(line, sizeof line, "{\"error\":\"%.*s %s: %s. The default %s stage is back\"}\n", 1000, what, why, c->last_words, role_name(c->role));
        else snprintf(line, sizeof line, "{\"error\":\"%.*s %s; the default %s stage is back. Its log lines say more\"}\n", 1000, what, why, role_name(c->role));
        control_reply(v, c->swap_client, line);
    }
    c->swap_client = -1;
    c->swapped = false;
    c->unready_deaths = 0;
    memcpy(c->exe, c->default_exe, sizeof c->exe);
    if (c->role != ROLE_DRAFT) return;
    drafter_serve(v, v->drafter_first);
    c->enabled = !is_off(v, c);
}

static unsigned deaths_in_window(const struct server *v, uint64_t now)
{
    const unsigned kept = sizeof v->death_ns / sizeof v->death_ns[0];
    unsigned count = 0;

    for (unsigned i = 0; i < v->death_count && i < kept; i++) count += now - v->death_ns[i] < BUDGET_WINDOW_NS;
    return count;
}

static void describe_death(const struct server *v, const struct child *c, int status, char *text, size_t bytes)
{
    const struct stage_status *s = v->segment[c->role] ? (const struct stage_status *)(v->segment[c->role] + SEGMENT_STATUS_OFFSET) : NULL;
    const char *words = s && s->panic[0] ? s->panic : NULL;

    if (c->kill_reason == KILL_HANG) snprintf(text, bytes, "hung and was killed");
    else if (c->kill_reason == KILL_GPU) snprintf(text, bytes, "%s", v->gpu.faulted ? "the GPU contexts were lost" : "it is to run elsewhere");
    else if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_GPU) snprintf(text, bytes, "exit code %d: %.*s", EXIT_GPU, (int)STATUS_PANIC_BYTES - 1, words ? words : "GPU context lost");
    else if (c->kill_reason == KILL_STOPPED_BY_SIGNAL) snprintf(text, bytes, "was stopped from outside and replaced");
    else if (WIFSIGNALED(status)) snprintf(text, bytes, "signal %d%s%.*s", WTERMSIG(status), words ? ": " : "", (int)STATUS_PANIC_BYTES - 1, words ? words : "");
    else snprintf(text, bytes, "exit code %d", WEXITSTATUS(status));
}

/* Its own fault: a signal it raised itself, an exit nobody asked for, a hang. */
static bool is_own_fault(const struct child *c, int status)
{
    if (c->kill_reason == KILL_HANG) return true;
    if (c->kill_reason != KILL_NONE) return false;
    if (WIFEXITED(status)) return WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 100 && WEXITSTATUS(status) != 111;
    return WTERMSIG(status) != SIGKILL && WTERMSIG(status) != SIGTERM && WTERMSIG(status) != SIGINT && WTERMSIG(status) != SIGHUP;
}

/* A stage killed from outside comes back at once; one that dies of itself, soon after each start, ever later. */
static void plan_restart(struct server *v, struct child *c, uint64_t now, bool was_ready, bool own_fault, bool counts, int code)
{
    const uint64_t budget = options_u64(&v->options, OPT_RESTART_BUDGET);

    if (counts) v->death_ns[v->death_count++ % (sizeof v->death_ns / sizeof v->death_ns[0])] = now;
    c->quick_deaths = (own_fault || !was_ready) && now - c->started_ns < 1000 * MS ? c->quick_deaths + 1 : 0;
    if (was_ready) c->unready_deaths = 0;
    else if (counts) c->unready_deaths++;
    if (c->swapped && ((!was_ready && c->swap_client >= 0) || c->unready_deaths >= 2 || code == 100 || code == 111 || c->quick_deaths > 8)) revert_swap(v, c, "does not work as this stage");
    if (!c->enabled) return;
    if (c->unready_deaths >= UNREADY_DEATHS_MAX) {
        server_stop(v, 1, "a stage dies before it is ready, again and again");
        return;
    }
    if (deaths_in_window(v, now) > budget) {
        server_stop(v, 1, "the restart budget is used up (--restart-budget)");
        return;
    }
    uint64_t delay_ms = 0;
    if (c->quick_deaths > 1) delay_ms = 10ull << (c->quick_deaths - 2 < 7 ? c->quick_deaths - 2 : 7);
    if (code == 111 && delay_ms < 200) delay_ms = 200;
    if (delay_ms > RESTART_DELAY_MAX_MS) delay_ms = RESTART_DELAY_MAX_MS;
    c->restart_ns = now + delay_ms * MS;
    if (delay_ms == 0) start_or_wait(v, c);
}

/* A lost GPU context: was it this stage's work? Unless that can be told, every stage's requests are suspects. */
static bool judge_gpu(struct server *v, const struct child *c, bool by_itself)
{
    const enum gpu_blame blame = gpu_blame(v, c, by_itself);

    if (blame == GPU_BLAME_UNKNOWN) verdict_on_death(v, c, false);
    return blame == GPU_BLAME_THIS;
}

void child_reap(struct server *v, struct child *c)
{
    int status = 0;
    char text[STATUS_PANIC_BYTES + 128];
    const uint64_t now = clock_ns();

    if (c->pid == 0 || waitpid(c->pid, &status, WNOHANG) != c->pid) return;
    const bool was_ready = c->ready, asked = c->kill_reason == KILL_STOP || c->kill_reason == KILL_SWAP;
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;

    if (c->log_fd >= 0) child_log(c); /* its last lines */
    describe_death(v, c, status, text, sizeof text);
    const bool by_itself = WIFEXITED(status) && code == EXIT_GPU && c->kill_reason == KILL_NONE;
    const bool lost_gpu = !asked && gpu_is_stage(v, c->role) && (c->kill_reason == KILL_GPU || by_itself);
    const bool own_fault = !asked && (lost_gpu ? judge_gpu(v, c, by_itself) : is_own_fault(c, status));
    if (own_fault) verdict_on_death(v, c, true);
    const enum kill_reason reason = c->kill_reason;
    const bool counts = !lost_gpu || gpu_counts(v, c, by_itself, now);
    forget_process(c);
    c->kill_reason = KILL_NONE;
    if (reason != KILL_STOP) c->died_ns = now;
    if (reason == KILL_STOP || v->exit_code >= 0) {
        set_up_since(v, c, 0);
        return;
    }
    if (reason == KILL_SWAP) {
        set_up_since(v, c, 0);
        start_or_wait(v, c);
        return;
    }
    if (by_itself && c->under_mps) gpu_lost(v);
    c->deaths++;
    set_up_since(v, c, 0);
    server_log(v, SERVER_LOG_WARN, "death", "stage=%s how=\"%s\"", role_name(c->role), text);
    if (WIFEXITED(status) && code == 100 && !c->swapped) {
        server_stop(v, 100, "a stage found the configuration unusable; its line above says why");
        return;
    }
    if (WIFEXITED(status) && code == 111 && !v->announced) {
        server_stop(v, 111, "a stage lacks a resource; its line above says which");
        return;
    }
    plan_restart(v, c, now, was_ready, own_fault, counts, WIFEXITED(status) ? code : -1);
}

/* 'T' or 't': somebody stopped the process from outside; it is no fault of a request. */
static bool is_stopped(pid_t pid)
{
    char path[64], line[512];

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const ssize_t got = read(fd, line, sizeof line - 1);
    close(fd);
    if (got <= 0) return false;
    line[got] = '\0';
    const char *state = strrchr(line, ')');
    return state && state[1] == ' ' && (state[2] == 'T' || state[2] == 't');
}

/* Has it been silent for so long, without what it waited for a processor meanwhile? A machine that has too much to do is slow everywhere; but not for ever: whoever loops gets little of it, too. */
static bool is_silent(struct server *v, struct child *c, uint64_t limit_ns)
{
    const uint64_t silent_ns = v->watched_ns - c->heartbeat_ns;

    if (silent_ns < limit_ns / STARVE_LOOK_FROM) return false;
    const uint64_t starved_ns = starve_look(&c->starve, c->pid, v->watched_ns);
    if (silent_ns - starved_ns >= limit_ns || silent_ns >= limit_ns * STARVED_MOST) return true;
    if (silent_ns >= limit_ns && !c->starved_told) {
        server_log(v, SERVER_LOG_WARN, "starved", "stage=%s silent_ms=%.0f waited_ms=%.0f", role_name(c->role), (double)silent_ns / 1e6, (double)starved_ns / 1e6);
        c->starved_told = true;
    }
    return false;
}

static void look_for_hang(struct server *v, struct child *c)
{
    const struct stage_status *s = (const struct stage_status *)(v->segment[c->role] + SEGMENT_STATUS_OFFSET);
    const uint64_t beat = shm_load_relaxed(&s->heartbeat);
    const uint64_t limit_ms = c->ready ? options_u64(&v->options, OPT_HANG_TIMEOUT_MS) : c->swap_client >= 0 ? SWAP_READY_MS : START_TIMEOUT_MS;

    if (beat != c->heartbeat) note_beat(v, c, beat);
    if (c->kill_reason != KILL_NONE || !is_silent(v, c, limit_ms * MS)) return;
    c->kill_reason = is_stopped(c->pid) ? KILL_STOPPED_BY_SIGNAL : KILL_HANG;
    kill(c->pid, SIGKILL);
}

/* A machine that was suspended, a frozen container, a debugger: who did not look either has seen no heart stand still. */
static void watch(struct server *v, uint64_t now)
{
    const uint64_t gap = now - v->looked_ns;

    v->watched_ns += gap < WATCH_GAP_MAX_MS * MS ? gap : WATCH_GAP_MAX_MS * MS;
    v->looked_ns = now;
}

void children_tick(struct server *v, uint64_t now)
{
    watch(v, now);
    for (int role = 0; role < ROLE_COUNT; role++) {
        struct child *c = &v->child[role];
        if (c->pid == 0) {
            if (c->enabled && c->restart_ns && now >= c->restart_ns && v->exit_code < 0 && gpu_may_start(v, role)) child_start(v, c);
            continue;
        }
        if (c->sigkill_ns && now >= c->sigkill_ns) {
            kill(c->pid, SIGKILL);
            c->sigkill_ns = 0;
        }
        if (v->segment[role]) look_for_hang(v, c);
    }
}
