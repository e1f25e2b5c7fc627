/* tests/unit/remove_test.c - shm/remove: files of every kind go with their directory; what is not ours to remove stays. */
#include "shm/error.h"
#include "shm/remove.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/sluice-remove-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static void make_file(const char *name)
{
    char path[128];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    close(open(path, O_CREAT | O_WRONLY, 0600));
}

static void test_files_sockets_and_pipes_go(void **state)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    char path[128];
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)state;
    for (int i = 0; i < 50; i++) {
        snprintf(path, sizeof path, "file-%d", i);
        make_file(path);
    }
    make_file(".hidden");
    snprintf(path, sizeof path, "%s/pipe", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    snprintf(at.sun_path, sizeof at.sun_path, "%s/control", dir);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(remove_flat_dir(dir), 0);
    assert_int_not_equal(access(dir, F_OK), 0);
    close(fd);
}

static void test_what_is_not_there_is_fine(void **state)
{
    (void)state;
    assert_int_equal(rmdir(dir), 0);
    assert_int_equal(remove_flat_dir(dir), 0);
}

static void test_directories_below_stay(void **state)
{
    char path[128];

    (void)state;
    snprintf(path, sizeof path, "%s/below", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    make_file("file");
    assert_int_equal(remove_flat_dir(dir), -E_IO);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(remove_flat_dir(dir), 0);
}

static void test_a_link_is_removed_not_followed(void **state)
{
    char other[128], path[192];

    (void)state;
    snprintf(other, sizeof other, "%s-other", dir);
    assert_int_equal(mkdir(other, 0700), 0);
    snprintf(path, sizeof path, "%s/link", dir);
    assert_int_equal(symlink(other, path), 0);
    assert_int_equal(remove_flat_dir(dir), 0);
    assert_int_equal(access(other, F_OK), 0);
    assert_int_equal(rmdir(other), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_files_sockets_and_pipes_go, set_up),
        cmocka_unit_test_setup(test_what_is_not_there_is_fine, set_up),
        cmocka_unit_test_setup(test_directories_below_stay, set_up),
        cmocka_unit_test_setup(test_a_link_is_removed_not_followed, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
