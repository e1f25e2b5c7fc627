/* model/jinja_filter_list.c - filters over sequences and mappings (model/jinja_filter.h).
 *
 * What jinja2 returns as a generator is worked out at once here and returned as an iterator that can be
 * read once: a template sees the difference only in when an error is raised.
 *
 * Owns     nothing
 * Fails    by the run: not iterable, no order between items, budgets. */
#include <string.h>

#include "model/jinja_filter.h"
#include "model/jinja_lex.h"
#include "shm/error.h"

static bool given(struct jinja_value v) { return v.type != JINJA_MISSING; }
static bool is_set(struct jinja_eval *e, struct jinja_value v) { return given(v) && jinja_truth(&e->run, v); }

static struct jinja_value ignore_case(struct jinja_eval *e, struct jinja_value v)
{
    return v.type == JINJA_STRING ? jinja_string(jinja_str_lower(&e->run, v.u.str)) : v;
}

/* ------------------------------------------------------------------ sorting */

struct keyed { struct jinja_value item, key; };

/* A stable merge sort in the arena; qsort_r would have to be left by longjmp. */
static void sort_keyed(struct jinja_eval *e, struct keyed *a, uint32_t count, bool reverse)
{
    struct keyed *b = jinja_alloc_array(&e->run, count, sizeof *b), *from = a, *to = b;

    for (uint32_t width = 1; width < count; width *= 2) {
        struct keyed *swap;
        for (uint64_t at = 0; at < count; at += 2 * (uint64_t)width) {
            const uint64_t middle = at + width < count ? at + width : count, end = at + 2 * (uint64_t)width < count ? at + 2 * (uint64_t)width : count;
            uint64_t i = at, k = middle, o = at;
            while (i < middle && k < end) {
                const bool second = reverse ? jinja_compared(e, COMPARE_LT, from[i].key, from[k].key) : jinja_compared(e, COMPARE_LT, from[k].key, from[i].key);
                to[o++] = second ? from[k++] : from[i++];
            }
            while (i < middle) to[o++] = from[i++];
            while (k < end) to[o++] = from[k++];
        }
        swap = from;
        from = to;
        to = swap;
        if (width > UINT32_MAX / 2) break;
    }
    if (from != a) memcpy(a, from, count * sizeof *a);
}

static struct jinja_value list_of_keyed(struct jinja_eval *e, const struct keyed *k, uint32_t count)
{
    struct jinja_value *items = jinja_alloc_array(&e->run, count, sizeof *items);

    for (uint32_t i = 0; i < count; i++) items[i] = k[i].item;
    return jinja_list_of(&e->run, items, count);
}

struct jinja_value jinja_filter_dictsort(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const bool by_value = given(v[2]) && jinja_str_is(&e->run, jinja_need_str(e, "by", v[2]), "value");
    struct keyed *k;
    const struct jinja_dict *d;

    (void)args;
    if (given(v[2]) && !by_value && !jinja_str_is(&e->run, v[2].u.str, "key"))
        jinja_fail(&e->run, E_FORMAT, "You can only sort by either \"key\" or \"value\"");
    if (v[0].type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, v[0]);
    if (v[0].type != JINJA_DICT) jinja_fail(&e->run, E_FORMAT, "'%s' object has no attribute 'items'", jinja_type_name(v[0]));
    d = v[0].u.dict;
    k = jinja_alloc_array(&e->run, d->count, sizeof *k);
    for (uint32_t i = 0; i < d->count; i++) {
        const struct jinja_value key = by_value ? d->entries[i].value : d->entries[i].key;
        k[i].item = jinja_pair(&e->run, d->entries[i].key, d->entries[i].value);
        k[i].key = is_set(e, v[1]) ? key : ignore_case(e, key);
    }
    sort_keyed(e, k, d->count, is_set(e, v[3]));
    return list_of_keyed(e, k, d->count);
}

