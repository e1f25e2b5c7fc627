/* schemas/session.c - a WebSocket session: client events in, lanes, cancel, resume.
 *
 * Requests that name the same stream_id run one after the other (a lane); lanes run side
 * by side. Whatever is wrong with an event is answered by an error frame; the connection
 * goes on. */
#include "schemas/front.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>

void session_event(struct connection *c, const struct wire *event)
{
    websocket_text(&c->ws, event->data, event->bytes);
    connection_flush_ws(c);
}

void session_fault(struct connection *c, const struct fault *f, const char *stream_id)
{
    struct wire frame = {0};

    stage_count(&c->front->stage, GATEWAY_REFUSED, 1);
    fault_frame(&frame, f, stream_id);
    session_event(c, &frame);
    wire_free(&frame);
}

/* ---- lanes ------------------------------------------------------------------------- */

static bool same_lane(const struct exchange *a, const struct exchange *b)
{
    return !a->resumed && !b->resumed && a->has_stream_id == b->has_stream_id && strcmp(a->stream_id, b->stream_id) == 0;
}

/* Is x the first of its lane? */
static bool may_start(const struct connection *c, const struct exchange *x)
{
    for (const struct exchange *e = c->exchanges; e && e != x; e = e->next)
        if (same_lane(e, x)) return false;
    return true;
}

void session_next(struct connection *c)
{
    struct exchange *x;
    struct fault f;

    for (;;) { /* from the beginning each time: starting and pumping change the list */
        for (x = c->exchanges; x && (x->started || !may_start(c, x)); x = x->next) continue;
        if (!x || c->dead) return;
        if (exchange_start(x, &f) == 0) {
            exchange_pump(x);
            continue;
        }
        session_fault(c, &f, x->has_stream_id ? x->stream_id : NULL);
        exchange_drop(x, true);
    }
}

static int limit(struct fault *f, const char *what, unsigned max)
{
    return fault_set(f, 429, "websocket_stream_limit_reached", "stream_id", "This connection already has %u %s; wait for one to end or open another connection.", max, what);
}

static int check_limits(const struct connection *c, const struct request *r, struct fault *f)
{
    unsigned running = 0, waiting = 0, lanes = 0;
    bool lane_is_taken = false;

    for (const struct exchange *x = c->exchanges; x; x = x->next) {
        running += x->started;
        waiting += !x->started;
        lanes += may_start(c, x);
        lane_is_taken |= !x->resumed && x->has_stream_id == r->has_stream_id && strcmp(x->stream_id, r->stream_id) == 0;
    }
    if (lane_is_taken) return waiting < FRONT_WAITING_MAX ? 0 : limit(f, "waiting requests", FRONT_WAITING_MAX);
    if (running >= FRONT_IN_FLIGHT_MAX) return limit(f, "responses in flight", FRONT_IN_FLIGHT_MAX);
    return lanes < FRONT_LANES_MAX ? 0 : limit(f, "lanes", FRONT_LANES_MAX);
}

/* ---- client events ---------------------------------------------------------------------- */

static int on_create(struct connection *c, const json_t *event, size_t message_bytes, struct fault *f)
{
    struct request r;

    if (request_read(&r, API_RESPONSES, true, event, &c->front->defaults, f) < 0) return -E_FORMAT;
    if (check_limits(c, &r, f) < 0) {
        request_free(&r);
        return -E_FORMAT;
    }
    r.stream = true;
    if (!exchange_new(c, &r, message_bytes)) return fault_set(f, 500, "server_error", NULL, "Out of memory.");
    session_next(c);
    return 0;
}

static struct exchange *of_lane(struct connection *c, const char *stream_id)
{
    struct exchange *x;

    for (x = c->exchanges; x; x = x->next)
        if (!x->resumed && x->has_stream_id && strcmp(x->stream_id, stream_id) == 0) break;
    return x;
}

/* One that has no slot yet has sent no event: the client gets a frame in place of a terminal event. */
static void cancel_exchange(struct connection *c, struct exchange *x)
{
    struct fault f;

    if (x->placed) {
        slots_cancel(c->front, x->watcher[0].slot, x->watcher[0].generation);
        return;
    }
    fault_set(&f, 499, "cancelled", NULL, "The request was cancelled before it began.");
    session_fault(c, &f, x->has_stream_id ? x->stream_id : NULL);
    exchange_drop(x, true);
    session_next(c);
}

