/* model/jinja_access.c - x.name, x[key], x[a:b:c], and paths of them (model/jinja_eval.h).
 *
 * As in the sandbox: x.name prefers the object's own methods and falls back to the item; x['name'] the
 * other way round. What mutates is hidden. Neither ever fails on a missing name: it gives undefined.
 *
 * Owns     nothing
 * Fails    by the run: members of undefined, slices of what has none. */
#include "model/jinja_eval.h"

#include <string.h>

#include "model/jinja_unicode.h"
#include "shm/error.h"

/* ------------------------------------------------------------------ loop.* and other objects' fields */

static bool is(const struct jinja_str *name, const char *text)
{
    return name->bytes == strlen(text) && memcmp(name->text, text, name->bytes) == 0;
}

static struct jinja_value loop_field(struct jinja_eval *e, const struct jinja_loop *l, const struct jinja_str *name)
{
    const int64_t at = l->at, count = l->seq.count;

    if (is(name, "index0")) return jinja_int(at);
    if (is(name, "index")) return jinja_int(at + 1);
    if (is(name, "first")) return jinja_bool(at == 0);
    if (is(name, "last")) return jinja_bool(at + 1 == count);
    if (is(name, "length")) return jinja_int(count);
    if (is(name, "revindex")) return jinja_int(count - at);
    if (is(name, "revindex0")) return jinja_int(count - at - 1);
    if (is(name, "depth")) return jinja_int(l->depth);
    if (is(name, "depth0")) return jinja_int((int64_t)l->depth - 1);
    if (is(name, "previtem")) return at ? jinja_seq_at(&l->seq, l->at - 1) : jinja_undefined_hint(&e->run, "there is no previous item");
    if (is(name, "nextitem")) return at + 1 < count ? jinja_seq_at(&l->seq, l->at + 1) : jinja_undefined_hint(&e->run, "there is no next item");
    return jinja_missing();
}

static struct jinja_value macro_field(struct jinja_eval *e, const struct jinja_macro *m, const struct jinja_str *name)
{
    struct jinja_value *items;

    if (is(name, "name")) return jinja_string(m->name);
    if (is(name, "catch_kwargs")) return jinja_bool(m->takes_kwargs);
    if (is(name, "catch_varargs")) return jinja_bool(m->takes_varargs);
    if (is(name, "caller")) return jinja_bool(m->takes_caller);
    if (!is(name, "arguments")) return jinja_missing();
    items = jinja_alloc_array(&e->run, m->node->count, sizeof *items);
    for (uint32_t i = 0; i < m->node->count; i++) items[i] = jinja_string(e->program->names[m->node->params[i]]);
    return jinja_list_of(&e->run, items, m->node->count);
}

static struct jinja_value range_field(struct jinja_value v, const struct jinja_str *name)
{
    const struct jinja_range *g = v.u.range;

    if (is(name, "start")) return jinja_int(g->start);
    if (is(name, "step")) return jinja_int(g->step);
    if (is(name, "stop")) return jinja_int(g->start + (int64_t)g->count * g->step);
    return jinja_missing();
}

static bool is_private(const struct jinja_str *name)
{
    return name->bytes > 4 && memcmp(name->text, "__", 2) == 0 && memcmp(name->text + name->bytes - 2, "__", 2) == 0;
}

/* What Python's getattr finds: a method or field; MISSING when there is none. */
static struct jinja_value own_member(struct jinja_eval *e, struct jinja_value of, struct jinja_str *name)
{
    struct jinja_value v = jinja_missing(), *slot;
    bool unsafe;
    int id;

    jinja_str_text(&e->run, name);
    switch (of.type) {
    case JINJA_NAMESPACE:
        slot = jinja_namespace_get(&e->run, of.u.names, name);
        return slot ? *slot : jinja_missing();
    case JINJA_LOOP: v = loop_field(e, of.u.loop, name); break;
    case JINJA_MACRO: v = macro_field(e, of.u.macro, name); break;
    case JINJA_RANGE: v = range_field(of, name); break;
    case JINJA_CYCLER: if (is(name, "current")) v = of.u.cycler->items[of.u.cycler->at]; break;
    case JINJA_TUPLE:   /* the pairs of groupby */
        if (of.u.list->count == 2 && is(name, "grouper")) v = of.u.list->items[0];
        if (of.u.list->count == 2 && is(name, "list")) v = of.u.list->items[1];
        break;
    default: break;
    }
    if (v.type != JINJA_MISSING) return v;
    if (is_private(name)) return is(name, "__html__") ? v : jinja_undefined_member(&e->run, of, jinja_string(name), true);
    id = jinja_method_find(name, of.type, &unsafe);
    if (id < 0) return v;
    if (unsafe) return jinja_undefined_member(&e->run, of, jinja_string(name), true);
    v.type = JINJA_METHOD;
    v.u.method = jinja_alloc(&e->run, sizeof *v.u.method);
    *v.u.method = (struct jinja_method){of, (uint32_t)id};
    return v;
}

