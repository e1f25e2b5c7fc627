/* tests/unit/segments_test.c - launcher/segments: a role's segment is what its header says, cannot be resized, and only its
 * owner's descriptor can write it. */
#include "launcher/server.h"
#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLOTS 4u
#define STRIDE 8192u

static struct server *server;
static char err[512];

static int set_up(void **state)
{
    (void)state;
    server = calloc(1, sizeof *server);
    for (int role = 0; role < ROLE_COUNT; role++) server->segment_fd[role] = server->segment_ro_fd[role] = -1;
    return 0;
}

static int tear_down(void **state)
{
    struct stat st;

    (void)state;
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (server->segment_fd[role] < 0) continue;
        fstat(server->segment_fd[role], &st);
        munmap(server->segment[role], (size_t)st.st_size);
        close(server->segment_fd[role]);
        close(server->segment_ro_fd[role]);
    }
    free(server);
    return 0;
}

static uint64_t create(int role, uint64_t board_bytes)
{
    struct stat st;

    assert_int_equal(segment_create(server, role, STRIDE, SLOTS, board_bytes, err, sizeof err), 0);
    assert_int_equal(fstat(server->segment_fd[role], &st), 0);
    return (uint64_t)st.st_size;
}

static void test_the_header_tells_the_layout(void **state)
{
    (void)state;
    for (int role = 0; role < ROLE_COUNT; role++) {
        const uint64_t board = role == ROLE_LAUNCHER ? LAUNCHER_BOARD_BYTES : 0, bytes = create(role, board);
        const struct segment_hdr *h = (const struct segment_hdr *)server->segment[role];
        assert_true(h->magic == SEGMENT_MAGIC);
        assert_int_equal(h->version, LAYOUT_VERSION);
        assert_int_equal(h->role, role);
        assert_int_equal(h->bytes, bytes);
        assert_int_equal(h->slots_offset, segment_slots_offset(role));
        assert_int_equal(h->slot_stride, STRIDE);
        assert_int_equal(h->slot_count, SLOTS);
        assert_int_equal(bytes, h->slots_offset + board + STRIDE * SLOTS);
        assert_ptr_equal(server->table.base[role], server->segment[role] + h->slots_offset + board);
    }
}

static void test_nobody_can_resize_it(void **state)
{
    (void)state;
    const uint64_t bytes = create(ROLE_VERIFY, 0);

    assert_int_equal(ftruncate(server->segment_fd[ROLE_VERIFY], 4096), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(server->segment_fd[ROLE_VERIFY], (off_t)bytes * 2), -1);
    assert_int_equal(errno, EPERM);
}

static void test_the_readers_descriptor_cannot_write(void **state)
{
    (void)state;
    const uint64_t bytes = create(ROLE_VERIFY, 0);
    const int ro_fd = server->segment_ro_fd[ROLE_VERIFY], fd = server->segment_fd[ROLE_VERIFY];

    assert_int_equal(write(ro_fd, "x", 1), -1);
    assert_int_equal(errno, EBADF);
    assert_ptr_equal(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ro_fd, 0), MAP_FAILED);
    assert_int_equal(errno, EACCES);
    uint8_t *reader = mmap(NULL, bytes, PROT_READ, MAP_SHARED, ro_fd, 0), *writer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(reader, MAP_FAILED);
    assert_ptr_not_equal(writer, MAP_FAILED);
    assert_int_equal(mprotect(reader, bytes, PROT_READ | PROT_WRITE), -1);
    writer[bytes - 1] = 77; /* the same memory */
    assert_int_equal(reader[bytes - 1], 77);
    assert_int_equal(server->segment[ROLE_VERIFY][bytes - 1], 77);
    assert_int_equal(mprotect(server->segment[ROLE_VERIFY], bytes, PROT_READ | PROT_WRITE), -1); /* nor can the launcher */
    munmap(reader, bytes);
    munmap(writer, bytes);
}

static void test_the_launcher_writes_its_own(void **state)
{
    (void)state;
    create(ROLE_LAUNCHER, LAUNCHER_BOARD_BYTES);
    ((struct launcher_board *)(server->segment[ROLE_LAUNCHER] + segment_slots_offset(ROLE_LAUNCHER)))->phase = PIPELINE_SERVING;
}

static void test_out_of_memory_is_told(void **state)
{
    (void)state;
    struct rlimit before, none;

    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    none.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &none);
    const int rc = segment_create(server, ROLE_VERIFY, STRIDE, SLOTS, 0, err, sizeof err);
    setrlimit(RLIMIT_NOFILE, &before);
    assert_int_equal(rc, -E_IO);
    assert_non_null(strstr(err, "verify"));
    assert_non_null(strstr(err, "created"));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_the_header_tells_the_layout), TEST(test_nobody_can_resize_it), TEST(test_the_readers_descriptor_cannot_write),
        TEST(test_the_launcher_writes_its_own), TEST(test_out_of_memory_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
