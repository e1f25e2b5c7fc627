/* schemas/exchange.c - one request of a client: from acceptance to the last byte of its answer.
 *
 * An exchange has one choice (Responses) or several (n, several prompts), each in a slot
 * of its own. It either streams, by a fold per choice, or waits until all have ended and
 * sends one body. It holds no state of the answer but the folds: whatever is sent is
 * derived from the table at that moment. */
#include "schemas/front.h"

#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* ---- birth and death ------------------------------------------------------------- */

static void draw_id(struct exchange *x)
{
    static const char *const prefix[] = {[API_RESPONSES] = "resp_", [API_CHAT] = "chatcmpl-", [API_COMPLETIONS] = "cmpl-"};
    uint8_t drawn[16] = {0};
    int n = snprintf(x->id, sizeof x->id, "%s", prefix[x->request.api]);

    if (getrandom(drawn, sizeof drawn, 0) != sizeof drawn) memcpy(drawn, &(uint64_t){clock_ns()}, 8);
    for (size_t i = 0; i < sizeof drawn; i++) n += snprintf(x->id + n, sizeof x->id - (size_t)n, "%02x", drawn[i]);
}

struct exchange *exchange_new(struct connection *c, struct request *r, size_t message_bytes)
{
    struct exchange *x = calloc(1, sizeof *x), **at = &c->exchanges;

    if (!x) {
        request_free(r);
        return NULL;
    }
    x->request = *r;
    memset(r, 0, sizeof *r);
    x->connection = c;
    x->held_bytes = message_bytes;
    c->front->held_bytes += message_bytes;
    x->stream = x->request.stream;
    x->count = x->request.prompt_count * x->request.n;
    x->has_stream_id = x->request.has_stream_id;
    snprintf(x->stream_id, sizeof x->stream_id, "%s", x->request.stream_id);
    for (uint32_t i = 0; i < REQUEST_CHOICES_MAX; i++) {
        x->watcher[i].exchange = x;
        x->watcher[i].after = -1;
    }
    draw_id(x);
    while (*at) at = &(*at)->next;
    *at = x;
    c->exchange_count++;
    return x;
}

void exchange_drop(struct exchange *x, bool cancel)
{
    struct connection *c = x->connection;
    struct front *f = c->front;

    if (x->waiting)
        for (struct exchange **at = &f->waiting; *at; at = &(*at)->next_waiting)
            if (*at == x) {
                *at = x->next_waiting;
                f->waiting_count--;
                break;
            }
    for (uint32_t i = 0; i < REQUEST_CHOICES_MAX; i++) slots_unwatch(f, &x->watcher[i], cancel);
    for (struct exchange **at = &c->exchanges; *at; at = &(*at)->next)
        if (*at == x) {
            *at = x->next;
            c->exchange_count--;
            break;
        }
    f->held_bytes -= x->held_bytes;
    request_free(&x->request);
    free(x);
}

void exchange_is_placed(struct exchange *x)
{
    x->connection->front->held_bytes -= x->held_bytes;
    x->held_bytes = 0;
    request_forget_prompts(&x->request);
}

/* ---- start ------------------------------------------------------------------------- */

static int resolve_previous(struct exchange *x, struct fault *f)
{
    struct front *front = x->connection->front;
    const char *id = x->request.previous_id;
    const int s = slots_find(front, id, x->connection->key_hash);
    const struct view *v = s >= 0 ? slots_view(front, (uint32_t)s) : NULL;
    struct fault ignored;

    if (!v || v->api != API_RESPONSES || !v->stored)
        return fault_set(f, 400, "previous_response_not_found", "previous_response_id", "Previous response with id '%s' not found.", id);
    if (view_outcome(v, &ignored) == OUTCOME_RUNNING)
        return fault_set(f, 400, "previous_response_in_progress", "previous_response_id", "Previous response '%s' has not ended yet.", id);
    return request_continue(&x->request, v, f);
}

static int overloaded(struct front *front, struct fault *f)
{
    stage_count(&front->stage, GATEWAY_OVERLOADED, 1);
    return fault_set(f, 503, "overloaded", NULL, "The server is at its limit of %u running and %u waiting requests. Try again in a moment.",
                     front->table.limits.slot_count, front->queue_max);
}

