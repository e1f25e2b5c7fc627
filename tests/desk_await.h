/* tests/desk_await.h - a worker of the vision stage has an answer (for cmocka programs that have a desk of their own). */
#ifndef SLUICE_TESTS_DESK_AWAIT_H
#define SLUICE_TESTS_DESK_AWAIT_H

#include "stages/vision/desk.h"
#include <poll.h>

/* 1: done, -E_PEER: it died. */
static inline int desk_await(struct desk *d, int *status)
{
    for (;;) {
        struct pollfd p = {.fd = d->socket, .events = POLLIN};
        assert_int_equal(poll(&p, 1, 30000), 1);
        const int rc = desk_poll(d, status);
        if (rc != 0) return rc;
    }
}

#endif
