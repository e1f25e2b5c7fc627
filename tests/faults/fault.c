/* tests/faults/fault.c - a fault that a request sets off: linked into a stage it makes build/faulty/STAGE.
 *
 * Reads    the request records of the slots that the stage is about to work on (gateway segment)
 * Does     nothing, unless a request's text says FAULT:<role>:<kind> with our role:
 *            segv   a write through a null pointer       abort  a broken invariant, must(0)
 *            hang   a loop without heartbeat             exit   leaves with exit code 3
 *            gpu    a kernel that reads where nothing is (prefill and verify on a GPU): the CUDA context is lost
 *          FAULT:<role>:<kind>:once spares a request that the launcher already suspects, so it survives its second try.
 * Fails    on purpose. Tests put it into a running server: sluice swap verify build/faulty/verify. */
#include "model/engine.h"
#include "schemas/table.h"
#include "shm/must.h"
#include "shm/stage.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MARK_BYTES 64u

static void fail_as(const char *kind, size_t kind_bytes)
{
    static volatile int *volatile nowhere; /* both: the compiler may neither know nor drop the write */
    static volatile unsigned turns;

    if (kind_bytes == 4 && memcmp(kind, "segv", 4) == 0) *nowhere = 1;
    if (kind_bytes == 5 && memcmp(kind, "abort", 5) == 0) must(!"a request asked for it");
    if (kind_bytes == 4 && memcmp(kind, "exit", 4) == 0) _exit(3);
    if (kind_bytes == 4 && memcmp(kind, "hang", 4) == 0)
        for (;;) turns++;
}

/* The kind of fault that the request in this slot asks of our role; NULL: none. */
static const char *find(const struct stage *s, const struct table *t, uint32_t slot, size_t *kind_bytes)
{
    const struct gateway_slot *g = table_gateway(t, slot);
    const uint8_t *text = table_request(t, slot), *end = text + (g->request_bytes < t->limits.request_bytes_max ? g->request_bytes : t->limits.request_bytes_max);
    const uint32_t generation = slot_live(t, slot);
    char mark[MARK_BYTES];
    const size_t mark_bytes = (size_t)snprintf(mark, sizeof mark, "FAULT:%s:", role_name(s->role));
    const uint8_t *found = generation ? memmem(text, (size_t)(end - text), mark, mark_bytes) : NULL;

    if (!found) return NULL;
    const uint8_t *kind = found + mark_bytes, *rest = kind;
    while (rest < end && *rest >= 'a' && *rest <= 'z') rest++;
    const bool once = end - rest >= 5 && memcmp(rest, ":once", 5) == 0;
    if (once && word_for(&table_launcher(t, slot)->strikes, generation)) return NULL;
    *kind_bytes = (size_t)(rest - kind);
    return (const char *)kind;
}

static const struct table *attach_once(struct stage *s)
{
    static struct table table; /* our own view: the stage's is its own */
    static bool attached;

    if (!attached) table_attach(&table, s);
    attached = true;
    return &table;
}

void stage_fault_hook(struct stage *s, const uint32_t *slots, unsigned count)
{
    const struct table *t = attach_once(s);
    size_t kind_bytes;

    for (unsigned i = 0; i < count; i++) {
        const char *kind = find(s, t, slots[i], &kind_bytes);
        if (kind) fail_as(kind, kind_bytes);
    }
}

bool engine_fault_hook(struct stage *s, uint32_t slot)
{
    size_t kind_bytes;
    const char *kind = find(s, attach_once(s), slot, &kind_bytes);

    return kind && kind_bytes == 3 && memcmp(kind, "gpu", 3) == 0;
}
