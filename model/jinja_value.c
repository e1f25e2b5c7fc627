/* model/jinja_value.c - making values, dicts, namespaces and sequences (model/jinja_value.h).
 *
 * Owns     nothing: all memory is the run's arena
 * Fails    by the run, in Python's words. */
#include "model/jinja_value.h"

#include <string.h>

#include "model/jinja_print.h"
#include "model/jinja_unicode.h"
#include "shm/error.h"
#include "shm/must.h"

static struct jinja_value no_items;   /* never read: what an empty list points to, so that arithmetic on it is defined */

struct jinja_value jinja_list_of(struct jinja_run *r, struct jinja_value *items, uint32_t count)
{
    struct jinja_list *l = jinja_alloc(r, sizeof *l);

    *l = (struct jinja_list){items ? items : &no_items, count};
    return (struct jinja_value){.type = JINJA_LIST, .u.list = l};
}

struct jinja_value jinja_tuple_of(struct jinja_run *r, struct jinja_value *items, uint32_t count)
{
    struct jinja_value v = jinja_list_of(r, items, count);

    v.type = JINJA_TUPLE;
    return v;
}

struct jinja_value jinja_pair(struct jinja_run *r, struct jinja_value a, struct jinja_value b)
{
    struct jinja_value *two = jinja_alloc(r, 2 * sizeof *two);

    two[0] = a;
    two[1] = b;
    return jinja_tuple_of(r, two, 2);
}

struct jinja_value jinja_iterator_of(struct jinja_run *r, struct jinja_value *items, uint32_t count)
{
    struct jinja_iterator *it = jinja_alloc(r, sizeof *it);

    *it = (struct jinja_iterator){items ? items : &no_items, count, 0};
    return (struct jinja_value){.type = JINJA_ITERATOR, .u.iterator = it};
}

static struct jinja_value undefined_of(struct jinja_run *r, struct jinja_undefined u)
{
    struct jinja_undefined *p = jinja_alloc(r, sizeof *p);

    *p = u;
    return (struct jinja_value){.type = JINJA_UNDEFINED, .u.undefined = p};
}

struct jinja_value jinja_undefined_variable(struct jinja_run *r, struct jinja_str *name)
{
    return undefined_of(r, (struct jinja_undefined){.name = name});
}

struct jinja_value jinja_undefined_member(struct jinja_run *r, struct jinja_value owner, struct jinja_value key, bool unsafe)
{
    struct jinja_undefined u = {.key = key, .owner = jinja_type_name(owner), .unsafe = unsafe};

    if (key.type == JINJA_STRING) u.name = key.u.str;
    return undefined_of(r, u);
}

struct jinja_value jinja_undefined_hint(struct jinja_run *r, const char *sentence)
{
    return undefined_of(r, (struct jinja_undefined){.hint = sentence});
}

void jinja_fail_undefined(struct jinja_run *r, struct jinja_value v)
{
    const struct jinja_undefined *u = v.u.undefined;
    const struct jinja_str *shown;
    const char *suffix = !u->owner || strcmp(u->owner, "NoneType") == 0 ? "" : " object";
    const char *owner = u->owner && strcmp(u->owner, "NoneType") == 0 ? "None" : u->owner;

    must(v.type == JINJA_UNDEFINED);
    if (u->hint) jinja_fail(r, E_FORMAT, "%s", u->hint);
    shown = jinja_repr(r, u->name ? jinja_string(u->name) : u->key);
    if (u->unsafe)
        jinja_fail(r, E_FORMAT, "access to attribute %.*s of '%s' object is unsafe.", (int)shown->bytes, shown->text, u->owner);
    if (!u->owner) jinja_fail(r, E_FORMAT, "%.*s is undefined", (int)shown->bytes, shown->text);
    if (!u->name) jinja_fail(r, E_FORMAT, "%s%s has no element %.*s", owner, suffix, (int)shown->bytes, shown->text);
    jinja_fail(r, E_FORMAT, "'%s%s' has no attribute %.*s", owner, suffix, (int)shown->bytes, shown->text);
}

void jinja_items_add(struct jinja_run *r, struct jinja_items *l, struct jinja_value v)
{
    if (l->count == l->room) {
        const uint32_t room = l->room ? 2 * l->room : 8;
        if (l->room > UINT32_MAX / 4) jinja_fail(r, E_LIMIT, "the template makes too long a list");
        l->items = jinja_grow(r, l->items, l->count * sizeof *l->items, room * sizeof *l->items);
        l->room = room;
    }
    l->items[l->count++] = v;
    jinja_step(r, 1);
}

/* ------------------------------------------------------------------ dicts */

enum { LINEAR_COUNT = 8 };   /* up to here comparing hashes one by one is faster than an index */

struct jinja_dict *jinja_dict_new(struct jinja_run *r, uint32_t room)
{
    struct jinja_dict *d = jinja_alloc(r, sizeof *d);

    *d = (struct jinja_dict){.entries = jinja_alloc_array(r, room ? room : 1, sizeof *d->entries), .room = room ? room : 1};
    return d;
}

static struct jinja_entry *find_entry(struct jinja_run *r, const struct jinja_dict *d, struct jinja_value key, uint32_t hash)
{
    jinja_step(r, 1);
    if (!d->index) {
        for (uint32_t i = 0; i < d->count; i++)
            if (d->entries[i].hash == hash && jinja_equal(r, d->entries[i].key, key)) return &d->entries[i];
        return NULL;
    }
    for (uint32_t at = hash & (d->index_count - 1);; at = (at + 1) & (d->index_count - 1)) {
        struct jinja_entry *e;
        if (!d->index[at]) return NULL;
        jinja_step(r, 1);
        e = &d->entries[d->index[at] - 1];
        if (e->hash == hash && jinja_equal(r, e->key, key)) return e;
    }
}

