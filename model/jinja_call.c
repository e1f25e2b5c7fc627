/* model/jinja_call.c - calls: arguments, macros, the global functions (model/jinja_eval.h).
 *
 * Owns     nothing: all memory is the run's arena
 * Fails    by the run: wrong arguments, recursion too deep; raise_exception leaves with its own message. */
#include "model/jinja_eval.h"

#include <string.h>
#include <time.h>

#include "shm/error.h"
#include "shm/must.h"

/* ------------------------------------------------------------------ arguments */

static void add_named(struct jinja_eval *e, struct jinja_args *out, uint32_t *room, struct jinja_str *name, struct jinja_value v)
{
    for (uint32_t i = 0; i < out->named_count; i++)
        if (jinja_str_equal(&e->run, out->named[i].name, name))
            jinja_fail(&e->run, E_FORMAT, "got multiple values for keyword argument '%.*s'", (int)name->bytes, jinja_str_text(&e->run, name));
    if (out->named_count == *room) {
        const uint32_t more = 2 * *room + 4;
        out->named = jinja_grow(&e->run, out->named, *room * sizeof *out->named, more * sizeof *out->named);
        *room = more;
    }
    out->named[out->named_count++] = (struct jinja_named){name, v};
}

static void eval_stars(struct jinja_eval *e, const struct jinja_call_args *given, struct jinja_args *out, uint32_t room)
{
    if (given->star) {
        const struct jinja_seq s = jinja_sequence(&e->run, jinja_evaluate(e, given->star));
        struct jinja_items all = {0};
        for (uint32_t i = 0; i < out->count; i++) jinja_items_add(&e->run, &all, out->items[i]);
        for (uint32_t i = 0; i < s.count; i++) jinja_items_add(&e->run, &all, jinja_seq_at(&s, i));
        out->items = all.items;
        out->count = all.count;
    }
    if (given->star_star) {
        const struct jinja_value v = jinja_evaluate(e, given->star_star);
        if (v.type != JINJA_DICT) jinja_fail(&e->run, E_FORMAT, "argument after ** must be a mapping, not %s", jinja_type_name(v));
        for (uint32_t i = 0; i < v.u.dict->count; i++) {
            const struct jinja_entry *entry = &v.u.dict->entries[i];
            if (entry->key.type != JINJA_STRING) jinja_fail(&e->run, E_FORMAT, "keywords must be strings");
            add_named(e, out, &room, entry->key.u.str, entry->value);
        }
    }
}

void jinja_eval_args(struct jinja_eval *e, const struct jinja_call_args *given, struct jinja_args *out)
{
    static struct jinja_value none;   /* never read: arithmetic on no arguments stays defined */

    *out = (struct jinja_args){.items = &none};
    if (!given) return;
    if (given->count) {
        out->items = jinja_alloc(&e->run, given->count * sizeof *out->items);
        out->count = given->count;
        for (uint32_t i = 0; i < given->count; i++) out->items[i] = jinja_evaluate(e, given->positional[i]);
    }
    if (given->keyword_count) {
        out->named = jinja_alloc(&e->run, given->keyword_count * sizeof *out->named);
        for (uint32_t i = 0; i < given->keyword_count; i++)
            out->named[i] = (struct jinja_named){given->keywords[i].name, jinja_evaluate(e, given->keywords[i].value)};
        out->named_count = given->keyword_count;
    }
    if (given->star || given->star_star) eval_stars(e, given, out, given->keyword_count);
}

void jinja_bind(struct jinja_eval *e, const char *what, const struct jinja_args *args, const char *const *params, uint32_t count,
                uint32_t required, struct jinja_value *out)
{
    if (args->count > count) jinja_fail(&e->run, E_FORMAT, "%s() takes at most %u argument(s) (%u given)", what, count, args->count);
    for (uint32_t i = 0; i < count; i++) out[i] = i < args->count ? args->items[i] : jinja_missing();
    for (uint32_t k = 0; k < args->named_count; k++) {
        struct jinja_str *name = args->named[k].name;
        uint32_t i = 0;
        while (i < count && !jinja_str_is(&e->run, name, params[i])) i++;
        if (i == count)
            jinja_fail(&e->run, E_FORMAT, "%s() got an unexpected keyword argument '%.*s'", what, (int)name->bytes, jinja_str_text(&e->run, name));
        if (out[i].type != JINJA_MISSING) jinja_fail(&e->run, E_FORMAT, "%s() got multiple values for argument '%s'", what, params[i]);
        out[i] = args->named[k].value;
    }
    for (uint32_t i = 0; i < required; i++)
        if (out[i].type == JINJA_MISSING) jinja_fail(&e->run, E_FORMAT, "%s() missing required argument: '%s'", what, params[i]);
}

