/* schemas/fault.c - errors in the shape that clients know. */
#include "schemas/fault.h"

#include "shm/error.h"

#include <stdarg.h>
#include <stdio.h>

int fault_set(struct fault *f, int status, const char *code, const char *param, const char *format, ...)
{
    va_list args;

    f->status = status;
    snprintf(f->code, sizeof f->code, "%s", code);
    snprintf(f->param, sizeof f->param, "%s", param ? param : "");
    va_start(args, format);
    vsnprintf(f->message, sizeof f->message, format, args);
    va_end(args);
    return -E_FORMAT;
}

static const char *type_of(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    case 503: return "service_unavailable_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

void fault_object(struct wire *w, const struct fault *f)
{
    wire_text(w, "{\"message\":");
    wire_string(w, f->message);
    wire_format(w, ",\"type\":\"%s\",\"param\":", type_of(f->status));
    if (f->param[0]) wire_string(w, f->param);
    else wire_text(w, "null");
    wire_text(w, ",\"code\":");
    wire_string(w, f->code);
    wire_text(w, "}");
}

void fault_body(struct wire *w, const struct fault *f)
{
    wire_text(w, "{\"error\":");
    fault_object(w, f);
    wire_text(w, "}\n");
}

void fault_frame(struct wire *w, const struct fault *f, const char *stream_id)
{
    wire_format(w, "{\"type\":\"error\",\"status\":%d,\"error\":", f->status);
    fault_object(w, f);
    if (stream_id) {
        wire_text(w, ",\"stream_id\":");
        wire_string(w, stream_id);
    }
    wire_text(w, "}");
}
