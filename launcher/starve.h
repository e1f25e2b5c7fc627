/* launcher/starve.h - how much of its silence a process spent waiting for a processor: slow is not dead. */
#ifndef SLUICE_LAUNCHER_STARVE_H
#define SLUICE_LAUNCHER_STARVE_H

#include <stdint.h>
#include <sys/types.h>

#define STARVE_THREADS_MAX 64u /* that are looked at */

struct starve {                /* all 0: nothing known yet */
    uint64_t looked_ns;        /* when it was last looked at; 0: never */
    uint64_t ns;               /* since the first look: time in which a thread could have run and did not */
    unsigned count;
    struct starve_thread { pid_t tid; uint64_t ran_ns; } thread[STARVE_THREADS_MAX];
};

/* Looks at the threads of process `pid`, every few ticks; the first time only notes where they are. Returns w->ns, which grows by no more than the time between two looks. */
uint64_t starve_look(struct starve *w, pid_t pid, uint64_t now_ns);

#endif
