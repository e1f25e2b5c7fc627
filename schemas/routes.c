/* schemas/routes.c - HTTP: which path does what, and the answers that need no pipeline. */
#include "schemas/front.h"

#include "shm/error.h"
#include "shm/version.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define RETRY_AFTER_S 1

/* A page that shows model output must not be able to do more than it does. */
static const char page_policy[] = "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
                                  "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
                                  "Referrer-Policy: no-referrer\r\nCache-Control: no-cache\r\n";

/* ---- answers ------------------------------------------------------------------------ */

/* The id a client gave, or one of ours: what stands in logs on both sides. */
static void name_request(struct connection *c)
{
    const char *given = http_header(&c->http, "x-request-id");
    uint8_t drawn[12] = {0};
    size_t n = 0;

    for (; given && given[n] > ' ' && given[n] < 0x7f && n < FRONT_REQUEST_ID_BYTES - 1; n++) c->request_id[n] = given[n];
    c->request_id[n] = '\0';
    if (n) return;
    if (getrandom(drawn, sizeof drawn, 0) < 0) drawn[0] = 1;
    n = (size_t)snprintf(c->request_id, sizeof c->request_id, "req_");
    for (size_t i = 0; i < sizeof drawn; i++) n += (size_t)snprintf(c->request_id + n, sizeof c->request_id - n, "%02x", drawn[i]);
}

static void head(struct connection *c, int status, const char *content_type, int64_t body_bytes, const char *more, struct wire *out)
{
    const char *origin = http_header(&c->http, "origin");

    http_head(out, status, content_type, body_bytes, c->keep_alive && !c->front->stopping);
    if (!c->request_id[0]) name_request(c);
    wire_format(out, "X-Request-Id: %s\r\n", c->request_id);
    if (status == 429 || status == 503) wire_format(out, "Retry-After: %d\r\n", RETRY_AFTER_S);
    if (origin && status != 403) wire_format(out, "Access-Control-Allow-Origin: %s\r\nVary: Origin\r\n", origin); /* checked before anything was answered */
    if (more) wire_text(out, more);
    wire_text(out, "\r\n");
}

static void answer(struct connection *c, int status, const char *content_type, const char *more, const char *body, size_t bytes)
{
    const bool no_body = c->http.parser.method == HTTP_HEAD;
    struct wire out = {0};

    head(c, status, content_type, status == 204 ? HTTP_NO_BODY : (int64_t)bytes, more, &out);
    if (!no_body) wire_add(&out, body, bytes);
    connection_send(c, out.data, out.bytes);
    wire_free(&out);
    connection_answered(c);
}

void routes_answer(struct connection *c, int status, const char *content_type, const char *body, size_t bytes)
{
    answer(c, status, content_type, NULL, body, bytes);
}

static void answer_fault(struct connection *c, const struct fault *f, const char *more)
{
    struct wire body = {0};

    stage_count(&c->front->stage, GATEWAY_REFUSED, 1);
    fault_body(&body, f);
    answer(c, f->status, "application/json", more, body.data, body.bytes);
    wire_free(&body);
}

