/* schemas/front.h - what the parts of the gateway share.
 *
 *   stages/gateway.c   attaches, runs the event loop, wakes the parts below
 *   connection.c       sockets: accept, read, write, throttle, deadlines, orderly close
 *   routes.c           HTTP: paths, authentication, bodies
 *   session.c          WebSocket: client events, lanes, resume, cancel
 *   exchange.c         one client request: its choices, its stream, its body
 *   slots.c            the sequence table: places requests, watches them, closes them
 *   metrics.c          counters, histograms, health
 *   keys.c             API keys and origins
 *   vocabulary.c       the tokenizer, loaded in the background when first needed
 *
 * One thread does all this (the tokenizer's loader apart). Nothing here survives the
 * process except what stands in the sequence table, and nothing else needs to.
 *
 * Lifetimes: a connection owns its exchanges, an exchange its watchers. A watcher is
 * listed at the slot it watches and leaves that list before it is freed. Connections
 * are marked dead and freed later (connections_reap), never inside a callback that
 * may still use them. */
#ifndef SLUICE_SCHEMAS_FRONT_H
#define SLUICE_SCHEMAS_FRONT_H

#include "schemas/chat_completions.h"
#include "schemas/http.h"
#include "schemas/request.h"
#include "schemas/responses.h"
#include "schemas/websocket.h"
#include "shm/clock.h"
#include "shm/stage.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>

#define FRONT_MS 1000000ull
#define FRONT_IN_FLIGHT_MAX 16u /* running responses of one WebSocket connection */
#define FRONT_LANES_MAX 32u
#define FRONT_WAITING_MAX 64u   /* requests of one connection that wait behind others of their lane */
#define FRONT_KEYS_MAX 1024u
#define FRONT_REQUEST_ID_BYTES 72u

struct connection;
struct exchange;
struct tokenizer;

struct watcher {              /* one choice of an exchange */
    struct watcher *next;     /* in the list of its slot */
    struct exchange *exchange; /* whose it is */
    uint32_t slot, generation; /* generation 0: has no slot yet, or not any more */
    int64_t after;            /* events up to this sequence_number are not sent */
    struct responses_fold responses;
    struct chat_fold chat;
};

struct exchange {             /* one request of a client, from acceptance to its last byte */
    struct exchange *next;    /* of the same connection, oldest first */
    struct exchange *next_waiting; /* in front->waiting */
    struct connection *connection; /* whose it is */
    struct request request;
    char id[RESPONSE_ID_BYTES];
    char stream_id[STREAM_ID_BYTES + 1]; /* lane; "" is the lane of those that name none */
    bool has_stream_id;
    uint32_t count, placed;   /* choices; of them, those that have or had a slot */
    uint32_t round;           /* of connection.c's pumping */
    bool started, waiting, head_sent, stream;
    bool resumed;             /* response.resume: watches what was placed before; in no lane */
    size_t held_bytes;        /* of the client's message, counted in front->held_bytes until every choice has its slot */
    struct watcher watcher[REQUEST_CHOICES_MAX];
};

enum connection_mode { CONNECTION_HTTP, CONNECTION_WEBSOCKET, CONNECTION_LINGER };

struct connection {
    struct connection *next, *previous;
    struct front *front;      /* borrowed */
    struct bufferevent *bev;  /* owned */
    enum connection_mode mode;
    struct http_reader http;
    struct websocket ws;
    struct exchange *exchanges; /* owned */
    uint32_t exchange_count;
    uint64_t key_hash;
    uint64_t deadline_ns;     /* closing: when patience ends. 0: none */
    uint64_t heard_ns;        /* last byte from the peer */
    uint64_t head_ns;         /* HTTP: first byte of the request at hand; 0: none yet */
    size_t held_bytes;        /* of a message that is not whole yet, counted in front->held_bytes */
    uint64_t pinged_ns;
    uint64_t sent_bytes;      /* ever queued */
    uint64_t moved_bytes;     /* of them, taken by the kernel when last looked at */
    uint64_t moved_ns;        /* when that last grew, or nothing was queued */
    uint32_t round;           /* of pumping all exchanges */
    bool dead, closing, chunked, keep_alive;
    bool busy;                /* HTTP: a request is being answered; the next one waits */
    bool again;               /* HTTP: the tokenizer was not there yet: ask the route again */
    char request_id[FRONT_REQUEST_ID_BYTES];
};

