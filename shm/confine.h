/* shm/confine.h - how a process gives up its powers, for the stages whose workers meet what strangers send (stages/vision/sandbox.c, stages/fetch/cell.c).
 *
 * The lists of system calls and the limits are theirs; what is done with them is here. Inline: only these stages are linked with libseccomp.
 * What fails in the new process ends it with exit code 1: half confined is not confined. */
#ifndef SLUICE_SHM_CONFINE_H
#define SLUICE_SHM_CONFINE_H

#include "shm/error.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The filter as the kernel takes it, once for all workers: the library takes half a millisecond for it. program->filter is the caller's. 0, -E_IO, -E_NOMEM. */
static inline int confine_compile(scmp_filter_ctx filter, struct sock_fprog *program)
{
    const int fd = memfd_create("filter", MFD_CLOEXEC);
    struct stat st;
    int rc = -E_IO;

    if (fd < 0) return rc;
    if (seccomp_export_bpf(filter, fd) == 0 && fstat(fd, &st) == 0 && st.st_size > 0 && (size_t)st.st_size % sizeof *program->filter == 0) {
        program->filter = malloc((size_t)st.st_size);
        program->len = (unsigned short)((size_t)st.st_size / sizeof *program->filter);
        rc = program->filter && pread(fd, program->filter, (size_t)st.st_size, 0) == st.st_size ? 0 : -E_NOMEM;
    }
    close(fd);
    if (rc != 0) {
        free(program->filter);
        program->filter = NULL;
    }
    return rc;
}

/* A filter of these rules, where any other call ends the process. 0, -E_UNSUPPORTED (no seccomp here), -E_IO, -E_NOMEM. */
static inline int confine_prepare(struct sock_fprog *program, int (*add_rules)(scmp_filter_ctx))
{
    if (program->filter) return 0;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter) return -E_NOMEM;
    const int rc = add_rules(filter) == 0 ? confine_compile(filter, program) : -E_UNSUPPORTED;
    seccomp_release(filter);
    return rc;
}

/* Anonymous memory that is never run. */
static inline int confine_allow_memory(scmp_filter_ctx filter)
{
    const int rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0), SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS));

    return rc ? rc : seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
}

/* Where the server itself has less, so has the process: nobody may raise a limit, and it is confined all the more. */
static inline void confine_limit(int what, rlim_t soft, rlim_t hard)
{
    struct rlimit both;

    if (getrlimit(what, &both) != 0) _exit(1);
    if (hard < both.rlim_max) both.rlim_max = hard;
    both.rlim_cur = soft < both.rlim_max ? soft : both.rlim_max;
    if (setrlimit(what, &both) != 0) _exit(1);
}

/* All descriptors but these; keep[] ascends. */
static inline void confine_close_others(const int *keep, unsigned count)
{
    unsigned from = 0;

    for (unsigned i = 0; i < count; from = (unsigned)keep[i++] + 1)
        if ((unsigned)keep[i] > from) syscall(SYS_close_range, from, (unsigned)keep[i] - 1, 0u);
    if (syscall(SYS_close_range, from, ~0u, 0u) == 0) return;
    for (int fd = 0; fd < 65536; fd++) { /* a kernel before 5.9 */
        unsigned i = 0;
        while (i < count && keep[i] != fd) i++;
        if (i == count) close(fd);
    }
}

/* In the new process, first: own name, no handlers of its parent's, dies with it, nothing to be gained or looked into. */
static inline void confine_begin(const char *name, pid_t parent)
{
    sigset_t none;

    for (int s = 1; s < 32; s++) signal(s, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_NAME, name);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    if (prctl(PR_SET_DUMPABLE, 0) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) _exit(1);
}

/* Last: from here on only what the filter allows. */
static inline void confine_end(const struct sock_fprog *program)
{
    if (!program->filter || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) != 0) _exit(1);
}

#endif