int64_t jinja_need_int(struct jinja_eval *e, struct jinja_value v)
{
    if (v.type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, v);
    if (!jinja_is_integer(v)) jinja_fail(&e->run, E_FORMAT, "'%s' object cannot be interpreted as an integer", jinja_type_name(v));
    return jinja_integer_of(v);
}

struct jinja_str *jinja_need_str(struct jinja_eval *e, const char *what, struct jinja_value v)
{
    if (v.type != JINJA_STRING) jinja_fail(&e->run, E_FORMAT, "%s must be str, not %s", what, jinja_type_name(v));
    return v.u.str;
}

/* ------------------------------------------------------------------ macros */

/* Does the body mention the name? Macros declare varargs, kwargs and caller by using them. */
static bool mentions_body(const struct jinja_body *b, uint32_t name, unsigned depth);

static bool mentions(const struct jinja_node *n, uint32_t name, unsigned depth)
{
    if (!n || depth > JINJA_DEPTH_MAX) return false;
    depth++;
    if (n->kind == NODE_NAME && n->name == name) return true;
    if (n->kind == NODE_MACRO) return false;   /* an inner macro's own affair */
    if (mentions(n->a, name, depth) || mentions(n->b, name, depth) || mentions(n->c, name, depth)) return true;
    for (uint32_t i = 0; n->list && i < n->count; i++) if (mentions(n->list[i], name, depth)) return true;
    for (uint32_t i = 0; n->bodies && i < n->count; i++) if (mentions_body(&n->bodies[i], name, depth)) return true;
    if (n->args) {
        for (uint32_t i = 0; i < n->args->count; i++) if (mentions(n->args->positional[i], name, depth)) return true;
        for (uint32_t i = 0; i < n->args->keyword_count; i++) if (mentions(n->args->keywords[i].value, name, depth)) return true;
        if (mentions(n->args->star, name, depth) || mentions(n->args->star_star, name, depth)) return true;
    }
    return mentions_body(&n->body, name, depth) || mentions_body(&n->other, name, depth);
}

static bool mentions_body(const struct jinja_body *b, uint32_t name, unsigned depth)
{
    for (uint32_t i = 0; i < b->count; i++) if (mentions(b->nodes[i], name, depth)) return true;
    return false;
}

struct jinja_value jinja_make_macro(struct jinja_eval *e, const struct jinja_node *n)
{
    struct jinja_macro *m = jinja_alloc_array(&e->run, 1, sizeof *m);

    *m = (struct jinja_macro){.node = n, .name = e->program->names[n->name], .frame = e->frame};
    m->takes_caller = mentions_body(&n->body, e->program->name_caller, 0);
    m->takes_varargs = mentions_body(&n->body, e->program->name_varargs, 0);
    m->takes_kwargs = mentions_body(&n->body, e->program->name_kwargs, 0);
    return (struct jinja_value){.type = JINJA_MACRO, .u.macro = m};
}

/* Takes the keyword out of args; MISSING when it is not there. */
static struct jinja_value take_named(struct jinja_eval *e, struct jinja_args *args, struct jinja_str *name)
{
    for (uint32_t i = 0; i < args->named_count; i++)
        if (jinja_str_equal(&e->run, args->named[i].name, name)) {
            const struct jinja_value v = args->named[i].value;
            memmove(&args->named[i], &args->named[i + 1], (args->named_count - i - 1) * sizeof *args->named);
            args->named_count--;
            return v;
        }
    return jinja_missing();
}

