/* model/jinja_parse.c - statements of a template, and the parser's common ground (model/jinja_parse.h).
 *
 * Owns     nothing: nodes are in the run's arena
 * Fails    by the run, with the line; include, import, extends and block are -E_UNSUPPORTED. */
#include "model/jinja_parse.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "shm/error.h"

/* ------------------------------------------------------------------ common ground */

void jinja_parse_fail(struct jinja_parser *p, const char *format, ...)
{
    char text[512];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    p->r->line = p->at->line;
    jinja_fail(p->r, strstr(text, "deeper") ? E_LIMIT : E_FORMAT, "%s", text);
}

void jinja_parse_unexpected(struct jinja_parser *p, const char *wanted)
{
    char got[64];
    const struct jinja_token *t = p->at;

    switch (t->type) {
    case TOKEN_EOF: snprintf(got, sizeof got, "end of template"); break;
    case TOKEN_VARIABLE_END: snprintf(got, sizeof got, "'}}'"); break;
    case TOKEN_BLOCK_END: snprintf(got, sizeof got, "'%%}'"); break;
    case TOKEN_NAME: snprintf(got, sizeof got, "'%.*s'", (int)(t->value.u.str->bytes < 40 ? t->value.u.str->bytes : 40), t->value.u.str->text); break;
    case TOKEN_OPERATOR:
        if (t->op > 255) snprintf(got, sizeof got, "'%c%c'", t->op >> 8, t->op & 255);
        else snprintf(got, sizeof got, "'%c'", t->op);
        break;
    default: snprintf(got, sizeof got, "a %s", t->type == TOKEN_STRING ? "string" : t->type == TOKEN_DATA ? "text" : "number");
    }
    if (wanted) jinja_parse_fail(p, "expected %s, got %s", wanted, got);
    jinja_parse_fail(p, "unexpected %s", got);
}

struct jinja_node *jinja_node_new(struct jinja_parser *p, enum jinja_node_kind kind, uint32_t line)
{
    struct jinja_node *n = jinja_alloc_array(p->r, 1, sizeof *n);

    n->kind = (uint8_t)kind;
    n->line = line;
    n->depth = 1;
    return n;
}

void jinja_node_over(struct jinja_parser *p, struct jinja_node *n, const struct jinja_node *child)
{
    if (!child || child->depth < n->depth) return;
    n->depth = child->depth + 1;
    if (n->depth > JINJA_NODE_DEPTH_MAX) jinja_parse_fail(p, "an expression nests deeper than %u", JINJA_NODE_DEPTH_MAX);
}

void jinja_node_add(struct jinja_parser *p, struct jinja_node_list *l, struct jinja_node *n)
{
    if (l->count == l->room) {
        const uint32_t room = l->room ? 2 * l->room : 4;
        l->nodes = jinja_grow(p->r, l->nodes, l->count * sizeof *l->nodes, room * sizeof *l->nodes);
        l->room = room;
    }
    l->nodes[l->count++] = n;
}

static void index_name(struct jinja_parser *p, uint32_t number)
{
    uint32_t at = p->program->names[number]->hash & (p->name_index_count - 1);

    while (p->name_index[at]) at = (at + 1) & (p->name_index_count - 1);
    p->name_index[at] = number + 1;
}

uint32_t jinja_parse_intern(struct jinja_parser *p, struct jinja_str *name)
{
    struct jinja_program *g = p->program;
    const uint32_t hash = jinja_str_hash(p->r, name);

    if (p->name_index_count)
        for (uint32_t at = hash & (p->name_index_count - 1); p->name_index[at]; at = (at + 1) & (p->name_index_count - 1))
            if (jinja_str_equal(p->r, g->names[p->name_index[at] - 1], name)) return p->name_index[at] - 1;
    if (g->name_count == JINJA_NAMES_MAX) jinja_parse_fail(p, "more than %u names", JINJA_NAMES_MAX);
    if (g->name_count == p->name_room) {
        const uint32_t room = p->name_room ? 2 * p->name_room : 64;
        g->names = jinja_grow(p->r, g->names, g->name_count * sizeof *g->names, room * sizeof *g->names);
        p->name_room = room;
        p->name_index_count = 4 * room;
        p->name_index = jinja_alloc_array(p->r, p->name_index_count, sizeof *p->name_index);
        for (uint32_t i = 0; i < g->name_count; i++) index_name(p, i);
    }
    jinja_str_seal(p->r, name);   /* templates can see it, and threads share it */
    g->names[g->name_count] = name;
    index_name(p, g->name_count);
    return g->name_count++;
}

