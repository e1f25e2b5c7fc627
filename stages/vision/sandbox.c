/* stages/vision/sandbox.c - the filter of system calls and the limits (contract in sandbox.h). */
#include "stages/vision/sandbox.h"

#include "shm/confine.h"

#include <errno.h>

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

static struct sock_fprog program;

static int add_rules(scmp_filter_ctx filter)
{
    int rc = 0;

    for (size_t i = 0; i < sizeof allowed / sizeof *allowed && rc == 0; i++) rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    /* libsndfile looks for what a Macintosh may have put beside an MP3 file: there is nothing, for it there are no files at all */
    if (rc == 0) rc = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOENT), SCMP_SYS(openat), 0);
    return rc ? rc : confine_allow_memory(filter);
}

int sandbox_prepare(void) { return confine_prepare(&program, add_rules); }

void sandbox_enter(int keep_fd, pid_t parent, unsigned cpu_s)
{
    confine_begin("vision-worker", parent);
    confine_close_others(&keep_fd, 1);
#ifndef __SANITIZE_ADDRESS__ /* its shadow is larger than any limit */
    confine_limit(RLIMIT_AS, SANDBOX_MEMORY_BYTES, SANDBOX_MEMORY_BYTES);
#endif
    confine_limit(RLIMIT_CPU, cpu_s, cpu_s + 1); /* SIGXCPU first: it tells what happened */
    confine_limit(RLIMIT_FSIZE, 0, 0);
    confine_limit(RLIMIT_CORE, 0, 0);
    confine_limit(RLIMIT_NPROC, 0, 0);
    confine_limit(RLIMIT_NOFILE, 0, 0);
    confine_end(&program);
}
