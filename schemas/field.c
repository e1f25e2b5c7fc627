/* schemas/field.c - strict JSON and typed access to its fields. */
#include "schemas/field.h"

#include "schemas/field_long.h"
#include "shm/error.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The library recurses, and takes a hundred times the memory of a text like [0,0,0...]: what it is given must be shallow and have
 * few values. Brackets, commas and colons are counted outside of strings, nothing else is judged here. */
static int check_size(const char *text, size_t bytes, struct fault *f)
{
    size_t depth = 0, values = 1, members = 0;

    for (size_t i = 0; i < bytes; i++) {
        const char c = text[i];
        if (c == '"') {
            const char *close = field_long_end(text + i + 1, text + bytes);
            i = close ? (size_t)(close - text) : bytes;
        } else if (c == '{' || c == '[') {
            values++;
            if (++depth > FIELD_DEPTH_MAX) return fault_set(f, 400, "invalid_json", NULL, "The JSON is nested deeper than %u levels.", FIELD_DEPTH_MAX);
        } else if ((c == '}' || c == ']') && depth > 0) depth--;
        else if (c == ',') values++;
        else if (c == ':') members++;
    }
    if (values > FIELD_VALUES_MAX) return fault_set(f, 400, "invalid_json", NULL, "The JSON has more than %u values.", FIELD_VALUES_MAX);
    if (members > FIELD_MEMBERS_MAX) return fault_set(f, 400, "invalid_json", NULL, "The JSON has more than %u object members.", FIELD_MEMBERS_MAX);
    return 0;
}

/* For messages. */
static const char *kind_of(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_NULL: return "null";
    default: return "a boolean";
    }
}

#define STRICT (JSON_REJECT_DUPLICATES | JSON_DECODE_ANY)

/* Its long strings go past the library. NULL: there are none, or something is wrong, which the library says better of the whole text. */
static json_t *load_shortened(const char *text, size_t bytes)
{
    struct field_long l;
    json_t *value = NULL;

    if (field_long_cut(&l, text, bytes) == 0 && l.text) value = json_loadb(l.text, l.bytes, STRICT, NULL);
    if (value && field_long_restore(&l, value) != 0) {
        json_decref(value);
        value = NULL;
    }
    field_long_close(&l);
    return value;
}

json_t *field_parse(const char *text, size_t bytes, struct fault *f)
{
    json_error_t error;

    if (check_size(text, bytes, f) < 0) return NULL;
    json_t *value = load_shortened(text, bytes);
    if (!value) value = json_loadb(text, bytes, STRICT, &error);
    if (!value) {
        const bool nul = json_error_code(&error) == json_error_null_character; /* the library's sentence names its own options */
        fault_set(f, 400, "invalid_json", NULL, "%s: %s (line %d, column %d).", nul ? "The JSON cannot be taken" : "This is not valid JSON",
                  nul ? "a string holds \\u0000, which is not allowed here" : error.text, error.line, error.column);
        return NULL;
    }
    if (!json_is_object(value)) {
        fault_set(f, 400, "invalid_json", NULL, "The JSON must be an object, not %s.", kind_of(value));
        json_decref(value);
        return NULL;
    }
    return value;
}

/* The field, or NULL when it is absent or null: both mean "not given" to every client library. */
static json_t *given(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);

    return json_is_null(value) ? NULL : value;
}

static int wrong(struct fault *f, const char *name, const char *wanted, const json_t *value)
{
    return fault_set(f, 400, "invalid_type", name, "Invalid type for '%s': expected %s, but got %s instead.", name, wanted, kind_of(value));
}

int field_bool(const json_t *object, const char *name, bool *out, struct fault *f)
{
    const json_t *value = given(object, name);

    if (!value) return 0;
    if (!json_is_boolean(value)) return wrong(f, name, "a boolean", value);
    *out = json_is_true(value);
    return 1;
}

int field_integer(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out, struct fault *f)
{
    const json_t *value = given(object, name);

    if (!value) return 0;
    if (json_is_real(value) && json_real_value(value) == floor(json_real_value(value)) && fabs(json_real_value(value)) < 9007199254740992.0)
        *out = (int64_t)json_real_value(value); /* JavaScript clients may spell 16 as 16.0 */
    else if (!json_is_integer(value)) return wrong(f, name, "an integer", value);
    else *out = json_integer_value(value);
    if (*out < min || *out > max)
        return fault_set(f, 400, "out_of_range", name, "Invalid '%s': %lld is not between %lld and %lld.", name, (long long)*out, (long long)min,
                         (long long)max);
    return 1;
}

int field_number(const json_t *object, const char *name, double min, double max, double *out, struct fault *f)
{
    const json_t *value = given(object, name);

    if (!value) return 0;
    if (!json_is_number(value)) return wrong(f, name, "a number", value);
    *out = json_number_value(value);
    if (!(*out >= min && *out <= max))
        return fault_set(f, 400, "out_of_range", name, "Invalid '%s': %g is not between %g and %g.", name, *out, min, max);
    return 1;
}

int field_string(const json_t *object, const char *name, size_t bytes_max, const char **out, struct fault *f)
{
    const json_t *value = given(object, name);

    if (!value) return 0;
    if (!json_is_string(value)) return wrong(f, name, "a string", value);
    if (json_string_length(value) > bytes_max)
        return fault_set(f, 400, "string_too_long", name, "Invalid '%s': the string has %zu bytes, at most %zu are allowed.", name,
                         json_string_length(value), bytes_max);
    *out = json_string_value(value);
    return 1;
}

int field_array(const json_t *object, const char *name, size_t count_max, json_t **out, struct fault *f)
{
    json_t *value = given(object, name);

    if (!value) return 0;
    if (!json_is_array(value)) return wrong(f, name, "an array", value);
    if (json_array_size(value) > count_max)
        return fault_set(f, 400, "array_too_long", name, "Invalid '%s': the array has %zu elements, at most %zu are allowed.", name, json_array_size(value),
                         count_max);
    *out = value;
    return 1;
}

int field_object(const json_t *object, const char *name, json_t **out, struct fault *f)
{
    json_t *value = given(object, name);

    if (!value) return 0;
    if (!json_is_object(value)) return wrong(f, name, "an object", value);
    *out = value;
    return 1;
}

static bool listed(const char *const *names, const char *name)
{
    for (; names && *names; names++)
        if (strcmp(*names, name) == 0) return true;
    return false;
}

int field_known(const json_t *object, const char *const *names, const char *const *more_names, const char *where, struct fault *f)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        char path[96];
        if (listed(names, key) || listed(more_names, key)) continue;
        snprintf(path, sizeof path, "%s%s%s", where, *where ? "." : "", key);
        return fault_set(f, 400, "unknown_parameter", path, "Unknown parameter: '%s'.", path);
    }
    return 0;
}