static void index_entry(struct jinja_dict *d, uint32_t number)
{
    uint32_t at = d->entries[number].hash & (d->index_count - 1);

    while (d->index[at]) at = (at + 1) & (d->index_count - 1);
    d->index[at] = number + 1;
}

void jinja_dict_put(struct jinja_run *r, struct jinja_dict *d, struct jinja_value key, struct jinja_value value)
{
    const uint32_t hash = jinja_hash(r, key);
    struct jinja_entry *e = find_entry(r, d, key, hash);

    if (e) {
        e->value = value;
        return;
    }
    if (d->count == d->room) {
        if (d->room > UINT32_MAX / 8) jinja_fail(r, E_LIMIT, "the template makes too large a dict");
        d->entries = jinja_grow(r, d->entries, d->count * sizeof *d->entries, 2 * (size_t)d->room * sizeof *d->entries);
        d->room *= 2;
    }
    d->entries[d->count++] = (struct jinja_entry){key, value, hash};
    if (d->count > LINEAR_COUNT && 2 * d->count > d->index_count) {
        d->index_count = d->index_count ? 4 * d->index_count : 32;
        d->index = jinja_alloc_array(r, d->index_count, sizeof *d->index);
        for (uint32_t i = 0; i < d->count; i++) index_entry(d, i);
    } else if (d->index) {
        index_entry(d, d->count - 1);
    }
}

struct jinja_value *jinja_dict_get(struct jinja_run *r, const struct jinja_dict *d, struct jinja_value key)
{
    struct jinja_entry *e = find_entry(r, d, key, jinja_hash(r, key));

    return e ? &e->value : NULL;
}

struct jinja_value *jinja_dict_get_str(struct jinja_run *r, const struct jinja_dict *d, struct jinja_str *key)
{
    return jinja_dict_get(r, d, jinja_string(key));
}

/* ------------------------------------------------------------------ namespaces */

struct jinja_value *jinja_namespace_get(struct jinja_run *r, struct jinja_namespace *n, struct jinja_str *name)
{
    const uint32_t hash = jinja_str_hash(r, name);

    jinja_step(r, 1 + n->count / 8);
    for (uint32_t i = 0; i < n->count; i++)
        if (n->slots[i].hash == hash && jinja_str_equal(r, n->slots[i].key.u.str, name)) return &n->slots[i].value;
    return NULL;
}

void jinja_namespace_put(struct jinja_run *r, struct jinja_namespace *n, struct jinja_str *name, struct jinja_value v)
{
    struct jinja_value *old = jinja_namespace_get(r, n, name);

    if (old) {
        *old = v;
        return;
    }
    if (n->count == n->room) {
        const uint32_t room = n->room ? 2 * n->room : 4;
        n->slots = jinja_grow(r, n->slots, n->count * sizeof *n->slots, room * sizeof *n->slots);
        n->room = room;
    }
    n->slots[n->count++] = (struct jinja_entry){jinja_string(name), v, jinja_str_hash(r, name)};
}

/* ------------------------------------------------------------------ walking */

static struct jinja_seq seq_of_string(struct jinja_run *r, struct jinja_str *s)
{
    const uint32_t chars = jinja_str_chars(r, s);
    const char *text = jinja_str_text(r, s);
    struct jinja_value *items;
    size_t at = 0;

    jinja_step(r, chars);
    items = jinja_alloc_array(r, chars, sizeof *items);
    for (uint32_t i = 0; i < chars; i++) {
        const size_t begin = at;
        jinja_utf8_next(text, &at);
        items[i] = jinja_string(jinja_str_slice(r, s, (uint32_t)begin, (uint32_t)at));
    }
    return (struct jinja_seq){.items = items, .count = chars};
}

static struct jinja_seq seq_of_dict(struct jinja_run *r, const struct jinja_dict *d, uint8_t type)
{
    struct jinja_value *items = jinja_alloc_array(r, d->count, sizeof *items);

    jinja_step(r, d->count);
    for (uint32_t i = 0; i < d->count; i++) {
        const struct jinja_entry *e = &d->entries[i];
        items[i] = type == JINJA_ITEMS ? jinja_pair(r, e->key, e->value) : type == JINJA_VALUES ? e->value : e->key;
    }
    return (struct jinja_seq){.items = items, .count = d->count};
}

struct jinja_seq jinja_sequence(struct jinja_run *r, struct jinja_value v)
{
    switch (v.type) {
    case JINJA_LIST: case JINJA_TUPLE: return (struct jinja_seq){.items = v.u.list->items, .count = v.u.list->count};
    case JINJA_DICT: case JINJA_KEYS: case JINJA_VALUES: case JINJA_ITEMS: return seq_of_dict(r, v.u.dict, v.type);
    case JINJA_RANGE: return (struct jinja_seq){.range = v.u.range, .count = v.u.range->count, .untrusted = v.untrusted};
    case JINJA_STRING: return seq_of_string(r, v.u.str);
    case JINJA_UNDEFINED: return (struct jinja_seq){0};
    case JINJA_ITERATOR: {
        struct jinja_iterator *it = v.u.iterator;
        struct jinja_seq s = {.items = it->items + it->at, .count = it->count - it->at};
        it->at = it->count;
        return s;
    }
    default: jinja_fail(r, E_FORMAT, "'%s' object is not iterable", jinja_type_name(v));
    }
}

struct jinja_value jinja_seq_at(const struct jinja_seq *s, uint32_t i)
{
    struct jinja_value v;

    if (s->items) return s->items[i];
    v = jinja_int(s->range->start + (int64_t)i * s->range->step);
    v.untrusted = s->untrusted;
    return v;
}
