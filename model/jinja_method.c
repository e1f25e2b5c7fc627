/* model/jinja_method.c - which methods values have, and those of dict, list, loop and cycler
 * (model/jinja_eval.h). Those of str are in model/jinja_str_method.c.
 *
 * Owns     nothing
 * Fails    by the run: wrong arguments. */
#include "model/jinja_method.h"

#include <string.h>

#include "model/jinja_eval.h"
#include "shm/error.h"
#include "shm/must.h"

struct method_name { uint8_t type; const char *name; uint8_t id; };

static const struct method_name methods[] = {
    {JINJA_STRING, "capitalize", STR_CAPITALIZE}, {JINJA_STRING, "casefold", STR_CASEFOLD}, {JINJA_STRING, "center", STR_CENTER},
    {JINJA_STRING, "count", STR_COUNT}, {JINJA_STRING, "endswith", STR_ENDSWITH}, {JINJA_STRING, "find", STR_FIND},
    {JINJA_STRING, "format", STR_FORMAT}, {JINJA_STRING, "index", STR_INDEX}, {JINJA_STRING, "isalnum", STR_ISALNUM},
    {JINJA_STRING, "isalpha", STR_ISALPHA}, {JINJA_STRING, "isdecimal", STR_ISDECIMAL}, {JINJA_STRING, "isdigit", STR_ISDIGIT},
    {JINJA_STRING, "islower", STR_ISLOWER}, {JINJA_STRING, "isnumeric", STR_ISNUMERIC}, {JINJA_STRING, "isspace", STR_ISSPACE},
    {JINJA_STRING, "istitle", STR_ISTITLE}, {JINJA_STRING, "isupper", STR_ISUPPER}, {JINJA_STRING, "join", STR_JOIN},
    {JINJA_STRING, "ljust", STR_LJUST}, {JINJA_STRING, "lower", STR_LOWER}, {JINJA_STRING, "lstrip", STR_LSTRIP},
    {JINJA_STRING, "partition", STR_PARTITION}, {JINJA_STRING, "removeprefix", STR_REMOVEPREFIX},
    {JINJA_STRING, "removesuffix", STR_REMOVESUFFIX}, {JINJA_STRING, "replace", STR_REPLACE}, {JINJA_STRING, "rfind", STR_RFIND},
    {JINJA_STRING, "rindex", STR_RINDEX}, {JINJA_STRING, "rjust", STR_RJUST}, {JINJA_STRING, "rpartition", STR_RPARTITION},
    {JINJA_STRING, "rsplit", STR_RSPLIT}, {JINJA_STRING, "rstrip", STR_RSTRIP}, {JINJA_STRING, "split", STR_SPLIT},
    {JINJA_STRING, "splitlines", STR_SPLITLINES}, {JINJA_STRING, "startswith", STR_STARTSWITH}, {JINJA_STRING, "strip", STR_STRIP},
    {JINJA_STRING, "swapcase", STR_SWAPCASE}, {JINJA_STRING, "title", STR_TITLE}, {JINJA_STRING, "upper", STR_UPPER},
    {JINJA_STRING, "zfill", STR_ZFILL},
    {JINJA_DICT, "copy", DICT_COPY}, {JINJA_DICT, "get", DICT_GET}, {JINJA_DICT, "items", DICT_ITEMS}, {JINJA_DICT, "keys", DICT_KEYS},
    {JINJA_DICT, "values", DICT_VALUES}, {JINJA_DICT, "clear", METHOD_UNSAFE}, {JINJA_DICT, "pop", METHOD_UNSAFE},
    {JINJA_DICT, "popitem", METHOD_UNSAFE}, {JINJA_DICT, "setdefault", METHOD_UNSAFE}, {JINJA_DICT, "update", METHOD_UNSAFE},
    {JINJA_LIST, "copy", LIST_COPY}, {JINJA_LIST, "count", LIST_COUNT}, {JINJA_LIST, "index", LIST_INDEX},
    {JINJA_LIST, "append", METHOD_UNSAFE}, {JINJA_LIST, "clear", METHOD_UNSAFE}, {JINJA_LIST, "extend", METHOD_UNSAFE},
    {JINJA_LIST, "insert", METHOD_UNSAFE}, {JINJA_LIST, "pop", METHOD_UNSAFE}, {JINJA_LIST, "remove", METHOD_UNSAFE},
    {JINJA_LIST, "reverse", METHOD_UNSAFE}, {JINJA_LIST, "sort", METHOD_UNSAFE},
    {JINJA_TUPLE, "count", LIST_COUNT}, {JINJA_TUPLE, "index", LIST_INDEX},
    {JINJA_RANGE, "count", LIST_COUNT}, {JINJA_RANGE, "index", LIST_INDEX},
    {JINJA_LOOP, "changed", LOOP_CHANGED}, {JINJA_LOOP, "cycle", LOOP_CYCLE},
    {JINJA_CYCLER, "next", CYCLER_NEXT}, {JINJA_CYCLER, "reset", CYCLER_RESET},
};

