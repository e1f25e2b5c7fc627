/* shm/stage.h - what every stage written in C shares: attach, wait, heartbeat, say what happened.
 *
 * A stage is any executable that does what schemas/wiring.md says; this is that
 * contract as a library. The launcher starts it with one end of a SOCK_SEQPACKET
 * pair in the environment variable SLUICE_STAGE_FD and sends one msgpack map with
 * descriptors. The stage answers "ready" and works until SIGTERM, or until the
 * launcher's end closes.
 *
 * All functions are for the stage's main thread unless said otherwise. */
#ifndef SLUICE_SHM_STAGE_H
#define SLUICE_SHM_STAGE_H

#include "shm/pipeline.h"
#include "shm/ring.h"
#include "shm/wiring.h"

#include <stdbool.h>
#include <stddef.h>

enum stage_exit { EXIT_ASKED = 0, EXIT_CONFIG = 100, EXIT_MISSING = 111, EXIT_GPU = 112 /* the CUDA context is lost: restart at once */ };

enum log_level { LOG_ERROR = 0, LOG_WARN = 1, LOG_INFO = 2, LOG_DEBUG = 3 };

struct stage {
    int role;
    int control_fd;                 /* SOCK_SEQPACKET to the launcher */
    struct wiring wiring;           /* configuration, model facts, descriptors */
    uint8_t *segment[ROLE_COUNT];   /* mapped; NULL when not given. Only our own is writable */
    struct stage_status *status;    /* in our own segment */
    struct ring ring[RING_COUNT];   /* both sides mapped where we are producer or consumer */
    struct ring *in[RING_COUNT];    /* the rings we read */
    unsigned in_count;
    uint64_t spin_ns;
    uint64_t beat_ns;               /* last housekeeping */
    enum log_level level;
};

/* Attaches as `role`; handles --help and --version of argv for a person who starts it by hand. Does not
 * return on failure: prints what is wrong and exits 100 (wrong layout or configuration) or 111 (no launcher). */
void stage_attach(struct stage *s, int role, const char *what_it_does, int argc, char **argv);

/* Everything is allocated: tell the launcher. */
void stage_ready(struct stage *s);

/* Exits with EXIT_ASKED / code after telling why. */
__attribute__((noreturn, format(printf, 3, 4))) void stage_exit(struct stage *s, int code, const char *format, ...);

/* Heartbeat; call at least every few ms of work (any thread of the stage may: it is one relaxed add). */
void stage_beat(struct stage *s);

/* Heartbeat and housekeeping; false once asked to stop (SIGTERM or launcher gone). */
bool stage_running(struct stage *s);

/* True when the launcher's end of the control socket is closed: it was killed. */
bool stage_launcher_gone(const struct stage *s);

/* Sleeps until an input ring has a message, or timeout_ms. True when there is a message. */
bool stage_wait(struct stage *s, unsigned timeout_ms);

/* Declares the slots that are about to be worked on (count <= STATUS_BUSY_MAX); stage_idle when done. */
extern void stage_fault_hook(struct stage *s, const uint32_t *slots, unsigned count) __attribute__((weak)); /* only fault tests define it */
void stage_busy(struct stage *s, const uint32_t *slots, const uint32_t *generations, unsigned count);
void stage_idle(struct stage *s);

/* One of our counters (schemas/counters.h) moves. */
static inline void stage_count(struct stage *s, unsigned counter, uint64_t by)
{
    __atomic_store_n(&s->status->counters[counter], s->status->counters[counter] + by, __ATOMIC_RELAXED);
}

/* One structured line to stderr, which the launcher collects: `event key=value ...`. */
__attribute__((format(printf, 4, 5))) void stage_log(const struct stage *s, enum log_level level, const char *event, const char *format, ...);

/* A descriptor by name ("arena.kv", "file.config.json"), or -1. Owned by the stage library. */
int stage_fd(const struct stage *s, const char *name);

/* Maps a descriptor whole; NULL when it does not exist or cannot be mapped. */
void *stage_map(const struct stage *s, const char *name, bool writable, uint64_t *bytes);

#endif
