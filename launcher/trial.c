/* launcher/trial.c - can the library that decodes video files be loaded here? Tried in a process of its own before anybody is told that we take them.
 *
 * The file alone says little: it needs more than a hundred libraries, which may be missing on this machine. Loading them takes 40 ms and runs their code, so neither this process nor a
 * stage does it; the trial runs while the keeper reads the model, and the pipeline starts when both are over.
 *
 * Owns     one process and the pipe on which it says why not, both gone with its answer
 * Fails    a library that cannot be loaded, kills whoever loads it or takes longer than TRIAL_MS: said once, and video files are refused as if there were none. */
#include "launcher/server.h"

#include "schemas/video.h"
#include "shm/clock.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS 1000000ull
#define TRIAL_MS 20000u /* slow disks, a busy machine */

__attribute__((noreturn)) static void load(pid_t launcher, int out_fd)
{
    struct video_library library;
    char why[PATH_MAX] = "";

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher) _exit(1);
    if (video_library_open(&library, why, sizeof why) == 0) _exit(0);
    if (write(out_fd, why, strlen(why)) < 0) _exit(2);
    _exit(1);
}

void trial_begin(struct server *v)
{
    char path[PATH_MAX];
    const pid_t launcher = getpid();
    int out[2];

    wiring_set(&v->base, "media.video_files", "0");
    if (video_library_find(path, sizeof path) != 0 || pipe2(out, O_CLOEXEC | O_NONBLOCK) != 0) return;
    v->trial_pid = fork();
    if (v->trial_pid == 0) load(launcher, out[1]);
    close(out[1]);
    v->trial_fd = out[0];
    v->trial_ns = clock_ns();
    if (v->trial_pid > 0) return;
    v->trial_pid = 0;
    close(out[0]);
}

/* It ended with this status. */
static void judge(struct server *v, int status)
{
    char why[PATH_MAX];
    const ssize_t got = read(v->trial_fd, why, sizeof why - 1);

    close(v->trial_fd);
    v->trial_pid = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        wiring_set(&v->base, "media.video_files", "1");
        return;
    }
    why[got > 0 ? got : 0] = '\0';
    if (WIFSIGNALED(status)) snprintf(why, sizeof why, VIDEO_LIBRARY_NAME " kills the process that loads it (signal %d)", WTERMSIG(status));
    server_say("sluice: video files are refused here, their decoder cannot be loaded: %s", why[0] ? why : "it says no reason");
}

bool trial_is_over(struct server *v)
{
    int status;

    if (v->trial_pid == 0) return true;
    if (waitpid(v->trial_pid, &status, WNOHANG) == v->trial_pid) {
        judge(v, status);
        return true;
    }
    const bool is_wanted = wiring_u64(&v->base, "media.video", 0) != 0;
    if (is_wanted && clock_ns() - v->trial_ns < TRIAL_MS * MS) return false;
    kill(v->trial_pid, SIGKILL);
    waitpid(v->trial_pid, NULL, 0);
    close(v->trial_fd);
    v->trial_pid = 0;
    if (is_wanted) server_say("sluice: video files are refused here: their decoder was not loaded within %u s", TRIAL_MS / 1000);
    return true;
}