bool jinja_parse_is_word(const struct jinja_parser *p, const char *word)
{
    const size_t n = strlen(word);

    return p->at->type == TOKEN_NAME && p->at->value.u.str->bytes == n && memcmp(p->at->value.u.str->text, word, n) == 0;
}

bool jinja_parse_skip_word(struct jinja_parser *p, const char *word)
{
    const bool is = jinja_parse_is_word(p, word);

    p->at += is;
    return is;
}

bool jinja_parse_is_op(const struct jinja_parser *p, uint16_t op) { return p->at->type == TOKEN_OPERATOR && p->at->op == op; }

bool jinja_parse_skip_op(struct jinja_parser *p, uint16_t op)
{
    const bool is = jinja_parse_is_op(p, op);

    p->at += is;
    return is;
}

void jinja_parse_expect_op(struct jinja_parser *p, uint16_t op)
{
    char wanted[4] = {'\'', (char)op, '\'', 0};

    if (!jinja_parse_skip_op(p, op)) jinja_parse_unexpected(p, wanted);
}

struct jinja_str *jinja_parse_name(struct jinja_parser *p)
{
    if (p->at->type != TOKEN_NAME) jinja_parse_unexpected(p, "a name");
    return p->at++->value.u.str;
}

/* ------------------------------------------------------------------ statements */

static struct jinja_body parse_nodes(struct jinja_parser *p, const char *const *ends);
static struct jinja_node *parse_statement(struct jinja_parser *p);

static void expect_word(struct jinja_parser *p, const char *word)
{
    char wanted[32];

    snprintf(wanted, sizeof wanted, "'%s'", word);
    if (!jinja_parse_skip_word(p, word)) jinja_parse_unexpected(p, wanted);
}

static void expect_block_end(struct jinja_parser *p)
{
    if (p->at->type != TOKEN_BLOCK_END) jinja_parse_unexpected(p, "'%}'");
    p->at++;
}

/* The rest of this tag, then a body up to one of `ends`, whose word is then in hand. */
static struct jinja_body parse_body(struct jinja_parser *p, const char *const *ends)
{
    const uint32_t line = p->at->line;
    struct jinja_body body;

    jinja_parse_skip_op(p, ':');
    expect_block_end(p);
    body = parse_nodes(p, ends);
    if (p->at->type == TOKEN_EOF) {
        p->r->line = line;
        jinja_fail(p->r, E_FORMAT, "unexpected end of template: the block that begins here needs '%s'", ends[0]);
    }
    return body;
}

static struct jinja_body parse_body_until(struct jinja_parser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    struct jinja_body body = parse_body(p, ends);

    p->at++;
    return body;
}

static struct jinja_node *parse_if(struct jinja_parser *p)
{
    static const char *const ends[] = {"endif", "elif", "else", NULL};
    struct jinja_node *n = jinja_node_new(p, NODE_IF, p->at->line);
    struct jinja_node_list conditions = {0};
    uint32_t room = 0;

    do {
        p->at++;   /* if or elif */
        jinja_node_add(p, &conditions, jinja_parse_tuple(p, false, NULL, false));
        if (n->count == room) {
            n->bodies = jinja_grow(p->r, n->bodies, room * sizeof *n->bodies, (2 * room + 2) * sizeof *n->bodies);
            room = 2 * room + 2;
        }
        p->if_depth++;
        n->bodies[n->count++] = parse_body(p, ends);
        p->if_depth--;
    } while (jinja_parse_is_word(p, "elif"));
    n->list = conditions.nodes;
    p->if_depth++;
    if (jinja_parse_skip_word(p, "else")) n->other = parse_body_until(p, "endif");
    else p->at++;
    p->if_depth--;
    return n;
}

