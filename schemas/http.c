/* schemas/http.c - requests in, heads out. */
#include "schemas/http.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

static struct http_reader *of(http_parser *p)
{
    return p->data;
}

static int refuse(struct http_reader *h, int status, const char *code, const char *text)
{
    if (!h->fault.status) fault_set(&h->fault, status, code, NULL, "%s", text);
    return 1;
}

/* ---- http-parser's callbacks ----------------------------------------------------- */

static int count_head(struct http_reader *h, size_t bytes)
{
    h->head_bytes += (uint32_t)bytes;
    return h->head_bytes > HTTP_HEAD_BYTES_MAX ? refuse(h, 431, "headers_too_large", "The request's headers are larger than 16 KiB.") : 0;
}

static int on_url(http_parser *p, const char *at, size_t bytes)
{
    struct http_reader *h = of(p);

    if (count_head(h, bytes)) return 1;
    if (h->url.bytes + bytes >= HTTP_PATH_BYTES_MAX) return refuse(h, 414, "uri_too_long", "The request's target is longer than 4 KiB.");
    wire_add(&h->url, at, bytes);
    return 0;
}

static int on_field(http_parser *p, const char *at, size_t bytes)
{
    struct http_reader *h = of(p);

    if (count_head(h, bytes)) return 1;
    if (h->head_done) return 0; /* trailers behind a chunked body: counted, not believed */
    if (h->in_value || h->header_count == 0) { /* a new header begins; names may come in pieces */
        if (h->header_count == HTTP_HEADERS_MAX) return refuse(h, 431, "headers_too_large", "The request has more than 100 headers.");
        if (h->in_value) wire_add(&h->head, "", 1);
        h->header[h->header_count++] = (struct http_header){(uint32_t)h->head.bytes, 0};
        h->in_value = false;
    }
    for (size_t i = 0; i < bytes; i++) {
        if (at[i] <= ' ' || at[i] >= 0x7f || strchr("()<>@,;:\\\"/[]?={}", at[i])) return refuse(h, 400, "bad_request", "A header's name has a character that is not allowed there.");
        const char c = at[i] >= 'A' && at[i] <= 'Z' ? (char)(at[i] + 32) : at[i];
        wire_add(&h->head, &c, 1);
    }
    return 0;
}

static int on_value(http_parser *p, const char *at, size_t bytes)
{
    struct http_reader *h = of(p);

    if (count_head(h, bytes)) return 1;
    if (h->head_done) return 0;
    if (!h->in_value) {
        wire_add(&h->head, "", 1);
        h->header[h->header_count - 1].value = (uint32_t)h->head.bytes;
        h->in_value = true;
    }
    if (memchr(at, 0, bytes)) return refuse(h, 400, "bad_request", "A header has a NUL byte.");
    wire_add(&h->head, at, bytes);
    return 0;
}

/* One header, that has this value in any case, or none. */
static bool is_alone(const struct http_reader *h, const char *name, const char *value)
{
    unsigned count = 0, right = 0;

    for (uint32_t i = 0; i < h->header_count; i++) {
        if (strcmp(h->head.data + h->header[i].name, name) != 0) continue;
        const char *said = h->header[i].value ? h->head.data + h->header[i].value : "";
        size_t bytes = strlen(said);
        while (bytes && (said[bytes - 1] == ' ' || said[bytes - 1] == '\t')) bytes--;
        count++;
        right += bytes == strlen(value) && strncasecmp(said, value, bytes) == 0;
    }
    return count == 0 || (count == 1 && right == 1);
}

