/* schemas/connection.c - sockets of clients: bytes in, bytes out, limits in time and space.
 *
 * A peer that sends nothing, half a request, or reads nothing costs a bounded amount of
 * memory for a bounded time:
 *   head 10 s, body 30 s without a byte, idle keep-alive 75 s; 256 KiB unsent, then its
 *   streams wait (nobody else's), 60 s without progress, then it is closed (1013);
 *   pings after idle_ping, gone after two without an answer; a message of which less than 1 KiB/s
 *   has come after its first 30 s ends the connection, and so does a large one for which the memory
 *   of all messages together (input_bytes_max) has no room. */
#include "schemas/front.h"

#include "shm/error.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define OUTPUT_BYTES_MAX (256u * 1024u)
#define OUTPUT_BYTES_LOW (64u * 1024u)
#define INPUT_BYTES_MAX (256u * 1024u)
#define HEAD_NS (10000 * FRONT_MS)
#define BODY_NS (30000 * FRONT_MS)
#define IDLE_NS (75000 * FRONT_MS)
#define STUCK_NS (60000 * FRONT_MS)
#define LINGER_NS (2000 * FRONT_MS)
#define ROOM_NS (1000 * FRONT_MS)  /* who has asked nothing for so long may have to leave for somebody else */
#define SLOWEST_BYTES_PER_S 1024u
#define HELD_SMALL_BYTES (64u * 1024u) /* a message below this is never refused for want of memory */

static void on_read(struct bufferevent *bev, void *connection);

/* ---- output ------------------------------------------------------------------------ */

static size_t unsent(const struct connection *c)
{
    return evbuffer_get_length(bufferevent_get_output(c->bev));
}

void connection_send(struct connection *c, const char *data, size_t bytes)
{
    char size[24];

    if (c->dead || bytes == 0) return;
    if (c->chunked) {
        const int n = snprintf(size, sizeof size, "%zx\r\n", bytes);
        bufferevent_write(c->bev, size, (size_t)n);
        c->sent_bytes += (size_t)n + 2;
    }
    bufferevent_write(c->bev, data, bytes);
    if (c->chunked) bufferevent_write(c->bev, "\r\n", 2);
    c->sent_bytes += bytes;
}

bool connection_has_room(const struct connection *c)
{
    return !c->dead && !c->closing && unsent(c) < OUTPUT_BYTES_MAX;
}

void connection_flush_ws(struct connection *c)
{
    if (c->ws.out.bytes) connection_send(c, c->ws.out.data, c->ws.out.bytes);
    wire_clear(&c->ws.out);
    if (websocket_is_over(&c->ws) && !c->closing) connection_finish(c);
}

/* ---- ending -------------------------------------------------------------------------- */

static void connection_kill(struct connection *c)
{
    if (c->dead) return;
    c->dead = true;
    c->front->dead_count++;
    bufferevent_disable(c->bev, EV_READ | EV_WRITE);
}

/* Everything is written: say so to the peer, then read on for a moment. Closing with unread input would reset the
 * connection and destroy our last words on their way. */
static void linger(struct connection *c)
{
    c->mode = c->mode == CONNECTION_WEBSOCKET ? CONNECTION_WEBSOCKET : CONNECTION_LINGER;
    c->deadline_ns = clock_ns() + LINGER_NS;
    if (shutdown(bufferevent_getfd(c->bev), SHUT_WR) != 0) connection_kill(c);
}

void connection_finish(struct connection *c)
{
    if (c->closing || c->dead) return;
    c->closing = true;
    c->deadline_ns = clock_ns() + LINGER_NS;
    bufferevent_enable(c->bev, EV_READ);
    if (unsent(c) == 0) linger(c);
}

void connection_close_ws(struct connection *c, uint16_t code, const char *reason)
{
    websocket_close(&c->ws, code, reason);
    connection_flush_ws(c);
    connection_finish(c);
}

void connection_answered(struct connection *c)
{
    if (c->chunked) {
        c->chunked = false;
        connection_send(c, "0\r\n\r\n", 5);
    }
    c->busy = c->again = false;
    c->head_ns = 0;
    if (!c->keep_alive || c->front->stopping) {
        connection_finish(c);
        return;
    }
    http_next(&c->http);
    if (evbuffer_get_length(bufferevent_get_input(c->bev))) bufferevent_trigger(c->bev, EV_READ, BEV_TRIG_DEFER_CALLBACKS | BEV_TRIG_IGNORE_WATERMARKS);
}

static void free_connection(struct connection *c)
{
    struct front *f = c->front;
    /* A peer that said goodbye wants nothing more; one that vanished may come back with response.resume. */
    const bool goodbye = c->ws.wslay == NULL || (c->ws.close_received && c->ws.close_code == WEBSOCKET_NORMAL);

    while (c->exchanges) exchange_drop(c->exchanges, goodbye);
    f->held_bytes -= c->held_bytes;
    if (c->ws.wslay) f->websocket_count--;
    websocket_free(&c->ws);
    http_free(&c->http);
    bufferevent_free(c->bev);
    if (c->previous) c->previous->next = c->next;
    else f->connections = c->next;
    if (c->next) c->next->previous = c->previous;
    f->connection_count--;
    free(c);
}

