/* tests/unit/fetch_test.c - the fetcher connects to nothing but public addresses; names become addresses by DNS alone; messages carry descriptors. */
#include "stages/fetch/address.h"
#include "stages/fetch/cell.h"
#include "stages/fetch/resolve.h"

#include "schemas/fetch.h"
#include "shm/error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct sockaddr_storage at(const char *text, uint16_t port)
{
    struct sockaddr_storage a;

    if (address_parse(text, port, &a) != 0) fail_msg("%s", text);
    return a;
}

static void test_public_addresses(void **state)
{
    static const char *const public[] = {"1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "192.167.1.1", "198.17.255.255", "198.20.0.0", "223.255.255.255",
                                         "2606:4700::1111", "2a00:1450::5", "2001:200::1", "2400::1"};
    static const char *const other[] = {"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1", "127.255.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8",
                                        "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
                                        "::", "::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2001:10::1", "2001:1ff::1", "2002:808:808::1", "3fff::1", "fc00::1",
                                        "fd12:3456::1", "fe80::1", "fec0::1", "ff02::1", "5f00::1"};

    (void)state;
    for (size_t i = 0; i < sizeof public / sizeof *public; i++) {
        const struct sockaddr_storage a = at(public[i], 80);
        if (!address_is_public((const struct sockaddr *)&a)) fail_msg("%s is public", public[i]);
    }
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        const struct sockaddr_storage a = at(other[i], 80);
        if (address_is_public((const struct sockaddr *)&a)) fail_msg("%s is not public", other[i]);
    }
}

static void test_rules(void **state)
{
    static const char *const bad[] = {"127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:70000", "localhost:80", "127.0.0.1:80x", "[::1:80", "::1]:80", "a,b"};
    struct address_rules rules;
    struct sockaddr_storage a;

    (void)state;
    assert_int_equal(address_rules_read(&rules, ""), 0);
    assert_int_equal(rules.count, 0);
    a = at("127.0.0.1", 80);
    assert_false(address_may_connect(&rules, (const struct sockaddr *)&a));
    a = at("8.8.8.8", 443);
    assert_true(address_may_connect(&rules, (const struct sockaddr *)&a));
    a = at("8.8.8.8", 22);
    assert_false(address_may_connect(&rules, (const struct sockaddr *)&a));
    assert_int_equal(address_rules_read(&rules, "127.0.0.1:8080,[::1]:81"), 0);
    assert_int_equal(rules.count, 2);
    a = at("127.0.0.1", 8080);
    assert_true(address_may_connect(&rules, (const struct sockaddr *)&a));
    a = at("127.0.0.1", 8081);
    assert_false(address_may_connect(&rules, (const struct sockaddr *)&a));
    a = at("127.0.0.2", 8080);
    assert_false(address_may_connect(&rules, (const struct sockaddr *)&a));
    a = at("::1", 81);
    assert_true(address_may_connect(&rules, (const struct sockaddr *)&a));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (address_rules_read(&rules, bad[i]) != -E_FORMAT) fail_msg("%s was taken", bad[i]);
}

/* ---- a name server of our own ---------------------------------------------------------- */

struct name_server {
    int socket;
    struct sockaddr_in address;
};

/* Answers by the first label: two.* has two A records and an AAAA, none.* does not exist, silent.* gets no answer, liar.* gets a record of another type and a cut one. */
static void *serve_names(void *context)
{
    const struct name_server *n = context;
    uint8_t q[512], a[512];
    struct sockaddr_in from;

    for (;;) {
        socklen_t from_bytes = sizeof from;
        const ssize_t bytes = recvfrom(n->socket, q, sizeof q, 0, (struct sockaddr *)&from, &from_bytes);
        if (bytes < 17) return NULL;
        size_t end = 12;
        while (q[end]) end += (size_t)q[end] + 1;
        const bool v6 = q[end + 2] == 28;
        const char *name = (const char *)q + 13;
        if (strncmp(name, "end", 3) == 0) return NULL;
        if (strncmp(name, "silent", 6) == 0) continue;
        memcpy(a, q, end + 5);
        a[2] = 0x81;
        a[3] = strncmp(name, "none", 4) == 0 ? 0x83 : 0x80;
        memset(a + 6, 0, 6);
        size_t at_byte = end + 5;
        const unsigned count = strncmp(name, "two", 3) == 0 ? (v6 ? 1 : 2) : strncmp(name, "liar", 4) == 0 ? 1 : 0;
        a[7] = (uint8_t)count;
        for (unsigned i = 0; i < count; i++) {
            const uint8_t head[12] = {0xc0, 12, 0, v6 ? 28 : 1, 0, 1, 0, 0, 0, 60, 0, v6 ? 16 : 4};
            memcpy(a + at_byte, head, 12);
            memset(a + at_byte + 12, 0, 16);
            a[at_byte + 12] = v6 ? 0x26 : 10;
            a[at_byte + 15] = (uint8_t)(i + 1);
            at_byte += 12 + (v6 ? 16 : 4);
        }
        if (strncmp(name, "liar", 4) == 0) at_byte -= 3;
        sendto(n->socket, a, at_byte, 0, (const struct sockaddr *)&from, from_bytes);
    }
}

