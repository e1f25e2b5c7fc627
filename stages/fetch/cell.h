/* stages/fetch/cell.h - what a process that fetches cannot do: it has the network, and nothing else.
 *
 * No files, no processes, no other sockets than TCP and UDP of the internet, none that listens; memory, processor time and the size of what it writes are limited.
 * The stage's own shared memory and the socket to the vision stage are not there. */
#ifndef SLUICE_FETCH_CELL_H
#define SLUICE_FETCH_CELL_H

#include <stdint.h>
#include <sys/types.h>

#define CELL_MEMORY_BYTES (512ull << 20)
#define CELL_CPU_S 10u

/* In the stage: compiles the filter. 0, -E_UNSUPPORTED, -E_NOMEM, -E_IO. */
int cell_prepare(void);

/* In the new process: gives everything up but two descriptors, of which one may grow to file_bytes. Ends the process if that cannot be done. */
void cell_enter(const int keep_fd[2], uint64_t file_bytes, pid_t parent);

#endif
