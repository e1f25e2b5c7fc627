/* schemas/websocket.c - wslay with the limits it lacks. */
#include "schemas/websocket.h"

#include "schemas/sha1.h"
#include "shm/error.h"

#include <string.h>
#include <wslay/wslay.h>

#define HANDSHAKE_GUID "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#define KEY_CHARACTERS 24u

/* ---- handshake --------------------------------------------------------------------- */

static void base64(const uint8_t *in, size_t bytes, char *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t i = 0; i < bytes; i += 3) {
        const uint32_t v = (uint32_t)in[i] << 16 | (i + 1 < bytes ? (uint32_t)in[i + 1] << 8 : 0) | (i + 2 < bytes ? in[i + 2] : 0);
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = i + 1 < bytes ? digits[v >> 6 & 63] : '=';
        *out++ = i + 2 < bytes ? digits[v & 63] : '=';
    }
    *out = '\0';
}

static bool is_key(const char *key) /* base64 of 16 bytes */
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    return strlen(key) == KEY_CHARACTERS && strspn(key, digits) == KEY_CHARACTERS - 2 && strcmp(key + KEY_CHARACTERS - 2, "==") == 0;
}

int websocket_check(const struct http_reader *h, char accept[WEBSOCKET_ACCEPT_BYTES], struct fault *f)
{
    const char *version = http_header(h, "sec-websocket-version"), *key = http_header(h, "sec-websocket-key");
    char text[KEY_CHARACTERS + sizeof HANDSHAKE_GUID];
    uint8_t digest[20];

    if (!http_has_token(h, "connection", "upgrade") || h->parser.http_major != 1 || h->parser.http_minor < 1)
        return fault_set(f, 400, "bad_request", NULL, "A WebSocket upgrade needs HTTP/1.1 and 'Connection: Upgrade'.");
    if (!version || strcmp(version, "13") != 0) return fault_set(f, 426, "upgrade_required", NULL, "Only WebSocket version 13 is spoken here.");
    if (!key || !is_key(key)) return fault_set(f, 400, "bad_request", NULL, "Sec-WebSocket-Key is not the base64 text of 16 bytes.");
    memcpy(text, key, KEY_CHARACTERS);
    memcpy(text + KEY_CHARACTERS, HANDSHAKE_GUID, sizeof HANDSHAKE_GUID);
    sha1(text, strlen(text), digest);
    base64(digest, sizeof digest, accept);
    return 0;
}

/* ---- wslay's callbacks ---------------------------------------------------------------- */

static ssize_t on_recv(wslay_event_context_ptr ctx, uint8_t *buffer, size_t bytes, int flags, void *user)
{
    struct websocket *w = user;

    (void)flags;
    if (w->input_bytes == 0) {
        wslay_event_set_error(ctx, WSLAY_ERR_WOULDBLOCK);
        return -1;
    }
    if (bytes > w->input_bytes) bytes = w->input_bytes;
    memcpy(buffer, w->input, bytes);
    if (w->in_message) w->partial_bytes += bytes;
    w->input += bytes;
    w->input_bytes -= bytes;
    return (ssize_t)bytes;
}

static ssize_t on_send(wslay_event_context_ptr ctx, const uint8_t *data, size_t bytes, int flags, void *user)
{
    struct websocket *w = user;

    (void)ctx;
    (void)flags;
    wire_add(&w->out, (const char *)data, bytes);
    return (ssize_t)bytes;
}

/* A close frame past wslay, which would send one without a code. */
static void broken(struct websocket *w)
{
    static const char reason[] = "broken frame";
    const uint8_t head[4] = {0x88, (uint8_t)(2 + sizeof reason - 1), WEBSOCKET_PROTOCOL >> 8, WEBSOCKET_PROTOCOL & 0xff};

    if (w->close_sent) return;
    wire_add(&w->out, (const char *)head, sizeof head);
    wire_text(&w->out, reason);
    w->close_sent = true;
}

