/* stages/vision/sandbox.h - what a worker keeps of a process's powers: its memory, one socket, the processor for a while.
 *
 * Descriptors    all closed but the one it is given
 * Limits         SANDBOX_MEMORY_BYTES of address space, SANDBOX_CPU_S or SANDBOX_CPU_VIDEO_S seconds, no files, no processes, no core dump
 * System calls   the list in sandbox.c (and schemas/media.md); any other ends the process (SIGSYS)
 * Privileges     none can be gained; not dumpable; dies with its parent */
#ifndef SLUICE_VISION_SANDBOX_H
#define SLUICE_VISION_SANDBOX_H

#include <sys/types.h>

#define SANDBOX_MEMORY_BYTES (1ull << 30)
#define SANDBOX_CPU_S 20u
#define SANDBOX_CPU_VIDEO_S 40u       /* of a video: 32 frames, each with those before it since the last key frame */

/* In the main process, once: puts the filter together. 0, -E_UNSUPPORTED (the system has no seccomp), -E_NOMEM. */
int sandbox_prepare(void);

/* In the new process: gives everything up but keep_fd, and runs cpu_s seconds at most. Does not return on failure: exit code 1. */
void sandbox_enter(int keep_fd, pid_t parent, unsigned cpu_s);

#endif
