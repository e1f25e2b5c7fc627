/* model/jinja_filter_number.c - the filters abs, float, int, round (model/jinja_filter.h).
 *
 * Owns     nothing
 * Fails    by the run: not a number; an integer beyond 64 bits. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja_filter.h"
#include "shm/error.h"

enum { NUMBER_BYTES = 400 };

static bool given(struct jinja_value v) { return v.type != JINJA_MISSING; }

static struct jinja_value mark(struct jinja_value out, struct jinja_value in)
{
    if (in.type == JINJA_STRING) out.untrusted = in.u.str->trust != JINJA_TRUST_ALL;
    else out.untrusted = in.untrusted;
    return out;
}

struct jinja_value jinja_filter_abs(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    (void)args;
    if (v[0].type == JINJA_UNDEFINED) jinja_fail(&e->run, E_FORMAT, "bad operand type for abs(): 'Undefined'");
    if (!jinja_is_number(v[0])) jinja_fail(&e->run, E_FORMAT, "bad operand type for abs(): '%s'", jinja_type_name(v[0]));
    if (v[0].type == JINJA_FLOAT) return mark(jinja_float(fabs(v[0].u.real)), v[0]);
    if (jinja_integer_of(v[0]) == INT64_MIN) jinja_fail(&e->run, E_RANGE, "an integer does not fit in 64 bits");
    return mark(jinja_int(llabs(jinja_integer_of(v[0]))), v[0]);
}

/* A number's text without blanks and single underscores between digits; false when it cannot be one. */
static bool plain_number(struct jinja_eval *e, struct jinja_str *s, char out[NUMBER_BYTES])
{
    struct jinja_str *t = jinja_str_strip(&e->run, s, NULL, true, true);
    size_t n = 0;

    if (!t->bytes || t->bytes >= NUMBER_BYTES) return false;
    for (uint32_t i = 0; i < t->bytes; i++) {
        const char c = t->text[i];
        if (c == '_') {
            if (i == 0 || i + 1 == t->bytes || t->text[i - 1] == '_' || t->text[i + 1] == '_') return false;
        } else if (c <= ' ' || c > '~') return false;
        else out[n++] = c;
    }
    out[n] = 0;
    return n > 0;
}

/* Python's float(): no hexadecimal, but inf and nan. */
static bool parse_real(struct jinja_eval *e, struct jinja_str *s, double *out)
{
    char text[NUMBER_BYTES], *end;

    if (!plain_number(e, s, text) || strpbrk(text, "xXpP(")) return false;
    *out = strtod(text, &end);
    return *end == 0;
}

static bool parse_integer(struct jinja_eval *e, struct jinja_str *s, int64_t base, int64_t *out)
{
    char text[NUMBER_BYTES], *end, *from = text, kind;

    if ((base != 0 && base < 2) || base > 36 || !plain_number(e, s, text)) return false;
    if (*from == '+' || *from == '-') from++;
    kind = from[0] == '0' ? (char)(from[1] | 32) : 0;
    if ((kind == 'x' && (base == 16 || base == 0)) || (kind == 'o' && (base == 8 || base == 0)) || (kind == 'b' && (base == 2 || base == 0))) {
        base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
        memmove(from, from + 2, strlen(from + 2) + 1);
    } else if (base == 0) {
        if (kind && from[1]) for (const char *p = from; *p; p++) if (*p != '0') return false;
        base = 10;
    }
    if (!((*from >= '0' && *from <= '9') || ((*from | 32) >= 'a' && (*from | 32) <= 'z'))) return false;
    errno = 0;
    *out = strtoll(text, &end, (int)base);
    if (*end) return false;
    if (errno == ERANGE) jinja_fail(&e->run, E_RANGE, "an integer does not fit in 64 bits");
    return true;
}

static struct jinja_value truncated(struct jinja_eval *e, double d, struct jinja_value otherwise)
{
    if (isnan(d) || isinf(d)) return otherwise;
    if (fabs(d) >= 9223372036854775808.0) jinja_fail(&e->run, E_RANGE, "an integer does not fit in 64 bits");
    return jinja_int((int64_t)d);
}

