/* shm/stage.c - the stage contract for stages written in C (schemas/wiring.md). */
#include "shm/stage.h"

#include "shm/atomic.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/must.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define HOUSEKEEPING_NS 20000000ull /* look at the control socket this often */
#define LOG_LINE_BYTES 1024u

static volatile sig_atomic_t stop_asked;
static struct stage_status *panic_status; /* where must() and fatal signals leave their last words */

static void on_term(int signal_number)
{
    (void)signal_number;
    stop_asked = 1;
}

static void write_panic(const char *text)
{
    if (!panic_status) return;
    size_t n = 0;
    while (text[n] && n < STATUS_PANIC_BYTES - 1) n++;
    memcpy(panic_status->panic, text, n);
    panic_status->panic[n] = '\0';
}

static void on_fatal(int signal_number)
{
    static const char *const names[] = {[SIGSEGV] = "segmentation fault", [SIGBUS] = "bus error", [SIGILL] = "illegal instruction", [SIGFPE] = "arithmetic fault"};

    if (!panic_status || !panic_status->panic[0]) write_panic(names[signal_number] ? names[signal_number] : "fatal signal");
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void catch_signals(void)
{
    struct sigaction term = {.sa_handler = on_term}; /* no SA_RESTART: a sleeping stage wakes */
    struct sigaction fatal = {.sa_handler = on_fatal, .sa_flags = SA_RESETHAND | SA_NODEFER | SA_ONSTACK};
    static char other_stack[16384];
    const stack_t stack = {.ss_sp = other_stack, .ss_size = sizeof other_stack};

    sigaltstack(&stack, NULL);
    sigaction(SIGTERM, &term, NULL);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is the launcher's: it stops us in order */
    signal(SIGPIPE, SIG_IGN);
#ifndef __SANITIZE_ADDRESS__ /* the sanitizer prints a better report than we could */
    sigaction(SIGSEGV, &fatal, NULL);
    sigaction(SIGBUS, &fatal, NULL);
    sigaction(SIGILL, &fatal, NULL);
    sigaction(SIGFPE, &fatal, NULL);
#else
    (void)fatal;
#endif
    must_hook = write_panic;
}

static void by_hand(int role, const char *what_it_does, int argc, char **argv)
{
    const bool version = argc > 1 && strcmp(argv[1], "--version") == 0;
    const bool help = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);

    if (version) {
        printf("sluice stage %s, layout %u, wiring %u\n", role_name(role), LAYOUT_VERSION, WIRING_VERSION);
        exit(0);
    }
    if (help || !getenv("SLUICE_STAGE_FD")) {
        fprintf(help ? stdout : stderr,
                "%s - %s\n\nA stage of Sluice. The launcher starts it: run `sluice serve`.\n"
                "To use another executable for this role in a running server: sluice swap %s EXE\n",
                role_name(role), what_it_does, role_name(role));
        exit(help ? 0 : EXIT_MISSING);
    }
}

int stage_fd(const struct stage *s, const char *name)
{
    return wiring_fd(&s->wiring, name);
}

void *stage_map(const struct stage *s, const char *name, bool writable, uint64_t *bytes)
{
    const int fd = stage_fd(s, name);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) != 0 || st.st_size <= 0) return NULL;
    void *at = mmap(NULL, (size_t)st.st_size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return NULL;
    if (bytes) *bytes = (uint64_t)st.st_size;
    return at;
}

static void map_segments(struct stage *s)
{
    for (int role = 0; role < ROLE_COUNT; role++) {
        char name[WIRING_NAME_BYTES];
        uint64_t bytes = 0;

        snprintf(name, sizeof name, "segment.%s", role_name(role));
        if (stage_fd(s, name) < 0) continue;
        uint8_t *at = stage_map(s, name, role == s->role, &bytes);
        if (!at) stage_exit(s, EXIT_CONFIG, "segment of %s cannot be mapped: %s", role_name(role), strerror(errno));
        const struct segment_hdr *h = (const struct segment_hdr *)at;
        if (shm_load_acquire(&h->magic) != SEGMENT_MAGIC || h->version != LAYOUT_VERSION || (int)h->role != role || h->bytes != bytes)
            stage_exit(s, EXIT_CONFIG, "segment of %s has layout version %u, this executable has %u: use executables of one build", role_name(role),
                       h->version, LAYOUT_VERSION);
        s->segment[role] = at;
    }
    if (!s->segment[s->role]) stage_exit(s, EXIT_CONFIG, "no segment of our own was given");
}

static void map_rings(struct stage *s)
{
    for (int id = 0; id < RING_COUNT; id++) {
        const struct ring_edge *edge = ring_edge(id);
        struct ring *r = &s->ring[id];
        char name[WIRING_NAME_BYTES];

        r->event_fd = -1;
        if ((int)edge->producer != s->role && (int)edge->consumer != s->role) continue;
        if (!s->segment[edge->producer] || !s->segment[edge->consumer]) continue;
        r->producer = (struct ring_producer *)(s->segment[edge->producer] + ring_producer_offset(id));
        r->consumer = (struct ring_consumer *)(s->segment[edge->consumer] + ring_consumer_offset(id));
        snprintf(name, sizeof name, "event.%s", role_name(edge->consumer));
        r->event_fd = stage_fd(s, name);
        if ((int)edge->consumer == s->role) {
            s->in[s->in_count++] = r;
            ring_skip(r); /* we scan the table instead */
        }
    }
}