static void test_names(void **state)
{
    struct name_server n = {.address = {.sin_family = AF_INET}};
    struct sockaddr_storage found[RESOLVE_MAX];
    socklen_t bytes = sizeof n.address;
    struct resolver r;
    pthread_t thread;
    char text[64];

    (void)state;
    n.address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    n.socket = socket(AF_INET, SOCK_DGRAM, 0);
    assert_int_equal(bind(n.socket, (struct sockaddr *)&n.address, sizeof n.address), 0);
    assert_int_equal(getsockname(n.socket, (struct sockaddr *)&n.address, &bytes), 0);
    assert_int_equal(pthread_create(&thread, NULL, serve_names, &n), 0);
    assert_int_equal(resolver_open(&r, &n.address), 0);
    assert_int_equal(resolver_find(&r, "two.example", 443, found), 3);
    assert_string_equal(inet_ntop(AF_INET, &((struct sockaddr_in *)&found[1])->sin_addr, text, sizeof text), "10.0.0.2");
    assert_int_equal(address_port((struct sockaddr *)&found[1]), 443);
    assert_string_equal(inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&found[2])->sin6_addr, text, sizeof text), "2600:1::");
    assert_int_equal(resolver_find(&r, "none.example", 80, found), -E_NOT_FOUND);
    assert_int_equal(resolver_find(&r, "empty.example", 80, found), -E_NOT_FOUND);
    assert_int_equal(resolver_find(&r, "liar.example", 80, found), -E_NOT_FOUND);
    r.state.retrans = 1;
    r.state.retry = 1;
    assert_int_equal(resolver_find(&r, "silent.example", 80, found), -E_TIMEOUT);
    resolver_find(&r, "end.example", 80, found);
    pthread_join(thread, NULL);
    resolver_close(&r);
    close(n.socket);
}

/* ---- the cell -------------------------------------------------------------------------------- */

static int in_cell(void (*what)(int out), char *said, size_t bytes)
{
    int pair[2], file = memfd_create("x", MFD_CLOEXEC), status;
    const pid_t parent = getpid();

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        cell_enter((const int[2]){pair[1], file}, 1000, parent);
        what(pair[1]);
    }
    close(pair[1]);
    const ssize_t n = read(pair[0], said, bytes - 1);
    said[n > 0 ? n : 0] = '\0';
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(pair[0]);
    close(file);
    return status;
}

static void only_files(int out)
{
    char said[4] = "...";

    if (open("/etc/passwd", O_RDONLY) >= 0) said[0] = '!';
    if (socket(AF_UNIX, SOCK_STREAM, 0) >= 0) said[1] = '!';
    if (socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) >= 0) said[2] = '!';
    if (write(out, said, 3) != 3) _exit(2);
    _exit(0);
}
static void raw_socket(int out) { (void)out; socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); _exit(0); }
static void run_program(int out) { (void)out; execl("/bin/true", "true", (char *)NULL); _exit(0); }
static void listen_there(int out) { (void)out; listen(socket(AF_INET, SOCK_STREAM, 0), 1); _exit(0); }
static void signal_others(int out) { (void)out; kill(getppid(), 0); _exit(0); }

static void test_the_cell(void **state)
{
    static void (*const deadly[])(int) = {raw_socket, run_program, listen_there, signal_others};
    char said[16];

    (void)state;
    assert_int_equal(cell_prepare(), 0);
    assert_int_equal(in_cell(only_files, said, sizeof said), 0);
    assert_string_equal(said, "..!");
    for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++) {
        const int status = in_cell(deadly[i], said, sizeof said);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS) fail_msg("attempt %zu was not stopped: status %x", i, status);
    }
}

static void test_messages(void **state)
{
    struct fetch_answer a = {.id = 7, .what = FETCH_DONE, .bytes = 5}, b;
    int pair[2], fd, other;
    char text[8] = "";

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    assert_int_equal(fetch_receive(pair[1], &b, sizeof b, &fd), 0);
    fd = memfd_create("x", MFD_CLOEXEC);
    assert_int_equal(write(fd, "hello", 5), 5);
    assert_int_equal(fetch_send(pair[0], &a, sizeof a, fd), 0);
    assert_int_equal(fetch_receive(pair[1], &b, sizeof b, &other), 1);
    assert_memory_equal(&a, &b, sizeof a);
    assert_int_equal(pread(other, text, 5, 0), 5);
    assert_string_equal(text, "hello");
    close(other);
    assert_int_equal(fetch_send(pair[0], &a, 10, fd), 0); /* too short: dropped, with its descriptor */
    assert_int_equal(fetch_receive(pair[1], &b, sizeof b, &other), -E_FORMAT);
    assert_int_equal(other, -1);
    int rc = 0;
    for (int i = 0; i < 10000 && rc == 0; i++) rc = fetch_send(pair[0], &a, sizeof a, -1);
    assert_int_equal(rc, -E_FULL);
    close(pair[1]);
    assert_int_equal(fetch_send(pair[0], &a, sizeof a, -1), -E_IO);
    close(pair[0]);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_public_addresses), cmocka_unit_test(test_rules), cmocka_unit_test(test_names), cmocka_unit_test(test_the_cell), cmocka_unit_test(test_messages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
