/* tests/unit/fetch_get_test.c - a URL with a name in it: resolved once, checked, and connected to as it was checked. A name server and a web server of the test's own. */
#include "stages/fetch/get.h"

#include "schemas/media.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#ifdef HAVE_CURL

#define BODY "\x89PNG, more or less"

static struct sockaddr_in dns_address, web_address;
static int dns_socket, web_socket;
static pthread_t dns_thread, web_thread;
static uint64_t asked_a, requests;    /* A records asked for; requests that came to the web server */
static char last_host[128];

static int bound(int type, struct sockaddr_in *address)
{
    socklen_t bytes = sizeof *address;
    const int s = socket(AF_INET, type, 0);

    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(s, (struct sockaddr *)address, sizeof *address) != 0 || getsockname(s, (struct sockaddr *)address, &bytes) != 0) abort();
    return s;
}

/* good.*, turn.*: here. mixed.*: here, and somewhere private. inside.*: private. turn.*: from the second question on private. Others do not exist. */
static void *serve_names(void *context)
{
    uint8_t q[512], a[512];
    struct sockaddr_in from;

    (void)context;
    for (;;) {
        socklen_t from_bytes = sizeof from;
        const ssize_t bytes = recvfrom(dns_socket, q, sizeof q, 0, (struct sockaddr *)&from, &from_bytes);
        if (bytes < 17) return NULL;
        size_t end = 12;
        while (q[end]) end += (size_t)q[end] + 1;
        const char *name = (const char *)q + 13;
        const bool v4 = q[end + 2] == 1, mixed = strncmp(name, "mixed", 5) == 0, inside = strncmp(name, "inside", 6) == 0, turn = strncmp(name, "turn", 4) == 0;
        if (v4) asked_a++;
        const unsigned count = !v4 ? 0 : mixed ? 2 : inside || turn || strncmp(name, "good", 4) == 0;
        size_t at = end + 5;
        memcpy(a, q, at);
        a[2] = 0x81;
        a[3] = 0x80;
        memset(a + 6, 0, 6);
        a[7] = (uint8_t)count;
        for (unsigned i = 0; i < count; i++, at += 16) {
            const bool private = inside || (mixed && i == 1) || (turn && asked_a > 1);
            const uint8_t record[16] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, private ? 10 : 127, 0, 0, 1};
            memcpy(a + at, record, sizeof record);
        }
        sendto(dns_socket, a, at, 0, (const struct sockaddr *)&from, from_bytes);
    }
}

/* "/turn": to another name; else the body. */
static void *serve_web(void *context)
{
    (void)context;
    for (;;) {
        char request[2048], answer[512];
        const int c = accept(web_socket, NULL, NULL);
        if (c < 0) return NULL;
        const ssize_t n = read(c, request, sizeof request - 1);
        if (n <= 0 || strncmp(request, "END", 3) == 0) {
            close(c);
            if (n > 0) return NULL;
            continue;
        }
        request[n] = '\0';
        const char *host = strstr(request, "Host: ");
        if (host) sscanf(host + 6, "%127s", last_host);
        requests++;
        if (strncmp(request, "GET /to?", 8) == 0) {
            char to[256] = "";
            sscanf(request + 8, "%255s", to);
            snprintf(answer, sizeof answer, "HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", to);
        } else snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n" BODY, strlen(BODY));
        if (write(c, answer, strlen(answer)) < 0) abort();
        close(c);
    }
}

static int start(void **state)
{
    (void)state;
    if (get_prepare() != 0) return -1;
    dns_socket = bound(SOCK_DGRAM, &dns_address);
    web_socket = bound(SOCK_STREAM, &web_address);
    if (listen(web_socket, 8) != 0) return -1;
    return pthread_create(&dns_thread, NULL, serve_names, NULL) || pthread_create(&web_thread, NULL, serve_web, NULL) ? -1 : 0;
}

