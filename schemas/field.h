/* schemas/field.h - JSON from outside: parsed strictly, read field by field.
 *
 * Refused before anything looks at it: nesting deeper than FIELD_DEPTH_MAX, more values
 * or members than FIELD_VALUES_MAX and FIELD_MEMBERS_MAX, duplicate keys, text that is not UTF-8, "\u0000", numbers beyond 64 bits, trailing bytes. Each
 * reader returns 1 when the field is there and right, 0 when it is absent or null,
 * -E_FORMAT with a fault that names it. */
#ifndef SLUICE_SCHEMAS_FIELD_H
#define SLUICE_SCHEMAS_FIELD_H

#include "schemas/fault.h"

#include <jansson.h>
#include <stdbool.h>

#define FIELD_DEPTH_MAX 32u
#define FIELD_VALUES_MAX (1u << 20) /* reading a million takes a tenth of a second, in which nobody else is served */
#define FIELD_MEMBERS_MAX (1u << 17)

/* A new reference, or NULL with a fault (400, code invalid_json). */
json_t *field_parse(const char *text, size_t bytes, struct fault *f);

int field_bool(const json_t *object, const char *name, bool *out, struct fault *f);
int field_integer(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out, struct fault *f);
int field_number(const json_t *object, const char *name, double min, double max, double *out, struct fault *f);
/* Borrowed from object; bytes <= bytes_max. */
int field_string(const json_t *object, const char *name, size_t bytes_max, const char **out, struct fault *f);
int field_array(const json_t *object, const char *name, size_t count_max, json_t **out, struct fault *f);
int field_object(const json_t *object, const char *name, json_t **out, struct fault *f);

/* Refuses the first key of object that is in neither list (NULL-terminated; either may be NULL). */
int field_known(const json_t *object, const char *const *names, const char *const *more_names, const char *where, struct fault *f);

#endif
