/* stages/vision/sandbox.c - the filter of system calls and the limits (contract in sandbox.h). */
#include "stages/vision/sandbox.h"

#include "shm/error.h"

#include <errno.h>
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

/* What decoding takes: memory, the socket, the end. The rest of the kernel is out of reach. */
static const int allowed[] = {
    SCMP_SYS(read), SCMP_SYS(write),                     /* on the one socket */
    SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), /* malloc; mmap and mprotect below, never executable */
    SCMP_SYS(futex),                                     /* locks of libc; there is one thread */
    SCMP_SYS(getrandom), SCMP_SYS(clock_gettime),        /* harmless, and some libc's malloc asks */
    SCMP_SYS(sysinfo),                                   /* qsort asks how much memory there is before it takes some (Vorbis) */
    SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigprocmask), SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(tgkill), /* abort() */
    SCMP_SYS(exit), SCMP_SYS(exit_group),
#ifdef __SANITIZE_ADDRESS__
    SCMP_SYS(sigaltstack), /* the sanitizer asks where the stack is before a call that does not return */
#endif
};

static struct sock_fprog program; /* compiled once: the library takes half a millisecond for it, each worker would pay that again */

static int add_rules(scmp_filter_ctx filter)
{
    int rc = 0;

    for (size_t i = 0; i < sizeof allowed / sizeof *allowed && rc == 0; i++) rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    if (rc == 0)
        rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0),
                              SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS));
    /* libsndfile looks for what a Macintosh may have put beside an MP3 file: there is nothing, for it there are no files at all */
    if (rc == 0) rc = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOENT), SCMP_SYS(openat), 0);
    if (rc == 0) rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    return rc;
}

/* The filter as the kernel takes it. */
static int compile(scmp_filter_ctx filter)
{
    const int fd = memfd_create("sandbox", MFD_CLOEXEC);
    struct stat st;
    int rc = -E_IO;

    if (fd < 0) return rc;
    if (seccomp_export_bpf(filter, fd) == 0 && fstat(fd, &st) == 0 && st.st_size > 0 && (size_t)st.st_size % sizeof *program.filter == 0) {
        program.filter = malloc((size_t)st.st_size);
        program.len = (unsigned short)((size_t)st.st_size / sizeof *program.filter);
        rc = program.filter && pread(fd, program.filter, (size_t)st.st_size, 0) == st.st_size ? 0 : -E_NOMEM;
    }
    close(fd);
    return rc;
}

int sandbox_prepare(void)
{
    if (program.filter) return 0;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter) return -E_NOMEM;
    int rc = add_rules(filter) == 0 ? compile(filter) : -E_UNSUPPORTED;
    seccomp_release(filter);
    if (rc != 0) {
        free(program.filter);
        program.filter = NULL;
    }
    return rc;
}

static void limit(int what, rlim_t value)
{
    const struct rlimit both = {.rlim_cur = value, .rlim_max = value};

    if (setrlimit(what, &both) != 0) _exit(1);
}

static void set_limits(void)
{
    const struct rlimit cpu = {.rlim_cur = SANDBOX_CPU_S, .rlim_max = SANDBOX_CPU_S + 1};

#ifndef __SANITIZE_ADDRESS__ /* its shadow is larger than any limit */
    limit(RLIMIT_AS, SANDBOX_MEMORY_BYTES);
#endif
    if (setrlimit(RLIMIT_CPU, &cpu) != 0) _exit(1); /* SIGXCPU first: it tells what happened */
    limit(RLIMIT_FSIZE, 0);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_NPROC, 0);
    limit(RLIMIT_NOFILE, 0);
}

static void close_others(int keep_fd)
{
    if (keep_fd > 0) syscall(SYS_close_range, 0u, (unsigned)keep_fd - 1, 0u);
    if (syscall(SYS_close_range, (unsigned)keep_fd + 1, ~0u, 0u) == 0) return;
    for (int fd = 0; fd < 65536; fd++) /* a kernel before 5.9 */
        if (fd != keep_fd) close(fd);
}

void sandbox_enter(int keep_fd, pid_t parent)
{
    sigset_t none;

    for (int s = 1; s < 32; s++) signal(s, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_NAME, "vision-worker");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    if (prctl(PR_SET_DUMPABLE, 0) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) _exit(1);
    close_others(keep_fd);
    set_limits();
    if (!program.filter || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) _exit(1);
}
