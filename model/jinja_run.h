/* model/jinja_run.h - what every part of the interpreter stands on: one arena, one way out, budgets.
 *
 * A parse or a render owns one struct jinja_run. Memory comes from its arena and goes back all at
 * once. An error anywhere leaves by longjmp to the place that began the run (jinja_run_guard), which
 * then frees the arena: with hundreds of fallible steps per expression, a return code on each would be
 * most of the code, and a forgotten one a wrong prompt. Nothing inside a run holds any other resource,
 * so nothing can leak past the jump. Steps, bytes and depth are counted here and nowhere else.
 *
 * Fails: -E_LIMIT for a budget, -E_NOMEM when malloc refuses, else what the caller says. */
#ifndef SLUICE_MODEL_JINJA_RUN_H
#define SLUICE_MODEL_JINJA_RUN_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JINJA_MESSAGE_BYTES 1024u
#define JINJA_DEPTH_MAX     1600u   /* nested evaluations; measured at -O2: all of chat_test runs in 768 KiB of C stack */

struct jinja_chunk;

struct jinja_run {
    struct jinja_chunk *chunks;   /* newest first; freed by jinja_run_free */
    char *cursor, *limit;         /* free part of the newest chunk */
    size_t memory_bytes, memory_bytes_max;
    uint64_t steps_left;
    uint32_t depth;               /* evaluations under way, below JINJA_DEPTH_MAX */
    uint32_t line;                /* template line at work, for messages; 0: none */
    uint32_t string_bytes_max;    /* longest string; also the longest output */
    int code;                     /* -E_CODE once failed */
    char message[JINJA_MESSAGE_BYTES];
    jmp_buf exit;
};

/* Makes a run ready; nothing is allocated yet. */
void jinja_run_init(struct jinja_run *r, size_t memory_bytes_max, uint64_t steps_max, uint32_t string_bytes_max);

/* 0 when entered; the negative code when something inside failed. Volatile rules of setjmp apply. */
#define jinja_run_guard(r) (setjmp((r)->exit) ? (r)->code : 0)

/* Frees all the run's memory. */
void jinja_run_free(struct jinja_run *r);

/* Memory of the run, aligned to 16, not zeroed; never NULL. */
void *jinja_alloc(struct jinja_run *r, size_t bytes);

/* `count` objects of `bytes` each, zeroed; the product is checked. */
void *jinja_alloc_array(struct jinja_run *r, size_t count, size_t bytes);

/* Grows a block that jinja_alloc returned; in place when it is the newest one. */
void *jinja_grow(struct jinja_run *r, void *block, size_t old_bytes, size_t new_bytes);

/* Leaves the run with -code and "line N: message". */
__attribute__((noreturn, cold, format(printf, 3, 4)))
void jinja_fail(struct jinja_run *r, int code, const char *format, ...);

/* Leaves the run with -code and exactly this message: raise_exception. */
__attribute__((noreturn, cold))
void jinja_fail_plain(struct jinja_run *r, int code, const char *text, size_t bytes);

__attribute__((noreturn, cold)) void jinja_fail_steps(struct jinja_run *r);
__attribute__((noreturn, cold)) void jinja_fail_depth(struct jinja_run *r);

/* Pays for work; work on bytes pays one step for 16. */
static inline void jinja_step(struct jinja_run *r, uint64_t count)
{
    if (r->steps_left < count) jinja_fail_steps(r);
    r->steps_left -= count;
}

static inline void jinja_step_bytes(struct jinja_run *r, size_t bytes) { jinja_step(r, bytes / 16); }

static inline void jinja_enter(struct jinja_run *r)
{
    if (++r->depth > JINJA_DEPTH_MAX) jinja_fail_depth(r);
}

static inline void jinja_leave(struct jinja_run *r) { r->depth--; }

#endif