int jinja_method_find(const struct jinja_str *name, uint8_t type, bool *unsafe)
{
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        const struct method_name *m = &methods[i];
        if (m->type != type || strlen(m->name) != name->bytes || memcmp(m->name, name->text, name->bytes) != 0) continue;
        *unsafe = m->id == METHOD_UNSAFE;
        return m->id;
    }
    return -1;
}

static struct jinja_value view(struct jinja_value dict, uint8_t type)
{
    dict.type = type;
    return dict;
}

static struct jinja_value dict_get(struct jinja_eval *e, struct jinja_value self, struct jinja_args *args)
{
    static const char *const params[] = {"key", "default"};
    struct jinja_value v[2], *found;

    if (args->named_count) jinja_fail(&e->run, E_FORMAT, "dict.get() takes no keyword arguments");
    jinja_bind(e, "dict.get", args, params, 2, 1, v);
    found = jinja_dict_get(&e->run, self.u.dict, v[0]);
    return found ? *found : v[1].type == JINJA_MISSING ? jinja_none() : v[1];
}

static struct jinja_value list_search(struct jinja_eval *e, struct jinja_value self, struct jinja_args *args, bool count_all)
{
    static const char *const params[] = {"value"};
    const struct jinja_seq s = jinja_sequence(&e->run, self);
    struct jinja_value v;
    int64_t count = 0;

    jinja_bind(e, count_all ? "count" : "index", args, params, 1, 1, &v);
    for (uint32_t i = 0; i < s.count; i++) {
        if (!jinja_equal(&e->run, jinja_seq_at(&s, i), v)) continue;
        if (!count_all) return jinja_int(i);
        count++;
    }
    if (!count_all) jinja_fail(&e->run, E_FORMAT, "the value is not in the list");
    return jinja_int(count);
}

static struct jinja_value loop_changed(struct jinja_eval *e, struct jinja_loop *l, struct jinja_args *args)
{
    const struct jinja_value now = jinja_tuple_of(&e->run, args->items, args->count);

    if (l->last_changed.type != JINJA_MISSING && jinja_equal(&e->run, l->last_changed, now)) return jinja_bool(false);
    l->last_changed = now;
    return jinja_bool(true);
}

static struct jinja_value cycler_next(struct jinja_cycler *c)
{
    const struct jinja_value v = c->items[c->at];

    c->at = (c->at + 1) % c->count;
    return v;
}

struct jinja_value jinja_method_call(struct jinja_eval *e, const struct jinja_method *m, struct jinja_args *args)
{
    if (m->self.type == JINJA_STRING) return jinja_str_method_call(e, m->self.u.str, m->id, args);
    switch (m->id) {
    case DICT_COPY: case LIST_COPY: jinja_bind(e, "copy", args, NULL, 0, 0, NULL); return m->self;
    case DICT_GET: return dict_get(e, m->self, args);
    case DICT_ITEMS: jinja_bind(e, "items", args, NULL, 0, 0, NULL); return view(m->self, JINJA_ITEMS);
    case DICT_KEYS: jinja_bind(e, "keys", args, NULL, 0, 0, NULL); return view(m->self, JINJA_KEYS);
    case DICT_VALUES: jinja_bind(e, "values", args, NULL, 0, 0, NULL); return view(m->self, JINJA_VALUES);
    case LIST_COUNT: case LIST_INDEX: return list_search(e, m->self, args, m->id == LIST_COUNT);
    case LOOP_CHANGED: return loop_changed(e, m->self.u.loop, args);
    case LOOP_CYCLE:
        if (!args->count) jinja_fail(&e->run, E_FORMAT, "no items for cycling given");
        return args->items[m->self.u.loop->at % args->count];
    case CYCLER_NEXT: return cycler_next(m->self.u.cycler);
    case CYCLER_RESET: m->self.u.cycler->at = 0; return jinja_none();
    default: must(!"a method"); return jinja_none();
    }
}