static void bind_rest(struct jinja_eval *e, const struct jinja_macro *m, struct jinja_args *args)
{
    const struct jinja_node *n = m->node;
    struct jinja_value v;

    if (m->takes_caller) {
        v = take_named(e, args, e->program->names[e->program->name_caller]);
        jinja_bind_name(e, e->program->name_caller, v.type == JINJA_MISSING ? jinja_undefined_hint(&e->run, "No caller defined") : v);
    }
    if (m->takes_kwargs) {
        struct jinja_dict *d = jinja_dict_new(&e->run, args->named_count);
        for (uint32_t i = 0; i < args->named_count; i++) jinja_dict_put(&e->run, d, jinja_string(args->named[i].name), args->named[i].value);
        jinja_bind_name(e, e->program->name_kwargs, (struct jinja_value){.type = JINJA_DICT, .u.dict = d});
    } else if (args->named_count) {
        jinja_fail(&e->run, E_FORMAT, "macro '%.*s' takes no keyword argument '%.*s'", (int)m->name->bytes, m->name->text,
                   (int)args->named[0].name->bytes, jinja_str_text(&e->run, args->named[0].name));
    }
    if (m->takes_varargs) {
        const uint32_t extra = args->count > n->count ? args->count - n->count : 0;
        jinja_bind_name(e, e->program->name_varargs, jinja_tuple_of(&e->run, args->items + (args->count - extra), extra));
    } else if (args->count > n->count) {
        jinja_fail(&e->run, E_FORMAT, "macro '%.*s' takes not more than %u argument(s)", (int)m->name->bytes, m->name->text, n->count);
    }
}

static struct jinja_value missing_parameter(struct jinja_eval *e, struct jinja_str *name)
{
    struct jinja_buf b = {0};

    jinja_buf_put_constant(&e->run, &b, "parameter '", true);
    jinja_buf_put_str(&e->run, &b, name);
    jinja_buf_put(&e->run, &b, "' was not provided", 19, true);   /* with its NUL: the hint is a C string */
    return jinja_undefined_hint(&e->run, jinja_buf_finish(&e->run, &b)->text);
}

static void bind_params(struct jinja_eval *e, const struct jinja_macro *m, struct jinja_args *args)
{
    const struct jinja_node *n = m->node;
    struct jinja_value *given = jinja_alloc_array(&e->run, n->count, sizeof *given);

    for (uint32_t i = 0; i < n->count; i++)
        given[i] = i < args->count ? args->items[i] : take_named(e, args, e->program->names[n->params[i]]);
    bind_rest(e, m, args);
    for (uint32_t i = 0; i < n->count; i++) {   /* in order: a default may use the parameters before it */
        if (given[i].type == JINJA_MISSING)
            given[i] = n->list[i] ? jinja_evaluate(e, n->list[i]) : missing_parameter(e, e->program->names[n->params[i]]);
        jinja_bind_name(e, n->params[i], given[i]);
    }
}

static struct jinja_value call_macro(struct jinja_eval *e, const struct jinja_macro *m, struct jinja_args *args)
{
    struct jinja_frame *before = e->frame, *frame = jinja_alloc_array(&e->run, 1, sizeof *frame);
    const uint32_t line = e->run.line;
    struct jinja_str *text;

    if (++e->macro_depth > JINJA_MACRO_DEPTH_MAX) jinja_fail(&e->run, E_LIMIT, "macros call each other deeper than %u", JINJA_MACRO_DEPTH_MAX);
    frame->parent = m->frame;
    e->frame = frame;
    bind_params(e, m, args);
    text = jinja_capture(e, &m->node->body);
    e->frame = before;
    e->macro_depth--;
    e->run.line = line;
    return jinja_string(text);
}

/* ------------------------------------------------------------------ global functions */

int jinja_function_find(const struct jinja_str *name)
{
    static const char *const names[FUNCTION_COUNT] = {
        [FUNCTION_RANGE] = "range", [FUNCTION_DICT] = "dict", [FUNCTION_NAMESPACE] = "namespace", [FUNCTION_CYCLER] = "cycler",
        [FUNCTION_JOINER] = "joiner", [FUNCTION_RAISE_EXCEPTION] = "raise_exception", [FUNCTION_STRFTIME_NOW] = "strftime_now",
    };

    for (int i = 0; i < FUNCTION_COUNT; i++)
        if (strlen(names[i]) == name->bytes && memcmp(names[i], name->text, name->bytes) == 0) return i;
    return -1;
}

