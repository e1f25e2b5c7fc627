/* tests/unit/gpu_test.c - launcher/gpu and launcher/verdict: who is accused when a GPU context is lost, and when stages may start again. */
#include "shm/clock.h"
#include "launcher/server.h"
#include "shm/atomic.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS 4u
#define GENERATION 7u

static struct server *v;
static struct launcher_board board;

/* A server on a GPU with requests in all slots; segments are plain memory. */
static int set_up(void **state)
{
    static const struct table_limits limits = {.slot_count = SLOTS, .context_max = 64, .request_bytes_max = 4096, .full_pages_max = 2, .sliding_pages_max = 2, .log_bytes_max = 4096};

    (void)state;
    v = calloc(1, sizeof *v);
    v->model_known = true;
    v->exit_code = v->gpu.log_fd = -1;
    table_init(&v->table, &limits);
    v->table.board = &board;
    for (int role = 0; role < ROLE_COUNT; role++) {
        v->child[role].role = role;
        v->segment[role] = calloc(1, SEGMENT_RINGS_OFFSET);
        v->table.base[role] = calloc(SLOTS, v->table.stride[role] ? v->table.stride[role] : 1);
    }
    for (uint32_t s = 0; s < SLOTS; s++) table_gateway(&v->table, s)->commit = word_pack(GENERATION, PHASE_REQUESTED);
    wiring_set(&v->base, "device", "cuda");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (int role = 0; role < ROLE_COUNT; role++) {
        free(v->segment[role]);
        free(v->table.base[role]);
    }
    if (v->gpu.log_fd >= 0) close(v->gpu.log_fd);
    free(v);
    return 0;
}

static void in_hand(int role, unsigned count, uint32_t first_slot)
{
    struct stage_status *s = (struct stage_status *)(v->segment[role] + SEGMENT_STATUS_OFFSET);

    for (unsigned i = 0; i < count; i++) s->busy_slot[i] = first_slot + i, s->busy_generation[i] = GENERATION;
    s->busy_count = count;
}

static uint32_t strikes(uint32_t slot) { return word_for(&table_launcher(&v->table, slot)->strikes, GENERATION); }
static uint32_t verdict(uint32_t slot) { return word_for(&table_launcher(&v->table, slot)->verdict, GENERATION); }

static void test_the_daemons_line_tells_of_a_fault(void **state)
{
    (void)state;
    assert_int_equal(gpu_fault_pid("[2026-11-21 14:24:14.360 Server   517] Client {PID: 513, Context: 1} encountered a fatal GPU error."), 513);
    assert_int_equal(gpu_fault_pid("[2026-11-21 14:24:14.361 Server   517] Client {PID: 512, Context ID: 1} on device 0 to be torn down"), 0);
    assert_int_equal(gpu_fault_pid("[..] Received new client request for {PID: -1333654781, Context ID: 0}"), 0);
    assert_int_equal(gpu_fault_pid("Client {PID: -3, Context: 1} encountered a fatal GPU error."), 0);
    assert_int_equal(gpu_fault_pid("Client {PID: 99999999999, Context: 1} encountered a fatal GPU error."), 0);
    assert_int_equal(gpu_fault_pid("Client {PID: "), 0);
    assert_int_equal(gpu_fault_pid(""), 0);
}

static void test_only_gpu_stages_are_gpu_stages(void **state)
{
    (void)state;
    for (int role = 0; role < ROLE_COUNT; role++) assert_int_equal(gpu_is_stage(v, role), role == ROLE_PREFILL || role == ROLE_VERIFY);
    wiring_set(&v->base, "device", "cpu");
    for (int role = 0; role < ROLE_COUNT; role++) assert_false(gpu_is_stage(v, role));
}

static void test_a_lone_repeat_offender_is_convicted(void **state)
{
    (void)state;
    in_hand(ROLE_VERIFY, 1, 2);
    verdict_on_death(v, &v->child[ROLE_VERIFY], true);
    assert_int_equal(strikes(2), 1);
    assert_int_equal(verdict(2), 0);
    verdict_on_death(v, &v->child[ROLE_VERIFY], true);
    assert_int_equal(verdict(2), 1 + ROLE_VERIFY);
}

static void test_nobody_is_convicted_while_another_stage_may_have_done_it(void **state)
{
    (void)state;
    in_hand(ROLE_VERIFY, 1, 0);
    in_hand(ROLE_PREFILL, 1, 1);
    for (int i = 0; i < 3; i++) {
        verdict_on_death(v, &v->child[ROLE_VERIFY], false);
        verdict_on_death(v, &v->child[ROLE_PREFILL], false);
    }
    assert_int_equal(strikes(0), 3);
    assert_int_equal(strikes(1), 3);
    assert_int_equal(verdict(0), 0);
    assert_int_equal(verdict(1), 0);
    in_hand(ROLE_PREFILL, 0, 0); /* now verify is alone: there is nobody else */
    verdict_on_death(v, &v->child[ROLE_VERIFY], false);
    assert_int_equal(verdict(0), 1 + ROLE_VERIFY);
    assert_int_equal(verdict(1), 0);
}