static int check_head(struct http_reader *h)
{
    unsigned hosts = 0;

    if (!is_alone(h, "transfer-encoding", "chunked")) return refuse(h, 501, "unsupported_encoding", "Of transfer codings this server knows chunked, once and alone.");
    if (!is_alone(h, "content-encoding", "identity")) return refuse(h, 415, "unsupported_encoding", "The body must come as it is, without Content-Encoding.");
    if (!is_alone(h, "expect", "100-continue")) return refuse(h, 417, "expectation_failed", "This server can be expected to answer 100-continue, and nothing else.");
    for (uint32_t i = 0; i < h->header_count; i++) hosts += strcmp(h->head.data + h->header[i].name, "host") == 0;
    if (hosts > 1 || (hosts == 0 && (h->parser.http_major > 1 || h->parser.http_minor >= 1)))
        return refuse(h, 400, "bad_request", "A request must have exactly one Host header.");
    if (h->parser.content_length != UINT64_MAX && h->parser.content_length > h->body_bytes_max)
        return refuse(h, 413, "body_too_large", "The request's body is larger than this server accepts.");
    return 0;
}

static int on_headers_complete(http_parser *p)
{
    struct http_reader *h = of(p);
    const bool has_body = (p->flags & F_CHUNKED) || (p->content_length != 0 && p->content_length != UINT64_MAX);

    wire_add(&h->head, "", 1);
    if (check_head(h)) return -1;
    h->upgrade = p->upgrade && p->method == HTTP_GET && http_has_token(h, "upgrade", "websocket");
    if (h->upgrade && (has_body || (p->flags & F_CONTENTLENGTH))) {
        refuse(h, 400, "bad_request", "A WebSocket upgrade must not have a body.");
        return -1;
    }
    if (p->method == HTTP_CONNECT) {
        refuse(h, 405, "method_not_allowed", "This server is no proxy.");
        return -1;
    }
    p->upgrade = h->upgrade; /* another protocol that is offered (h2c) is not taken: go on with HTTP/1.1 */
    h->head_done = true;
    h->expects_continue = has_body && http_has_token(h, "expect", "100-continue");
    return 0;
}

/* http-parser takes any two bytes for the CRLF behind a chunk; then the next chunk would begin elsewhere than a proxy before us thinks. */
static int check_chunk_end(struct http_reader *h, const char *at)
{
    for (; h->chunk_end_left && at < h->fed_end; h->chunk_end_left--)
        if (*at++ != "\n\r"[h->chunk_end_left - 1]) return refuse(h, 400, "bad_request", "A chunk of the body does not end where its length says.");
    return 0;
}

static int on_body(http_parser *p, const char *at, size_t bytes)
{
    struct http_reader *h = of(p);

    if (bytes > h->body_bytes_max - h->body.bytes) return refuse(h, 413, "body_too_large", "The request's body is larger than this server accepts.");
    wire_add(&h->body, at, bytes);
    if (!(p->flags & F_CHUNKED) || p->content_length != 0) return 0;
    h->chunk_end_left = 2; /* the chunk is whole */
    return check_chunk_end(h, at + bytes);
}

static int on_complete(http_parser *p)
{
    struct http_reader *h = of(p);

    h->complete = true;
    h->keep_alive = http_should_keep_alive(p) != 0;
    http_parser_pause(p, 1); /* the next request waits until this one is answered */
    return 0;
}

static const http_parser_settings settings = {
    .on_url = on_url, .on_header_field = on_field, .on_header_value = on_value, .on_headers_complete = on_headers_complete, .on_body = on_body, .on_message_complete = on_complete,
};

/* ---- reader ------------------------------------------------------------------------ */

void http_init(struct http_reader *h, size_t body_bytes_max)
{
    memset(h, 0, sizeof *h);
    h->body_bytes_max = body_bytes_max;
    http_parser_init(&h->parser, HTTP_REQUEST);
    h->parser.data = h;
}

void http_free(struct http_reader *h)
{
    wire_free(&h->head);
    wire_free(&h->body);
    wire_free(&h->url);
}

void http_next(struct http_reader *h)
{
    wire_clear(&h->head);
    wire_clear(&h->body);
    wire_clear(&h->url);
    h->header_count = h->head_bytes = 0;
    h->in_value = h->expects_continue = h->complete = h->keep_alive = h->upgrade = h->head_done = false;
    http_parser_pause(&h->parser, 0);
}

