/* stages/vision/desk.h - one worker of the vision stage: a process that decodes one file and ends.
 *
 * The stage's main process touches no byte of a file but to copy it. A worker is forked beforehand, gives up everything it could do harm with (sandbox.h) and
 * waits at its desk: memory that it shares with the main process and with nobody else. It gets one file, leaves the result on the desk, says so, and is replaced.
 * So nothing of one client's file ever meets another's, whatever a decoder was talked into.
 *
 * What lies on a desk after a worker had it is outside data: desk_result() checks it. A worker that dies tells by the end of its socket. */
#ifndef SLUICE_VISION_DESK_H
#define SLUICE_VISION_DESK_H

#include "schemas/media.h"

#include <stdbool.h>
#include <sys/types.h>

#define DESK_WHY_BYTES 200u

struct desk_limits {                  /* of the model, the same for every file */
    uint32_t picture_budget;          /* soft tokens; 0: no pictures */
    uint32_t picture_positions;       /* most soft tokens along a side */
    uint32_t picture_side;            /* 0: blocks of 48 x 48 pixels; else every picture becomes a square of so many pixels, and picture_budget soft tokens */
    uint32_t crops_max;               /* with picture_side: pieces in which a long picture is shown, too; 0: none. Each is a square as the whole one, behind it */
    uint32_t sound_tokens;            /* 0: no sound */
    uint32_t frames_max;              /* of a video file; 0: this desk takes none, else nothing but video files (film.h) */
    uint32_t frame_budget;            /* soft tokens of one of them */
    bool exact;                       /* a large JPEG is decoded at its full size, as the reference does, and not at a fraction of it that is still twice too large */
};

struct desk_result {
    uint32_t status;                  /* enum media_status */
    uint32_t tokens, columns;         /* with pieces, of a video: tokens of all of them together */
    uint32_t frames;                  /* of a video file; else 0 */
    char why[DESK_WHY_BYTES];
};

struct desk {
    pid_t pid;                        /* 0: nobody works here */
    int socket;                       /* to the worker; -1: none */
    bool busy, ready;                 /* ready: it has entered its sandbox */
    struct desk_page *page;           /* the shared memory; lives as long as the stage */
    uint32_t kind;                    /* enum media_kind of the file on the desk */
    uint64_t file_bytes, out_bytes;   /* what lies on it: of the file, and of a result that was good */
    uint64_t mapped_bytes;            /* of the file's place, by the main process */
    bool good;                        /* the worker ended well: it has written nothing but that */
    struct desk_limits limits;
};

/* Makes the shared memory and the first worker (a desk for videos gets none before there is a video). 0, -E_NOMEM, -E_IO, -E_UNSUPPORTED (no seccomp here). */
int desk_open(struct desk *d, const struct desk_limits *limits);
/* A worker takes its place: 0, or -E_IO (no process can be made now). */
int desk_hire(struct desk *d);
/* Lays a file on the desk and lets the worker begin. 0, -E_PEER: the worker is gone (hire another, try again). */
int desk_begin(struct desk *d, const struct media_file_hdr *hdr, const uint8_t *data);
/* After its socket became readable: 1, the worker is done (and has ended: what lies on the desk does not change any more); 0, not yet;
 * -E_PEER: it died, *status is what waitpid said. */
int desk_poll(struct desk *d, int *status);
/* A checked copy of what the worker left. Data (borrowed until desk_clear): result->tokens * token bytes; of a video file, behind them, a u32 for each frame:
 * when it is shown, in milliseconds. */
void desk_result(struct desk *d, struct desk_result *result, const uint8_t **data, uint64_t *data_bytes);
/* Ends the worker, if there is one. Returns what waitpid said. */
int desk_stop(struct desk *d);
/* Wipes what lay on the desk: nothing of it meets the next file. */
void desk_clear(struct desk *d);

/* All pages of a range at once (advice: MADV_POPULATE_READ or _WRITE): one by one each costs a fault, ten times as much. A kernel that cannot (before 5.14)
 * lets them be touched one by one. */
void desk_touch(const void *at, uint64_t bytes, int advice);

/* The work itself, in the process that calls it (for tests and benches). `out` holds desk_out_bytes(). */
void desk_decode(const struct desk_limits *limits, const struct media_file_hdr *hdr, const uint8_t *file, uint8_t *out, struct desk_result *result);
uint64_t desk_out_bytes(const struct desk_limits *limits);

/* For those who do it: nothing came of the file, and why; which enum media_status an error code is. */
__attribute__((format(printf, 3, 4))) void desk_give_up(struct desk_result *result, uint32_t status, const char *format, ...);
uint32_t desk_status(int code);

#endif