void stage_attach(struct stage *s, int role, const char *what_it_does, int argc, char **argv)
{
    char type[32];

    by_hand(role, what_it_does, argc, argv);
    memset(s, 0, sizeof *s);
    s->role = role;
    s->control_fd = atoi(getenv("SLUICE_STAGE_FD"));
    s->level = LOG_INFO;
    const int rc = wiring_receive(s->control_fd, true, type, &s->wiring);
    if (rc == -E_VERSION) stage_exit(s, EXIT_CONFIG, "the launcher speaks another version of schemas/wiring.md: use executables of one build");
    if (rc != 1 || strcmp(type, "wiring") != 0) stage_exit(s, EXIT_MISSING, "no wiring came from the launcher: %s", error_text(rc));
    if (s->wiring.role != role)
        stage_exit(s, EXIT_CONFIG, "this executable is the %s stage, but it was started as %s", role_name(role),
                   role_name(s->wiring.role) ? role_name(s->wiring.role) : "an unknown role");
    s->level = (enum log_level)wiring_u64(&s->wiring, "log.level", LOG_WARN);
    s->spin_ns = wiring_u64(&s->wiring, "spin_us", 0) * 1000;
    map_segments(s);
    s->status = (struct stage_status *)(s->segment[role] + SEGMENT_STATUS_OFFSET);
    catch_signals();
    panic_status = s->status;
    s->status->panic[0] = '\0';
    s->status->busy_count = 0;
    s->status->attached++;
    shm_store_release(&s->status->pid, (uint64_t)getpid());
    shm_store_release(&s->status->state, STAGE_STATE_STARTING);
    map_rings(s);
}

void stage_ready(struct stage *s)
{
    s->status->started_ns = clock_ns();
    stage_beat(s);
    shm_store_release(&s->status->state, STAGE_STATE_READY);
    if (wiring_send(s->control_fd, "ready", NULL) != 0) stage_exit(s, EXIT_ASKED, "the launcher is gone");
    stage_log(s, LOG_INFO, "ready", "attached=%llu", (unsigned long long)s->status->attached);
}

void stage_exit(struct stage *s, int code, const char *format, ...)
{
    char text[LOG_LINE_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    stage_log(s, code == EXIT_ASKED ? LOG_INFO : LOG_ERROR, "exit", "code=%d reason=\"%s\"", code, text);
    if (s->status) shm_store_release(&s->status->state, STAGE_STATE_STOPPING);
    exit(code);
}

void stage_beat(struct stage *s)
{
    __atomic_fetch_add(&s->status->heartbeat, 1, __ATOMIC_RELAXED); /* worker threads of this process may beat too */
}

bool stage_running(struct stage *s)
{
    const uint64_t now = clock_ns();

    stage_beat(s);
    if (stop_asked) return false;
    if (now - s->beat_ns < HOUSEKEEPING_NS) return true;
    s->beat_ns = now;

    if (!stage_launcher_gone(s)) return true;
    stage_log(s, LOG_INFO, "launcher-gone", "action=exit");
    stop_asked = 1;
    return false;
}

bool stage_launcher_gone(const struct stage *s)
{
    char byte; /* the launcher says nothing after the wiring: the socket only tells whether it still lives */

    return recv(s->control_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

bool stage_wait(struct stage *s, unsigned timeout_ms)
{
    const uint64_t slice_ns = 50000000; /* heartbeats go on while we sleep */
    uint64_t left_ns = (uint64_t)timeout_ms * 1000000;

    for (;;) {
        const uint64_t now_ns = left_ns < slice_ns ? left_ns : slice_ns;
        if (s->in_count == 0) poll(NULL, 0, (int)(now_ns / 1000000));
        else if (ring_wait(s->in, s->in_count, now_ns, s->spin_ns)) return true;
        left_ns -= now_ns;
        if (left_ns == 0 || !stage_running(s)) return false;
    }
}

void stage_busy(struct stage *s, const uint32_t *slots, const uint32_t *generations, unsigned count)
{
    must(count <= STATUS_BUSY_MAX);
    for (unsigned i = 0; i < count; i++) {
        s->status->busy_slot[i] = slots[i];
        s->status->busy_generation[i] = generations[i];
    }
    shm_store_release(&s->status->busy_count, count);
    if (stage_fault_hook) stage_fault_hook(s, slots, count);
}

void stage_idle(struct stage *s)
{
    shm_store_release(&s->status->busy_count, 0);
}

void stage_log(const struct stage *s, enum log_level level, const char *event, const char *format, ...)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    char line[LOG_LINE_BYTES];
    va_list args;

    if (level > s->level) return;
    int n = snprintf(line, sizeof line, "level=%s event=%s ", names[level], event);
    va_start(args, format);
    const int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
    va_end(args);
    if (m > 0) n += m;
    if (n > (int)sizeof line - 2) n = (int)sizeof line - 2;
    for (int i = 0; i < n; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f) line[i] = ' '; /* words of a client must not look like another event */
    line[n++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)n); /* one write: lines of several threads do not mix */
    (void)ignored;
}
