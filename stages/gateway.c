/* stages/gateway.c - the front: clients on one side, the sequence table on the other.
 *
 * Reads    sockets; tokenize slots (verdict on the prompt, prompt ids), detokenize slots (the log), verify slots (figures,
 *          logprobs), launcher slots and board (verdicts, phase)
 * Writes   gateway slots: requests and cancel flags
 * Rings    in: tokenize-gateway (refused), detokenize-gateway (the log grew); out: gateway-tokenize, gateway-verify (cancelled)
 * Owns     connections and what they wait for (schemas/front.h). Events sent to clients are a function of the table, so a
 *          new gateway sends what the old one would have sent (schemas/view.h)
 * Fails    a bad request gets an error, a bad connection is closed. Restarted: connections are lost, responses run on; clients
 *          reconnect and resume, or after the grace time what they wanted is cancelled. The launcher holds the listening
 *          socket: connections made meanwhile wait in it.
 *
 * Options  model.name, model.vocab, model.temperature, model.top_p, model.min_p, model.top_k; media.*;
 *          gateway.queue_max, gateway.message_bytes_max, gateway.grace_ms, gateway.origins
 * Files    socket.listen (also socket.listen.*), event.gateway, file.api_keys (absent: no keys), file.tokenizer.json */
#include "schemas/front.h"
#include "shm/error.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS 20         /* heartbeat */
#define SWEEP_NS (100 * FRONT_MS)
#define ACCEPTS_MAX 64     /* at once: those who are connected get their turn */
#define MESSAGES_MAX 256
#define GOODBYE_NS (1000 * FRONT_MS)
#define CONNECTIONS_MAX 4096u
#define INPUT_MESSAGES_MAX 8u /* of the largest size: what messages that are not in the table yet may hold together */
#define IDLE_PING_NS (30000 * FRONT_MS)
#define RETAINED_BYTES_MAX (256u << 20) /* of request records that are kept for previous_response_id */

/* ---- events ---------------------------------------------------------------------- */

static void take_messages(struct front *f)
{
    struct ring *const in[] = {&f->stage.ring[RING_TOKENIZE_GATEWAY], &f->stage.ring[RING_DETOKENIZE_GATEWAY]};
    struct ring_msg msg;
    bool lost = false;

    for (size_t i = 0; i < 2; i++) {
        lost |= ring_overran(in[i]);
        for (int n = 0; n < MESSAGES_MAX && ring_take(in[i], &msg) == 1; n++)
            if (msg.slot < f->table.limits.slot_count) slots_step(f, msg.slot);
    }
    if (lost) slots_sweep(f, clock_ns());
    slots_place_waiting(f);
}

/* Handles what is in the rings, then declares sleep; what came in between is handled again. */
static void drain_rings(struct front *f)
{
    struct ring *const in[] = {&f->stage.ring[RING_TOKENIZE_GATEWAY], &f->stage.ring[RING_DETOKENIZE_GATEWAY]};

    for (int turn = 0; turn < 8; turn++) {
        ring_disarm(in, 2);
        take_messages(f);
        if (!ring_arm(in, 2)) return;
    }
    uint64_t one = 1; /* a busy pipeline must not starve the sockets: come back after them */
    if (write(stage_fd(&f->stage, "event.gateway"), &one, sizeof one) < 0) return;
}

static void on_ring(evutil_socket_t fd, short what, void *front)
{
    uint64_t count;

    (void)what;
    if (read(fd, &count, sizeof count) < 0 && errno != EAGAIN) return;
    drain_rings(front);
}

static void listening(struct front *f, bool on)
{
    for (unsigned i = 0; i < f->listen_count; i++) {
        if (on) event_add(f->listen_event[i], NULL);
        else event_del(f->listen_event[i]);
    }
}