void connections_reap(struct front *f)
{
    struct connection *c, *next;

    if (f->dead_count == 0) return;
    for (c = f->connections; c; c = next) {
        next = c->next;
        if (c->dead) free_connection(c);
    }
    f->dead_count = 0;
}

/* ---- input ------------------------------------------------------------------------------- */

static void read_http(struct connection *c, const char *data, size_t bytes, size_t *taken)
{
    if (c->head_ns == 0) c->head_ns = clock_ns();
    switch (http_feed(&c->http, data, bytes, taken)) {
    case HTTP_MORE: break;
    case HTTP_HEAD_DONE: connection_send(c, "HTTP/1.1 100 Continue\r\n\r\n", 25); break;
    case HTTP_REFUSED:
        c->keep_alive = false;
        c->busy = true;
        routes_fault(c, &c->http.fault);
        break;
    case HTTP_MESSAGE:
        c->keep_alive = c->http.keep_alive;
        c->busy = true;
        routes_handle(c);
        break;
    case HTTP_UPGRADE:
        c->keep_alive = c->http.keep_alive;
        c->busy = true;
        routes_upgrade(c);
        break;
    }
}

/* Counts what the unfinished message of c holds. False: all messages together hold too much, and this one's sender heard so. */
static bool hold(struct connection *c)
{
    struct front *f = c->front;
    const size_t now = c->mode == CONNECTION_WEBSOCKET ? c->ws.partial_bytes : c->http.body.bytes;
    struct fault fault;

    f->held_bytes += now - c->held_bytes;
    c->held_bytes = now;
    if (f->held_bytes <= f->input_bytes_max || now <= HELD_SMALL_BYTES || c->closing || c->dead) return true;
    stage_count(&f->stage, GATEWAY_OVERLOADED, 1);
    if (c->mode == CONNECTION_WEBSOCKET) {
        connection_close_ws(c, WEBSOCKET_OVERLOAD, "no memory for so large a message now; try again in a moment");
        return false;
    }
    if (c->busy) return true; /* it is whole, and being answered */
    wire_free(&c->http.body);
    fault_set(&fault, 503, "overloaded", NULL, "The requests being received hold all the memory there is for them (%zu MiB). Try again in a moment.", f->input_bytes_max >> 20);
    c->keep_alive = false;
    c->busy = true;
    routes_fault(c, &fault);
    return hold(c);
}

static void on_read(struct bufferevent *bev, void *connection)
{
    struct connection *c = connection;
    struct evbuffer *in = bufferevent_get_input(bev);

    c->heard_ns = clock_ns();
    while (!c->dead && evbuffer_get_length(in) > 0) {
        size_t bytes = evbuffer_get_contiguous_space(in);
        const unsigned char *data = evbuffer_pullup(in, (ev_ssize_t)bytes);
        if (c->closing || c->mode == CONNECTION_LINGER) {
            if (c->ws.wslay && !c->ws.close_received) websocket_feed(&c->ws, data, bytes, c->heard_ns); /* only to see its close frame */
        } else if (c->mode == CONNECTION_WEBSOCKET) {
            if (!connection_has_room(c)) {
                bufferevent_disable(bev, EV_READ); /* no ping is answered faster than the peer reads */
                return;
            }
            websocket_feed(&c->ws, data, bytes, c->heard_ns);
            connection_flush_ws(c);
        } else {
            if (c->busy) return; /* a pipelined request waits; the watermark bounds what gathers here */
            read_http(c, (const char *)data, bytes, &bytes);
        }
        evbuffer_drain(in, bytes);
        hold(c);
    }
}

static void pump_all(struct connection *c)
{
    struct exchange *x;

    c->round++;
    do {
        for (x = c->exchanges; x && x->round == c->round; x = x->next) continue;
        if (!x) return;
        x->round = c->round;
        exchange_pump(x); /* may free x and start others */
    } while (connection_has_room(c));
}

static void on_write(struct bufferevent *bev, void *connection)
{
    struct connection *c = connection;

    if (c->dead) return;
    if (c->closing) {
        if (unsent(c) == 0) linger(c);
        return;
    }
    if (c->mode == CONNECTION_WEBSOCKET && !(bufferevent_get_enabled(bev) & EV_READ)) {
        bufferevent_enable(bev, EV_READ);
        bufferevent_trigger(bev, EV_READ, BEV_TRIG_DEFER_CALLBACKS | BEV_TRIG_IGNORE_WATERMARKS);
    }
    pump_all(c);
}

static void on_event(struct bufferevent *bev, short what, void *connection)
{
    struct connection *c = connection;

    (void)bev;
    if (what & BEV_EVENT_EOF && !(what & BEV_EVENT_ERROR) && !c->busy && !c->closing && c->mode == CONNECTION_HTTP && unsent(c) > 0) {
        connection_finish(c); /* it only ended its own side; the answer goes out */
        return;
    }
    if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) connection_kill(c);
}