struct jinja_value jinja_filter_int(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const struct jinja_value otherwise = given(v[1]) ? v[1] : jinja_int(0);
    int64_t i;
    double d;

    (void)args;
    switch (v[0].type) {
    case JINJA_UNDEFINED: jinja_fail_undefined(&e->run, v[0]);
    case JINJA_BOOL: case JINJA_INT: return mark(jinja_int(jinja_integer_of(v[0])), v[0]);
    case JINJA_FLOAT:
        if (isinf(v[0].u.real)) jinja_fail(&e->run, E_FORMAT, "cannot convert float infinity to integer");
        return mark(truncated(e, v[0].u.real, otherwise), v[0]);
    case JINJA_STRING:
        if (parse_integer(e, v[0].u.str, given(v[2]) ? jinja_need_int(e, v[2]) : 10, &i)) return mark(jinja_int(i), v[0]);
        if (parse_real(e, v[0].u.str, &d)) return mark(truncated(e, d, otherwise), v[0]);
        return otherwise;
    default: return otherwise;
    }
}

struct jinja_value jinja_filter_float(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    double d;

    (void)args;
    if (v[0].type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, v[0]);
    if (jinja_is_number(v[0])) return mark(jinja_float(jinja_real_of(v[0])), v[0]);
    if (v[0].type == JINJA_STRING && parse_real(e, v[0].u.str, &d)) return mark(jinja_float(d), v[0]);
    return given(v[1]) ? v[1] : jinja_float(0);
}

/* Correctly rounded in decimal, halves to even, as Python's round(): printf rounds exact binary values so. */
static double round_digits(double d, int64_t digits)
{
    char text[NUMBER_BYTES];

    if (!isfinite(d) || digits > 300) return d;
    if (digits < -308) return 0 * d;
    if (digits >= 0) snprintf(text, sizeof text, "%.*f", (int)digits, d);
    else {
        const double unit = pow(10, (double)-digits);
        return rint(d / unit) * unit;
    }
    return strtod(text, NULL);
}

static struct jinja_value round_integer(struct jinja_eval *e, int64_t i, int64_t digits)
{
    int64_t unit = 1, rest, low;

    if (digits >= 0) return jinja_int(i);
    for (int64_t k = 0; k < -digits; k++) if (__builtin_mul_overflow(unit, 10, &unit)) return jinja_int(0);
    rest = i % unit;
    if (rest < 0) rest += unit;
    if (__builtin_sub_overflow(i, rest, &low)) jinja_fail(&e->run, E_RANGE, "an integer does not fit in 64 bits");
    if (rest > unit / 2 || (rest == unit / 2 && (low / unit) % 2 != 0))
        if (__builtin_add_overflow(low, unit, &low)) jinja_fail(&e->run, E_RANGE, "an integer does not fit in 64 bits");
    return jinja_int(low);
}

struct jinja_value jinja_filter_round(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const int64_t digits = given(v[1]) ? jinja_need_int(e, v[1]) : 0;
    struct jinja_str *method = given(v[2]) ? jinja_need_str(e, "method", v[2]) : NULL;
    const bool common = !method || jinja_str_is(&e->run, method, "common");
    double unit, d;

    (void)args;
    if (!common && !jinja_str_is(&e->run, method, "ceil") && !jinja_str_is(&e->run, method, "floor"))
        jinja_fail(&e->run, E_FORMAT, "method must be common, ceil or floor");
    if (v[0].type == JINJA_UNDEFINED) jinja_fail(&e->run, E_FORMAT, "type Undefined doesn't define __round__ method");
    if (!jinja_is_number(v[0])) jinja_fail(&e->run, E_FORMAT, "type %s doesn't define __round__ method", jinja_type_name(v[0]));
    if (common) {
        if (jinja_is_integer(v[0])) return mark(round_integer(e, jinja_integer_of(v[0]), digits), v[0]);
        return mark(jinja_float(round_digits(v[0].u.real, digits)), v[0]);
    }
    unit = pow(10, (double)digits);
    d = jinja_real_of(v[0]) * unit;
    return mark(jinja_float((jinja_str_is(&e->run, method, "ceil") ? ceil(d) : floor(d)) / unit), v[0]);
}