static int stop(void **state)
{
    const int d = socket(AF_INET, SOCK_DGRAM, 0), w = socket(AF_INET, SOCK_STREAM, 0);

    (void)state;
    if (sendto(d, "x", 1, 0, (struct sockaddr *)&dns_address, sizeof dns_address) != 1 || connect(w, (struct sockaddr *)&web_address, sizeof web_address) != 0 || write(w, "END", 3) != 3) return -1;
    pthread_join(dns_thread, NULL);
    pthread_join(web_thread, NULL);
    close(d), close(w), close(dns_socket), close(web_socket);
    return 0;
}

/* Gets a URL; each %u in it is the web server's port. */
static void get(const char *format, struct get_result *r, char body[64])
{
    struct address_rules rules;
    struct resolver resolver;
    char url[256], list[64];
    const int fd = memfd_create("got", MFD_CLOEXEC);

    snprintf(list, sizeof list, "127.0.0.1:%u", ntohs(web_address.sin_port));
    assert_int_equal(address_rules_read(&rules, list), 0);
    const struct get_limits limits = {.bytes_max = 1 << 20, .total_ms = 5000, .rules = &rules};
    snprintf(url, sizeof url, format, ntohs(web_address.sin_port), ntohs(web_address.sin_port));
    asked_a = requests = 0;
    memset(body, 0, 64);
    assert_int_equal(resolver_open(&resolver, &dns_address), 0);
    get_url(&limits, &resolver, url, fd, r);
    assert_true(pread(fd, body, 63, 0) >= 0);
    resolver_close(&resolver);
    close(fd);
}

static void test_a_name_is_asked_for_once(void **state)
{
    struct get_result r;
    char body[64], host[64];

    (void)state;
    get("http://good.example:%u/a.png", &r, body);
    if (r.status != MEDIA_READY) fail_msg("%s", r.why);
    assert_string_equal(body, BODY);
    assert_int_equal(r.bytes, strlen(BODY));
    assert_int_equal(asked_a, 1);
    snprintf(host, sizeof host, "good.example:%u", ntohs(web_address.sin_port));
    assert_string_equal(last_host, host);
}

static void test_a_second_answer_leads_nowhere(void **state)
{
    struct get_result r;
    char body[64];

    (void)state;
    get("http://turn.example:%u/a.png", &r, body); /* the name server would answer otherwise now: nobody asks */
    assert_int_equal(r.status, MEDIA_READY);
    assert_int_equal(asked_a, 1);
    get("http://good.example:%u/to?http://turn.example:%u/a.png", &r, body); /* second question: private */
    assert_int_equal(r.status, MEDIA_BAD);
    assert_non_null(strstr(r.why, "turn.example has an address that is not public"));
    assert_int_equal(requests, 1);
}

static void test_private_names_are_refused(void **state)
{
    struct get_result r;
    char body[64];

    (void)state;
    get("http://inside.example:%u/", &r, body);
    assert_int_equal(r.status, MEDIA_BAD);
    assert_non_null(strstr(r.why, "inside.example has an address that is not public"));
    get("http://mixed.example:%u/", &r, body); /* one good address does not excuse the other */
    assert_int_equal(r.status, MEDIA_BAD);
    get("http://none.example:%u/", &r, body);
    assert_int_equal(r.status, MEDIA_BAD);
    assert_non_null(strstr(r.why, "no host none.example"));
    assert_int_equal(requests, 0);
}

static void test_redirects_by_name(void **state)
{
    struct get_result r;
    char body[64];

    (void)state;
    get("http://good.example:%u/to?http://good2.example:%u/a.png", &r, body);
    assert_int_equal(r.status, MEDIA_READY);
    assert_string_equal(body, BODY);
    assert_int_equal(requests, 2);
    get("https://good.example:%u/", &r, body); /* no certificates: nothing by https */
    assert_int_equal(r.status, MEDIA_FAILED);
    assert_int_equal(requests, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_name_is_asked_for_once),
        cmocka_unit_test(test_a_second_answer_leads_nowhere),
        cmocka_unit_test(test_private_names_are_refused),
        cmocka_unit_test(test_redirects_by_name),
    };

    return cmocka_run_group_tests(tests, start, stop);
}

#else

int main(void)
{
    puts("SKIP: built without libcurl");
    return 77;
}

#endif
