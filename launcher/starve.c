/* launcher/starve.c - see starve.h.
 *
 * Reads    /proc/PID/task/TID/schedstat (what a thread has run) and .../stat (is it runnable?)
 * Counts   of the time between two looks what a runnable thread did not run: the largest of all threads, since the work may go from one to another. The kernel's own sum of such times
 *          grows only when a thread gets its turn at last, so one that gets none would look asleep.
 * Fails    where the kernel does not tell, or the process is gone: nothing counts as waiting. */
#include "launcher/starve.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool read_text(int dir_fd, pid_t tid, const char *name, char *text, size_t bytes)
{
    char path[64];

    snprintf(path, sizeof path, "%d/%s", (int)tid, name);
    const int fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const ssize_t got = read(fd, text, bytes - 1);
    close(fd);
    text[got > 0 ? got : 0] = '\0';
    return got > 0;
}

static bool is_runnable(int dir_fd, pid_t tid)
{
    char text[512];

    if (!read_text(dir_fd, tid, "stat", text, sizeof text)) return false;
    const char *state = strrchr(text, ')');
    return state && state[1] == ' ' && state[2] == 'R';
}

/* What the thread ran since it was last seen; gap_ns if it was not. */
static uint64_t ran_since(const struct starve *w, const struct starve_thread *now, uint64_t gap_ns)
{
    for (unsigned i = 0; i < w->count; i++)
        if (w->thread[i].tid == now->tid) return now->ran_ns - w->thread[i].ran_ns;
    return gap_ns;
}

uint64_t starve_look(struct starve *w, pid_t pid, uint64_t now_ns)
{
    const uint64_t gap_ns = w->looked_ns ? now_ns - w->looked_ns : 0;
    struct starve next = {.looked_ns = now_ns};
    uint64_t waited_ns = 0;
    char text[128];

    snprintf(text, sizeof text, "/proc/%d/task", (int)pid);
    DIR *dir = opendir(text);
    if (!dir) return w->ns;
    for (struct dirent *e; (e = readdir(dir)) != NULL && next.count < STARVE_THREADS_MAX;) {
        struct starve_thread t = {.tid = (pid_t)strtol(e->d_name, NULL, 10)};
        if (t.tid <= 0 || !read_text(dirfd(dir), t.tid, "schedstat", text, sizeof text)) continue;
        t.ran_ns = strtoull(text, NULL, 10);
        next.thread[next.count++] = t;
        const uint64_t ran_ns = ran_since(w, &t, gap_ns);
        if (ran_ns < gap_ns && gap_ns - ran_ns > waited_ns && is_runnable(dirfd(dir), t.tid)) waited_ns = gap_ns - ran_ns;
    }
    closedir(dir);
    next.ns = w->ns + waited_ns;
    *w = next;
    return w->ns;
}