/* "a,b": one key per path, compared in turn. */
static struct jinja_value sort_key(struct jinja_eval *e, struct jinja_value item, struct jinja_value attribute, bool case_sensitive)
{
    struct jinja_items keys = {0};
    const char *text;
    uint32_t begin = 0;

    if (attribute.type != JINJA_STRING) {
        const struct jinja_value key = jinja_path(e, item, attribute, jinja_missing());
        return case_sensitive ? key : ignore_case(e, key);
    }
    text = jinja_str_text(&e->run, attribute.u.str);
    for (uint32_t i = 0; i <= attribute.u.str->bytes; i++) {
        struct jinja_value key;
        if (i < attribute.u.str->bytes && text[i] != ',') continue;
        key = jinja_path(e, item, jinja_string(jinja_str_slice(&e->run, attribute.u.str, begin, i)), jinja_missing());
        jinja_items_add(&e->run, &keys, case_sensitive ? key : ignore_case(e, key));
        begin = i + 1;
    }
    return keys.count == 1 ? keys.items[0] : jinja_list_of(&e->run, keys.items, keys.count);
}

static struct keyed *keyed_items(struct jinja_eval *e, struct jinja_value of, struct jinja_value attribute, bool case_sensitive, uint32_t *count)
{
    const struct jinja_seq s = jinja_sequence(&e->run, of);
    struct keyed *k = jinja_alloc_array(&e->run, s.count, sizeof *k);

    for (uint32_t i = 0; i < s.count; i++) {
        k[i].item = jinja_seq_at(&s, i);
        k[i].key = sort_key(e, k[i].item, attribute, case_sensitive);
    }
    *count = s.count;
    return k;
}

struct jinja_value jinja_filter_sort(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    uint32_t count;
    struct keyed *k = keyed_items(e, v[0], v[3], is_set(e, v[2]), &count);

    (void)args;
    sort_keyed(e, k, count, is_set(e, v[1]));
    return list_of_keyed(e, k, count);
}

static struct jinja_value extreme(struct jinja_eval *e, struct jinja_value *v, bool largest)
{
    const struct jinja_seq s = jinja_sequence(&e->run, v[0]);
    struct keyed best = {.item = jinja_missing()};

    if (!s.count) return jinja_undefined_hint(&e->run, "No aggregated item, sequence was empty.");
    for (uint32_t i = 0; i < s.count; i++) {
        const struct jinja_value item = jinja_seq_at(&s, i);
        struct jinja_value key = jinja_path(e, item, v[2], jinja_missing());
        if (!is_set(e, v[1])) key = ignore_case(e, key);
        if (i && !jinja_compared(e, largest ? COMPARE_GT : COMPARE_LT, key, best.key)) continue;
        best = (struct keyed){item, key};
    }
    return best.item;
}

struct jinja_value jinja_filter_max(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args) { (void)args; return extreme(e, v, true); }
struct jinja_value jinja_filter_min(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args) { (void)args; return extreme(e, v, false); }

struct jinja_value jinja_filter_unique(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const struct jinja_seq s = jinja_sequence(&e->run, v[0]);
    struct jinja_dict *seen = jinja_dict_new(&e->run, 0);
    struct jinja_items out = {0};

    (void)args;
    for (uint32_t i = 0; i < s.count; i++) {
        const struct jinja_value item = jinja_seq_at(&s, i);
        struct jinja_value key = jinja_path(e, item, v[2], jinja_missing());
        if (!is_set(e, v[1])) key = ignore_case(e, key);
        if (jinja_dict_get(&e->run, seen, key)) continue;
        jinja_dict_put(&e->run, seen, key, jinja_none());
        jinja_items_add(&e->run, &out, item);
    }
    return jinja_iterator_of(&e->run, out.items, out.count);
}

