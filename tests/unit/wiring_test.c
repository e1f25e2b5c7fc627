/* tests/unit/wiring_test.c - shm/wiring: what the launcher sends arrives; what is not a message is refused and costs nothing. */
#include "shm/error.h"
#include "shm/wiring.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define MUTANTS 20000

static int sockets[2];
static struct wiring in, out;

static int set_up(void **state)
{
    (void)state;
    memset(&out, 0, sizeof out);
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets);
}

static int tear_down(void **state)
{
    (void)state;
    close(sockets[0]);
    close(sockets[1]);
    return 0;
}

static unsigned open_descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(d)) count++;
    closedir(d);
    return count;
}

static void close_received(void)
{
    for (unsigned i = 0; i < in.fd_count; i++) close(in.fd[i]);
    in.fd_count = 0;
}

static int receive(char type[32])
{
    return wiring_receive(sockets[1], false, type, &in);
}

/* Raw bytes, with `fds` descriptors beside them. */
static void send_raw(const void *bytes, size_t count, unsigned fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * 253)];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = count};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fds) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * fds);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * fds);
        for (unsigned i = 0; i < fds; i++) memcpy(CMSG_DATA(c) + i * sizeof(int), &sockets[0], sizeof(int));
    }
    assert_int_equal(sendmsg(sockets[0], &msg, 0), count);
}

/* The bytes that wiring_send makes of `out`. */
static size_t encoded(const char *type, uint8_t *bytes, size_t room)
{
    const unsigned fds = out.fd_count;

    assert_int_equal(wiring_send(sockets[0], type, &out), 0);
    const ssize_t got = recv(sockets[1], bytes, room, 0); /* descriptors that come along are dropped by the kernel */
    assert_true(got > 0);
    out.fd_count = fds;
    return (size_t)got;
}

static void fill(void)
{
    out.role = ROLE_VERIFY;
    wiring_set(&out, "model.name", "sluice-demo");
    wiring_setf(&out, "table.slots", "%u", 128);
    wiring_set(&out, "utf8", "\xc3\xa4\xf0\x9f\x9a\xb0");
    wiring_set(&out, "empty", "");
}

static void test_everything_arrives(void **state)
{
    (void)state;
    char type[32], text[6] = "";
    struct stat a, b;
    const int file = memfd_create("wiring-test", MFD_CLOEXEC), other = memfd_create("wiring-other", MFD_CLOEXEC);

    assert_int_equal(write(file, "hello", 5), 5);
    fill();
    wiring_add_fd(&out, "segment.verify", file);
    wiring_add_fd(&out, "file.config.json", other);
    assert_int_equal(wiring_send(sockets[0], "wiring", &out), 0);
    assert_int_equal(receive(type), 1);
    assert_string_equal(type, "wiring");
    assert_int_equal(in.role, ROLE_VERIFY);
    assert_int_equal(in.option_count, 4);
    assert_string_equal(wiring_text(&in, "model.name", "?"), "sluice-demo");
    assert_string_equal(wiring_text(&in, "utf8", "?"), "\xc3\xa4\xf0\x9f\x9a\xb0");
    assert_string_equal(wiring_text(&in, "empty", "?"), "");
    assert_string_equal(wiring_text(&in, "absent", "?"), "?");
    assert_int_equal(wiring_u64(&in, "table.slots", 1), 128);
    assert_int_equal(wiring_u64(&in, "model.name", 9), 9);
    assert_int_equal(wiring_u64(&in, "empty", 9), 9);
    assert_int_equal(in.fd_count, 2);
    assert_int_equal(wiring_fd(&in, "nothing"), -1);
    assert_int_equal(pread(wiring_fd(&in, "segment.verify"), text, 5, 0), 5);
    assert_string_equal(text, "hello");
    assert_int_equal(fstat(wiring_fd(&in, "file.config.json"), &a) | fstat(other, &b), 0);
    assert_int_equal(a.st_ino, b.st_ino);
    for (unsigned i = 0; i < in.fd_count; i++) assert_true(fcntl(in.fd[i], F_GETFD) & FD_CLOEXEC);
    close_received();
    close(file);
    close(other);
}

