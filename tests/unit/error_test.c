/* tests/unit/error_test.c - shm/error and shm/must: every code has a phrase; a broken invariant leaves its words. */
#include "shm/error.h"
#include "shm/must.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_every_code_has_its_own_phrase(void **state)
{
    (void)state;
    for (int code = 0; code < E_COUNT; code++) {
        assert_string_not_equal(error_text(code), "unknown error");
        assert_string_equal(error_text(code), error_text(-code));
        for (int other = 0; other < code; other++) assert_string_not_equal(error_text(code), error_text(other));
    }
}

static void test_no_code_is_no_crash(void **state)
{
    (void)state;
    static const int strange[] = {E_COUNT, -E_COUNT, INT_MAX, INT_MIN, INT_MIN + 1};

    for (unsigned i = 0; i < sizeof strange / sizeof strange[0]; i++) assert_string_equal(error_text(strange[i]), "unknown error");
}

static char *last_words; /* shared with the child */

static void keep(const char *text)
{
    strncpy(last_words, text, 255);
}

static void test_a_broken_invariant_ends_the_process_with_words(void **state)
{
    (void)state;
    int status;
    last_words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const pid_t pid = fork();

    if (pid == 0) {
        dup2(open("/dev/null", O_WRONLY), 2);
        signal(SIGABRT, SIG_DFL);
        must_hook = keep;
        must(1 + 1 == 2);
        must(1 + 1 == 3);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr(last_words, "must(1 + 1 == 3)"));
    assert_non_null(strstr(last_words, "error_test.c:"));
    munmap(last_words, 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_has_its_own_phrase),
        cmocka_unit_test(test_no_code_is_no_crash),
        cmocka_unit_test(test_a_broken_invariant_ends_the_process_with_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