int exchange_start(struct exchange *x, struct fault *f)
{
    struct front *front = x->connection->front;
    int rc = -E_FULL;

    if (front_is_draining(front)) return fault_set(f, 503, "draining", NULL, "The server is shutting down and takes no new requests.");
    if (x->request.params.sampling.want_logprobs && !vocabulary_ready(front) && front->tokenizer_failed)
        return fault_set(f, 500, "server_error", "logprobs", "Log probabilities are not available: the tokenizer cannot be loaded.");
    if (x->request.previous_id[0] && (rc = resolve_previous(x, f)) != 0) return rc;
    x->started = true;
    rc = -E_FULL;
    if (!front->waiting) /* those who wait come first */
        while (x->placed < x->count && (rc = slots_place(front, x, f)) == 0) continue;
    if (rc == -E_FORMAT) return rc;
    if (x->placed == x->count) {
        exchange_is_placed(x);
        return 0;
    }
    if (front->waiting_count >= front->queue_max) return overloaded(front, f);
    struct exchange **at = &front->waiting;
    while (*at) at = &(*at)->next_waiting;
    *at = x;
    x->next_waiting = NULL;
    x->waiting = true;
    front->waiting_count++;
    return 0;
}

/* ---- answers ------------------------------------------------------------------------ */

void exchange_fail(struct exchange *x, const struct fault *f)
{
    struct connection *c = x->connection;
    struct wire event = {0};

    if (c->mode == CONNECTION_WEBSOCKET) {
        session_fault(c, f, x->has_stream_id ? x->stream_id : NULL);
        exchange_drop(x, true);
        session_next(c);
        return;
    }
    if (!x->head_sent) routes_fault(c, f);
    else { /* a fault in mid-stream is an event, not silence */
        wire_text(&event, "event: error\ndata: {\"type\":\"error\",\"error\":");
        fault_object(&event, f);
        wire_text(&event, "}\n\n");
        connection_send(c, event.data, event.bytes);
        wire_free(&event);
        connection_answered(c);
    }
    exchange_drop(x, true);
}

/* Ends an HTTP exchange whose answer is complete. */
static void answered(struct exchange *x)
{
    struct connection *c = x->connection;

    exchange_drop(x, false);
    connection_answered(c);
}

static int next_event(struct exchange *x, struct watcher *w, const struct view *v, struct wire *out)
{
    switch (x->request.api) {
    case API_RESPONSES: return responses_next(v, &w->responses, out);
    case API_CHAT: return chat_next(v, &w->chat, out);
    default: return completions_next(v, &w->chat, out);
    }
}

static bool is_done(const struct exchange *x, const struct watcher *w)
{
    return x->request.api == API_RESPONSES ? w->responses.done : w->chat.done;
}

static void send_sse(struct exchange *x, const struct wire *event)
{
    struct wire out = {0};

    if (x->request.api == API_RESPONSES) { /* every event begins {"type":"NAME", */
        const char *name = event->data + strlen("{\"type\":\"");
        wire_format(&out, "event: %.*s\n", (int)strcspn(name, "\""), name);
    }
    wire_text(&out, "data: ");
    wire_add(&out, event->data, event->bytes);
    wire_text(&out, "\n\n");
    connection_send(x->connection, out.data, out.bytes);
    wire_free(&out);
}

/* Copies of the views of all choices, side by side. Borrowed from the slots. */
static bool views_of(struct exchange *x, struct view *views)
{
    for (uint32_t i = 0; i < x->count; i++) {
        const struct view *v = x->watcher[i].generation ? slots_view(x->connection->front, x->watcher[i].slot) : NULL;
        if (!v) return false;
        views[i] = *v;
    }
    return true;
}

/* One choice's events, as far as they go. False: the connection has no more room. */
static bool stream_choice(struct exchange *x, struct watcher *w, const struct view *v, struct wire *out)
{
    struct connection *c = x->connection;

    while (!is_done(x, w)) {
        if (!connection_has_room(c)) return false;
        wire_clear(out);
        const int64_t sequence = w->responses.sequence;
        if (next_event(x, w, v, out) != 1) break;
        if (c->mode == CONNECTION_WEBSOCKET) {
            if (sequence > w->after) session_event(c, out);
        } else send_sse(x, out);
    }
    return true;
}

