/* model/jinja_parse.h - what the two halves of the parser share. Internal to model/jinja_parse*.c.
 *
 * A recursive descent over the tokens, in the order of jinja2's own grammar, so that precedence agrees. */
#ifndef SLUICE_MODEL_JINJA_PARSE_H
#define SLUICE_MODEL_JINJA_PARSE_H

#include "model/jinja_ast.h"
#include "model/jinja_lex.h"

struct jinja_parser {
    struct jinja_run *r;
    const struct jinja_token *at;      /* the token in hand; EOF is never passed */
    uint32_t depth;
    uint32_t loop_depth;               /* break and continue need one */
    uint32_t if_depth;                 /* inside so many ifs */
    struct jinja_program *program;
    uint32_t *name_index;              /* by hash: name + 1, 0 free */
    uint32_t name_index_count, name_room;
};

struct jinja_node_list { struct jinja_node **nodes; uint32_t count, room; };

/* A set of words that end a tuple without brackets: "in" or "recursive"; NULL: none. */
__attribute__((noreturn)) void jinja_parse_fail(struct jinja_parser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
__attribute__((noreturn)) void jinja_parse_unexpected(struct jinja_parser *p, const char *wanted);
struct jinja_node *jinja_node_new(struct jinja_parser *p, enum jinja_node_kind kind, uint32_t line);
void jinja_node_over(struct jinja_parser *p, struct jinja_node *n, const struct jinja_node *child);   /* accounts the height */
void jinja_node_add(struct jinja_parser *p, struct jinja_node_list *l, struct jinja_node *n);
uint32_t jinja_parse_intern(struct jinja_parser *p, struct jinja_str *name);
bool jinja_parse_is_word(const struct jinja_parser *p, const char *word);
bool jinja_parse_skip_word(struct jinja_parser *p, const char *word);
bool jinja_parse_is_op(const struct jinja_parser *p, uint16_t op);
bool jinja_parse_skip_op(struct jinja_parser *p, uint16_t op);
void jinja_parse_expect_op(struct jinja_parser *p, uint16_t op);
struct jinja_str *jinja_parse_name(struct jinja_parser *p);

struct jinja_node *jinja_parse_expression(struct jinja_parser *p);
struct jinja_node *jinja_parse_tuple(struct jinja_parser *p, bool with_condition, const char *end_word, bool in_brackets);
struct jinja_node *jinja_parse_target(struct jinja_parser *p, const char *end_word, bool with_tuple, bool with_namespace);
/* | a | b(...): filters over `input`, which may be NULL; inline: the first has no bar before it. */
struct jinja_node *jinja_parse_filters(struct jinja_parser *p, struct jinja_node *input, bool is_inline);

#endif