static void on_listen(evutil_socket_t listen_fd, short what, void *front)
{
    struct front *f = front;

    (void)what;
    for (int n = 0; n < ACCEPTS_MAX; n++) {
        if (f->connection_count >= f->connections_max && !connections_make_room(f, clock_ns())) {
            listening(f, false); /* the next ones wait in the socket's backlog; the next sweep looks again */
            return;
        }
        const int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) connection_accept(f, fd);
        else {
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) listening(f, false);
            if (errno != EINTR && errno != ECONNABORTED) return;
        }
    }
}

static void on_tick(evutil_socket_t fd, short what, void *front)
{
    static uint64_t swept_ns;
    struct front *f = front;
    const uint64_t now = clock_ns();

    (void)fd;
    (void)what;
    if (!stage_running(&f->stage)) {
        event_base_loopbreak(f->base);
        return;
    }
    drain_rings(f);
    if (now - swept_ns < SWEEP_NS) return;
    swept_ns = now;
    slots_sweep(f, now);
    connections_sweep(f, now);
    if (!f->stopping) listening(f, true);
}

/* ---- attach ------------------------------------------------------------------------ */

static void read_options(struct front *f)
{
    const struct wiring *w = &f->stage.wiring;

    f->defaults = (struct request_defaults){
        .model = wiring_text(w, "model.name", "sluice"),
        .temperature = strtof(wiring_text(w, "model.temperature", "1"), NULL),
        .top_p = strtof(wiring_text(w, "model.top_p", "1"), NULL),
        .min_p = strtof(wiring_text(w, "model.min_p", "0"), NULL),
        .top_k = (uint32_t)wiring_u64(w, "model.top_k", 0),
        .vocab = (uint32_t)wiring_u64(w, "model.vocab", 0),
        .context_max = f->table.limits.context_max,
        .choices_max = f->table.limits.slot_count,
        .fetch = wiring_u64(w, "media.fetch", 0) != 0,
        .picture_budget = (uint32_t)wiring_u64(w, "media.picture_budget", 0),
        .sound = wiring_u64(w, "media.sound_seconds", 0) != 0,
        .video = wiring_u64(w, "media.video", 0) != 0,
        .video_files = wiring_u64(w, "media.video", 0) && wiring_u64(w, "media.video_files", 0),
    };
    if (f->defaults.vocab == 0) stage_exit(&f->stage, EXIT_CONFIG, "the launcher did not say how many tokens the model knows (model.vocab)");
    f->message_bytes_max = wiring_u64(w, "gateway.message_bytes_max", 32u << 20);
    f->input_bytes_max = INPUT_MESSAGES_MAX * f->message_bytes_max;
    f->queue_max = (uint32_t)wiring_u64(w, "gateway.queue_max", 1024);
    f->connections_max = CONNECTIONS_MAX;
    f->grace_ns = wiring_u64(w, "gateway.grace_ms", 30000) * FRONT_MS;
    f->idle_ping_ns = IDLE_PING_NS;
    f->retained_bytes_max = RETAINED_BYTES_MAX;
    snprintf(f->origins, sizeof f->origins, "%s", wiring_text(w, "gateway.origins", ""));
}

static void open_keys(struct front *f)
{
    const int fd = stage_fd(&f->stage, "file.api_keys");

    if (fd < 0) return;
    const int rc = keys_load(f, fd);
    if (rc != 0) stage_exit(&f->stage, EXIT_CONFIG, "the API key file cannot be used: %s (one key a line, at most %u)", rc == -E_FORMAT ? "it holds no key" : error_text(rc), FRONT_KEYS_MAX);
}

static struct event *must_event(struct front *f, evutil_socket_t fd, short what, event_callback_fn callback)
{
    struct event *e = event_new(f->base, fd, what, callback, f);

    if (!e) stage_exit(&f->stage, EXIT_MISSING, "out of memory");
    return e;
}

