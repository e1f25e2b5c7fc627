/* shm/error.h - the error codes of every function that can fail.
 *
 * A function returns 0 or a count on success and -E_CODE on failure; nothing is
 * reported through errno or a global. Codes are stable: they cross processes in
 * log lines and status words. error_text() gives the sentence a person reads. */
#ifndef SLUICE_SHM_ERROR_H
#define SLUICE_SHM_ERROR_H

enum error_code {
    E_OK = 0,
    E_FULL = 1,        /* a queue or buffer has no room now; try later */
    E_EMPTY = 2,       /* nothing to read now */
    E_NOMEM = 3,       /* the host refused memory */
    E_IO = 4,          /* the operating system refused a read, write or map */
    E_FORMAT = 5,      /* data is not in the format it claims */
    E_RANGE = 6,       /* a number is outside its limits */
    E_UNSUPPORTED = 7, /* understood, but not built */
    E_NOT_FOUND = 8,   /* the named thing does not exist */
    E_LIMIT = 9,       /* a named limit was reached (steps, bytes, depth) */
    E_VERSION = 10,    /* the other side has another layout: do not restart */
    E_PEER = 11,       /* the other process is gone */
    E_TIMEOUT = 12,    /* waited as long as allowed */
    E_CANCELLED = 13,  /* the request was cancelled */
    E_STALE = 14,      /* a message about a generation that is over */
    E_CONFIG = 15,     /* the operator asked for something impossible */
    E_BUSY = 16,       /* owned by somebody else at the moment */
    E_COUNT
};

/* One short English phrase for -E_CODE or E_CODE; never NULL. */
const char *error_text(int code);

#endif
