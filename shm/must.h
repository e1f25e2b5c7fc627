/* shm/must.h - must(cond): our own invariants, checked in release builds too.
 *
 * A false condition is a bug of this process: must_fail() writes a panic record
 * where the launcher finds it (the hook below, set by shm/stage.c) and aborts;
 * the launcher restarts us. Never used on data from outside. */
#ifndef SLUICE_SHM_MUST_H
#define SLUICE_SHM_MUST_H

__attribute__((noreturn, cold))
void must_fail(const char *condition, const char *file, int line);

/* Called once with the text of the failed condition before abort(); NULL: none. */
extern void (*must_hook)(const char *text);

#define must(cond) \
    ((__builtin_expect(!!(cond), 1)) ? (void)0 : must_fail(#cond, __FILE__, __LINE__))

#endif