struct jinja_value jinja_make_range(struct jinja_eval *e, const struct jinja_args *args)
{
    struct jinja_range *g = jinja_alloc(&e->run, sizeof *g);
    struct jinja_value v = {.type = JINJA_RANGE, .u.range = g};
    int64_t stop;
    uint64_t span;

    if (args->named_count) jinja_fail(&e->run, E_FORMAT, "range() takes no keyword arguments");
    if (args->count < 1 || args->count > 3) jinja_fail(&e->run, E_FORMAT, "range expected 1 to 3 arguments, got %u", args->count);
    g->start = args->count > 1 ? jinja_need_int(e, args->items[0]) : 0;
    stop = jinja_need_int(e, args->items[args->count > 1]);
    g->step = args->count > 2 ? jinja_need_int(e, args->items[2]) : 1;
    if (g->step == 0) jinja_fail(&e->run, E_FORMAT, "range() arg 3 must not be zero");
    span = g->step > 0 ? (stop > g->start ? (uint64_t)stop - (uint64_t)g->start : 0) : (stop < g->start ? (uint64_t)g->start - (uint64_t)stop : 0);
    if (span) span = (span - 1) / (g->step > 0 ? (uint64_t)g->step : 0 - (uint64_t)g->step) + 1;
    if (span > JINJA_RANGE_MAX) jinja_fail(&e->run, E_LIMIT, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", JINJA_RANGE_MAX);
    g->count = (uint32_t)span;
    for (uint32_t i = 0; i < args->count; i++) v.untrusted |= args->items[i].untrusted;
    return v;
}

/* dict() and namespace(): pairs or a mapping, then keywords. */
static struct jinja_dict *collect_dict(struct jinja_eval *e, const struct jinja_args *args, const char *what)
{
    struct jinja_dict *d = jinja_dict_new(&e->run, args->named_count);

    if (args->count > 1) jinja_fail(&e->run, E_FORMAT, "%s expected at most 1 argument, got %u", what, args->count);
    if (args->count && args->items[0].type == JINJA_DICT) {
        const struct jinja_dict *from = args->items[0].u.dict;
        for (uint32_t i = 0; i < from->count; i++) jinja_dict_put(&e->run, d, from->entries[i].key, from->entries[i].value);
    } else if (args->count) {
        const struct jinja_seq s = jinja_sequence(&e->run, args->items[0]);
        for (uint32_t i = 0; i < s.count; i++) {
            const struct jinja_seq pair = jinja_sequence(&e->run, jinja_seq_at(&s, i));
            if (pair.count != 2)
                jinja_fail(&e->run, E_FORMAT, "dictionary update sequence element #%u has length %u; 2 is required", i, pair.count);
            jinja_dict_put(&e->run, d, jinja_seq_at(&pair, 0), jinja_seq_at(&pair, 1));
        }
    }
    for (uint32_t i = 0; i < args->named_count; i++) jinja_dict_put(&e->run, d, jinja_string(args->named[i].name), args->named[i].value);
    return d;
}

static struct jinja_value make_namespace(struct jinja_eval *e, const struct jinja_args *args)
{
    const struct jinja_dict *d = collect_dict(e, args, "namespace");
    struct jinja_namespace *n = jinja_alloc_array(&e->run, 1, sizeof *n);

    for (uint32_t i = 0; i < d->count; i++) {
        if (d->entries[i].key.type != JINJA_STRING) jinja_fail(&e->run, E_FORMAT, "the names of a namespace must be str");
        jinja_namespace_put(&e->run, n, d->entries[i].key.u.str, d->entries[i].value);
    }
    return (struct jinja_value){.type = JINJA_NAMESPACE, .u.names = n};
}

static struct jinja_value make_cycler(struct jinja_eval *e, const struct jinja_args *args, uint8_t type)
{
    static const char *const params[] = {"sep"};
    struct jinja_cycler *c = jinja_alloc_array(&e->run, 1, sizeof *c);
    struct jinja_value sep;