static void feed_log(const char *text)
{
    int ends[2];

    assert_int_equal(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    assert_int_equal(write(ends[1], text, strlen(text)), (ssize_t)strlen(text));
    close(ends[1]);
    v->gpu.log_fd = ends[0];
}

/* A process that stands for the daemon or a stage: it lives until it is killed. */
static pid_t live_process(void)
{
    const pid_t pid = fork();

    if (pid == 0) {
        pause();
        _exit(0);
    }
    return pid;
}

static void end(pid_t *pid)
{
    kill(*pid, SIGKILL);
    assert_int_equal(waitpid(*pid, NULL, 0), *pid);
    *pid = 0;
}

static void under_mps(void)
{
    v->gpu.state = GPU_MPS;
    v->gpu.pid = live_process();
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (!gpu_is_stage(v, role)) continue;
        v->child[role].pid = live_process();
        v->child[role].under_mps = true;
    }
}

static void test_a_fault_takes_all_stages_and_sets_them_apart(void **state)
{
    struct child *verify = &v->child[ROLE_VERIFY], *prefill = &v->child[ROLE_PREFILL];
    char text[256];

    (void)state;
    under_mps();
    assert_true(gpu_is_shared(v, ROLE_VERIFY) && !gpu_is_shared(v, ROLE_DRAFT));
    snprintf(text, sizeof text, "something else\nClient {PID: %d, Context: 1} encountered a fatal GPU error.\nmore", (int)prefill->pid);
    feed_log(text);
    gpu_read_log(v);
    assert_int_equal(verify->kill_reason, KILL_GPU);
    assert_int_equal(prefill->kill_reason, KILL_GPU);
    assert_int_equal(gpu_blame(v, verify, false), GPU_BLAME_UNKNOWN); /* the line does not always name the right one */
    assert_int_equal(gpu_blame(v, prefill, false), GPU_BLAME_UNKNOWN);
    assert_false(gpu_may_start(v, ROLE_VERIFY));
    assert_true(gpu_may_start(v, ROLE_DRAFT));
    end(&verify->pid);
    assert_false(gpu_may_start(v, ROLE_VERIFY)); /* the other one's requests are still to be looked at */
    end(&prefill->pid);
    assert_true(gpu_may_start(v, ROLE_VERIFY));
    assert_false(gpu_is_shared(v, ROLE_VERIFY));
    verify->under_mps = false;
    assert_int_equal(gpu_blame(v, verify, true), GPU_BLAME_THIS); /* apart, a fault is its maker's */
    end(&v->gpu.pid);
}

static void test_a_stage_that_finds_its_context_lost_takes_the_others_along(void **state)
{
    (void)state;
    under_mps();
    end(&v->child[ROLE_VERIFY].pid); /* exit 112 */
    assert_int_equal(gpu_blame(v, &v->child[ROLE_VERIFY], true), GPU_BLAME_UNKNOWN);
    gpu_lost(v);
    assert_int_equal(v->gpu.state, GPU_APART);
    assert_int_equal(v->child[ROLE_PREFILL].kill_reason, KILL_GPU);
    assert_false(gpu_may_start(v, ROLE_VERIFY));
    end(&v->child[ROLE_PREFILL].pid);
    assert_true(gpu_may_start(v, ROLE_VERIFY));
    end(&v->gpu.pid);
}

static void test_verify_comes_back_first(void **state)
{
    struct child *verify = &v->child[ROLE_VERIFY], *prefill = &v->child[ROLE_PREFILL];

    (void)state;
    under_mps();
    end(&verify->pid);
    gpu_lost(v);
    end(&prefill->pid);
    verify->enabled = true;
    verify->ready = false;
    verify->died_ns = clock_ns();
    assert_true(gpu_may_start(v, ROLE_VERIFY));
    assert_false(gpu_may_start(v, ROLE_PREFILL)); /* its context would make verify's take twice as long */
    verify->ready = true;
    assert_true(gpu_may_start(v, ROLE_PREFILL));
    verify->ready = false;
    verify->died_ns = clock_ns() - 2000000000ull;
    assert_true(gpu_may_start(v, ROLE_PREFILL)); /* it does not get ready: prompts are not kept waiting for that */
    verify->died_ns = 0;
    assert_true(gpu_may_start(v, ROLE_PREFILL)); /* nobody has died: at the start all begin together */
    verify->ready = true;
    end(&v->gpu.pid);
}

static void test_a_daemon_that_dies_accuses_nobody(void **state)
{
    siginfo_t info;

    (void)state;
    under_mps();
    kill(v->gpu.pid, SIGKILL);
    waitid(P_PID, (id_t)v->gpu.pid, &info, WEXITED | WNOWAIT);
    end(&v->child[ROLE_VERIFY].pid);
    assert_int_equal(gpu_blame(v, &v->child[ROLE_VERIFY], true), GPU_BLAME_OTHER);
    gpu_lost(v);
    assert_int_equal(v->gpu.state, GPU_MPS);
    assert_false(gpu_may_start(v, ROLE_VERIFY)); /* there is no daemon to be a client of */
    end(&v->child[ROLE_PREFILL].pid);
    waitpid(v->gpu.pid, NULL, 0);
}

