/* tests/fuzz/http_fuzz.c - bytes of a connection, in pieces that the first byte chooses, through the HTTP reader. */
#include "schemas/http.h"
#include "schemas/websocket.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct http_reader h;
    char path[HTTP_PATH_BYTES_MAX], accept[WEBSOCKET_ACCEPT_BYTES];
    struct fault f;

    if (bytes == 0) return 0;
    const size_t step = data[0] % 64 + 1u;
    size_t at = 1, taken;
    http_init(&h, 4096);
    while (at < bytes) {
        const enum http_progress p = http_feed(&h, (const char *)data + at, bytes - at < step ? bytes - at : step, &taken);
        if (taken > bytes - at) abort();
        at += taken;
        if (h.body.bytes > 4096 || h.head.bytes > 3 * HTTP_HEAD_BYTES_MAX) abort();
        if (p == HTTP_REFUSED) break;
        if (p != HTTP_MESSAGE && p != HTTP_UPGRADE) continue;
        http_path(&h, path);
        (void)http_header(&h, "host");
        (void)http_has_token(&h, "connection", "close");
        if (p == HTTP_UPGRADE) {
            (void)websocket_check(&h, accept, &f);
            break;
        }
        http_next(&h);
    }
    http_free(&h);
    return 0;
}