/* Runs before wslay allocates for the frame: the counts that it does not keep. */
static void on_frame(wslay_event_context_ptr ctx, const struct wslay_event_on_frame_recv_start_arg *arg, void *user)
{
    struct websocket *w = user;

    if (wslay_is_ctrl_frame(arg->opcode)) {
        if (arg->opcode == WSLAY_CONNECTION_CLOSE && arg->payload_length == 1) { /* half a close code */
            broken(w);
            wslay_event_shutdown_read(ctx);
            return;
        }
        if (++w->controls > WEBSOCKET_CONTROLS_MAX) {
            websocket_close(w, WEBSOCKET_POLICY, "too many control frames");
            wslay_event_shutdown_read(ctx);
        }
        return;
    }
    if (!w->in_message) w->partial_ns = w->now_ns;
    w->in_message = true;
    w->fragments = arg->opcode == WSLAY_CONTINUATION_FRAME ? w->fragments + 1 : 1;
    if (w->fragments > WEBSOCKET_FRAGMENTS_MAX) {
        websocket_close(w, WEBSOCKET_POLICY, "too many fragments");
        wslay_event_shutdown_read(ctx);
    }
}

static void on_message(wslay_event_context_ptr ctx, const struct wslay_event_on_msg_recv_arg *arg, void *user)
{
    struct websocket *w = user;

    if (!wslay_is_ctrl_frame(arg->opcode)) {
        w->in_message = false;
        w->partial_bytes = 0;
    }
    if (arg->opcode == WSLAY_TEXT_FRAME) {
        if (!w->close_sent) w->on_text(w->context, (const char *)arg->msg, arg->msg_length);
    } else if (arg->opcode == WSLAY_BINARY_FRAME) {
        websocket_close(w, WEBSOCKET_UNACCEPTABLE, "only text frames are understood");
        wslay_event_shutdown_read(ctx);
    } else if (arg->opcode == WSLAY_PONG) {
        if (w->on_pong) w->on_pong(w->context);
    } else if (arg->opcode == WSLAY_CONNECTION_CLOSE) {
        w->close_received = true;
        w->close_code = arg->status_code ? arg->status_code : 1005;
    }
}

/* ---- connection -------------------------------------------------------------------------- */

int websocket_open(struct websocket *w, size_t message_bytes_max, void *context)
{
    static const struct wslay_event_callbacks callbacks = {
        .recv_callback = on_recv, .send_callback = on_send, .on_frame_recv_start_callback = on_frame, .on_msg_recv_callback = on_message,
    };

    memset(w, 0, sizeof *w);
    w->context = context;
    if (wslay_event_context_server_init(&w->wslay, &callbacks, w) != 0) return -E_NOMEM;
    wslay_event_config_set_max_recv_msg_length(w->wslay, message_bytes_max);
    return 0;
}

void websocket_free(struct websocket *w)
{
    if (w->wslay) wslay_event_context_free(w->wslay);
    w->wslay = NULL;
    wire_free(&w->out);
}

static void flush(struct websocket *w)
{
    if (wslay_event_want_write(w->wslay) && wslay_event_send(w->wslay) != 0) w->close_sent = true; /* out of memory: drop */
    if (wslay_event_get_close_sent(w->wslay)) w->close_sent = true;
}

void websocket_feed(struct websocket *w, const void *data, size_t bytes, uint64_t now_ns)
{
    if (now_ns / 1000000000u != w->second) {
        w->second = now_ns / 1000000000u;
        w->controls = 0;
    }
    w->now_ns = now_ns;
    w->input = data;
    w->input_bytes = bytes;
    while (w->input_bytes > 0 && wslay_event_want_read(w->wslay)) {
        if (wslay_event_recv(w->wslay) != 0) { /* a frame header it cannot accept; it would close without saying why */
            broken(w);
            break;
        }
    }
    w->input_bytes = 0;
    if (!w->close_sent) flush(w);
}

static void queue(struct websocket *w, uint8_t opcode, const char *data, size_t bytes)
{
    const struct wslay_event_msg msg = {.opcode = opcode, .msg = (const uint8_t *)data, .msg_length = bytes};

    if (w->close_sent || wslay_event_queue_msg(w->wslay, &msg) != 0) return;
    flush(w);
}

void websocket_text(struct websocket *w, const char *text, size_t bytes)
{
    queue(w, WSLAY_TEXT_FRAME, text, bytes);
}

void websocket_ping(struct websocket *w)
{
    queue(w, WSLAY_PING, "", 0);
}

void websocket_close(struct websocket *w, uint16_t code, const char *reason)
{
    if (w->close_sent) return;
    wslay_event_queue_close(w->wslay, code, (const uint8_t *)reason, strlen(reason));
    flush(w);
}
