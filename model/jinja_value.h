/* model/jinja_value.h - the values of templates: Python's, as far as a sandboxed template can see them.
 *
 * Values are 16 bytes, passed by value. Lists and dicts never change once built (the sandbox forbids
 * it), so they are shared freely; only namespaces, loops and iterators have state. Strings carry their
 * trust themselves; for numbers the flag `untrusted` remembers that the request supplied them.
 *
 * All memory is the run's. Fails by the run, with Python's words where a template author knows them. */
#ifndef SLUICE_MODEL_JINJA_VALUE_H
#define SLUICE_MODEL_JINJA_VALUE_H

#include "model/jinja_text.h"

enum jinja_type {
    JINJA_MISSING,      /* no value at all: an argument not passed, a name not set; never seen by templates */
    JINJA_UNDEFINED, JINJA_NONE, JINJA_BOOL, JINJA_INT, JINJA_FLOAT, JINJA_STRING,
    JINJA_LIST, JINJA_TUPLE, JINJA_DICT,
    JINJA_RANGE,        /* range(): never stored item by item */
    JINJA_KEYS, JINJA_VALUES, JINJA_ITEMS,   /* views of a dict */
    JINJA_ITERATOR,     /* what map, select, ... return: can be read once */
    JINJA_NAMESPACE, JINJA_MACRO, JINJA_FUNCTION, JINJA_METHOD, JINJA_LOOP, JINJA_CYCLER, JINJA_JOINER,
};

struct jinja_value {
    uint8_t type;        /* enum jinja_type */
    uint8_t untrusted;   /* BOOL, INT, FLOAT: came from the request */
    union {
        bool truth;
        int64_t integer;
        double real;
        struct jinja_str *str;
        struct jinja_list *list;             /* LIST, TUPLE */
        struct jinja_dict *dict;             /* DICT, KEYS, VALUES, ITEMS */
        struct jinja_range *range;
        struct jinja_iterator *iterator;
        struct jinja_undefined *undefined;
        struct jinja_namespace *names;
        struct jinja_macro *macro;
        struct jinja_method *method;
        struct jinja_loop *loop;
        struct jinja_cycler *cycler;         /* CYCLER, JOINER */
        uint32_t function;                   /* enum jinja_function of jinja_eval.h */
    } u;
};

struct jinja_list { struct jinja_value *items; uint32_t count; };
struct jinja_range { int64_t start, step; uint32_t count; };
struct jinja_iterator { struct jinja_value *items; uint32_t count, at; };

struct jinja_entry { struct jinja_value key, value; uint32_t hash; };
struct jinja_dict {
    struct jinja_entry *entries;   /* in order of insertion */
    uint32_t *index;               /* NULL while small; else entry number + 1 by hash, 0 free */
    uint32_t count, room, index_count;
};

/* Why something is undefined; the sentence is made when somebody asks. */
struct jinja_undefined {
    const char *hint;             /* whole sentence, or NULL */
    struct jinja_str *name;       /* of a variable or attribute; NULL: `key` was asked for */
    struct jinja_value key;
    const char *owner;            /* type name of the object asked; NULL: a variable */
    bool unsafe;                  /* the sandbox hides it */
};

struct jinja_namespace { struct jinja_entry *slots; uint32_t count, room; };   /* keys are strings */