static void test_the_largest_message_arrives(void **state)
{
    (void)state;
    char type[32], name[WIRING_NAME_BYTES], value[WIRING_VALUE_BYTES];

    memset(value, 'v', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    for (unsigned i = 0; i < WIRING_OPTIONS_MAX; i++) {
        snprintf(name, sizeof name, "%03u%*s", i, (int)sizeof name - 4, "n");
        wiring_set(&out, name, value);
    }
    for (unsigned i = 0; i < WIRING_FDS_MAX; i++) wiring_add_fd(&out, name, sockets[0]);
    assert_int_equal(wiring_send(sockets[0], "wiring", &out), 0);
    assert_int_equal(receive(type), 1);
    assert_int_equal(in.option_count, WIRING_OPTIONS_MAX);
    assert_int_equal(in.fd_count, WIRING_FDS_MAX);
    assert_string_equal(in.option[127].value, value);
    assert_string_equal(in.fd_name[239], name);
    close_received();
}

static void test_a_bare_word_arrives(void **state)
{
    (void)state;
    char type[32];

    assert_int_equal(wiring_send(sockets[0], "ready", NULL), 0);
    assert_int_equal(receive(type), 1);
    assert_string_equal(type, "ready");
    assert_true(in.role < 0);
}

static void test_setting_twice_replaces(void **state)
{
    (void)state;
    wiring_set(&out, "a", "1");
    wiring_set(&out, "b", "2");
    wiring_set(&out, "a", "3");
    assert_int_equal(out.option_count, 2);
    assert_int_equal(wiring_u64(&out, "a", 0), 3);
}

static void test_numbers(void **state)
{
    (void)state;
    static const char *const not_numbers[] = {"", "-1", "+1", " 1", "1 ", "0x10", "1.5", "18446744073709551616", "eins"};

    for (unsigned i = 0; i < sizeof not_numbers / sizeof not_numbers[0]; i++) {
        wiring_set(&out, "n", not_numbers[i]);
        assert_int_equal(wiring_u64(&out, "n", 77), 77);
    }
    wiring_set(&out, "n", "18446744073709551615");
    assert_true(wiring_u64(&out, "n", 77) == UINT64_MAX);
}

static void test_nothing_and_nobody(void **state)
{
    (void)state;
    char type[32];

    assert_int_equal(receive(type), 0);
    send_raw("", 0, 3); /* an empty message, and descriptors to leak */
    const unsigned before = open_descriptors();
    assert_int_equal(receive(type), -E_PEER);
    assert_int_equal(open_descriptors(), before);
    close(sockets[0]);
    assert_int_equal(receive(type), -E_PEER);
    sockets[0] = dup(sockets[1]);
    assert_int_equal(wiring_send(sockets[1], "ready", NULL), -E_PEER);
    assert_int_equal(wiring_receive(-1, true, type, &in), -E_IO);
}

static void test_truncated_messages_are_refused(void **state)
{
    (void)state;
    uint8_t bytes[4096];
    char type[32];

    fill();
    const size_t count = encoded("wiring", bytes, sizeof bytes);
    for (size_t n = 1; n < count; n++) {
        send_raw(bytes, n, 0);
        assert_int_equal(receive(type), -E_FORMAT);
    }
}

static void test_too_much_is_refused(void **state)
{
    (void)state;
    char type[32], *bytes = malloc(WIRING_MESSAGE_BYTES + 1);
    const int room = 1 << 20;
    const unsigned before = open_descriptors();

    setsockopt(sockets[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    memset(bytes, 0x80, WIRING_MESSAGE_BYTES + 1);
    if (send(sockets[0], bytes, WIRING_MESSAGE_BYTES + 1, MSG_DONTWAIT) > 0) assert_int_equal(receive(type), -E_LIMIT); /* else the kernel refused it */
    free(bytes);
    static const unsigned counts[] = {WIRING_FDS_MAX + 1, WIRING_FDS_MAX + 9, 253};
    uint8_t message[256];
    const size_t message_bytes = encoded("wiring", message, sizeof message);
    for (unsigned i = 0; i < 3; i++) {
        send_raw(message, message_bytes, counts[i]);
        assert_true(receive(type) < 0);
        assert_int_equal(in.fd_count, 0);
        assert_int_equal(open_descriptors(), before);
    }
}

static void pack_text(msgpack_packer *pk, const char *text)
{
    msgpack_pack_str(pk, strlen(text));
    msgpack_pack_str_body(pk, text, strlen(text));
}

/* {"type": "wiring", "version": version, then `more`}; the answer to it. */
static int answer_to(uint32_t version, unsigned more_count, void (*more)(msgpack_packer *), unsigned fds)
{
    msgpack_sbuffer buffer;
    msgpack_packer pk;
    char type[32];

    msgpack_sbuffer_init(&buffer);
    msgpack_packer_init(&pk, &buffer, msgpack_sbuffer_write);
    msgpack_pack_map(&pk, 2 + more_count);
    pack_text(&pk, "type"), pack_text(&pk, "wiring");
    pack_text(&pk, "version"), msgpack_pack_uint32(&pk, version);
    if (more) more(&pk);
    send_raw(buffer.data, buffer.size, fds);
    msgpack_sbuffer_destroy(&buffer);
    const int rc = receive(type);
    close_received();
    return rc;
}

static void many_options(msgpack_packer *pk, unsigned count, char prefix)
{
    char name[32];

    pack_text(pk, "options");
    msgpack_pack_map(pk, count);
    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%c%u", prefix, i);
        pack_text(pk, name), pack_text(pk, "v");
    }
}

static void options_twice(msgpack_packer *pk) { many_options(pk, WIRING_OPTIONS_MAX, 'a'), many_options(pk, WIRING_OPTIONS_MAX, 'b'); }
static void options_too_many(msgpack_packer *pk) { many_options(pk, WIRING_OPTIONS_MAX + 1, 'a'); }
static void options_no_map(msgpack_packer *pk) { pack_text(pk, "options"), msgpack_pack_nil(pk); }
static void option_no_text(msgpack_packer *pk) { pack_text(pk, "options"), msgpack_pack_map(pk, 1), pack_text(pk, "n"), msgpack_pack_int(pk, 1); }
static void names_too_few(msgpack_packer *pk) { pack_text(pk, "descriptors"), msgpack_pack_array(pk, 1), pack_text(pk, "a"); }
static void names_too_many(msgpack_packer *pk) { pack_text(pk, "descriptors"), msgpack_pack_array(pk, 3), pack_text(pk, "a"), pack_text(pk, "b"), pack_text(pk, "c"); }
static void role_number(msgpack_packer *pk) { pack_text(pk, "role"), msgpack_pack_int(pk, 3); }
static void unknown_key(msgpack_packer *pk) { pack_text(pk, "colour"), pack_text(pk, "blue"); }

static void long_name(msgpack_packer *pk)
{
    char name[WIRING_NAME_BYTES + 1];

    memset(name, 'n', WIRING_NAME_BYTES);
    name[WIRING_NAME_BYTES] = '\0';
    pack_text(pk, "options"), msgpack_pack_map(pk, 1), pack_text(pk, name), pack_text(pk, "v");
}

static void deep(msgpack_packer *pk)
{
    pack_text(pk, "colour");
    for (int i = 0; i < 10000; i++) msgpack_pack_array(pk, 1);
    msgpack_pack_nil(pk);
}

static void huge_count(msgpack_packer *pk)
{
    pack_text(pk, "descriptors");
    msgpack_pack_array(pk, 0x0fffffff);
}

static void test_wrong_shapes_are_refused(void **state)
{
    (void)state;
    const unsigned before = open_descriptors();

    assert_int_equal(answer_to(WIRING_VERSION, 0, NULL, 0), 1);
    assert_int_equal(answer_to(WIRING_VERSION, 1, unknown_key, 0), 1); /* a later version may say more */
    assert_int_equal(answer_to(WIRING_VERSION + 1, 0, NULL, 0), -E_VERSION);
    assert_int_equal(answer_to(0, 0, NULL, 0), -E_VERSION);
    assert_int_equal(answer_to(WIRING_VERSION, 2, options_twice, 0), -E_FORMAT);
    assert_int_equal(answer_to(WIRING_VERSION, 1, options_too_many, 0), -E_FORMAT);
    assert_int_equal(answer_to(WIRING_VERSION, 1, options_no_map, 0), -E_FORMAT);
    assert_int_equal(answer_to(WIRING_VERSION, 1, option_no_text, 0), -E_FORMAT);
    assert_int_equal(answer_to(WIRING_VERSION, 1, long_name, 0), -E_FORMAT);
    assert_int_equal(answer_to(WIRING_VERSION, 1, names_too_few, 2), -E_FORMAT);
    assert_int_equal(answer_to(WIRING_VERSION, 1, names_too_many, 2), -E_FORMAT);
    assert_int_equal(answer_to(WIRING_VERSION, 0, NULL, 2), -E_FORMAT); /* descriptors without a name */
    assert_int_equal(answer_to(WIRING_VERSION, 1, role_number, 0), -E_FORMAT);
    assert_int_equal(answer_to(WIRING_VERSION, 1, deep, 0), -E_FORMAT);
    assert_int_equal(answer_to(WIRING_VERSION, 1, huge_count, 0), -E_FORMAT);
    assert_int_equal(open_descriptors(), before);
}

static void test_random_damage_is_survived(void **state)
{
    (void)state;
    uint8_t bytes[1024], mutant[1024];
    uint32_t seed = 12345;
    char type[32];
    const unsigned before = open_descriptors();

    fill();
    wiring_add_fd(&out, "segment.verify", sockets[0]);
    wiring_add_fd(&out, "arena.kv", sockets[0]);
    const size_t count = encoded("wiring", bytes, sizeof bytes);
    for (unsigned i = 0; i < MUTANTS; i++) {
        memcpy(mutant, bytes, count);
        for (unsigned n = 1 + i % 4; n > 0; n--) {
            seed = seed * 1664525u + 1013904223u;
            mutant[(seed >> 8) % count] = i & 1 ? (uint8_t)(seed >> 24) : mutant[(seed >> 8) % count] ^ (uint8_t)(1u << (seed >> 29));
        }
        send_raw(mutant, count - (i % 7 == 0 ? seed % 16 : 0), 2);
        const int rc = receive(type);
        assert_true(rc == 1 || rc == -E_FORMAT || rc == -E_VERSION);
        assert_true(rc == 1 || in.fd_count == 0);
        close_received();
    }
    assert_int_equal(open_descriptors(), before);
}

const char *__asan_default_options(void); /* msgpack asks for absurd amounts on absurd input, and must be told no */
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_everything_arrives), TEST(test_the_largest_message_arrives), TEST(test_a_bare_word_arrives), TEST(test_setting_twice_replaces),
        TEST(test_numbers), TEST(test_nothing_and_nobody), TEST(test_truncated_messages_are_refused), TEST(test_too_much_is_refused),
        TEST(test_wrong_shapes_are_refused), TEST(test_random_damage_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
