/* model/jinja_run.c - the arena, the budgets and the way out of a run (model/jinja_run.h).
 *
 * Reads    nothing
 * Owns     the chunks of each run, freed by jinja_run_free
 * Fails    by longjmp to the run's guard; the message is complete before the jump. */
#include "model/jinja_run.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shm/error.h"
#include "shm/must.h"

enum { CHUNK_BYTES = 64 * 1024, ALIGN = 16 };

/* Under the address sanitizer every block is a malloc of its own, so that an overrun inside the arena is seen. */
#if defined(__SANITIZE_ADDRESS__)
#define BLOCKS_APART 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BLOCKS_APART 1
#endif
#endif
#ifndef BLOCKS_APART
#define BLOCKS_APART 0
#endif

struct jinja_chunk {
    struct jinja_chunk *next;
    size_t bytes;
};

void jinja_run_init(struct jinja_run *r, size_t memory_bytes_max, uint64_t steps_max, uint32_t string_bytes_max)
{
    memset(r, 0, sizeof *r);
    r->memory_bytes_max = memory_bytes_max;
    r->steps_left = steps_max;
    r->string_bytes_max = string_bytes_max;
}

void jinja_run_free(struct jinja_run *r)
{
    while (r->chunks) {
        struct jinja_chunk *c = r->chunks;
        r->chunks = c->next;
        free(c);
    }
    r->cursor = r->limit = NULL;
}

static size_t round_up(size_t bytes) { return (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1); }

/* A large block gets a chunk of its own behind the newest one, so that the newest one's rest is not lost. */
static void *new_chunk(struct jinja_run *r, size_t bytes)
{
    const size_t head = round_up(sizeof(struct jinja_chunk));
    const bool own = BLOCKS_APART || bytes > CHUNK_BYTES / 4;
    const size_t want = own ? bytes : CHUNK_BYTES;
    struct jinja_chunk *c;

    if (want > r->memory_bytes_max - r->memory_bytes)
        jinja_fail(r, E_LIMIT, "the template needs more than %zu bytes of memory", r->memory_bytes_max);
    c = malloc(head + want);
    if (!c) jinja_fail(r, E_NOMEM, "out of memory");
    c->bytes = want;
    r->memory_bytes += want;
    if (own && r->chunks) {
        c->next = r->chunks->next;
        r->chunks->next = c;
        return (char *)c + head;
    }
    c->next = r->chunks;
    r->chunks = c;
    r->cursor = (char *)c + head + bytes;
    r->limit = (char *)c + head + want;
    return (char *)c + head;
}

void *jinja_alloc(struct jinja_run *r, size_t bytes)
{
    char *p = r->cursor;

    if (bytes > r->memory_bytes_max) jinja_fail(r, E_LIMIT, "the template needs more than %zu bytes of memory", r->memory_bytes_max);
    if (BLOCKS_APART) return new_chunk(r, bytes);
    bytes = round_up(bytes ? bytes : 1);
    if (bytes > (size_t)(r->limit - r->cursor)) return new_chunk(r, bytes);
    r->cursor += bytes;
    return p;
}

void *jinja_alloc_array(struct jinja_run *r, size_t count, size_t bytes)
{
    size_t all;
    void *p;

    if (__builtin_mul_overflow(count, bytes, &all)) jinja_fail(r, E_LIMIT, "the template needs too much memory");
    p = jinja_alloc(r, all);
    memset(p, 0, all);
    return p;
}

void *jinja_grow(struct jinja_run *r, void *block, size_t old_bytes, size_t new_bytes)
{
    char *p = block;
    const size_t old_room = round_up(old_bytes ? old_bytes : 1);

    must(new_bytes >= old_bytes);
    if (!BLOCKS_APART && p && p + old_room == r->cursor && round_up(new_bytes) - old_room <= (size_t)(r->limit - r->cursor)) {
        r->cursor = p + round_up(new_bytes);
        return p;
    }
    p = jinja_alloc(r, new_bytes);
    if (old_bytes) memcpy(p, block, old_bytes);
    return p;
}

void jinja_fail(struct jinja_run *r, int code, const char *format, ...)
{
    va_list args;
    int n = 0;

    if (r->line) n = snprintf(r->message, sizeof r->message, "line %u: ", r->line);
    va_start(args, format);
    vsnprintf(r->message + n, sizeof r->message - (size_t)n, format, args);
    va_end(args);
    r->code = -code;
    longjmp(r->exit, 1);
}

void jinja_fail_plain(struct jinja_run *r, int code, const char *text, size_t bytes)
{
    const size_t n = bytes < sizeof r->message - 1 ? bytes : sizeof r->message - 1;

    memcpy(r->message, text, n);
    r->message[n] = 0;
    r->code = -code;
    longjmp(r->exit, 1);
}

void jinja_fail_steps(struct jinja_run *r) { jinja_fail(r, E_LIMIT, "the template runs too long (step limit)"); }

void jinja_fail_depth(struct jinja_run *r) { jinja_fail(r, E_LIMIT, "the template nests or recurses deeper than %u", JINJA_DEPTH_MAX); }