void connection_accept(struct front *f, int fd)
{
    struct connection *c = calloc(1, sizeof *c);
    const int one = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    if (c) c->bev = bufferevent_socket_new(f->base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!c || !c->bev) {
        free(c);
        close(fd);
        return;
    }
    c->front = f;
    c->heard_ns = c->moved_ns = clock_ns();
    http_init(&c->http, f->message_bytes_max);
    c->next = f->connections;
    if (c->next) c->next->previous = c;
    f->connections = c;
    f->connection_count++;
    stage_count(&f->stage, GATEWAY_CONNECTIONS, 1);
    bufferevent_setcb(c->bev, on_read, on_write, on_event, c);
    bufferevent_setwatermark(c->bev, EV_READ, 0, INPUT_BYTES_MAX);
    bufferevent_setwatermark(c->bev, EV_WRITE, OUTPUT_BYTES_LOW, 0);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
}

/* ---- time ----------------------------------------------------------------------------------- */

static uint64_t since(uint64_t now_ns, uint64_t then_ns)
{
    return now_ns > then_ns ? now_ns - then_ns : 0;
}

static void too_late(struct connection *c)
{
    struct fault f;

    fault_set(&f, 408, "request_timeout", NULL, "The request did not arrive in time.");
    c->keep_alive = false;
    c->busy = true;
    routes_fault(c, &f);
}

/* Has a message that began at begin_ns come too slowly? */
static bool is_too_slow(uint64_t now, uint64_t begin_ns, size_t bytes)
{
    return since(now, begin_ns) > BODY_NS + (uint64_t)bytes * (1000 * FRONT_MS / SLOWEST_BYTES_PER_S);
}

static void sweep_http(struct connection *c, uint64_t now)
{
    if (c->busy) {
        if (c->again) routes_handle(c);
        hold(c);
        return;
    }
    if (c->head_ns == 0) {
        if (since(now, c->heard_ns) > IDLE_NS || c->front->stopping) connection_kill(c);
    } else if (since(now, c->http.head_done ? c->heard_ns : c->head_ns) > (c->http.head_done ? BODY_NS : HEAD_NS)) too_late(c);
    else if (c->http.head_done && is_too_slow(now, c->head_ns, c->http.body.bytes)) too_late(c);
}

static void sweep_ws(struct connection *c, uint64_t now)
{
    const uint64_t ping = c->front->idle_ping_ns, silent = since(now, c->heard_ns);

    if (front_is_draining(c->front) && !c->exchanges) {
        connection_close_ws(c, WEBSOCKET_RESTART, "server is shutting down");
        return;
    }
    if (c->ws.in_message && is_too_slow(now, c->ws.partial_ns, c->ws.partial_bytes)) {
        connection_close_ws(c, WEBSOCKET_POLICY, "the message came too slowly");
        return;
    }
    if (silent > 3 * ping) connection_kill(c); /* two pings without an answer */
    else if (silent > ping && since(now, c->pinged_ns) > ping) {
        c->pinged_ns = now;
        websocket_ping(&c->ws);
        connection_flush_ws(c);
    }
}

/* Has the peer taken anything lately? */
static bool is_stuck(struct connection *c, uint64_t now)
{
    const size_t waiting = unsent(c);
    const uint64_t moved = c->sent_bytes > waiting ? c->sent_bytes - waiting : 0;

    if (waiting == 0 || moved > c->moved_bytes) {
        c->moved_bytes = moved;
        c->moved_ns = now;
        return false;
    }
    return since(now, c->moved_ns) > STUCK_NS;
}

bool connections_make_room(struct front *f, uint64_t now)
{
    struct connection *idlest = NULL;
    uint64_t idlest_ns = 0;

    for (struct connection *c = f->connections; c; c = c->next) {
        if (c->dead || c->mode != CONNECTION_HTTP || c->busy || unsent(c)) continue;
        const uint64_t from_ns = c->head_ns && !c->http.head_done ? c->head_ns : c->heard_ns; /* a head comes at once, a body as long as it grows */
        if (!idlest || from_ns < idlest_ns) idlest = c, idlest_ns = from_ns;
    }
    if (!idlest || since(now, idlest_ns) < ROOM_NS) return false;
    connection_kill(idlest);
    connections_reap(f);
    return true;
}

void connections_sweep(struct front *f, uint64_t now)
{
    for (struct connection *c = f->connections; c; c = c->next) {
        if (c->dead) continue;
        const bool stuck = is_stuck(c, now);
        if (c->closing) { /* one who reads slowly still gets all of it */
            if (now > c->deadline_ns && (stuck || unsent(c) == 0)) connection_kill(c);
        } else if (stuck) {
            if (c->mode == CONNECTION_WEBSOCKET) connection_close_ws(c, WEBSOCKET_OVERLOAD, "you read too slowly");
            else connection_kill(c);
        } else if (c->mode == CONNECTION_WEBSOCKET) sweep_ws(c, now);
        else sweep_http(c, now);
    }
}