void routes_fault(struct connection *c, const struct fault *f)
{
    answer_fault(c, f, f->status == 401   ? "WWW-Authenticate: Bearer\r\n"
                       : f->status == 426 ? "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                                          : NULL);
}

void routes_stream_head(struct connection *c)
{
    const bool chunked = c->http.parser.http_major > 1 || c->http.parser.http_minor >= 1;
    struct wire out = {0};

    if (!chunked) c->keep_alive = false; /* HTTP/1.0: the end of the connection is the end of the body */
    head(c, 200, "text/event-stream; charset=utf-8", chunked ? HTTP_CHUNKED : HTTP_UNTIL_CLOSE, "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n", &out);
    connection_send(c, out.data, out.bytes);
    wire_free(&out);
    c->chunked = chunked;
}

/* ---- plain pages ---------------------------------------------------------------------- */

static void get_page(struct connection *c)
{
    size_t bytes;
    const char *html = page_html(&bytes);

    answer(c, 200, "text/html; charset=utf-8", page_policy, html, bytes);
}

static void get_health(struct connection *c)
{
    char why[256];
    struct wire body = {0};
    const bool ready = metrics_healthy(c->front, why, sizeof why);

    wire_format(&body, "{\"status\":\"%s\"", ready ? "ok" : "unavailable");
    if (!ready) {
        wire_text(&body, ",\"reason\":");
        wire_string(&body, why);
    }
    wire_text(&body, "}\n");
    routes_answer(c, ready ? 200 : 503, "application/json", body.data, body.bytes);
    wire_free(&body);
}

static void model_object(struct connection *c, struct wire *body)
{
    wire_text(body, "{\"id\":");
    wire_string(body, c->front->defaults.model);
    wire_format(body, ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"sluice\",\"max_model_len\":%u,\"input_modalities\":[\"text\"%s%s%s]}",
                (unsigned long long)c->front->started_s, c->front->table.limits.context_max, c->front->defaults.picture_budget ? ",\"image\"" : "",
                c->front->defaults.sound ? ",\"audio\"" : "", c->front->defaults.video_files ? ",\"video\"" : "");
}

static void get_models(struct connection *c)
{
    struct wire body = {0};

    wire_text(&body, "{\"object\":\"list\",\"data\":[");
    model_object(c, &body);
    wire_text(&body, "]}\n");
    routes_answer(c, 200, "application/json", body.data, body.bytes);
    wire_free(&body);
}

static void get_model(struct connection *c, const char *name)
{
    struct wire body = {0};
    struct fault f;

    if (strcmp(name, c->front->defaults.model) != 0) {
        fault_set(&f, 404, "model_not_found", "model", "The model '%.120s' does not exist here. This server has '%s'.", name, c->front->defaults.model);
        routes_fault(c, &f);
        return;
    }
    model_object(c, &body);
    routes_answer(c, 200, "application/json", body.data, body.bytes);
    wire_free(&body);
}

static void get_version(struct connection *c)
{
    static const char body[] = "{\"version\":\"" SLUICE_VERSION "\",\"server\":\"sluice\"}\n";

    routes_answer(c, 200, "application/json", body, sizeof body - 1);
}

static void get_metrics(struct connection *c)
{
    struct wire body = {0};

    metrics_text(c->front, &body);
    routes_answer(c, 200, "text/plain; version=0.0.4; charset=utf-8", body.data, body.bytes);
    wire_free(&body);
}

/* A response as it stands: whole when it has ended, else its state. */
static void get_response(struct connection *c, const char *id)
{
    const int s = slots_find(c->front, id, c->key_hash);
    const struct view *v = s >= 0 ? slots_view(c->front, (uint32_t)s) : NULL;
    struct wire body = {0};
    struct fault f = {0};

    c->again = false;
    if (v && view_waits_for_tokenizer(v)) {
        c->again = !vocabulary_ready(c->front) && !c->front->tokenizer_failed;
        if (c->again) return; /* asked again from the sweep until log probabilities can be written */
        v = slots_view(c->front, (uint32_t)s); /* with the tokenizer */
    }
    if (!v || v->api != API_RESPONSES) fault_set(&f, 404, "response_not_found", "response_id", "Response with id '%.80s' not found.", id);
    else if (!responses_body(v, &body, &f)) {
        struct responses_fold fold = {.prelude = 1}; /* response.in_progress carries the object as it is while it runs */
        struct wire event = {0};
        responses_next(v, &fold, &event);
        const char *object = event.data ? strstr(event.data, "\"response\":") : NULL;
        if (object) wire_add(&body, object + 11, event.bytes - (size_t)(object + 11 - event.data) - 1 - strlen(v->stream_id));
        wire_free(&event);
    }
    if (f.status) routes_fault(c, &f);
    else routes_answer(c, 200, "application/json", body.data ? body.data : "{}", body.data ? body.bytes : 2);
    wire_free(&body);
}

/* ---- requests for the pipeline ------------------------------------------------------------ */

/* A prompt given as ids has to be echoed as text. 1, 0: the tokenizer is still loading, -E_FORMAT. */
static int name_prompts(struct connection *c, struct request *r, struct fault *f)
{
    for (uint32_t i = 0; r->echo_prompt && i < r->prompt_count; i++) {
        json_t *prompt = json_object_get(r->chat[i], "prompt");
        struct wire text = {0};
        if (!json_is_array(prompt)) continue;
        json_t *body = json_pack("{s:O}", "tokens", prompt);
        const int rc = vocabulary_detokenize(c->front, body, &text, f);
        json_decref(body);
        if (rc == 1) {
            json_t *named = json_loadb(text.data, text.bytes, 0, NULL);
            json_object_set(r->chat[i], "prompt_text", json_object_get(named, "prompt"));
            json_decref(named);
        }
        wire_free(&text);
        if (rc != 1) return rc;
    }
    return 1;
}

static void post_generate(struct connection *c, enum api api)
{
    struct request r;
    struct fault f;
    json_t *body = field_parse(c->http.body.data ? c->http.body.data : "", c->http.body.bytes, &f);
    int rc = body ? request_read(&r, api, false, body, &c->front->defaults, &f) : -E_FORMAT;

    json_decref(body);
    if (rc == 0 && (rc = name_prompts(c, &r, &f)) != 1) {
        request_free(&r);
        c->again = rc == 0;
        if (rc == 0) return;
    }
    if (rc < 0) {
        routes_fault(c, &f);
        return;
    }
    const size_t message_bytes = c->http.body.bytes;
    wire_free(&c->http.body); /* the request holds what is needed of it */
    c->again = false;
    struct exchange *x = exchange_new(c, &r, message_bytes);
    if (!x) {
        fault_set(&f, 500, "server_error", NULL, "Out of memory.");
        routes_fault(c, &f);
    } else if (exchange_start(x, &f) != 0) {
        exchange_drop(x, true);
        routes_fault(c, &f);
    } else exchange_pump(x);
}

static void post_vocabulary(struct connection *c, int (*work)(struct front *, const json_t *, struct wire *, struct fault *))
{
    struct wire out = {0};
    struct fault f;
    json_t *body = field_parse(c->http.body.data ? c->http.body.data : "", c->http.body.bytes, &f);
    const int rc = body ? work(c->front, body, &out, &f) : -E_FORMAT;

    json_decref(body);
    c->again = rc == 0; /* asked again from the sweep until the tokenizer is there */
    if (rc == 1) routes_answer(c, 200, "application/json", out.data, out.bytes);
    else if (rc < 0) routes_fault(c, &f);
    wire_free(&out);
}

/* ---- dispatch -------------------------------------------------------------------------------- */

enum route { ROUTE_NONE, ROUTE_PAGE, ROUTE_HEALTH, ROUTE_METRICS, ROUTE_VERSION, ROUTE_MODELS, ROUTE_MODEL, ROUTE_RESPONSE, ROUTE_RESPONSES, ROUTE_CHAT,
             ROUTE_COMPLETIONS, ROUTE_TOKENIZE, ROUTE_DETOKENIZE };

static const struct path { const char *path; enum route route; bool post, open; } paths[] = {
    {"/", ROUTE_PAGE, false, true},           {"/health", ROUTE_HEALTH, false, true},          {"/metrics", ROUTE_METRICS, false, true},
    {"/version", ROUTE_VERSION, false, true}, {"/v1/models", ROUTE_MODELS, false, false},      {"/v1/responses", ROUTE_RESPONSES, true, false},
    {"/tokenize", ROUTE_TOKENIZE, true, false}, {"/detokenize", ROUTE_DETOKENIZE, true, false}, {"/v1/chat/completions", ROUTE_CHAT, true, false},
    {"/v1/completions", ROUTE_COMPLETIONS, true, false},
    {"/v1/models/", ROUTE_MODEL, false, false}, {"/v1/responses/", ROUTE_RESPONSE, false, false}, /* these two are prefixes of an id */
};

static const struct path *find_path(const char *path, const char **rest)
{
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        const size_t n = strlen(paths[i].path);
        const bool prefix = paths[i].route == ROUTE_MODEL || paths[i].route == ROUTE_RESPONSE;
        if (prefix ? strncmp(path, paths[i].path, n) != 0 || !path[n] : strcmp(path, paths[i].path) != 0) continue;
        if (paths[i].route == ROUTE_RESPONSE && strchr(path + n, '/')) continue; /* a model may have a slash in its name, a response's parts are not built */
        *rest = path + n;
        return &paths[i];
    }
    return NULL;
}

