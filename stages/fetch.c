/* stages/fetch.c - gets pictures from the network for the vision stage, only where --allow-image-fetch asks for it.
 *
 * Reads    URLs, from the socket that it shares with the vision stage (schemas/fetch.h); of the server's shared memory it has its own status, nothing else
 * Writes   to the same socket: a sealed memfd with the file, or why there is none
 * Owns     a process for each URL in work (stages/fetch/cell.h): that one has the network and nothing else, this one never looks at what comes
 * Fails    a process that dies of what it gets costs that URL. Restarted: says so to the vision stage, which asks again.
 *
 * Options  fetch.allow (addresses that are not public and may be connected to all the same) */
#include "schemas/fetch.h"
#include "schemas/media.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/stage.h"

#include <stdio.h>

#ifdef HAVE_CURL

#include "stages/fetch/cell.h"
#include "stages/fetch/get.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define POLL_MS 50
#define TOTAL_MS 15000u
#define SLACK_NS 1000000000ull        /* for a process to notice by itself that its time is up */
#define CERTIFICATES_BYTES_MAX (4u << 20)

struct worker {
    pid_t pid;                        /* 0: none */
    int socket, file;                 /* file: the memfd that it writes */
    uint64_t id, began_ns;
    bool late;                        /* killed by us */
};

struct fetch {
    struct stage stage;
    int socket;
    struct address_rules rules;
    struct get_limits limits;
    struct worker worker[FETCH_WORKERS];
};

static void answer(struct fetch *k, uint64_t id, const struct get_result *r, int file)
{
    struct fetch_answer a = {.id = id, .what = FETCH_DONE, .status = r->status, .bytes = r->bytes};

    memcpy(a.why, r->why, sizeof a.why);
    if (fetch_send(k->socket, &a, sizeof a, r->status == MEDIA_READY ? file : -1) != 0) /* the vision stage gives up by itself after a while */
        stage_log(&k->stage, LOG_WARN, "answer-lost", "id=%llu", (unsigned long long)id);
}

/* ---- the process that fetches ------------------------------------------------------------ */

__attribute__((noreturn)) static void work(const struct fetch *k, const char *url, int socket, int file, pid_t parent)
{
    static struct resolver resolver;
    struct get_result result;
    const int keep[2] = {socket, file};

    if (resolver_open(&resolver, NULL) != 0) _exit(1); /* reads its configuration now: later there are no files */
    cell_enter(keep, k->limits.bytes_max, parent);
    get_url(&k->limits, &resolver, url, file, &result);
    if (write(socket, &result, sizeof result) != sizeof result) _exit(1);
    _exit(0);
}

/* 0, -E_IO: there is no process or memory now. */
static int hire(struct fetch *k, struct worker *w, uint64_t id, const char *url)
{
    const pid_t parent = getpid();
    int pair[2];

    const int file = memfd_create("fetched", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file < 0) return -E_IO;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        close(file);
        return -E_IO;
    }
    const pid_t pid = fork();
    if (pid == 0) work(k, url, pair[1], file, parent);
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        close(file);
        return -E_IO;
    }
    *w = (struct worker){.pid = pid, .socket = pair[0], .file = file, .id = id, .began_ns = clock_ns()};
    return 0;
}

static void dismiss(struct worker *w)
{
    kill(w->pid, SIGKILL);
    while (waitpid(w->pid, NULL, 0) < 0 && errno == EINTR) continue;
    close(w->socket);
    close(w->file);
    memset(w, 0, sizeof *w);
}

/* What it wrote is outside data, and can be written no more once it has ended: the size is what counts, and what is in it the sandboxed decoder judges. */
static void finish(struct fetch *k, struct worker *w)
{
    struct get_result r;
    const bool told = recv(w->socket, &r, sizeof r, MSG_DONTWAIT) == sizeof r;

    kill(w->pid, SIGKILL); /* it has nothing more to do */
    r.why[sizeof r.why - 1] = '\0';
    if (!told) {
        r = (struct get_result){.status = w->late ? MEDIA_BAD : MEDIA_FAILED};
        snprintf(r.why, sizeof r.why, w->late ? "it did not come in time: try again, or send the picture itself as a data: URL" : "the process that fetched it was killed: try again");
    }
    if (r.status != MEDIA_READY && r.status != MEDIA_BAD && r.status != MEDIA_TOO_LARGE) r.status = MEDIA_FAILED;
    while (waitpid(w->pid, NULL, 0) < 0 && errno == EINTR) continue;
    const off_t bytes = lseek(w->file, 0, SEEK_END);
    if (r.status == MEDIA_READY && (bytes <= 0 || (uint64_t)bytes > k->limits.bytes_max || fcntl(w->file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) != 0)) {
        r.status = MEDIA_FAILED;
        snprintf(r.why, sizeof r.why, "what was fetched cannot be kept");
    }
    r.bytes = bytes > 0 ? (uint64_t)bytes : 0;
    if (!told || r.status == MEDIA_FAILED) stage_log(&k->stage, LOG_WARN, "fetch-failed", "id=%llu reason=\"%s\"", (unsigned long long)w->id, r.why);
    answer(k, w->id, &r, w->file);
    close(w->socket);
    close(w->file);
    memset(w, 0, sizeof *w);
}

/* ---- the stage ------------------------------------------------------------------------------ */

static struct worker *free_worker(struct fetch *k)
{
    for (unsigned i = 0; i < FETCH_WORKERS; i++)
        if (!k->worker[i].pid) return &k->worker[i];
    return NULL;
}