static void open_events(struct front *f)
{
    const struct timeval tick = {.tv_sec = 0, .tv_usec = TICK_MS * 1000};
    const int event_fd = stage_fd(&f->stage, "event.gateway");

    f->base = event_base_new();
    if (!f->base) stage_exit(&f->stage, EXIT_MISSING, "no event loop can be made");
    event_base_priority_init(f->base, 2); /* rings and ticks before sockets: new tokens go out before new work comes in */
    if (event_fd < 0) stage_exit(&f->stage, EXIT_CONFIG, "no event.gateway was given");
    struct event *ring = must_event(f, event_fd, EV_READ | EV_PERSIST, on_ring), *timer = must_event(f, -1, EV_PERSIST, on_tick);
    event_priority_set(ring, 0);
    event_priority_set(timer, 0);
    event_add(ring, NULL);
    event_add(timer, &tick);
    for (unsigned i = 0; i < f->stage.wiring.fd_count && f->listen_count < 4; i++) {
        if (strncmp(f->stage.wiring.fd_name[i], "socket.listen", 13) != 0) continue;
        f->listen_event[f->listen_count++] = must_event(f, f->stage.wiring.fd[i], EV_READ | EV_PERSIST, on_listen);
    }
    if (f->listen_count == 0) stage_exit(&f->stage, EXIT_CONFIG, "no socket.listen was given");
}

static void attach(struct front *f, int argc, char **argv)
{
    stage_attach(&f->stage, ROLE_GATEWAY, "speaks HTTP and WebSocket with clients", argc, argv);
    table_attach(&f->table, &f->stage);
    f->started_s = (uint64_t)time(NULL);
    f->slot = calloc(f->table.limits.slot_count, sizeof *f->slot);
    if (!f->slot) stage_exit(&f->stage, EXIT_MISSING, "out of memory");
    http_parser_set_max_header_size(2 * HTTP_HEAD_BYTES_MAX); /* our own limit speaks first, with a better message */
    read_options(f);
    open_keys(f);
    open_events(f);
    slots_scan(f);
}

/* ---- the end ------------------------------------------------------------------------- */

/* Who waits for an answer over HTTP hears why it does not come; nobody can resume it there. */
static void refuse_late(struct connection *c)
{
    struct fault f;

    fault_set(&f, 503, "server_restarts", NULL, "The server stops or restarts; ask again in a moment.");
    if (c->exchanges) exchange_fail(c->exchanges, &f);
    else if (c->again) routes_fault(c, &f);
    connection_finish(c);
}

/* WebSockets hear 1012, "come back", and their responses run on in the other stages; what is written goes out. */
static void say_goodbye(struct front *f)
{
    const uint64_t until_ns = clock_ns() + GOODBYE_NS;
    const struct timeval slice = {.tv_sec = 0, .tv_usec = 5000};
    uint32_t open;

    f->stopping = true;
    listening(f, false);
    for (struct connection *c = f->connections; c; c = c->next) {
        if (c->dead || c->closing) continue;
        if (c->mode == CONNECTION_WEBSOCKET) connection_close_ws(c, WEBSOCKET_RESTART, "server restarts");
        else refuse_late(c);
    }
    do {
        event_base_loopexit(f->base, &slice);
        event_base_loop(f->base, EVLOOP_ONCE);
        connections_reap(f);
        open = f->connection_count;
        stage_beat(&f->stage);
    } while (open > 0 && clock_ns() < until_ns);
}

#define LARGE_BYTES (256 << 10) /* of one allocation: a message with a picture in it */
#define SPARE_BYTES (1 << 20)   /* unused memory that may stay at the end of the heap */

/* Large messages give their memory back: left to itself malloc learns to keep it, and after some thousands of pictures the heap has 10 MiB of holes. */
static void tame_malloc(void)
{
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES);
    mallopt(M_TRIM_THRESHOLD, SPARE_BYTES);
}

int main(int argc, char **argv)
{
    static struct front f;

    tame_malloc();
    attach(&f, argc, argv);
    stage_ready(&f.stage);
    drain_rings(&f);
    listening(&f, true);
    while (!event_base_got_break(f.base)) {
        event_base_loop(f.base, EVLOOP_ONCE);
        connections_reap(&f);
    }
    say_goodbye(&f);
    stage_exit(&f.stage, EXIT_ASKED, "asked to stop");
}