struct jinja_value jinja_filter_groupby(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const struct jinja_seq s = jinja_sequence(&e->run, v[0]);
    struct keyed *k = jinja_alloc_array(&e->run, s.count, sizeof *k);
    struct jinja_items groups = {0};
    const struct jinja_value fallback = given(v[2]) && v[2].type != JINJA_NONE ? v[2] : jinja_missing();

    (void)args;
    for (uint32_t i = 0; i < s.count; i++) {
        k[i].item = jinja_seq_at(&s, i);
        k[i].key = jinja_path(e, k[i].item, v[1], fallback);
        if (!is_set(e, v[3])) k[i].key = ignore_case(e, k[i].key);
    }
    sort_keyed(e, k, s.count, false);
    for (uint32_t i = 0; i < s.count;) {
        struct jinja_items group = {0};
        const struct jinja_value key = k[i].key, first = k[i].item;
        for (; i < s.count && jinja_equal(&e->run, k[i].key, key); i++) jinja_items_add(&e->run, &group, k[i].item);
        jinja_items_add(&e->run, &groups, jinja_pair(&e->run, jinja_path(e, first, v[1], fallback), jinja_list_of(&e->run, group.items, group.count)));
    }
    return jinja_list_of(&e->run, groups.items, groups.count);
}

/* ------------------------------------------------------------------ map, select and their kin */

static struct jinja_value take_keyword(struct jinja_eval *e, struct jinja_args *args, const char *name)
{
    for (uint32_t i = 0; i < args->named_count; i++)
        if (jinja_str_is(&e->run, args->named[i].name, name)) {
            const struct jinja_value v = args->named[i].value;
            memmove(&args->named[i], &args->named[i + 1], (args->named_count - i - 1) * sizeof *args->named);
            args->named_count--;
            return v;
        }
    return jinja_missing();
}

static struct jinja_value map_attribute(struct jinja_eval *e, struct jinja_seq s, struct jinja_value attribute, struct jinja_value fallback)
{
    struct jinja_items out = {0};

    if (fallback.type == JINJA_NONE) fallback = jinja_missing();
    for (uint32_t i = 0; i < s.count; i++) jinja_items_add(&e->run, &out, jinja_path(e, jinja_seq_at(&s, i), attribute, fallback));
    return jinja_iterator_of(&e->run, out.items, out.count);
}

struct jinja_value jinja_filter_map(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_items out = {0};
    struct jinja_seq s;
    struct jinja_str *name;
    struct jinja_args rest = *args;
    uint16_t number;

    if (!jinja_truth(&e->run, v[0])) return jinja_iterator_of(&e->run, NULL, 0);
    if (!args->count) {
        const struct jinja_value attribute = take_keyword(e, args, "attribute"), fallback = take_keyword(e, args, "default");
        if (!given(attribute)) jinja_fail(&e->run, E_FORMAT, "map requires a filter argument");
        if (args->named_count)
            jinja_fail(&e->run, E_FORMAT, "Unexpected keyword argument '%.*s'", (int)args->named[0].name->bytes, jinja_str_text(&e->run, args->named[0].name));
        return map_attribute(e, jinja_sequence(&e->run, v[0]), attribute, fallback);
    }
    name = jinja_need_str(e, "the name of a filter", args->items[0]);
    number = jinja_filter_find(jinja_str_text(&e->run, name), name->bytes);
    if (number == UINT16_MAX) jinja_fail(&e->run, E_FORMAT, "No filter named '%.*s'.", (int)name->bytes, name->text);
    s = jinja_sequence(&e->run, v[0]);
    for (uint32_t i = 0; i < s.count; i++) {
        rest = (struct jinja_args){args->items + 1, args->count - 1, args->named, args->named_count};
        jinja_items_add(&e->run, &out, jinja_filter(e, number, jinja_seq_at(&s, i), &rest));
    }
    return jinja_iterator_of(&e->run, out.items, out.count);
}

static struct jinja_value select(struct jinja_eval *e, struct jinja_value *v, const struct jinja_args *args, bool keep, bool by_attribute)
{
    struct jinja_items out = {0};
    struct jinja_seq s;
    uint32_t used = 0;
    struct jinja_value attribute = jinja_missing();
    uint16_t number = UINT16_MAX;