static struct jinja_node *parse_for(struct jinja_parser *p)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    struct jinja_node *n = jinja_node_new(p, NODE_FOR, p->at->line);

    p->at++;
    n->a = jinja_parse_target(p, "in", true, false);
    expect_word(p, "in");
    n->b = jinja_parse_tuple(p, false, "recursive", false);
    if (jinja_parse_skip_word(p, "if")) n->c = jinja_parse_expression(p);
    n->flag = jinja_parse_skip_word(p, "recursive");
    p->loop_depth++;
    n->body = parse_body(p, ends);
    p->loop_depth--;
    if (jinja_parse_skip_word(p, "else")) n->other = parse_body_until(p, "endfor");
    else p->at++;
    return n;
}

/* break and continue do not reach out of a captured text (macro, set or filter block) to a loop around it. */
static struct jinja_body parse_captured_body(struct jinja_parser *p, const char *end)
{
    const uint32_t loops = p->loop_depth;
    struct jinja_body body;

    p->loop_depth = 0;
    body = parse_body_until(p, end);
    p->loop_depth = loops;
    return body;
}

static struct jinja_node *parse_set(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, NODE_SET, p->at->line);

    p->at++;
    n->a = jinja_parse_target(p, NULL, true, true);
    if (jinja_parse_skip_op(p, '=')) {
        n->b = jinja_parse_tuple(p, true, NULL, false);
        return n;
    }
    n->kind = NODE_SET_BLOCK;
    n->b = jinja_parse_filters(p, NULL, false);
    n->body = parse_captured_body(p, "endset");
    return n;
}

/* (a, b=1): parameters with their defaults. */
static void parse_signature(struct jinja_parser *p, struct jinja_node *n)
{
    struct jinja_node_list defaults = {0};
    uint32_t room = 0;
    bool optional = false;

    jinja_parse_expect_op(p, '(');
    while (!jinja_parse_is_op(p, ')')) {
        struct jinja_node *value = NULL;
        if (n->count) jinja_parse_expect_op(p, ',');
        if (n->count == room) {
            n->params = jinja_grow(p->r, n->params, room * sizeof *n->params, (2 * room + 4) * sizeof *n->params);
            room = 2 * room + 4;
        }
        n->params[n->count++] = jinja_parse_intern(p, jinja_parse_name(p));
        if (jinja_parse_skip_op(p, '=')) {
            value = jinja_parse_expression(p);
            optional = true;
        } else if (optional) jinja_parse_fail(p, "non-default argument follows default argument");
        jinja_node_add(p, &defaults, value);
    }
    p->at++;
    n->list = defaults.nodes;
}

static struct jinja_node *parse_macro(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, NODE_MACRO, p->at->line);

    p->at++;
    n->name = jinja_parse_intern(p, jinja_parse_name(p));
    parse_signature(p, n);
    n->body = parse_captured_body(p, "endmacro");
    return n;
}

static struct jinja_node *parse_call_block(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, NODE_CALL_BLOCK, p->at->line);

    p->at++;
    n->name = p->program->name_caller;
    if (jinja_parse_is_op(p, '(')) parse_signature(p, n);
    n->a = jinja_parse_expression(p);
    if (n->a->kind != NODE_CALL) jinja_parse_fail(p, "expected call");
    n->body = parse_captured_body(p, "endcall");
    return n;
}

static struct jinja_node *parse_filter_block(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, NODE_FILTER_BLOCK, p->at->line);

    p->at++;
    n->a = jinja_parse_filters(p, NULL, true);
    n->body = parse_captured_body(p, "endfilter");
    return n;
}

static struct jinja_node *parse_with(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, NODE_WITH, p->at->line);
    struct jinja_node_list l = {0};

    p->at++;
    while (p->at->type != TOKEN_BLOCK_END) {
        if (l.count) jinja_parse_expect_op(p, ',');
        jinja_node_add(p, &l, jinja_parse_target(p, NULL, true, false));
        jinja_parse_expect_op(p, '=');
        jinja_node_add(p, &l, jinja_parse_expression(p));
    }
    n->list = l.nodes;
    n->count = l.count;
    n->body = parse_body_until(p, "endwith");
    return n;
}

/* {% generation %} marks what the assistant wrote, for training; here it only prints. */
static struct jinja_node *parse_generation(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, NODE_SCOPE, p->at->line);

    p->at++;
    n->body = parse_captured_body(p, "endgeneration");
    return n;
}

static struct jinja_node *parse_jump(struct jinja_parser *p, enum jinja_node_kind kind)
{
    struct jinja_node *n = jinja_node_new(p, kind, p->at->line);

