/* schemas/http.h - HTTP/1.1 requests from the network, and the heads of answers.
 *
 * One struct http_reader per connection; it is fed bytes as they come and stops after
 * each message, so that pipelined requests wait. Framing is http-parser's (strict: no
 * request with both Content-Length and chunked), but for what it passes over: the end of
 * a chunk, and transfer codings besides chunked. On top of that, limits: head bytes,
 * number of headers, target and body bytes, one Host, known methods, nothing compressed.
 * After a fault the connection must be closed: where the next request begins is unknown. */
#ifndef SLUICE_SCHEMAS_HTTP_H
#define SLUICE_SCHEMAS_HTTP_H

#include "schemas/fault.h"

#include <http_parser.h>
#include <stdbool.h>

#define HTTP_HEAD_BYTES_MAX 16384u
#define HTTP_HEADERS_MAX 100u
#define HTTP_PATH_BYTES_MAX 4096u /* and of the whole target, with its query */

enum http_progress { HTTP_MORE = 0, HTTP_HEAD_DONE, HTTP_MESSAGE, HTTP_UPGRADE, HTTP_REFUSED };

struct http_header { uint32_t name, value; }; /* offsets into head.data */

struct http_reader {
    http_parser parser;
    size_t body_bytes_max;
    struct wire head;  /* owned: names and values, each with a NUL behind it; names in lower case */
    struct wire body;  /* owned */
    struct wire url;   /* owned */
    struct http_header header[HTTP_HEADERS_MAX];
    uint32_t header_count;
    uint32_t head_bytes;
    const char *fed_end;    /* of what http_feed was given; borrowed while it runs */
    uint32_t chunk_end_left; /* bytes of the CRLF behind a chunk that have not been seen */
    bool in_value, expects_continue, complete, keep_alive, upgrade;
    bool head_done;    /* reported by http_feed once */
    struct fault fault;
};

void http_init(struct http_reader *h, size_t body_bytes_max);
void http_free(struct http_reader *h);

/* Feeds bytes; *taken tells how many were used. HTTP_MORE: wait for more; HTTP_HEAD_DONE: the client waits for
 * "100 Continue" before it sends the body; HTTP_MESSAGE: a whole request; HTTP_UPGRADE: a whole request that asks for
 * a WebSocket; HTTP_REFUSED: h->fault. */
enum http_progress http_feed(struct http_reader *h, const char *data, size_t bytes, size_t *taken);

/* Ready for the next request of the same connection. */
void http_next(struct http_reader *h);

/* A header by its lower-case name, or NULL; borrowed until http_next. */
const char *http_header(const struct http_reader *h, const char *name);
/* Does a comma-separated header hold this word (any case)? */
bool http_has_token(const struct http_reader *h, const char *name, const char *word);
/* The path without query, NUL-terminated; "" when it is no path. */
void http_path(const struct http_reader *h, char path[HTTP_PATH_BYTES_MAX]);

/* Status line and common headers, up to and without the empty line. body_bytes: how long the body is, or one of these. */
enum http_body { HTTP_CHUNKED = -1, HTTP_UNTIL_CLOSE = -2, HTTP_NO_BODY = -3 };
void http_head(struct wire *out, int status, const char *content_type, int64_t body_bytes, bool keep_alive);

#endif