    if (type == JINJA_CYCLER) {
        if (!args->count || args->named_count) jinja_fail(&e->run, E_FORMAT, "at least one item has to be provided");
        c->items = args->items;
        c->count = args->count;
    } else {
        jinja_bind(e, "joiner", args, params, 1, 0, &sep);
        c->separator = sep.type == JINJA_MISSING ? jinja_str_constant(&e->run, ", ", true) : jinja_str_of(&e->run, sep);
    }
    return (struct jinja_value){.type = type, .u.cycler = c};
}

static struct jinja_value strftime_now(struct jinja_eval *e, const struct jinja_args *args)
{
    static const char *const params[] = {"format"};
    char format[512], text[2048];
    struct jinja_value v;
    struct jinja_str *s;
    struct tm tm;
    time_t now = e->now_seconds ? (time_t)e->now_seconds : time(NULL);
    size_t n;

    jinja_bind(e, "strftime_now", args, params, 1, 1, &v);
    s = jinja_need_str(e, "strftime_now() argument", v);
    if (s->bytes >= sizeof format || memchr(jinja_str_text(&e->run, s), 0, s->bytes)) jinja_fail(&e->run, E_LIMIT, "strftime_now(): bad format");
    memcpy(format, s->text, s->bytes);
    format[s->bytes] = 0;
    if (!localtime_r(&now, &tm)) jinja_fail(&e->run, E_RANGE, "strftime_now(): no such time");
    n = strftime(text, sizeof text, format, &tm);
    if (!n && s->bytes) jinja_fail(&e->run, E_LIMIT, "strftime_now(): text too long");
    return jinja_string(jinja_str_copy(&e->run, text, n, s->trust == JINJA_TRUST_ALL));
}

__attribute__((noreturn))
static void raise_exception(struct jinja_eval *e, const struct jinja_args *args)
{
    static const char *const params[] = {"message"};
    struct jinja_value v;
    struct jinja_str *s;

    jinja_bind(e, "raise_exception", args, params, 1, 1, &v);
    s = jinja_str_of(&e->run, v);
    jinja_fail_plain(&e->run, E_FORMAT, jinja_str_text(&e->run, s), s->bytes);
}

static struct jinja_value call_function(struct jinja_eval *e, uint32_t function, const struct jinja_args *args)
{
    switch (function) {
    case FUNCTION_RANGE: return jinja_make_range(e, args);
    case FUNCTION_DICT: return (struct jinja_value){.type = JINJA_DICT, .u.dict = collect_dict(e, args, "dict")};
    case FUNCTION_NAMESPACE: return make_namespace(e, args);
    case FUNCTION_CYCLER: return make_cycler(e, args, JINJA_CYCLER);
    case FUNCTION_JOINER: return make_cycler(e, args, JINJA_JOINER);
    case FUNCTION_STRFTIME_NOW: return strftime_now(e, args);
    default: raise_exception(e, args);
    }
}

static struct jinja_value call_joiner(struct jinja_cycler *c, struct jinja_eval *e)
{
    if (c->used) return jinja_string(c->separator);
    c->used = true;
    return jinja_string(jinja_str_constant(&e->run, "", true));
}

struct jinja_value jinja_call(struct jinja_eval *e, struct jinja_value callee, struct jinja_args *args)
{
    struct jinja_value v;

    jinja_enter(&e->run);
    switch (callee.type) {
    case JINJA_FUNCTION: v = call_function(e, callee.u.function, args); break;
    case JINJA_MACRO: v = call_macro(e, callee.u.macro, args); break;
    case JINJA_METHOD: v = jinja_method_call(e, callee.u.method, args); break;
    case JINJA_JOINER: v = call_joiner(callee.u.cycler, e); break;
    case JINJA_LOOP:
        if (args->count != 1 || args->named_count) jinja_fail(&e->run, E_FORMAT, "loop() takes exactly one argument");
        v = jinja_string(jinja_loop_again(e, callee.u.loop, args->items[0]));
        break;
    case JINJA_UNDEFINED: jinja_fail_undefined(&e->run, callee);
    default: jinja_fail(&e->run, E_FORMAT, "'%s' object is not callable", jinja_type_name(callee));
    }
    jinja_leave(&e->run);
    return v;
}
