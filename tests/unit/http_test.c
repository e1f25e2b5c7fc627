/* tests/unit/http_test.c - requests in any pieces, and those that must be refused. */
#include "schemas/http.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Feeds text in pieces of `step` bytes; stops at the first progress that is not "more". */
static enum http_progress feed(struct http_reader *h, const char *text, size_t bytes, size_t step, size_t *used)
{
    enum http_progress p = HTTP_MORE;

    *used = 0;
    while (*used < bytes && (p == HTTP_MORE || p == HTTP_HEAD_DONE)) {
        const size_t n = bytes - *used < step ? bytes - *used : step;
        size_t taken;
        p = http_feed(h, text + *used, n, &taken);
        *used += taken;
    }
    return p;
}

static void test_pieces_of_any_size_give_the_same_request(void **state)
{
    static const char text[] = "POST /v1/responses?x=1 HTTP/1.1\r\nHost: a\r\nX-Two:  words here \r\nTransfer-Encoding: Chunked \r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nHost: evil\r\n\r\n";

    (void)state;
    for (size_t step = 1; step < sizeof text; step++) {
        struct http_reader h;
        char path[HTTP_PATH_BYTES_MAX];
        size_t used;
        http_init(&h, 100);
        assert_int_equal(feed(&h, text, sizeof text - 1, step, &used), HTTP_MESSAGE);
        http_path(&h, path);
        assert_string_equal(path, "/v1/responses");
        assert_string_equal(http_header(&h, "host"), "a"); /* trailers are not believed */
        assert_null(strstr(http_header(&h, "x-two"), "\r"));
        assert_int_equal(h.body.bytes, 5);
        assert_memory_equal(h.body.data, "abcde", 5);
        assert_true(h.keep_alive);
        http_free(&h);
    }
}

static void test_pipelined_requests_wait_their_turn(void **state)
{
    static const char text[] = "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    struct http_reader h;
    char path[HTTP_PATH_BYTES_MAX];
    size_t first, second;

    (void)state;
    http_init(&h, 100);
    assert_int_equal(feed(&h, text, sizeof text - 1, sizeof text, &first), HTTP_MESSAGE);
    http_path(&h, path);
    assert_string_equal(path, "/a");
    http_next(&h);
    assert_int_equal(feed(&h, text + first, sizeof text - 1 - first, sizeof text, &second), HTTP_MESSAGE);
    http_path(&h, path);
    assert_string_equal(path, "/b");
    assert_false(h.keep_alive);
    http_free(&h);
}

static void test_what_is_wrong_is_refused(void **state)
{
    static const struct { const char *text; int status; } cases[] = {
        {"GET / HTTP/1.1\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n", 413},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345", 413},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\nabc\rX0\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nab", 415},
        {"POST / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\nContent-Length: 2\r\n\r\nab", 417},
        {"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405},
        {"NONSENSE\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc", 400},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t step = 1; step < 200; step += 3) {
            struct http_reader h;
            size_t used;
            http_init(&h, 100);
            assert_int_equal(feed(&h, cases[i].text, strlen(cases[i].text), step, &used), HTTP_REFUSED);
            assert_int_equal(h.fault.status, cases[i].status);
            http_free(&h);
        }
    }
}

static void test_heads_are_bounded(void **state)
{
    static char text[40000];
    struct http_reader h;
    size_t used;

    (void)state;
    strcpy(text, "GET / HTTP/1.1\r\nHost: a\r\nX: ");
    memset(text + strlen(text), 'y', 20000);
    http_parser_set_max_header_size(2 * HTTP_HEAD_BYTES_MAX);
    http_init(&h, 100);
    assert_int_equal(feed(&h, text, strlen(text), 1000, &used), HTTP_REFUSED);
    assert_int_equal(h.fault.status, 431);
    http_free(&h);
    memset(text, 'y', 5000);
    memcpy(text, "GET /", 5);
    strcpy(text + 5000, " HTTP/1.1\r\nHost: a\r\n\r\n");
    http_init(&h, 100);
    assert_int_equal(feed(&h, text, strlen(text), 1000, &used), HTTP_REFUSED);
    assert_int_equal(h.fault.status, 414);
    http_free(&h);
    strcpy(text, "GET / HTTP/1.1\r\nHost: a\r\n");
    for (int i = 0; i < 200; i++) strcat(text, "A: b\r\n");
    http_init(&h, 100);
    assert_int_equal(feed(&h, text, strlen(text), 1000, &used), HTTP_REFUSED);
    assert_int_equal(h.fault.status, 431);
    http_free(&h);
}

static void test_continue_is_asked_for_once(void **state)
{
    static const char head[] = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    struct http_reader h;
    size_t taken;

    (void)state;
    http_init(&h, 100);
    assert_int_equal(http_feed(&h, head, sizeof head - 1, &taken), HTTP_HEAD_DONE);
    assert_int_equal(http_feed(&h, "ab", 2, &taken), HTTP_MORE);
    assert_int_equal(http_feed(&h, "c", 1, &taken), HTTP_MESSAGE);
    http_free(&h);
}

static void test_another_upgrade_is_plain_http(void **state)
{
    static const char text[] = "POST /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi";
    struct http_reader h;
    size_t used;

    (void)state;
    http_init(&h, 100);
    assert_int_equal(feed(&h, text, sizeof text - 1, 1000, &used), HTTP_MESSAGE);
    assert_int_equal(h.body.bytes, 2);
    http_free(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_of_any_size_give_the_same_request), cmocka_unit_test(test_pipelined_requests_wait_their_turn),
        cmocka_unit_test(test_what_is_wrong_is_refused), cmocka_unit_test(test_heads_are_bounded), cmocka_unit_test(test_continue_is_asked_for_once),
        cmocka_unit_test(test_another_upgrade_is_plain_http),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