struct slot_state {
    uint32_t generation;      /* that the view and the watchers speak of; 0: none */
    bool has_view;
    struct view view;
    struct watcher *watchers; /* borrowed from their exchanges */
    uint64_t alone_ns;        /* since when a running response has no client; 0: it has one */
    uint64_t mark_ns;         /* last growth of the log */
    uint32_t mark_tokens;
};

struct front {
    struct stage stage;
    struct table table;
    struct event_base *base;
    struct request_defaults defaults;
    struct slot_state *slot;  /* [slot_count] */
    struct connection *connections; /* all of them */
    uint32_t connection_count, websocket_count, dead_count;
    struct exchange *waiting; /* have no slot yet, first come first served; borrowed from their connections */
    uint32_t waiting_count;
    uint64_t next_order;
    uint64_t started_s;       /* since 1970 */
    /* options */
    size_t message_bytes_max;
    size_t input_bytes_max;   /* what all clients' messages together may hold of our memory, before they are in the table */
    size_t held_bytes;        /* what they hold now */
    uint32_t queue_max, connections_max;
    uint64_t grace_ns, idle_ping_ns, retained_bytes_max;
    char origins[WIRING_VALUE_BYTES];
    char *key[FRONT_KEYS_MAX]; /* owned */
    uint32_t key_count;
    /* vocabulary.c */
    const struct tokenizer *tokenizer; /* NULL until loaded */
    bool tokenizer_asked, tokenizer_failed;
    struct event *listen_event[4];
    unsigned listen_count;
    bool stopping;
};

/* ---- connection.c ---------------------------------------------------------------- */

void connection_accept(struct front *f, int fd);
void connection_send(struct connection *c, const char *data, size_t bytes);
/* May more be written now? When not, exchange_pump is called again once the peer has read. */
bool connection_has_room(const struct connection *c);
/* WebSocket: frames that stand in c->ws.out go on their way. */
void connection_flush_ws(struct connection *c);
/* Sends what is queued, then closes so that the peer can read it to the end. */
void connection_finish(struct connection *c);
/* WebSocket: a close frame, then connection_finish. */
void connection_close_ws(struct connection *c, uint16_t code, const char *reason);
/* An HTTP answer is complete: the next request, or the end. */
void connection_answered(struct connection *c);
void connections_reap(struct front *f);
/* Deadlines, pings, slow readers, drain; every 100 ms or so. */
void connections_sweep(struct front *f, uint64_t now_ns);
/* There are as many connections as there may be: closes the one that has waited longest without a whole request, a second at least. False: there is none. */
bool connections_make_room(struct front *f, uint64_t now_ns);

/* ---- routes.c ---------------------------------------------------------------------- */

/* A whole request stands in c->http. */
void routes_handle(struct connection *c);
/* The same, and it asks for a WebSocket. */
void routes_upgrade(struct connection *c);
void routes_answer(struct connection *c, int status, const char *content_type, const char *body, size_t bytes);
void routes_fault(struct connection *c, const struct fault *f);
/* The head of an SSE answer. */
void routes_stream_head(struct connection *c);

/* ---- session.c ----------------------------------------------------------------------- */

void session_text(void *connection, const char *text, size_t bytes);
void session_fault(struct connection *c, const struct fault *f, const char *stream_id);
void session_event(struct connection *c, const struct wire *event);
/* An exchange ended: the next of its lane may begin. */
void session_next(struct connection *c);

/* ---- exchange.c ------------------------------------------------------------------------ */

/* A new exchange at the end of c's list; takes over what *r owns. message_bytes: what the client sent for it. */
struct exchange *exchange_new(struct connection *c, struct request *r, size_t message_bytes);
/* Every choice has its slot: what was only needed for that goes. */
void exchange_is_placed(struct exchange *x);
/* Places it in the table, or in the waiting line. 0, or -E_FORMAT with a fault: nothing will come of it. */
int exchange_start(struct exchange *x, struct fault *f);
/* Sends what there is to send, as far as there is room. May end the exchange and mark the connection dead. */
void exchange_pump(struct exchange *x);
/* Ends it with an error: a frame, an answer, or an event in mid-stream. Frees it. */
void exchange_fail(struct exchange *x, const struct fault *f);
/* Takes it out of every list and frees it. cancel: nobody will come back for its responses. */
void exchange_drop(struct exchange *x, bool cancel);

