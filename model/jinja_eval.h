/* model/jinja_eval.h - one render under way: scopes, arguments, and what the evaluator's parts call.
 * Internal to model/jinja_*.c.
 *
 * A struct jinja_eval is made per render and freed with its arena. Scopes are frames linked to the
 * lexically enclosing one: loops, macros, with and set blocks have their own; if has not. The root
 * scope is an array by name. Everything fails by the run. */
#ifndef SLUICE_MODEL_JINJA_EVAL_H
#define SLUICE_MODEL_JINJA_EVAL_H

#include "model/jinja_ast.h"
#include "model/jinja_print.h"
#include "model/jinja_value.h"

#define JINJA_MACRO_DEPTH_MAX 200u
#define JINJA_RANGE_MAX       100000    /* as jinja2's sandbox */

struct jinja_slot { uint32_t name; struct jinja_value value; };
struct jinja_frame {
    struct jinja_frame *parent;      /* NULL: the root scope encloses it */
    struct jinja_slot *slots;
    uint32_t count, room;
};

struct jinja_eval {
    struct jinja_run run;
    const struct jinja_program *program;
    struct jinja_value *root;        /* set at the top level, by name; MISSING: not set */
    struct jinja_value *context;     /* given by the caller or built in, by name */
    struct jinja_frame *frame;       /* NULL at the top level */
    struct jinja_buf *out;           /* where output goes now */
    uint32_t macro_depth;
    int64_t now_seconds;
};

enum jinja_function {
    FUNCTION_RANGE, FUNCTION_DICT, FUNCTION_NAMESPACE, FUNCTION_CYCLER, FUNCTION_JOINER,
    FUNCTION_RAISE_EXCEPTION, FUNCTION_STRFTIME_NOW,
    FUNCTION_COUNT
};

struct jinja_macro {
    const struct jinja_node *node;   /* MACRO or CALL_BLOCK */
    struct jinja_str *name;
    struct jinja_frame *frame;       /* where it was defined */
    bool takes_caller, takes_varargs, takes_kwargs;
};

struct jinja_method { struct jinja_value self; uint32_t id; };   /* id: enum jinja_method_id */

struct jinja_loop {
    struct jinja_seq seq;
    uint32_t at, depth;              /* at: index0 */
    struct jinja_value last_changed; /* a tuple; MISSING before the first changed() */
    const struct jinja_node *recursive;   /* the FOR node when callable */
    struct jinja_frame *frame;       /* encloses the loop */
};

struct jinja_cycler { struct jinja_value *items; uint32_t count, at; struct jinja_str *separator; bool used; };

struct jinja_named { struct jinja_str *name; struct jinja_value value; };
struct jinja_args { struct jinja_value *items; uint32_t count; struct jinja_named *named; uint32_t named_count; };

/* ---- jinja_eval.c */
enum jinja_flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };
enum jinja_flow jinja_exec(struct jinja_eval *e, const struct jinja_body *body);
struct jinja_str *jinja_capture(struct jinja_eval *e, const struct jinja_body *body);
void jinja_bind_name(struct jinja_eval *e, uint32_t name, struct jinja_value v);
struct jinja_value jinja_lookup(struct jinja_eval *e, uint32_t name);
struct jinja_str *jinja_loop_again(struct jinja_eval *e, const struct jinja_loop *outer, struct jinja_value items);

/* ---- jinja_expr.c */
struct jinja_value jinja_evaluate(struct jinja_eval *e, const struct jinja_node *n);
struct jinja_value jinja_apply_filters(struct jinja_eval *e, const struct jinja_node *chain, struct jinja_value input);
struct jinja_value jinja_binary(struct jinja_eval *e, uint16_t op, struct jinja_value a, struct jinja_value b);
bool jinja_compared(struct jinja_eval *e, uint8_t op, struct jinja_value a, struct jinja_value b);

/* ---- jinja_call.c */
void jinja_eval_args(struct jinja_eval *e, const struct jinja_call_args *given, struct jinja_args *out);
struct jinja_value jinja_call(struct jinja_eval *e, struct jinja_value callee, struct jinja_args *args);
struct jinja_value jinja_make_macro(struct jinja_eval *e, const struct jinja_node *n);
/* Sorts arguments into out[0..count) by parameter name; MISSING where none was given; `required` must be. */
void jinja_bind(struct jinja_eval *e, const char *what, const struct jinja_args *args, const char *const *params, uint32_t count,
                uint32_t required, struct jinja_value *out);
int jinja_function_find(const struct jinja_str *name);   /* enum jinja_function or -1 */
struct jinja_value jinja_make_range(struct jinja_eval *e, const struct jinja_args *args);

/* ---- jinja_access.c */
struct jinja_value jinja_attribute(struct jinja_eval *e, struct jinja_value of, struct jinja_str *name);
/* Methods and fields only, never items of a dict. */
struct jinja_value jinja_own_attribute(struct jinja_eval *e, struct jinja_value of, struct jinja_str *name);
struct jinja_value jinja_item(struct jinja_eval *e, struct jinja_value of, struct jinja_value key);
struct jinja_value jinja_slice(struct jinja_eval *e, struct jinja_value of, struct jinja_value start, struct jinja_value stop, struct jinja_value step);
/* a.b.0 of a map(attribute=...) or sort(attribute=...); fallback replaces undefined unless MISSING. */
struct jinja_value jinja_path(struct jinja_eval *e, struct jinja_value of, struct jinja_value path, struct jinja_value fallback);

/* ---- jinja_method.c: what a value offers by that name; unsafe: it exists but the sandbox hides it */
int jinja_method_find(const struct jinja_str *name, uint8_t type, bool *unsafe);
struct jinja_value jinja_method_call(struct jinja_eval *e, const struct jinja_method *m, struct jinja_args *args);

/* ---- jinja_str_method.c */
struct jinja_value jinja_str_method_call(struct jinja_eval *e, struct jinja_str *s, uint32_t id, struct jinja_args *args);

/* ---- jinja_filters.c, jinja_filter_list.c, jinja_tests.c */
struct jinja_value jinja_filter(struct jinja_eval *e, uint16_t number, struct jinja_value input, struct jinja_args *args);
bool jinja_test(struct jinja_eval *e, uint16_t number, struct jinja_value input, struct jinja_args *args);

/* ---- jinja_format.c */
struct jinja_str *jinja_percent_format(struct jinja_eval *e, struct jinja_str *format, const struct jinja_value *values, uint32_t count,
                                       const struct jinja_dict *named);
struct jinja_str *jinja_brace_format(struct jinja_eval *e, struct jinja_str *format, const struct jinja_args *args);

/* ---- arguments as C values */
int64_t jinja_need_int(struct jinja_eval *e, struct jinja_value v);          /* "... cannot be interpreted as an integer" */
struct jinja_str *jinja_need_str(struct jinja_eval *e, const char *what, struct jinja_value v);

#endif