struct jinja_value jinja_attribute(struct jinja_eval *e, struct jinja_value of, struct jinja_str *name)
{
    struct jinja_value v, *item;

    if (of.type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, of);
    v = own_member(e, of, name);
    if (v.type != JINJA_MISSING) return v;
    if (of.type == JINJA_DICT && (item = jinja_dict_get_str(&e->run, of.u.dict, name)) != NULL) return *item;
    return jinja_undefined_member(&e->run, of, jinja_string(name), false);
}

struct jinja_value jinja_own_attribute(struct jinja_eval *e, struct jinja_value of, struct jinja_str *name)
{
    struct jinja_value v;

    if (of.type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, of);
    v = own_member(e, of, name);
    return v.type != JINJA_MISSING ? v : jinja_undefined_member(&e->run, of, jinja_string(name), false);
}

/* ------------------------------------------------------------------ x[key] */

static struct jinja_value char_at(struct jinja_eval *e, struct jinja_str *s, uint32_t i)
{
    const uint32_t begin = jinja_str_offset(&e->run, s, i);
    size_t end = begin;

    jinja_utf8_next(jinja_str_text(&e->run, s), &end);
    return jinja_string(jinja_str_slice(&e->run, s, begin, (uint32_t)end));
}

static bool is_hashable(struct jinja_value v)
{
    if (v.type == JINJA_TUPLE) {
        for (uint32_t i = 0; i < v.u.list->count; i++) if (v.u.list->items[i].type == JINJA_TUPLE || !is_hashable(v.u.list->items[i])) return false;
        return true;
    }
    return v.type != JINJA_LIST && v.type != JINJA_DICT && v.type != JINJA_KEYS && v.type != JINJA_ITEMS;
}

struct jinja_value jinja_item(struct jinja_eval *e, struct jinja_value of, struct jinja_value key)
{
    struct jinja_value v, *found;

    if (of.type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, of);
    if (of.type == JINJA_DICT && is_hashable(key) && (found = jinja_dict_get(&e->run, of.u.dict, key)) != NULL) return *found;
    if (jinja_is_integer(key) && (of.type == JINJA_LIST || of.type == JINJA_TUPLE || of.type == JINJA_STRING || of.type == JINJA_RANGE)) {
        const int64_t count = jinja_length(&e->run, of);
        int64_t i = jinja_integer_of(key);
        if (i < 0) i += count;
        if (i >= 0 && i < count) {
            struct jinja_seq s;
            if (of.type == JINJA_STRING) return char_at(e, of.u.str, (uint32_t)i);
            s = jinja_sequence(&e->run, of);
            return jinja_seq_at(&s, (uint32_t)i);
        }
    }
    if (key.type == JINJA_STRING) {
        v = own_member(e, of, key.u.str);
        if (v.type != JINJA_MISSING) return v;
    }
    return jinja_undefined_member(&e->run, of, key, false);
}

/* ------------------------------------------------------------------ slices */

static int64_t slice_index(struct jinja_eval *e, struct jinja_value v, int64_t none, int64_t low, int64_t high, int64_t count)
{
    int64_t i;

    if (v.type == JINJA_NONE) return none;
    if (!jinja_is_integer(v)) jinja_fail(&e->run, E_FORMAT, "slice indices must be integers or None or have an __index__ method");
    i = jinja_integer_of(v);
    if (i < 0) i = i < -count ? low : i + count;
    return i < low ? low : i > high ? high : i;
}

static struct jinja_value slice_string(struct jinja_eval *e, struct jinja_str *s, int64_t start, int64_t step, uint32_t count)
{
    struct jinja_buf b = {0};
    struct jinja_str *out;
    const char *text = jinja_str_text(&e->run, s);
    size_t at;

    if (!count) return jinja_string(jinja_str_slice(&e->run, s, 0, 0));
    if (step == 1)
        return jinja_string(jinja_str_slice(&e->run, s, jinja_str_offset(&e->run, s, (uint32_t)start), jinja_str_offset(&e->run, s, (uint32_t)start + count)));
    at = jinja_str_offset(&e->run, s, (uint32_t)start);
    for (uint32_t i = 0; i < count; i++) {
        size_t end = at;
        jinja_utf8_next(text, &end);
        jinja_buf_put_slice(&e->run, &b, s, (uint32_t)at, (uint32_t)end);
        jinja_step(&e->run, (uint64_t)(step < 0 ? -step : step));
        if (i + 1 < count) {
            for (int64_t k = 0; k < step; k++) jinja_utf8_next(text, &at);
            for (int64_t k = 0; k > step; k--) at = jinja_utf8_back(text, at);
        }
    }
    out = jinja_buf_finish(&e->run, &b);
    out->markup = s->markup;
    return jinja_string(out);
}

