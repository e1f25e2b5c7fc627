/* schemas/fault.h - why a request is refused, as clients see it.
 *
 *   HTTP       {"error":{"message","type","param","code"}} with the status
 *   WebSocket  {"type":"error","status",...,"error":{...},"stream_id"?}
 *
 * The shape is the one that today's clients turn into typed exceptions. A message
 * names the offending field and what would be accepted. */
#ifndef SLUICE_SCHEMAS_FAULT_H
#define SLUICE_SCHEMAS_FAULT_H

#include "schemas/wire.h"

struct fault {
    int status; /* HTTP status; 0: no fault */
    char code[48];
    char param[96]; /* "": none */
    char message[512];
};

/* Fills f and returns -E_FORMAT, so that a check reads `return fault_set(...)`. param may be NULL. */
__attribute__((format(printf, 5, 6))) int fault_set(struct fault *f, int status, const char *code, const char *param, const char *format, ...);

/* {"message":...,"type":...,"param":...,"code":...}. The type ("invalid_request_error", ...) follows from the status. */
void fault_object(struct wire *w, const struct fault *f);
/* The body of an HTTP answer. */
void fault_body(struct wire *w, const struct fault *f);
/* The frame of a WebSocket; stream_id may be NULL. */
void fault_frame(struct wire *w, const struct fault *f, const char *stream_id);

#endif