/* ---- slots.c --------------------------------------------------------------------------- */

/* At start: reads the table and takes over what a predecessor left. */
void slots_scan(struct front *f);
/* Gives the next choice of x a slot. 0, -E_FULL: none is free now, -E_FORMAT: a fault. */
int slots_place(struct front *f, struct exchange *x, struct fault *fault);
/* Places as many of those that wait as possible. */
void slots_place_waiting(struct front *f);
void slots_watch(struct front *f, struct watcher *w, uint32_t slot, uint32_t generation);
/* The watcher leaves; a running response without any is cancelled now or after the grace time. */
void slots_unwatch(struct front *f, struct watcher *w, bool cancel);
void slots_cancel(struct front *f, uint32_t slot, uint32_t generation);
/* Something about this slot changed: its clients hear of it, and it is closed when it is over. */
void slots_step(struct front *f, uint32_t slot);
/* Grace times; a look at every running slot. */
void slots_sweep(struct front *f, uint64_t now_ns);
/* Slot of a response id that this key may see, or -E_NOT_FOUND. */
int slots_find(struct front *f, const char *id, uint64_t key_hash);
/* The view of a slot's present generation, or NULL. */
struct view *slots_view(struct front *f, uint32_t slot);
uint32_t slots_running(const struct front *f);

/* ---- metrics.c --------------------------------------------------------------------------- */

/* Counters in our stage_status: they outlive the process. */
enum gateway_counter {
    GATEWAY_REQUESTS = 0, GATEWAY_REFUSED, GATEWAY_OVERLOADED, GATEWAY_PROMPT_TOKENS, GATEWAY_OUTPUT_TOKENS, GATEWAY_RESUMED, GATEWAY_CONNECTIONS,
    GATEWAY_FINISHED = 8, /* + enum finish_reason, 8 of them */
    GATEWAY_HISTOGRAMS = 16
};
enum histogram { HISTOGRAM_TTFT = 0, HISTOGRAM_INTER_TOKEN, HISTOGRAM_END_TO_END, HISTOGRAM_QUEUE, HISTOGRAM_PREFILL, HISTOGRAM_DECODE, HISTOGRAM_COUNT };

void metrics_observe(struct front *f, enum histogram h, uint64_t ns, uint64_t times);
/* A request left the pipeline. */
void metrics_finished(struct front *f, const struct view *v);
void metrics_text(struct front *f, struct wire *out);
/* True: ready. Else the reason stands in why. */
bool metrics_healthy(const struct front *f, char *why, size_t why_bytes);
bool front_is_draining(const struct front *f);

/* ---- keys.c -------------------------------------------------------------------------------- */

/* Reads the key file: 0, -E_FORMAT (no key in it), -E_LIMIT, -E_NOMEM. */
int keys_load(struct front *f, int fd);
/* 0 and the key's hash (0 without keys), or -E_FORMAT and a 401. protocol: the subprotocol to select, or NULL. */
int keys_check(const struct front *f, const struct http_reader *h, bool websocket, uint64_t *hash, const char **protocol, struct fault *fault);
/* May a page of this Origin talk to us? Absent: yes (no browser). */
int keys_check_origin(const struct front *f, const struct http_reader *h, struct fault *fault);

/* ---- vocabulary.c ---------------------------------------------------------------------------- */

/* True when f->tokenizer is there; else loading begins and this is to be asked again. False for ever with
 * f->tokenizer_failed. */
bool vocabulary_ready(struct front *f);
/* POST /tokenize and /detokenize. 1 and a body, 0: ask again later, -E_FORMAT and a fault. */
int vocabulary_tokenize(struct front *f, const json_t *body, struct wire *out, struct fault *fault);
int vocabulary_detokenize(struct front *f, const json_t *body, struct wire *out, struct fault *fault);

/* ---- page.c ------------------------------------------------------------------------------------ */

/* The chat page: one HTML file, part of the executable. */
const char *page_html(size_t *bytes);

#endif