static int on_cancel(struct connection *c, const json_t *event, struct fault *f)
{
    static const char *const names[] = {"type", "response_id", "stream_id", "event_id", NULL};
    const char *id = NULL, *stream_id = NULL;

    if (field_known(event, names, NULL, "", f) < 0 || field_string(event, "response_id", RESPONSE_ID_BYTES - 1, &id, f) < 0 ||
        field_string(event, "stream_id", STREAM_ID_BYTES, &stream_id, f) < 0)
        return -E_FORMAT;
    if (id) {
        const int s = slots_find(c->front, id, c->key_hash);
        if (s < 0) return fault_set(f, 404, "response_not_found", "response_id", "Response with id '%s' not found.", id);
        slots_cancel(c->front, (uint32_t)s, word_generation(shm_load_relaxed(&table_gateway(&c->front->table, (uint32_t)s)->commit)));
        return 0;
    }
    if (!stream_id) return fault_set(f, 400, "missing_required_parameter", "response_id", "'response.cancel' needs 'response_id' or 'stream_id'.");
    struct exchange *x = of_lane(c, stream_id);
    if (!x) return fault_set(f, 404, "response_not_found", "stream_id", "Nothing runs in lane '%s' of this connection.", stream_id);
    cancel_exchange(c, x);
    return 0;
}

static int on_resume(struct connection *c, const json_t *event, struct fault *f)
{
    static const char *const names[] = {"type", "response_id", "starting_after", "stream_id", "event_id", NULL};
    struct request none = {.api = API_RESPONSES, .stream = true, .n = 1};
    const char *id = NULL, *ignored;
    int64_t after = -1;

    if (field_known(event, names, NULL, "", f) < 0 || field_string(event, "response_id", RESPONSE_ID_BYTES - 1, &id, f) < 0 ||
        field_string(event, "stream_id", STREAM_ID_BYTES, &ignored, f) < 0 || field_integer(event, "starting_after", -1, UINT32_MAX, &after, f) < 0)
        return -E_FORMAT;
    if (!id) return fault_set(f, 400, "missing_required_parameter", "response_id", "Missing required parameter: 'response_id'.");
    const int s = slots_find(c->front, id, c->key_hash);
    struct view *v = s >= 0 ? slots_view(c->front, (uint32_t)s) : NULL;
    if (!v || v->api != API_RESPONSES) return fault_set(f, 404, "response_not_found", "response_id", "Response with id '%s' not found: it may have been too long ago.", id);
    if (c->exchange_count >= FRONT_IN_FLIGHT_MAX + FRONT_WAITING_MAX) return limit(f, "requests", FRONT_IN_FLIGHT_MAX + FRONT_WAITING_MAX);
    struct exchange *x = exchange_new(c, &none, 0);
    if (!x) return fault_set(f, 500, "server_error", NULL, "Out of memory.");
    x->resumed = x->started = true;
    x->count = x->placed = 1;
    x->watcher[0].after = after;
    x->request.params.sampling.want_logprobs = v->want_logprobs;
    v->resumed++;
    slots_watch(c->front, &x->watcher[0], (uint32_t)s, v->generation);
    stage_count(&c->front->stage, GATEWAY_RESUMED, 1);
    exchange_pump(x);
    return 0;
}

static int dispatch(struct connection *c, const json_t *event, size_t message_bytes, struct fault *f)
{
    const char *type = json_string_value(json_object_get(event, "type"));

    if (!type) return fault_set(f, 400, "missing_required_parameter", "type", "Every event must have a string 'type'.");
    if (strcmp(type, "response.create") == 0) return on_create(c, event, message_bytes, f);
    if (strcmp(type, "response.cancel") == 0) return on_cancel(c, event, f);
    if (strcmp(type, "response.resume") == 0) return on_resume(c, event, f);
    return fault_set(f, 400, "invalid_event_type", "type", "Unknown event type '%.80s': response.create, response.cancel and response.resume are understood.", type);
}

void session_text(void *connection, const char *text, size_t bytes)
{
    struct connection *c = connection;
    const char *stream_id = NULL;
    struct fault f;

    if (c->dead || c->closing) return;
    stage_beat(&c->front->stage);
    json_t *event = field_parse(text, bytes, &f);
    if (event) stream_id = json_string_value(json_object_get(event, "stream_id"));
    if (stream_id && strlen(stream_id) > STREAM_ID_BYTES) stream_id = NULL;
    if (!event || dispatch(c, event, bytes, &f) < 0) session_fault(c, &f, stream_id);
    json_decref(event);
    stage_beat(&c->front->stage);
}
