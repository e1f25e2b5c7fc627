/* tests/unit/starve_test.c - time in which a process could have run and did not (launcher/starve.c). */
#include "launcher/starve.h"
#include "shm/clock.h"

#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LOOKS 20
#define LOOK_US 20000u

static pid_t loop_on(int cpu, int policy)
{
    const pid_t pid = fork();
    const struct sched_param none = {0};
    cpu_set_t set;

    if (pid) return pid;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0 || sched_setscheduler(0, policy, &none) != 0) _exit(1);
    for (volatile unsigned turns = 0;; turns++) continue;
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* Share of the time that it waited. */
static double share_of(pid_t pid)
{
    struct starve w = {0};
    const uint64_t begin = clock_ns();

    starve_look(&w, pid, begin);
    for (int i = 0; i < LOOKS; i++) {
        usleep(LOOK_US);
        starve_look(&w, pid, clock_ns());
    }
    return (double)w.ns / (double)(w.looked_ns - begin);
}

static bool is_told(void)
{
    FILE *f = fopen("/proc/self/schedstat", "r");

    if (f) fclose(f);
    return f != NULL;
}

static void test_who_gets_no_turn_starves(void **state)
{
    const int cpu = sched_getcpu();

    (void)state;
    if (!is_told()) {
        print_message("SKIP: this kernel has no /proc/PID/schedstat\n");
        skip();
    }
    const pid_t hog = loop_on(cpu, SCHED_OTHER), starved = loop_on(cpu, SCHED_IDLE);
    usleep(50000);
    const double share = share_of(starved);
    print_message("waited %.0f %% of the time\n", 100 * share);
    end(starved);
    end(hog);
    assert_true(share > 0.7 && share <= 1);
}

static void test_who_sleeps_does_not(void **state)
{
    const pid_t pid = fork();

    (void)state;
    if (pid == 0)
        for (;;) pause();
    usleep(50000);
    const double share = share_of(pid);
    end(pid);
    assert_true(share < 0.1);
}

static void test_nobody_is_there(void **state)
{
    struct starve w = {0};
    const pid_t pid = fork();

    (void)state;
    if (pid == 0) _exit(0);
    waitpid(pid, NULL, 0);
    assert_int_equal(starve_look(&w, pid, 1), 0);
    assert_int_equal(starve_look(&w, pid, 1000000000), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_who_gets_no_turn_starves), cmocka_unit_test(test_who_sleeps_does_not), cmocka_unit_test(test_nobody_is_there)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
