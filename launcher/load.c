/* launcher/load.c - how far the keeper is with loading the weights: a line on the terminal that moves, or one at the end elsewhere. */
#include "launcher/server.h"

#include "schemas/counters.h"
#include "shm/clock.h"

#include <poll.h>
#include <stdio.h>
#include <unistd.h>

struct load_state load_state(const struct server *v)
{
    const struct stage_status *s = v->segment[ROLE_KEEPER] ? (const struct stage_status *)(v->segment[ROLE_KEEPER] + SEGMENT_STATUS_OFFSET) : NULL;
    struct load_state l = {0};

    if (!s) return l;
    const uint64_t begin_ns = shm_load_relaxed(&s->counters[KEEPER_LOAD_BEGIN_NS]);
    l.loaded = shm_load_acquire(&s->counters[KEEPER_LOADED]) != 0;
    l.bytes_total = shm_load_relaxed(&s->counters[KEEPER_BYTES_TOTAL]);
    l.bytes_done = shm_load_relaxed(&s->counters[KEEPER_BYTES_DONE]);
    l.ns = l.loaded ? shm_load_relaxed(&s->counters[KEEPER_LOAD_NS]) : begin_ns ? clock_ns() - begin_ns : 0;
    return l;
}

void load_show(struct server *v)
{
    const struct load_state l = load_state(v);
    struct pollfd terminal = {.fd = STDERR_FILENO, .events = POLLOUT}; /* one that stopped reading must not stop us */
    const double gb = (double)l.bytes_done / 1e9, seconds = (double)l.ns / 1e9;

    if (v->load_done || !v->model_known || !gpu_is_used(v)) return;
    if (l.loaded) {
        v->load_done = true;
        server_say("%ssluice: %.3g GB of weights in place after %.2f s (%.1f GB/s)", v->load_shown ? "\r" : "", gb, seconds, seconds > 0 ? gb / seconds : 0.0);
    } else if (l.ns > 0 && poll(&terminal, 1, 0) == 1 && (terminal.revents & POLLOUT) && isatty(STDERR_FILENO)) {
        fprintf(stderr, "\rsluice: loading weights, %.1f of %.1f GB, %.1f GB/s ", gb, (double)l.bytes_total / 1e9, gb / seconds); /* the next line overwrites it */
        v->load_shown = true;
    }
}
