/* tests/fuzz/websocket_fuzz.c - bytes after the handshake. Each message must be within its limit; memory stays bounded. */
#include "schemas/websocket.h"

#include <stdlib.h>

#define MESSAGE_BYTES_MAX 512u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void on_text(void *context, const char *text, size_t bytes)
{
    struct websocket *w = context;

    if (bytes > MESSAGE_BYTES_MAX) abort();
    for (size_t at = 0, n; at < bytes; at += n)
        if ((n = wire_character((const uint8_t *)text + at, bytes - at)) == 0) abort(); /* only UTF-8 gets here */
    websocket_text(w, text, bytes); /* answering inside the callback is what the gateway does */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct websocket w;

    if (bytes == 0) return 0;
    const size_t step = data[0] % 32 + 1u;
    if (websocket_open(&w, MESSAGE_BYTES_MAX, &w) != 0) return 0;
    w.on_text = on_text;
    for (size_t at = 1; at < bytes && !websocket_is_over(&w); at += step) {
        websocket_feed(&w, data + at, bytes - at < step ? bytes - at : step, 1);
        if (w.out.bytes > 65536) wire_clear(&w.out);
    }
    websocket_free(&w);
    return 0;
}