static void test_they_come_together_when_it_has_been_quiet(void **state)
{
    const uint64_t second = 1000000000ull, fault_ns = 1000 * second;

    (void)state;
    under_mps();
    gpu_lost(v);
    for (int role = ROLE_PREFILL; role <= ROLE_VERIFY; role += ROLE_VERIFY - ROLE_PREFILL) {
        end(&v->child[role].pid);
        v->child[role].pid = live_process();
        v->child[role].under_mps = false;
        v->child[role].kill_reason = KILL_NONE;
    }
    v->gpu.apart_ns = fault_ns;
    gpu_tick(v, fault_ns + 59 * second);
    assert_int_equal(v->gpu.state, GPU_APART);
    gpu_tick(v, fault_ns + 61 * second); /* requests run: they are not disturbed */
    assert_int_equal(v->gpu.state, GPU_APART);
    for (uint32_t s = 0; s < SLOTS; s++) table_gateway(&v->table, s)->commit = word_pack(GENERATION, PHASE_CLOSED);
    gpu_tick(v, fault_ns + 61 * second);
    assert_int_equal(v->gpu.state, GPU_MPS);
    for (int role = ROLE_PREFILL; role <= ROLE_VERIFY; role += ROLE_VERIFY - ROLE_PREFILL) {
        assert_int_equal(v->child[role].kill_reason, KILL_GPU);
        assert_int_equal(gpu_blame(v, &v->child[role], false), GPU_BLAME_OTHER); /* nobody's fault */
        assert_false(gpu_counts(v, &v->child[role], false, fault_ns + 61 * second));
        end(&v->child[role].pid);
    }
    assert_true(gpu_is_shared(v, ROLE_VERIFY));
    end(&v->gpu.pid);
}

static void test_a_long_line_of_the_daemon_does_no_harm(void **state)
{
    char text[5000];

    (void)state;
    under_mps();
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    const int bytes = snprintf(text + 4000, 100, "\nClient {PID: %d, Context: 1} encountered a fatal GPU error.\n", (int)v->child[ROLE_VERIFY].pid);
    text[4000 + bytes] = 'x';
    feed_log(text);
    gpu_read_log(v);
    assert_int_equal(v->gpu.state, GPU_APART);
    assert_true(v->gpu.log_bytes < sizeof v->gpu.log);
    end(&v->child[ROLE_VERIFY].pid);
    end(&v->child[ROLE_PREFILL].pid);
    end(&v->gpu.pid);
}

static void test_a_fault_of_a_stranger_is_none_of_ours(void **state)
{
    (void)state;
    under_mps();
    feed_log("Client {PID: 1, Context: 1} encountered a fatal GPU error.\n");
    gpu_read_log(v);
    assert_int_equal(v->gpu.state, GPU_MPS);
    assert_int_equal(v->child[ROLE_VERIFY].kill_reason, KILL_NONE);
    end(&v->child[ROLE_VERIFY].pid);
    end(&v->child[ROLE_PREFILL].pid);
    end(&v->gpu.pid);
}

static void test_by_turns_neighbours_are_left_alone(void **state)
{
    (void)state;
    under_mps();
    v->gpu.state = GPU_TIME_SLICE;
    gpu_lost(v);
    assert_int_equal(v->gpu.state, GPU_TIME_SLICE);
    assert_int_equal(v->child[ROLE_PREFILL].kill_reason, KILL_NONE);
    assert_int_equal(waitpid(v->child[ROLE_PREFILL].pid, NULL, WNOHANG), 0);
    end(&v->child[ROLE_VERIFY].pid);
    end(&v->child[ROLE_PREFILL].pid);
    end(&v->gpu.pid);
}

static void test_contexts_lost_together_count_once(void **state)
{
    struct child *c = &v->child[ROLE_VERIFY];

    (void)state;
    c->under_mps = true;
    assert_true(gpu_counts(v, c, true, 10000000000ull));
    assert_false(gpu_counts(v, c, false, 10000000001ull));
    assert_false(gpu_counts(v, c, true, 10900000000ull));
    assert_true(gpu_counts(v, c, false, 12000000000ull));
    c->under_mps = false;
    assert_true(gpu_counts(v, c, true, 12000000001ull));
    assert_true(gpu_counts(v, c, true, 12000000002ull));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_daemons_line_tells_of_a_fault),
        cmocka_unit_test_setup_teardown(test_only_gpu_stages_are_gpu_stages, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_lone_repeat_offender_is_convicted, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_nobody_is_convicted_while_another_stage_may_have_done_it, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_fault_takes_all_stages_and_sets_them_apart, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_stage_that_finds_its_context_lost_takes_the_others_along, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_verify_comes_back_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_daemon_that_dies_accuses_nobody, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_they_come_together_when_it_has_been_quiet, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_long_line_of_the_daemon_does_no_harm, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_fault_of_a_stranger_is_none_of_ours, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_by_turns_neighbours_are_left_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_contexts_lost_together_count_once, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