static void stream(struct exchange *x)
{
    struct connection *c = x->connection;
    struct view views[REQUEST_CHOICES_MAX];
    struct wire out = {0};
    uint32_t ended = 0;

    for (uint32_t i = 0; i < x->placed; i++) {
        const struct view *v = x->watcher[i].generation ? slots_view(c->front, x->watcher[i].slot) : NULL;
        if (!v) {
            struct fault f;
            fault_set(&f, 500, "quarantined", NULL, "This request was stopped because it made the gateway fail repeatedly.");
            wire_free(&out);
            exchange_fail(x, &f);
            return;
        }
        if (!stream_choice(x, &x->watcher[i], v, &out)) break;
        ended += is_done(x, &x->watcher[i]);
    }
    if (ended == x->count) {
        wire_clear(&out);
        if (x->request.api != API_RESPONSES) {
            if (x->request.include_usage && views_of(x, views)) {
                chat_usage_chunk(views, x->count, x->request.prompt_count, &out);
                send_sse(x, &out);
            }
            connection_send(c, "data: [DONE]\n\n", 14);
        }
        if (c->mode != CONNECTION_WEBSOCKET) answered(x);
        else {
            exchange_drop(x, false);
            session_next(c);
        }
    }
    wire_free(&out);
}

/* Every choice has a prompt: good or refused. Before that no status line can be right. */
static bool prompts_are_known(struct exchange *x, struct fault *f)
{
    struct front *front = x->connection->front;

    f->status = 0;
    if (x->placed < x->count) return false;
    for (uint32_t i = 0; i < x->count; i++) {
        const struct watcher *w = &x->watcher[i];
        const uint32_t prompt = word_for(&table_tokenize(&front->table, w->slot)->commit, w->generation);
        const struct view *v = slots_view(front, w->slot);
        if (v && view_outcome(v, f) == OUTCOME_REFUSED) return true;
        f->status = 0;
        if (prompt == PROMPT_NONE) return false;
    }
    return true;
}

static void body(struct exchange *x)
{
    struct connection *c = x->connection;
    struct view views[REQUEST_CHOICES_MAX];
    struct wire out = {0};
    struct fault f = {0};

    if (x->placed < x->count || !views_of(x, views)) return;
    for (uint32_t i = 0; i < x->count; i++) {
        if (view_waits_for_tokenizer(&views[i]) && !vocabulary_ready(c->front)) return;
        const enum outcome outcome = view_outcome(&views[i], &f);
        if (outcome == OUTCOME_RUNNING) return;
        if (outcome == OUTCOME_ENDED) continue;
        exchange_fail(x, &f);
        return;
    }
    f.status = 0;
    if (x->request.api == API_RESPONSES) responses_body(&views[0], &out, &f);
    else if (x->request.api == API_CHAT) chat_body(views, x->count, &out, &f);
    else completions_body(views, x->count, x->request.prompt_count, &out, &f);
    if (f.status) exchange_fail(x, &f);
    else {
        routes_answer(c, 200, "application/json", out.data, out.bytes);
        exchange_drop(x, false);
    }
    wire_free(&out);
}

void exchange_pump(struct exchange *x)
{
    struct connection *c = x->connection;
    struct fault f;

    if (c->dead || !x->started || x->placed == 0) return;
    if (x->request.params.sampling.want_logprobs && !vocabulary_ready(c->front) && c->front->tokenizer_failed) {
        fault_set(&f, 500, "server_error", "logprobs", "Log probabilities are not available: the tokenizer cannot be loaded.");
        exchange_fail(x, &f);
        return;
    }
    if (!x->stream) {
        body(x);
        return;
    }
    if (c->mode != CONNECTION_WEBSOCKET && !x->head_sent) {
        if (!prompts_are_known(x, &f)) return;
        if (f.status) {
            exchange_fail(x, &f);
            return;
        }
        routes_stream_head(c);
        x->head_sent = true;
    }
    stream(x);
}