static void dispatch(struct connection *c, enum route route, const char *rest)
{
    switch (route) {
    case ROUTE_PAGE: get_page(c); break;
    case ROUTE_HEALTH: get_health(c); break;
    case ROUTE_METRICS: get_metrics(c); break;
    case ROUTE_VERSION: get_version(c); break;
    case ROUTE_MODELS: get_models(c); break;
    case ROUTE_MODEL: get_model(c, rest); break;
    case ROUTE_RESPONSE: get_response(c, rest); break;
    case ROUTE_RESPONSES: post_generate(c, API_RESPONSES); break;
    case ROUTE_CHAT: post_generate(c, API_CHAT); break;
    case ROUTE_COMPLETIONS: post_generate(c, API_COMPLETIONS); break;
    case ROUTE_TOKENIZE: post_vocabulary(c, vocabulary_tokenize); break;
    case ROUTE_DETOKENIZE: post_vocabulary(c, vocabulary_detokenize); break;
    case ROUTE_NONE: break;
    }
}

/* What a browser asks before it lets a page of another origin send JSON. An origin that may speak to us may send any
 * header: the client libraries add some of their own. */
static void preflight(struct connection *c)
{
    const char *wanted = http_header(&c->http, "access-control-request-headers");
    struct wire more = {0};

    wire_format(&more, "Access-Control-Allow-Methods: GET, POST, OPTIONS\r\nAccess-Control-Allow-Headers: %s\r\nAccess-Control-Max-Age: 600\r\n",
                wanted && *wanted ? wanted : "Authorization, Content-Type, X-Request-Id");
    answer(c, 204, NULL, more.data, "", 0);
    wire_free(&more);
}