/* ---- making */
static inline struct jinja_value jinja_none(void) { return (struct jinja_value){.type = JINJA_NONE}; }
static inline struct jinja_value jinja_missing(void) { return (struct jinja_value){.type = JINJA_MISSING}; }
static inline struct jinja_value jinja_bool(bool b) { return (struct jinja_value){.type = JINJA_BOOL, .u.truth = b}; }
static inline struct jinja_value jinja_int(int64_t i) { return (struct jinja_value){.type = JINJA_INT, .u.integer = i}; }
static inline struct jinja_value jinja_float(double d) { return (struct jinja_value){.type = JINJA_FLOAT, .u.real = d}; }
static inline struct jinja_value jinja_string(struct jinja_str *s) { return (struct jinja_value){.type = JINJA_STRING, .u.str = s}; }
struct jinja_value jinja_list_of(struct jinja_run *r, struct jinja_value *items, uint32_t count);
struct jinja_value jinja_tuple_of(struct jinja_run *r, struct jinja_value *items, uint32_t count);
struct jinja_value jinja_pair(struct jinja_run *r, struct jinja_value a, struct jinja_value b);
struct jinja_value jinja_iterator_of(struct jinja_run *r, struct jinja_value *items, uint32_t count);
struct jinja_value jinja_undefined_variable(struct jinja_run *r, struct jinja_str *name);
struct jinja_value jinja_undefined_member(struct jinja_run *r, struct jinja_value owner, struct jinja_value key, bool unsafe);
struct jinja_value jinja_undefined_hint(struct jinja_run *r, const char *sentence);
__attribute__((noreturn)) void jinja_fail_undefined(struct jinja_run *r, struct jinja_value v);

/* ---- a list under construction */
struct jinja_items { struct jinja_value *items; uint32_t count, room; };
void jinja_items_add(struct jinja_run *r, struct jinja_items *l, struct jinja_value v);

/* ---- dicts: add only while building */
struct jinja_dict *jinja_dict_new(struct jinja_run *r, uint32_t room);
void jinja_dict_put(struct jinja_run *r, struct jinja_dict *d, struct jinja_value key, struct jinja_value value);
/* NULL when there is none; fails for a key that cannot be hashed. */
struct jinja_value *jinja_dict_get(struct jinja_run *r, const struct jinja_dict *d, struct jinja_value key);
struct jinja_value *jinja_dict_get_str(struct jinja_run *r, const struct jinja_dict *d, struct jinja_str *key);

/* ---- namespaces */
struct jinja_value *jinja_namespace_get(struct jinja_run *r, struct jinja_namespace *n, struct jinja_str *name);
void jinja_namespace_put(struct jinja_run *r, struct jinja_namespace *n, struct jinja_str *name, struct jinja_value v);

/* ---- asking */
const char *jinja_type_name(struct jinja_value v);     /* Python's: "str", "NoneType", ... */
bool jinja_truth(struct jinja_run *r, struct jinja_value v);
bool jinja_is_number(struct jinja_value v);            /* bool, int, float */
bool jinja_is_integer(struct jinja_value v);           /* bool, int */
int64_t jinja_integer_of(struct jinja_value v);        /* of a bool or int */
double jinja_real_of(struct jinja_value v);            /* of any number */
bool jinja_equal(struct jinja_run *r, struct jinja_value a, struct jinja_value b);
bool jinja_same(struct jinja_value a, struct jinja_value b);   /* Python's `is` */
/* <0, 0, >0; fails for types that have no order; *unordered for NaN. `sign` names the operator in messages. */
int jinja_compare(struct jinja_run *r, struct jinja_value a, struct jinja_value b, const char *sign, bool *unordered);
uint32_t jinja_hash(struct jinja_run *r, struct jinja_value v);
bool jinja_contains(struct jinja_run *r, struct jinja_value holder, struct jinja_value item);
int64_t jinja_length(struct jinja_run *r, struct jinja_value v);   /* len(); fails as Python does */
bool jinja_has_length(struct jinja_value v);
bool jinja_is_iterable(struct jinja_value v);

/* ---- walking: any iterable as an array; an iterator is used up by it */
struct jinja_seq { struct jinja_value *items; struct jinja_range *range; uint32_t count; uint8_t untrusted; };
struct jinja_seq jinja_sequence(struct jinja_run *r, struct jinja_value v);   /* fails: "'int' object is not iterable" */
struct jinja_value jinja_seq_at(const struct jinja_seq *s, uint32_t i);

#endif
