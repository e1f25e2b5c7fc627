/* model/jinja_ast.h - the parsed template: what the parser makes and the evaluator walks.
 *
 * Everything lies in the template's own run and never changes after jinja_parse, so threads may share
 * it: strings in it are sealed, names are numbers. Expressions and statements share one node type. */
#ifndef SLUICE_MODEL_JINJA_AST_H
#define SLUICE_MODEL_JINJA_AST_H

#include "model/jinja_value.h"

enum jinja_node_kind {
    /* expressions */
    NODE_CONST,        /* value */
    NODE_NAME,         /* name */
    NODE_LIST,         /* list */
    NODE_TUPLE,        /* list; also a target of assignment */
    NODE_DICT,         /* list: key, value, key, value, ... */
    NODE_NOT, NODE_NEG, NODE_POS,        /* a */
    NODE_AND, NODE_OR,                   /* a, b */
    NODE_BINARY,       /* a, b; op: a token's operator */
    NODE_CONCAT,       /* list; ~ */
    NODE_COMPARE,      /* a; list of right sides, ops beside them */
    NODE_IF_ELSE,      /* a if b else c; c NULL: undefined */
    NODE_ATTRIBUTE,    /* a.value */
    NODE_ITEM,         /* a[b] */
    NODE_SLICE,        /* a:b:c, each may be NULL; only as b of NODE_ITEM */
    NODE_CALL,         /* a(args) */
    NODE_FILTER,       /* a | op(args); a NULL: the text of a block */
    NODE_TEST,         /* a is op(args) */
    NODE_NS_TARGET,    /* name.value, as a target only */
    /* statements */
    NODE_TEXT,         /* value */
    NODE_OUTPUT,       /* a */
    NODE_IF,           /* list: conditions; bodies beside them; other: else */
    NODE_FOR,          /* a target, b iterable, c filter or NULL; body, other; flag: recursive */
    NODE_SET,          /* a target, b value */
    NODE_SET_BLOCK,    /* a target, b filter chain or NULL; body */
    NODE_MACRO,        /* name; list: defaults or NULL beside params; body */
    NODE_CALL_BLOCK,   /* a: the call; the rest as NODE_MACRO */
    NODE_FILTER_BLOCK, /* a filter chain; body */
    NODE_WITH,         /* list: target, value, ...; body */
    NODE_SCOPE,        /* body: generation blocks */
    NODE_BREAK, NODE_CONTINUE,
};

enum jinja_compare_op { COMPARE_EQ, COMPARE_NE, COMPARE_LT, COMPARE_LE, COMPARE_GT, COMPARE_GE, COMPARE_IN, COMPARE_NOT_IN };

struct jinja_node;
struct jinja_body { struct jinja_node **nodes; uint32_t count; };

struct jinja_keyword { struct jinja_str *name; struct jinja_node *value; };
struct jinja_call_args {
    struct jinja_node **positional; uint32_t count;
    struct jinja_keyword *keywords; uint32_t keyword_count;
    struct jinja_node *star, *star_star;   /* *list, **dict; NULL: none */
};

struct jinja_node {
    uint8_t kind;                 /* enum jinja_node_kind */
    bool flag;
    uint16_t op;                  /* operator, or number of a filter or test */
    uint32_t line;
    uint32_t depth;               /* of the tree below: bounds the evaluator's recursion */
    uint32_t name;                /* number in jinja_program.names */
    uint32_t count;               /* of list, bodies, ops, params */
    struct jinja_value value;
    struct jinja_node *a, *b, *c;
    struct jinja_node **list;
    struct jinja_body *bodies;
    uint8_t *ops;                 /* enum jinja_compare_op */
    uint32_t *params;             /* names */
    struct jinja_call_args *args;
    struct jinja_body body, other;
};

/* A whole template. */
struct jinja_program {
    struct jinja_body body;
    struct jinja_str **names;     /* variables, macros and parameters by number; sealed */
    uint32_t name_count;
    uint32_t name_loop, name_caller, name_varargs, name_kwargs;
};

#define JINJA_PARSE_DEPTH_MAX 200u    /* nesting of brackets and blocks */
#define JINJA_NODE_DEPTH_MAX  400u    /* height of one expression: a + b + c + ... is as high as it is long */
#define JINJA_NAMES_MAX       65536u

/* Parses tokens of jinja_lex in the same run. Fails by the run, with the line. */
void jinja_parse(struct jinja_run *r, const char *source, size_t bytes, struct jinja_program *out);

/* Numbers of filters and tests by name (model/jinja_filters.c, jinja_tests.c); UINT16_MAX: no such one. */
uint16_t jinja_filter_find(const char *name, size_t bytes);
uint16_t jinja_test_find(const char *name, size_t bytes);

#endif
