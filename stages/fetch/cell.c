/* stages/fetch/cell.c - the filter of system calls and the limits of a process that fetches (contract in cell.h). */
#include "stages/fetch/cell.h"

#include "shm/error.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

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
    if (rc == 0)
        rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0), SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS));
    if (rc == 0) rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    return rc;
}

static int compile(scmp_filter_ctx filter)
{
    const int fd = memfd_create("cell", MFD_CLOEXEC);
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

int cell_prepare(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);

    if (!filter) return -E_NOMEM;
    const int rc = add_rules(filter) == 0 ? compile(filter) : -E_UNSUPPORTED;
    seccomp_release(filter);
    return rc;
}

static void limit(int what, rlim_t value)
{
    const struct rlimit both = {.rlim_cur = value, .rlim_max = value};

    if (setrlimit(what, &both) != 0) _exit(1);
}

static void close_others(const int keep[2])
{
    const unsigned low = (unsigned)(keep[0] < keep[1] ? keep[0] : keep[1]), high = (unsigned)(keep[0] < keep[1] ? keep[1] : keep[0]);

    if (low > 0) syscall(SYS_close_range, 0u, low - 1, 0u);
    if (high > low + 1) syscall(SYS_close_range, low + 1, high - 1, 0u);
    if (syscall(SYS_close_range, high + 1, ~0u, 0u) == 0) return;
    for (unsigned fd = 0; fd < 65536; fd++) /* a kernel before 5.9 */
        if (fd != low && fd != high) close((int)fd);
}

void cell_enter(const int keep_fd[2], uint64_t file_bytes, pid_t parent)
{
    sigset_t none;

    for (int s = 1; s < 32; s++) signal(s, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a write that is too long fails, and is told */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_NAME, "fetch-worker");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    if (prctl(PR_SET_DUMPABLE, 0) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) _exit(1);
    close_others(keep_fd);
#ifndef __SANITIZE_ADDRESS__ /* its shadow is larger than any limit */
    limit(RLIMIT_AS, CELL_MEMORY_BYTES);
#endif
    limit(RLIMIT_CPU, CELL_CPU_S);
    limit(RLIMIT_FSIZE, file_bytes);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_NPROC, 0);
    limit(RLIMIT_NOFILE, DESCRIPTORS_MAX);
    if (!program.filter || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) _exit(1);
}
