/* schemas/wire.h - text on its way out: a buffer that grows, and JSON written into it.
 *
 * Used by the gateway for events, bodies and headers. Written by hand instead of by
 * a JSON library because the same bytes must come out on every replay and most
 * events are one short string. Out of memory ends the process (must): the launcher
 * starts a new gateway and clients resume. */
#ifndef SLUICE_SCHEMAS_WIRE_H
#define SLUICE_SCHEMAS_WIRE_H

#include <stddef.h>
#include <stdint.h>

struct wire { /* zero-initialised: empty */
    char *data; /* owned, freed by wire_free; NUL-terminated once anything was added */
    size_t bytes, capacity;
};

void wire_free(struct wire *w);
void wire_clear(struct wire *w); /* empties it; gives memory back when it had grown large */
void wire_add(struct wire *w, const char *data, size_t bytes);
void wire_text(struct wire *w, const char *text);
__attribute__((format(printf, 2, 3))) void wire_format(struct wire *w, const char *format, ...);

/* The inside of a JSON string: escapes what must be; bytes that are not UTF-8 become U+FFFD. */
void wire_escape(struct wire *w, const char *data, size_t bytes);
/* A whole JSON string with its quotes. */
void wire_string(struct wire *w, const char *text);
void wire_string_bytes(struct wire *w, const char *data, size_t bytes);
/* A JSON number: shortest text that reads back as the same float; null when not finite. */
void wire_float(struct wire *w, float value);

/* Length of the UTF-8 character that begins at p, 0 when there is none in the `left` bytes. */
size_t wire_character(const uint8_t *p, size_t left);

#endif
