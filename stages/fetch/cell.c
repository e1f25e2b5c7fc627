/* stages/fetch/cell.c - the filter of system calls and the limits of a process that fetches (contract in cell.h). */
#include "stages/fetch/cell.h"

#include "shm/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define DESCRIPTORS_MAX 32u

static const int allowed[] = {
    SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(writev), SCMP_SYS(close), SCMP_SYS(fcntl), SCMP_SYS(lseek), SCMP_SYS(ftruncate),
    SCMP_SYS(connect), SCMP_SYS(sendto), SCMP_SYS(sendmsg), SCMP_SYS(sendmmsg), SCMP_SYS(recvfrom), SCMP_SYS(recvmsg), SCMP_SYS(shutdown),
    SCMP_SYS(getsockopt), SCMP_SYS(setsockopt), SCMP_SYS(getsockname), SCMP_SYS(getpeername), SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(select), SCMP_SYS(pselect6),
    SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(futex), SCMP_SYS(getrandom), SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(time),
    SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep), SCMP_SYS(sysinfo), SCMP_SYS(uname), SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigaction), SCMP_SYS(gettid),
    SCMP_SYS(getpid), SCMP_SYS(getuid), SCMP_SYS(geteuid), SCMP_SYS(getgid), SCMP_SYS(getegid), SCMP_SYS(tgkill), SCMP_SYS(exit), SCMP_SYS(exit_group),
#ifdef __SANITIZE_ADDRESS__
    SCMP_SYS(sigaltstack),
#endif
};

/* What libraries try, and can live without: it does not exist for them. */
static const int absent[] = {SCMP_SYS(openat), SCMP_SYS(open), SCMP_SYS(newfstatat), SCMP_SYS(stat), SCMP_SYS(fstat), SCMP_SYS(access), SCMP_SYS(readlink), SCMP_SYS(socketpair), SCMP_SYS(pipe2),
                             SCMP_SYS(eventfd2), SCMP_SYS(clone), SCMP_SYS(clone3), SCMP_SYS(prctl), SCMP_SYS(prlimit64)};

static struct sock_fprog program;

static int add_rules(scmp_filter_ctx filter)
{
    static const int families[] = {AF_INET, AF_INET6};
    int rc = 0;

    for (size_t i = 0; i < sizeof allowed / sizeof *allowed && rc == 0; i++) rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    for (size_t i = 0; i < sizeof absent / sizeof *absent && rc == 0; i++) rc = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOENT), absent[i], 0);
    for (size_t i = 0; i < sizeof families / sizeof *families && rc == 0; i++) /* streams and datagrams: nothing raw */
        for (int type = SOCK_STREAM; type <= SOCK_DGRAM && rc == 0; type++)
            rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)families[i]),
                                  SCMP_A1(SCMP_CMP_MASKED_EQ, ~(scmp_datum_t)(SOCK_CLOEXEC | SOCK_NONBLOCK), (scmp_datum_t)type));
    for (int family = AF_UNIX; family < AF_MAX && rc == 0; family++)
        if (family != AF_INET && family != AF_INET6) rc = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)family));
    if (rc == 0) rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_EQ, FIONREAD));
    if (rc == 0) rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_EQ, FIONBIO));
    return rc ? rc : confine_allow_memory(filter);
}

int cell_prepare(void) { return confine_prepare(&program, add_rules); }

void cell_enter(const int keep_fd[2], uint64_t file_bytes, pid_t parent)
{
    const bool swapped = keep_fd[0] > keep_fd[1];
    const int keep[2] = {keep_fd[swapped], keep_fd[!swapped]};

    confine_begin("fetch-worker", parent);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a write that is too long fails, and is told */
    confine_close_others(keep, 2);
#ifndef __SANITIZE_ADDRESS__ /* its shadow is larger than any limit */
    confine_limit(RLIMIT_AS, CELL_MEMORY_BYTES, CELL_MEMORY_BYTES);
#endif
    confine_limit(RLIMIT_CPU, CELL_CPU_S, CELL_CPU_S);
    confine_limit(RLIMIT_FSIZE, file_bytes, file_bytes);
    confine_limit(RLIMIT_CORE, 0, 0);
    confine_limit(RLIMIT_NPROC, 0, 0);
    confine_limit(RLIMIT_NOFILE, DESCRIPTORS_MAX, DESCRIPTORS_MAX);
    confine_end(&program);
}