    if (!jinja_truth(&e->run, v[0])) return jinja_iterator_of(&e->run, NULL, 0);
    if (by_attribute) {
        if (!args->count) jinja_fail(&e->run, E_FORMAT, "Missing parameter for attribute name");
        attribute = args->items[used++];
    }
    if (used < args->count) {
        struct jinja_str *name = jinja_need_str(e, "the name of a test", args->items[used++]);
        number = jinja_test_find(jinja_str_text(&e->run, name), name->bytes);
        if (number == UINT16_MAX) jinja_fail(&e->run, E_FORMAT, "No test named '%.*s'.", (int)name->bytes, name->text);
    }
    s = jinja_sequence(&e->run, v[0]);
    for (uint32_t i = 0; i < s.count; i++) {
        struct jinja_args rest = {args->items + used, args->count - used, args->named, args->named_count};
        const struct jinja_value item = jinja_seq_at(&s, i), looked = jinja_path(e, item, attribute, jinja_missing());
        const bool yes = number == UINT16_MAX ? jinja_truth(&e->run, looked) : jinja_test(e, number, looked, &rest);
        jinja_step(&e->run, 1);
        if (yes == keep) jinja_items_add(&e->run, &out, item);
    }
    return jinja_iterator_of(&e->run, out.items, out.count);
}

struct jinja_value jinja_filter_select(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args) { return select(e, v, args, true, false); }
struct jinja_value jinja_filter_reject(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args) { return select(e, v, args, false, false); }
struct jinja_value jinja_filter_selectattr(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args) { return select(e, v, args, true, true); }
struct jinja_value jinja_filter_rejectattr(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args) { return select(e, v, args, false, true); }

/* ------------------------------------------------------------------ the rest */

struct jinja_value jinja_filter_length(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    (void)args;
    return jinja_int(jinja_length(&e->run, v[0]));
}

struct jinja_value jinja_filter_list(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_seq s = jinja_sequence(&e->run, v[0]);

    (void)args;
    if (s.range) {
        struct jinja_value *items = jinja_alloc_array(&e->run, s.count, sizeof *items);
        jinja_step(&e->run, s.count);
        for (uint32_t i = 0; i < s.count; i++) items[i] = jinja_seq_at(&s, i);
        s.items = items;
    }
    return jinja_list_of(&e->run, s.items, s.count);
}

struct jinja_value jinja_filter_first(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_seq s;

    (void)args;
    if (v[0].type == JINJA_ITERATOR) {
        struct jinja_iterator *it = v[0].u.iterator;
        if (it->at < it->count) return it->items[it->at++];
    }
    if (v[0].type == JINJA_STRING && v[0].u.str->bytes) return jinja_item(e, v[0], jinja_int(0));
    s = jinja_sequence(&e->run, v[0]);
    return s.count ? jinja_seq_at(&s, 0) : jinja_undefined_hint(&e->run, "No first item, sequence was empty.");
}

struct jinja_value jinja_filter_last(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_seq s;

    (void)args;
    if (v[0].type == JINJA_ITERATOR || !jinja_is_iterable(v[0]))
        jinja_fail(&e->run, E_FORMAT, "'%s' object is not reversible", jinja_type_name(v[0]));
    if (v[0].type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, v[0]);
    if (v[0].type == JINJA_STRING && v[0].u.str->bytes) return jinja_item(e, v[0], jinja_int(-1));
    s = jinja_sequence(&e->run, v[0]);
    return s.count ? jinja_seq_at(&s, s.count - 1) : jinja_undefined_hint(&e->run, "No last item, sequence was empty.");
}

