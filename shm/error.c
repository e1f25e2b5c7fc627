/* shm/error.c - phrases for the codes of shm/error.h. */
#include "shm/error.h"

const char *error_text(int code)
{
    static const char *const text[E_COUNT] = {
        [E_OK] = "success",
        [E_FULL] = "no room",
        [E_EMPTY] = "nothing there",
        [E_NOMEM] = "out of memory",
        [E_IO] = "input/output error",
        [E_FORMAT] = "malformed data",
        [E_RANGE] = "out of range",
        [E_UNSUPPORTED] = "not supported",
        [E_NOT_FOUND] = "not found",
        [E_LIMIT] = "limit reached",
        [E_VERSION] = "layout version mismatch",
        [E_PEER] = "peer is gone",
        [E_TIMEOUT] = "timed out",
        [E_CANCELLED] = "cancelled",
        [E_STALE] = "stale generation",
        [E_CONFIG] = "bad configuration",
        [E_BUSY] = "busy",
    };
    const unsigned index = code < 0 ? 0u - (unsigned)code : (unsigned)code; /* INT_MIN has no negative */

    if (index >= E_COUNT || !text[index]) return "unknown error";
    return text[index];
}