    if (!p->loop_depth) jinja_parse_fail(p, "'%s' outside of a loop", kind == NODE_BREAK ? "break" : "continue");
    p->at++;
    return n;
}

static struct jinja_node *parse_print(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, NODE_OUTPUT, p->at->line);

    p->at++;
    n->a = jinja_parse_expression(p);
    return n;
}

static struct jinja_node *parse_statement_inner(struct jinja_parser *p)
{
    static const char *const unsupported[] = {"include", "import", "from", "extends", "block", "autoescape", "do", "trans", "debug"};

    if (p->at->type != TOKEN_NAME) jinja_parse_fail(p, "tag name expected");
    if (jinja_parse_is_word(p, "if")) return parse_if(p);
    if (jinja_parse_is_word(p, "for")) return parse_for(p);
    if (jinja_parse_is_word(p, "set")) return parse_set(p);
    if (jinja_parse_is_word(p, "macro")) return parse_macro(p);
    if (jinja_parse_is_word(p, "call")) return parse_call_block(p);
    if (jinja_parse_is_word(p, "filter")) return parse_filter_block(p);
    if (jinja_parse_is_word(p, "with")) return parse_with(p);
    if (jinja_parse_is_word(p, "print")) return parse_print(p);
    if (jinja_parse_is_word(p, "generation")) return parse_generation(p);
    if (jinja_parse_is_word(p, "break")) return parse_jump(p, NODE_BREAK);
    if (jinja_parse_is_word(p, "continue")) return parse_jump(p, NODE_CONTINUE);
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        if (jinja_parse_is_word(p, unsupported[i])) {
            p->r->line = p->at->line;
            jinja_fail(p->r, E_UNSUPPORTED, "the tag '%s' is not supported in chat templates", unsupported[i]);
        }
    jinja_parse_fail(p, "Encountered unknown tag '%.*s'.", (int)p->at->value.u.str->bytes, p->at->value.u.str->text);
}

static struct jinja_node *parse_statement(struct jinja_parser *p)
{
    struct jinja_node *n;

    if (++p->depth > JINJA_PARSE_DEPTH_MAX) jinja_parse_fail(p, "the template nests deeper than %u", JINJA_PARSE_DEPTH_MAX);
    n = parse_statement_inner(p);
    p->depth--;
    return n;
}

static bool at_end_word(const struct jinja_parser *p, const char *const *ends)
{
    for (; ends && *ends; ends++) if (jinja_parse_is_word(p, *ends)) return true;
    return false;
}

static struct jinja_body parse_nodes(struct jinja_parser *p, const char *const *ends)
{
    struct jinja_node_list l = {0};

    while (p->at->type != TOKEN_EOF) {
        struct jinja_node *n;
        if (p->at->type == TOKEN_DATA) {
            n = jinja_node_new(p, NODE_TEXT, p->at->line);
            n->value = p->at++->value;
        } else if (p->at->type == TOKEN_VARIABLE_BEGIN) {
            n = jinja_node_new(p, NODE_OUTPUT, p->at++->line);
            n->a = jinja_parse_tuple(p, true, NULL, false);
            if (p->at->type != TOKEN_VARIABLE_END) jinja_parse_unexpected(p, "'}}'");
            p->at++;
        } else {
            p->at++;
            if (at_end_word(p, ends)) break;
            n = parse_statement(p);
            expect_block_end(p);
        }
        jinja_node_add(p, &l, n);
    }
    return (struct jinja_body){l.nodes, l.count};
}

void jinja_parse(struct jinja_run *r, const char *source, size_t bytes, struct jinja_program *out)
{
    const struct jinja_tokens tokens = jinja_lex(r, source, bytes);
    struct jinja_parser p = {.r = r, .at = tokens.tokens, .program = out};

    memset(out, 0, sizeof *out);
    out->name_loop = jinja_parse_intern(&p, jinja_str_constant(r, "loop", true));
    out->name_caller = jinja_parse_intern(&p, jinja_str_constant(r, "caller", true));
    out->name_varargs = jinja_parse_intern(&p, jinja_str_constant(r, "varargs", true));
    out->name_kwargs = jinja_parse_intern(&p, jinja_str_constant(r, "kwargs", true));
    out->body = parse_nodes(&p, NULL);
    r->line = 0;
}