void routes_handle(struct connection *c)
{
    const unsigned method = c->http.parser.method;
    char path[HTTP_PATH_BYTES_MAX];
    const char *rest = "", *protocol;
    struct fault f;

    if (!c->again) c->request_id[0] = '\0';
    stage_beat(&c->front->stage);
    http_path(&c->http, path);
    const struct path *p = find_path(path, &rest);
    if (keys_check_origin(c->front, &c->http, &f) < 0) routes_fault(c, &f);
    else if (!p) {
        fault_set(&f, 404, "not_found", NULL, "There is nothing at %s %.200s.", http_method_str(method), path);
        routes_fault(c, &f);
    } else if (method == HTTP_OPTIONS) preflight(c);
    else if (p->route == ROUTE_RESPONSES && method == HTTP_GET) {
        fault_set(&f, 426, "upgrade_required", NULL, "GET %s is a WebSocket; POST it for a single response.", path);
        routes_fault(c, &f);
    } else if (p->post ? method != HTTP_POST : method != HTTP_GET && method != HTTP_HEAD) {
        fault_set(&f, 405, "method_not_allowed", NULL, "%s understands %s, not %s.", path, p->post ? "POST" : "GET", http_method_str(method));
        answer_fault(c, &f, p->route == ROUTE_RESPONSES ? "Allow: GET, POST, OPTIONS\r\n" : p->post ? "Allow: POST, OPTIONS\r\n" : "Allow: GET, HEAD, OPTIONS\r\n");
    } else if (!p->open && keys_check(c->front, &c->http, false, &c->key_hash, &protocol, &f) < 0) routes_fault(c, &f);
    else dispatch(c, p->route, rest);
    stage_beat(&c->front->stage);
}

static void on_pong(void *connection)
{
    (void)connection; /* that something was heard is noted for every byte */
}

void routes_upgrade(struct connection *c)
{
    char path[HTTP_PATH_BYTES_MAX], key[WEBSOCKET_ACCEPT_BYTES];
    const char *protocol = NULL;
    struct wire out = {0};
    struct fault f;
    int rc;

    c->request_id[0] = '\0';
    http_path(&c->http, path);
    if (strcmp(path, "/v1/responses") != 0) rc = fault_set(&f, 404, "not_found", NULL, "There is no WebSocket at %.200s.", path);
    else if ((rc = keys_check_origin(c->front, &c->http, &f)) == 0 && (rc = keys_check(c->front, &c->http, true, &c->key_hash, &protocol, &f)) == 0)
        rc = websocket_check(&c->http, key, &f);
    if (rc == 0 && front_is_draining(c->front)) rc = fault_set(&f, 503, "draining", NULL, "The server is shutting down and takes no new connections.");
    if (rc == 0 && websocket_open(&c->ws, c->front->message_bytes_max, c) != 0) rc = fault_set(&f, 500, "server_error", NULL, "Out of memory.");
    if (rc != 0) { /* never 101 before everything is right: proxies look at nothing else */
        c->keep_alive = false;
        routes_fault(c, &f);
        return;
    }
    name_request(c);
    wire_format(&out, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nX-Request-Id: %s\r\n", key, c->request_id);
    if (protocol) wire_format(&out, "Sec-WebSocket-Protocol: %s\r\n", protocol);
    wire_text(&out, "\r\n");
    connection_send(c, out.data, out.bytes);
    wire_free(&out);
    c->ws.on_text = session_text;
    c->ws.on_pong = on_pong;
    c->mode = CONNECTION_WEBSOCKET;
    c->busy = false;
    c->front->websocket_count++;
    http_free(&c->http);
}