enum http_progress http_feed(struct http_reader *h, const char *data, size_t bytes, size_t *taken)
{
    const bool head_was_done = h->head_done;

    *taken = 0;
    if (h->fault.status) return HTTP_REFUSED;
    h->fed_end = data + bytes;
    if (check_chunk_end(h, data)) return HTTP_REFUSED;
    *taken = http_parser_execute(&h->parser, &settings, data, bytes);
    const enum http_errno error = HTTP_PARSER_ERRNO(&h->parser);
    if (h->fault.status) return HTTP_REFUSED;
    if (h->complete) return h->upgrade ? HTTP_UPGRADE : HTTP_MESSAGE;
    if (error == HPE_HEADER_OVERFLOW) refuse(h, 431, "headers_too_large", "The request's headers are larger than 16 KiB.");
    else if (error != HPE_OK) refuse(h, 400, "bad_request", http_errno_description(error));
    if (h->fault.status) return HTTP_REFUSED;
    return h->expects_continue && h->head_done && !head_was_done && h->body.bytes == 0 ? HTTP_HEAD_DONE : HTTP_MORE;
}

const char *http_header(const struct http_reader *h, const char *name)
{
    for (uint32_t i = 0; i < h->header_count; i++)
        if (strcmp(h->head.data + h->header[i].name, name) == 0) return h->header[i].value ? h->head.data + h->header[i].value : "";
    return NULL;
}

bool http_has_token(const struct http_reader *h, const char *name, const char *word)
{
    const size_t n = strlen(word);

    for (uint32_t i = 0; i < h->header_count; i++) { /* a list may be spread over several headers */
        if (strcmp(h->head.data + h->header[i].name, name) != 0 || !h->header[i].value) continue;
        const char *at = h->head.data + h->header[i].value;
        while (*at) {
            at += strspn(at, " \t,");
            const size_t bytes = strcspn(at, " \t,");
            if (bytes == n && strncasecmp(at, word, n) == 0) return true;
            at += bytes;
        }
    }
    return false;
}

void http_path(const struct http_reader *h, char path[HTTP_PATH_BYTES_MAX])
{
    struct http_parser_url url;

    path[0] = '\0';
    http_parser_url_init(&url);
    if (!h->url.bytes || http_parser_parse_url(h->url.data, h->url.bytes, 0, &url) != 0 || !(url.field_set & 1 << UF_PATH)) return;
    if (url.field_data[UF_PATH].len >= HTTP_PATH_BYTES_MAX) return;
    memcpy(path, h->url.data + url.field_data[UF_PATH].off, url.field_data[UF_PATH].len);
    path[url.field_data[UF_PATH].len] = '\0';
}

static const char *status_text(int status)
{
    switch (status) {
    case 101: return "Switching Protocols";
    case 200: return "OK";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 426: return "Upgrade Required";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    default: return status >= 500 ? "Internal Server Error" : "Error";
    }
}

void http_head(struct wire *out, int status, const char *content_type, int64_t body_bytes, bool keep_alive)
{
    const time_t now = time(NULL);
    struct tm utc;
    char date[40] = "";

    if (gmtime_r(&now, &utc)) strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &utc); /* no locale is ever set: English names */
    wire_format(out, "HTTP/1.1 %d %s\r\nDate: %s\r\nServer: sluice\r\nX-Content-Type-Options: nosniff\r\n", status, status_text(status), date);
    if (content_type) wire_format(out, "Content-Type: %s\r\n", content_type);
    if (body_bytes >= 0) wire_format(out, "Content-Length: %lld\r\n", (long long)body_bytes);
    else if (body_bytes == HTTP_CHUNKED) wire_text(out, "Transfer-Encoding: chunked\r\n");
    wire_format(out, "Connection: %s\r\n", keep_alive ? "keep-alive" : "close");
}
