/* schemas/websocket.h - one WebSocket connection: handshake, and frames by wslay.
 *
 * What wslay leaves open is bounded here: bytes of a message (close 1009), fragments of
 * a message and empty ones among them, control frames a second (close 1008), and pongs
 * (the caller stops feeding while its output is full, so that no ping is answered
 * faster than the peer reads). Bad UTF-8 closes 1007, broken framing 1002, binary 1003.
 *
 * No sockets here: bytes go in through websocket_feed and come out in `out`. */
#ifndef SLUICE_SCHEMAS_WEBSOCKET_H
#define SLUICE_SCHEMAS_WEBSOCKET_H

#include "schemas/http.h"

#define WEBSOCKET_FRAGMENTS_MAX 1024u
#define WEBSOCKET_CONTROLS_MAX 64u /* control frames a second */
#define WEBSOCKET_ACCEPT_BYTES 29u

enum websocket_close {
    WEBSOCKET_NORMAL = 1000, WEBSOCKET_GOING_AWAY = 1001, WEBSOCKET_PROTOCOL = 1002, WEBSOCKET_UNACCEPTABLE = 1003, WEBSOCKET_BAD_UTF8 = 1007,
    WEBSOCKET_POLICY = 1008, WEBSOCKET_TOO_BIG = 1009, WEBSOCKET_INTERNAL = 1011, WEBSOCKET_RESTART = 1012, WEBSOCKET_OVERLOAD = 1013
};

struct wslay_event_context;

struct websocket {
    struct wslay_event_context *wslay; /* owned */
    struct wire out;                   /* owned: frames to send; the caller takes them and clears it */
    void (*on_text)(void *context, const char *text, size_t bytes);
    void (*on_pong)(void *context);
    void *context;                     /* borrowed */
    const uint8_t *input;              /* borrowed during websocket_feed */
    size_t input_bytes;
    uint64_t second;                   /* the second that controls counts */
    uint32_t controls, fragments;
    bool in_message;                   /* a data message has begun and is not whole yet; then these speak of it: */
    size_t partial_bytes;              /* what has come of it, about */
    uint64_t partial_ns;               /* when it began */
    uint64_t now_ns;                   /* of the bytes at hand */
    bool close_sent, close_received;
    uint16_t close_code;               /* that the peer gave; 1005: none */
};

/* Checks a request that http_feed called HTTP_UPGRADE. 0 and the value of Sec-WebSocket-Accept, or -E_FORMAT and a fault
 * (426 for another version). */
int websocket_check(const struct http_reader *h, char accept[WEBSOCKET_ACCEPT_BYTES], struct fault *f);

/* 0, or -E_NOMEM. */
int websocket_open(struct websocket *w, size_t message_bytes_max, void *context);
void websocket_free(struct websocket *w);

/* Takes bytes from the peer at time now_ns; calls on_text for each whole message. Frames to send stand in w->out.
 * Afterwards websocket_is_over tells whether the connection should be closed once w->out is written. */
void websocket_feed(struct websocket *w, const void *data, size_t bytes, uint64_t now_ns);

/* These add a frame to w->out; nothing once a close frame was sent. */
void websocket_text(struct websocket *w, const char *text, size_t bytes);
void websocket_ping(struct websocket *w);
void websocket_close(struct websocket *w, uint16_t code, const char *reason);

/* A close frame went out: after w->out only the peer's answer, or a moment, is waited for. */
static inline bool websocket_is_over(const struct websocket *w) { return w->close_sent; }

#endif
