/* tests/unit/websocket_test.c - handshake, frames, and the limits the framing library does not have. */
#include "schemas/websocket.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct seen { int count; size_t bytes; char last[256]; };

static void on_text(void *context, const char *text, size_t bytes)
{
    struct seen *s = context;

    s->count++;
    s->bytes = bytes;
    memcpy(s->last, text, bytes < 255 ? bytes : 255);
    s->last[bytes < 255 ? bytes : 255] = '\0';
}

static void open_ws(struct websocket *w, struct seen *s, size_t max)
{
    memset(s, 0, sizeof *s);
    assert_int_equal(websocket_open(w, max, s), 0);
    w->on_text = on_text;
}

/* A client's frame, masked with zeros so that the payload reads as it is. */
static void frame(struct websocket *w, int fin, int opcode, const char *payload, size_t bytes)
{
    struct wire f = {0};
    const char head[2] = {(char)(fin << 7 | opcode), (char)(0x80 | (bytes < 126 ? bytes : 126))};
    const char more[2] = {(char)(bytes >> 8), (char)bytes};

    wire_add(&f, head, 2);
    if (bytes >= 126) wire_add(&f, more, 2);
    wire_add(&f, "\0\0\0\0", 4);
    wire_add(&f, payload, bytes);
    websocket_feed(w, f.data, f.bytes, 1000000000);
    wire_free(&f);
}

/* The code of the close frame at the end of what was sent, 0 without one. */
static int close_code(const struct websocket *w)
{
    for (size_t i = 0; i + 3 < w->out.bytes; i++)
        if ((uint8_t)w->out.data[i] == 0x88) return (uint8_t)w->out.data[i + 2] << 8 | (uint8_t)w->out.data[i + 3];
    return 0;
}

static void test_the_handshake_answers_as_the_standard_says(void **state)
{
    static const char text[] = "GET /v1/responses HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
                               "Sec-WebSocket-Version: %s\r\nSec-WebSocket-Key: %s\r\n\r\n";
    static const struct { const char *version, *key; int status; } cases[] = {
        {"13", "dGhlIHNhbXBsZSBub25jZQ==", 0}, {"8", "dGhlIHNhbXBsZSBub25jZQ==", 426}, {"13", "short", 400}, {"13", "dGhlIHNhbXBsZSBub25jZQ=!", 400}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char request[512], accept[WEBSOCKET_ACCEPT_BYTES];
        struct http_reader h;
        struct fault f = {0};
        size_t taken;
        http_init(&h, 100);
        snprintf(request, sizeof request, text, cases[i].version, cases[i].key);
        assert_int_equal(http_feed(&h, request, strlen(request), &taken), HTTP_UPGRADE);
        const int rc = websocket_check(&h, accept, &f);
        assert_int_equal(f.status, cases[i].status);
        if (rc == 0) assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="); /* RFC 6455, section 1.3 */
        http_free(&h);
    }
}

static void test_a_message_in_fragments_arrives_whole(void **state)
{
    struct websocket w;
    struct seen s;

    (void)state;
    open_ws(&w, &s, 1000);
    frame(&w, 0, 1, "he", 2);
    frame(&w, 1, 9, "p", 1); /* a ping in between is answered at once */
    assert_true(w.out.bytes > 0 && (uint8_t)w.out.data[0] == 0x8a);
    frame(&w, 0, 0, "ll", 2);
    frame(&w, 1, 0, "o", 1);
    assert_int_equal(s.count, 1);
    assert_string_equal(s.last, "hello");
    websocket_free(&w);
}

static void test_faults_close_with_their_code(void **state)
{
    static char big[2000];
    struct websocket w;
    struct seen s;

    (void)state;
    memset(big, 'a', sizeof big);
    open_ws(&w, &s, 1000);
    frame(&w, 1, 1, big, 1001);
    assert_int_equal(close_code(&w), 1009);
    websocket_free(&w);
    open_ws(&w, &s, 1000);
    frame(&w, 1, 1, "\xff", 1);
    assert_int_equal(close_code(&w), 1007);
    websocket_free(&w);
    open_ws(&w, &s, 1000);
    frame(&w, 1, 2, "x", 1);
    assert_int_equal(close_code(&w), 1003);
    websocket_free(&w);
    open_ws(&w, &s, 1000);
    frame(&w, 0, 9, "x", 1); /* a ping in pieces */
    assert_int_equal(close_code(&w), 1002);
    websocket_free(&w);
    open_ws(&w, &s, 1000);
    frame(&w, 1, 8, "x", 1); /* half a close code */
    assert_int_equal(close_code(&w), 1002);
    assert_int_equal(s.count, 0);
    websocket_free(&w);
}

static void test_fragments_are_counted(void **state)
{
    struct websocket w;
    struct seen s;

    (void)state;
    open_ws(&w, &s, 100000);
    frame(&w, 0, 1, "", 0);
    for (unsigned i = 0; i < WEBSOCKET_FRAGMENTS_MAX + 10 && !websocket_is_over(&w); i++) frame(&w, 0, 0, "", 0); /* empty: no byte limit would see them */
    assert_int_equal(close_code(&w), 1008);
    websocket_free(&w);
}

static void test_control_frames_are_counted(void **state)
{
    struct websocket w;
    struct seen s;

    (void)state;
    open_ws(&w, &s, 1000);
    for (unsigned i = 0; i < WEBSOCKET_CONTROLS_MAX + 1; i++) {
        wire_clear(&w.out);
        frame(&w, 1, 10, "", 0);
    }
    assert_int_equal(close_code(&w), 1008);
    websocket_free(&w);
}

static void test_nothing_is_sent_after_a_close(void **state)
{
    struct websocket w;
    struct seen s;

    (void)state;
    open_ws(&w, &s, 1000);
    websocket_close(&w, WEBSOCKET_RESTART, "bye");
    const size_t bytes = w.out.bytes;
    websocket_text(&w, "x", 1);
    websocket_ping(&w);
    frame(&w, 1, 1, "hello", 5);
    assert_int_equal(w.out.bytes, bytes);
    assert_int_equal(s.count, 0);
    websocket_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_handshake_answers_as_the_standard_says), cmocka_unit_test(test_a_message_in_fragments_arrives_whole),
        cmocka_unit_test(test_faults_close_with_their_code), cmocka_unit_test(test_fragments_are_counted), cmocka_unit_test(test_control_frames_are_counted),
        cmocka_unit_test(test_nothing_is_sent_after_a_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