struct jinja_value jinja_filter_reverse(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_seq s;
    struct jinja_value *items;

    (void)args;
    if (v[0].type == JINJA_STRING) return jinja_slice(e, v[0], jinja_none(), jinja_none(), jinja_int(-1));
    if (v[0].type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, v[0]);
    if (!jinja_is_iterable(v[0])) jinja_fail(&e->run, E_FORMAT, "argument must be iterable");
    s = jinja_sequence(&e->run, v[0]);
    items = jinja_alloc_array(&e->run, s.count, sizeof *items);
    jinja_step(&e->run, s.count);
    for (uint32_t i = 0; i < s.count; i++) items[i] = jinja_seq_at(&s, s.count - 1 - i);
    return v[0].type == JINJA_ITERATOR ? jinja_list_of(&e->run, items, s.count) : jinja_iterator_of(&e->run, items, s.count);
}

struct jinja_value jinja_filter_items(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_seq s;

    (void)args;
    if (v[0].type == JINJA_UNDEFINED) return jinja_iterator_of(&e->run, NULL, 0);
    if (v[0].type != JINJA_DICT) jinja_fail(&e->run, E_FORMAT, "Can only get item pairs from a mapping.");
    v[0].type = JINJA_ITEMS;
    s = jinja_sequence(&e->run, v[0]);
    return jinja_iterator_of(&e->run, s.items, s.count);
}

struct jinja_value jinja_filter_join(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const struct jinja_seq s = jinja_sequence(&e->run, v[0]);
    struct jinja_buf b = {0};

    (void)args;
    for (uint32_t i = 0; i < s.count; i++) {
        jinja_step(&e->run, 1);
        if (i && given(v[1])) jinja_print(&e->run, &b, v[1]);
        jinja_print(&e->run, &b, jinja_path(e, jinja_seq_at(&s, i), v[2], jinja_missing()));
    }
    return jinja_string(jinja_buf_finish(&e->run, &b));
}

struct jinja_value jinja_filter_sum(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const struct jinja_seq s = jinja_sequence(&e->run, v[0]);
    struct jinja_value total = given(v[2]) ? v[2] : jinja_int(0);

    (void)args;
    if (total.type == JINJA_STRING) jinja_fail(&e->run, E_FORMAT, "sum() can't sum strings [use ''.join(seq) instead]");
    for (uint32_t i = 0; i < s.count; i++) total = jinja_binary(e, '+', total, jinja_path(e, jinja_seq_at(&s, i), v[1], jinja_missing()));
    return total;
}

struct jinja_value jinja_filter_batch(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const struct jinja_seq s = jinja_sequence(&e->run, v[0]);
    const int64_t per_row = jinja_need_int(e, v[1]);
    struct jinja_items rows = {0};

    (void)args;
    for (uint32_t at = 0; at < s.count;) {
        struct jinja_items row = {0};
        while (at < s.count && (per_row <= 0 || row.count < per_row)) jinja_items_add(&e->run, &row, jinja_seq_at(&s, at++));
        while (given(v[2]) && v[2].type != JINJA_NONE && row.count < per_row) jinja_items_add(&e->run, &row, v[2]);
        jinja_items_add(&e->run, &rows, jinja_list_of(&e->run, row.items, row.count));
    }
    return jinja_iterator_of(&e->run, rows.items, rows.count);
}

struct jinja_value jinja_filter_slice(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const struct jinja_seq s = jinja_sequence(&e->run, v[0]);
    const int64_t slices = jinja_need_int(e, v[1]);
    struct jinja_items rows = {0};
    uint32_t at = 0;

    (void)args;
    if (slices == 0) jinja_fail(&e->run, E_FORMAT, "integer division or modulo by zero");
    for (int64_t i = 0; i < slices; i++) {
        struct jinja_items row = {0};
        const int64_t extra = s.count % slices, count = s.count / slices + (i < extra);
        for (int64_t k = 0; k < count; k++) jinja_items_add(&e->run, &row, jinja_seq_at(&s, at++));
        if (given(v[2]) && v[2].type != JINJA_NONE && i >= extra) jinja_items_add(&e->run, &row, v[2]);
        jinja_items_add(&e->run, &rows, jinja_list_of(&e->run, row.items, row.count));
    }
    return jinja_iterator_of(&e->run, rows.items, rows.count);
}