/* What nobody can work on now stays in the socket. */
static void take_asks(struct fetch *k)
{
    static struct fetch_ask ask;
    struct worker *w;
    int unwanted, rc;

    while ((w = free_worker(k)) != NULL && (rc = fetch_receive(k->socket, &ask, sizeof ask, &unwanted)) != 0) {
        if (unwanted >= 0) close(unwanted);
        if (rc == -E_IO) return;
        if (rc < 0 || ask.url_bytes == 0 || ask.url_bytes > FETCH_URL_BYTES_MAX) continue;
        char url[FETCH_URL_BYTES_MAX + 1];
        memcpy(url, ask.url, ask.url_bytes);
        url[ask.url_bytes] = '\0';
        if (hire(k, w, ask.id, url) == 0) continue;
        struct get_result r = {.status = MEDIA_FAILED};
        snprintf(r.why, sizeof r.why, "no process can be made to fetch it now: try again");
        answer(k, ask.id, &r, -1);
    }
}

static void watch(struct fetch *k)
{
    struct pollfd p[FETCH_WORKERS + 1];

    p[0] = (struct pollfd){.fd = free_worker(k) ? k->socket : -1, .events = POLLIN};
    for (unsigned i = 0; i < FETCH_WORKERS; i++) p[i + 1] = (struct pollfd){.fd = k->worker[i].pid ? k->worker[i].socket : -1, .events = POLLIN};
    if (poll(p, FETCH_WORKERS + 1, POLL_MS) < 0) return;
    for (unsigned i = 0; i < FETCH_WORKERS; i++) {
        struct worker *w = &k->worker[i];
        if (!w->pid) continue;
        if (p[i + 1].revents) finish(k, w);
        else if (!w->late && clock_ns() - w->began_ns > k->limits.total_ms * 1000000 + SLACK_NS) {
            w->late = true;
            kill(w->pid, SIGKILL);
        }
    }
}

/* The authorities that this system trusts; the processes that fetch cannot read files. */
static void read_certificates(struct fetch *k)
{
    static const char *const places[] = {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"};
    uint8_t *data = malloc(CERTIFICATES_BYTES_MAX);
    ssize_t bytes = 0;

    if (!data) stage_exit(&k->stage, EXIT_MISSING, "out of memory");
    for (size_t i = 0; i < sizeof places / sizeof *places && bytes <= 0; i++) {
        const int fd = open(places[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        bytes = read(fd, data, CERTIFICATES_BYTES_MAX);
        close(fd);
    }
    if (bytes > 0) {
        k->limits.certificates = data;
        k->limits.certificates_bytes = (size_t)bytes;
        return;
    }
    free(data);
    stage_log(&k->stage, LOG_WARN, "no-certificates", "reason=\"none of the usual files has certificates of authorities (package ca-certificates): nothing is fetched by https\"");
}

static void attach(struct fetch *k, int argc, char **argv)
{
    const struct fetch_answer hello = {.what = FETCH_HELLO};

    stage_attach(&k->stage, ROLE_FETCH, "fetches pictures from the network for requests", argc, argv);
    const struct wiring *w = &k->stage.wiring;
    if (address_rules_read(&k->rules, wiring_text(w, "fetch.allow", "")) != 0)
        stage_exit(&k->stage, EXIT_CONFIG, "image-fetch-allow is a list of ADDRESS:PORT with commas between, not \"%s\"", wiring_text(w, "fetch.allow", ""));
    k->limits = (struct get_limits){.bytes_max = MEDIA_FILE_BYTES_MAX, .total_ms = TOTAL_MS, .rules = &k->rules};
    if ((k->socket = stage_fd(&k->stage, "fetch.stage")) < 0) stage_exit(&k->stage, EXIT_CONFIG, "no fetch.stage was given");
    if (get_prepare() != 0) stage_exit(&k->stage, EXIT_MISSING, "libcurl does not start");
    const int rc = cell_prepare();
    if (rc != 0) stage_exit(&k->stage, EXIT_MISSING, "the processes that fetch cannot be locked in: %s", error_text(rc));
    const struct segment_hdr *h = (const struct segment_hdr *)k->stage.segment[ROLE_FETCH];
    if (madvise(k->stage.segment[ROLE_FETCH], h->bytes, MADV_DONTFORK) != 0) stage_exit(&k->stage, EXIT_MISSING, "shared memory cannot be kept from the processes that fetch: %s", strerror(errno));
    read_certificates(k);
    fetch_send(k->socket, &hello, sizeof hello, -1); /* full: the vision stage is not there either, and asks when it is */
}

int main(int argc, char **argv)
{
    static struct fetch k;

    attach(&k, argc, argv);
    stage_ready(&k.stage);
    while (stage_running(&k.stage)) {
        take_asks(&k);
        watch(&k);
    }
    for (unsigned i = 0; i < FETCH_WORKERS; i++)
        if (k.worker[i].pid) dismiss(&k.worker[i]);
    return 0;
}

#else

int main(int argc, char **argv)
{
    static struct stage s;

    stage_attach(&s, ROLE_FETCH, "fetches pictures from the network for requests", argc, argv);
    stage_exit(&s, EXIT_CONFIG, "this build cannot fetch pictures: it was made without libcurl (libcurl4-openssl-dev); start the server without --allow-image-fetch, or install it and build again");
}

#endif