static struct jinja_value slice_items(struct jinja_eval *e, struct jinja_value of, int64_t start, int64_t step, uint32_t count)
{
    struct jinja_value *items;

    if (step == 1 || !count) items = of.u.list->items + start * (count != 0);   /* shared: lists never change */
    else {
        items = jinja_alloc_array(&e->run, count, sizeof *items);
        jinja_step(&e->run, count);
        for (uint32_t i = 0; i < count; i++) items[i] = of.u.list->items[start + (int64_t)i * step];
    }
    return of.type == JINJA_LIST ? jinja_list_of(&e->run, items, count) : jinja_tuple_of(&e->run, items, count);
}

static struct jinja_value slice_range(struct jinja_eval *e, struct jinja_value of, int64_t start, int64_t step, uint32_t count)
{
    struct jinja_range *g = jinja_alloc(&e->run, sizeof *g);
    const struct jinja_range *from = of.u.range;

    *g = (struct jinja_range){.start = from->start + start * from->step, .step = from->step * (count > 1 ? step : 1), .count = count};
    of.u.range = g;
    return of;
}

struct jinja_value jinja_slice(struct jinja_eval *e, struct jinja_value of, struct jinja_value start_v, struct jinja_value stop_v, struct jinja_value step_v)
{
    int64_t count, step = 1, start, stop, n;

    if (of.type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, of);
    if (of.type == JINJA_DICT) jinja_fail(&e->run, E_FORMAT, "unhashable type: 'slice'");
    if (of.type != JINJA_LIST && of.type != JINJA_TUPLE && of.type != JINJA_STRING && of.type != JINJA_RANGE)
        jinja_fail(&e->run, E_FORMAT, "'%s' object is not subscriptable", jinja_type_name(of));
    count = jinja_length(&e->run, of);
    if (step_v.type != JINJA_NONE) {
        if (!jinja_is_integer(step_v)) jinja_fail(&e->run, E_FORMAT, "slice indices must be integers or None or have an __index__ method");
        step = jinja_integer_of(step_v);
        if (step < -INT32_MAX) step = -INT32_MAX;   /* beyond every sequence: same meaning, no overflow below */
        if (step > INT32_MAX) step = INT32_MAX;
        if (step == 0) jinja_fail(&e->run, E_FORMAT, "slice step cannot be zero");
    }
    if (step > 0) {
        start = slice_index(e, start_v, 0, 0, count, count);
        stop = slice_index(e, stop_v, count, 0, count, count);
        n = stop > start ? (stop - start - 1) / step + 1 : 0;
    } else {
        start = slice_index(e, start_v, count - 1, -1, count - 1, count);
        stop = slice_index(e, stop_v, -1, -1, count - 1, count);
        n = stop < start ? (start - stop - 1) / -step + 1 : 0;
    }
    if (of.type == JINJA_STRING) return slice_string(e, of.u.str, start, step, (uint32_t)n);
    if (of.type == JINJA_RANGE) return slice_range(e, of, start, step, (uint32_t)n);
    return slice_items(e, of, start, step, (uint32_t)n);
}

/* ------------------------------------------------------------------ paths */

struct jinja_value jinja_path(struct jinja_eval *e, struct jinja_value of, struct jinja_value path, struct jinja_value fallback)
{
    const char *text;
    uint32_t begin = 0;

    if (path.type == JINJA_NONE || path.type == JINJA_MISSING) return of;
    if (path.type != JINJA_STRING) {
        of = jinja_item(e, of, path);
        return of.type == JINJA_UNDEFINED && fallback.type != JINJA_MISSING ? fallback : of;
    }
    text = jinja_str_text(&e->run, path.u.str);
    for (;;) {
        uint32_t end = begin;
        int64_t number = 0;
        bool digits = true;
        while (end < path.u.str->bytes && text[end] != '.') {
            digits = digits && text[end] >= '0' && text[end] <= '9' && number < INT64_MAX / 20;
            if (digits) number = number * 10 + (text[end] - '0');
            end++;
        }
        of = jinja_item(e, of, digits && end > begin ? jinja_int(number) : jinja_string(jinja_str_slice(&e->run, path.u.str, begin, end)));
        if (of.type == JINJA_UNDEFINED && fallback.type != JINJA_MISSING) of = fallback;
        if (end == path.u.str->bytes) return of;
        begin = end + 1;
    }
}
