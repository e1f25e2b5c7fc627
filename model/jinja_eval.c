/* model/jinja_eval.c - statements: output, if, for, set, macros, blocks; and the scopes they open
 * (model/jinja_eval.h).
 *
 * Reads    the program, which it never changes
 * Owns     nothing: frames and texts are in the run's arena
 * Fails    by the run, with the line of the statement. */
#include "model/jinja_eval.h"

#include <string.h>

#include "shm/error.h"
#include "shm/must.h"

/* ------------------------------------------------------------------ scopes */

void jinja_bind_name(struct jinja_eval *e, uint32_t name, struct jinja_value v)
{
    struct jinja_frame *f = e->frame;

    if (!f) {
        e->root[name] = v;
        return;
    }
    for (uint32_t i = 0; i < f->count; i++)
        if (f->slots[i].name == name) {
            f->slots[i].value = v;
            return;
        }
    if (f->count == f->room) {
        const uint32_t room = f->room ? 2 * f->room : 4;
        f->slots = jinja_grow(&e->run, f->slots, f->count * sizeof *f->slots, room * sizeof *f->slots);
        f->room = room;
    }
    f->slots[f->count++] = (struct jinja_slot){name, v};
}

struct jinja_value jinja_lookup(struct jinja_eval *e, uint32_t name)
{
    for (const struct jinja_frame *f = e->frame; f; f = f->parent) {
        jinja_step(&e->run, 1 + f->count / 8);
        for (uint32_t i = 0; i < f->count; i++) if (f->slots[i].name == name) return f->slots[i].value;
    }
    if (e->root[name].type != JINJA_MISSING) return e->root[name];
    if (e->context[name].type != JINJA_MISSING) return e->context[name];
    return jinja_undefined_variable(&e->run, e->program->names[name]);
}

static struct jinja_frame *open_frame(struct jinja_eval *e, struct jinja_frame *parent)
{
    struct jinja_frame *f = jinja_alloc_array(&e->run, 1, sizeof *f);

    f->parent = parent;
    return f;
}

struct jinja_str *jinja_capture(struct jinja_eval *e, const struct jinja_body *body)
{
    struct jinja_buf text = {0}, *before = e->out;

    e->out = &text;
    jinja_exec(e, body);   /* break and continue cannot leave a captured block: the loop is inside or the parser refused */
    e->out = before;
    return jinja_buf_finish(&e->run, &text);
}

/* ------------------------------------------------------------------ assignment */

static void assign(struct jinja_eval *e, const struct jinja_node *target, struct jinja_value v);

static void assign_tuple(struct jinja_eval *e, const struct jinja_node *target, struct jinja_value v)
{
    struct jinja_seq s;

    if (v.type == JINJA_UNDEFINED || !jinja_is_iterable(v)) {
        if (v.type != JINJA_UNDEFINED) jinja_fail(&e->run, E_FORMAT, "cannot unpack non-iterable %s object", jinja_type_name(v));
    }
    s = jinja_sequence(&e->run, v);
    if (s.count < target->count)
        jinja_fail(&e->run, E_FORMAT, "not enough values to unpack (expected %u, got %u)", target->count, s.count);
    if (s.count > target->count) jinja_fail(&e->run, E_FORMAT, "too many values to unpack (expected %u)", target->count);
    for (uint32_t i = 0; i < target->count; i++) assign(e, target->list[i], jinja_seq_at(&s, i));
}

static void assign(struct jinja_eval *e, const struct jinja_node *target, struct jinja_value v)
{
    struct jinja_value ns;

    jinja_step(&e->run, 1);
    switch (target->kind) {
    case NODE_NAME: jinja_bind_name(e, target->name, v); break;
    case NODE_TUPLE: assign_tuple(e, target, v); break;
    default:
        must(target->kind == NODE_NS_TARGET);
        ns = jinja_lookup(e, target->name);
        if (ns.type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, ns);
        if (ns.type != JINJA_NAMESPACE) jinja_fail(&e->run, E_FORMAT, "cannot assign attribute on non-namespace object");
        jinja_namespace_put(&e->run, ns.u.names, target->value.u.str, v);
    }
}

/* ------------------------------------------------------------------ loops */

/* The items that pass the loop's own condition. */
static struct jinja_seq filter_items(struct jinja_eval *e, const struct jinja_node *n, struct jinja_seq s)
{
    struct jinja_items kept = {0};
    struct jinja_frame *before = e->frame;

    e->frame = open_frame(e, before);
    for (uint32_t i = 0; i < s.count; i++) {
        const struct jinja_value item = jinja_seq_at(&s, i);
        e->frame->count = 0;
        assign(e, n->a, item);
        if (jinja_truth(&e->run, jinja_evaluate(e, n->c))) jinja_items_add(&e->run, &kept, item);
    }
    e->frame = before;
    if (!kept.items) kept.items = jinja_alloc_array(&e->run, 1, sizeof *kept.items);
    return (struct jinja_seq){.items = kept.items, .count = kept.count};
}

static enum jinja_flow run_loop(struct jinja_eval *e, const struct jinja_node *n, struct jinja_value items, struct jinja_frame *enclosing, uint32_t depth)
{
    struct jinja_frame *before = e->frame;
    struct jinja_seq s = jinja_sequence(&e->run, items);
    struct jinja_loop *loop;
    enum jinja_flow flow;

    if (n->c) s = filter_items(e, n, s);
    if (!s.count) {
        e->frame = open_frame(e, enclosing);
        flow = jinja_exec(e, &n->other);   /* may break or continue a loop around this one */
        e->frame = before;
        return flow;
    }
    loop = jinja_alloc_array(&e->run, 1, sizeof *loop);
    *loop = (struct jinja_loop){.seq = s, .depth = depth, .last_changed = jinja_missing(), .recursive = n->flag ? n : NULL, .frame = enclosing};
    e->frame = open_frame(e, enclosing);
    for (uint32_t i = 0; i < s.count; i++) {
        jinja_step(&e->run, 1);
        loop->at = i;
        e->frame->count = 0;
        jinja_bind_name(e, e->program->name_loop, (struct jinja_value){.type = JINJA_LOOP, .u.loop = loop});
        assign(e, n->a, jinja_seq_at(&s, i));
        if (jinja_exec(e, &n->body) == FLOW_BREAK) break;
    }
    e->frame = before;
    return FLOW_NEXT;
}

/* loop(items) inside a recursive loop: the same body over other items. */
struct jinja_str *jinja_loop_again(struct jinja_eval *e, const struct jinja_loop *outer, struct jinja_value items)
{
    struct jinja_buf text = {0}, *before = e->out;

    if (!outer->recursive) jinja_fail(&e->run, E_FORMAT, "The loop must have the 'recursive' marker to be called recursively.");
    jinja_enter(&e->run);
    e->out = &text;
    run_loop(e, outer->recursive, items, outer->frame, outer->depth + 1);
    e->out = before;
    jinja_leave(&e->run);
    return jinja_buf_finish(&e->run, &text);
}

/* ------------------------------------------------------------------ statements */

static enum jinja_flow exec_if(struct jinja_eval *e, const struct jinja_node *n)
{
    for (uint32_t i = 0; i < n->count; i++)
        if (jinja_truth(&e->run, jinja_evaluate(e, n->list[i]))) return jinja_exec(e, &n->bodies[i]);
    return jinja_exec(e, &n->other);
}

/* A block with a scope of its own, captured as text. */
static struct jinja_value capture_scoped(struct jinja_eval *e, const struct jinja_body *body)
{
    struct jinja_frame *before = e->frame;
    struct jinja_str *text;

    e->frame = open_frame(e, before);
    text = jinja_capture(e, body);
    e->frame = before;
    return jinja_string(text);
}

static void exec_with(struct jinja_eval *e, const struct jinja_node *n)
{
    struct jinja_frame *before = e->frame, *inner = open_frame(e, before);

    for (uint32_t i = 0; i < n->count; i += 2) {   /* values see the outer scope only */
        const struct jinja_value v = jinja_evaluate(e, n->list[i + 1]);
        e->frame = inner;
        assign(e, n->list[i], v);
        e->frame = before;
    }
    e->frame = inner;
}

static void exec_call_block(struct jinja_eval *e, const struct jinja_node *n)
{
    const struct jinja_node *call = n->a;
    struct jinja_args args;
    struct jinja_named *named;
    struct jinja_value callee = jinja_evaluate(e, call->a);

    jinja_eval_args(e, call->args, &args);
    named = jinja_alloc_array(&e->run, args.named_count + 1, sizeof *named);
    if (args.named_count) memcpy(named, args.named, args.named_count * sizeof *named);
    named[args.named_count].name = e->program->names[e->program->name_caller];
    named[args.named_count].value = jinja_make_macro(e, n);
    args.named = named;
    args.named_count++;
    jinja_print(&e->run, e->out, jinja_call(e, callee, &args));
}

static enum jinja_flow exec_scope(struct jinja_eval *e, const struct jinja_body *body, struct jinja_frame *before)
{
    const enum jinja_flow flow = jinja_exec(e, body);

    e->frame = before;
    return flow;
}

static enum jinja_flow exec_statement(struct jinja_eval *e, const struct jinja_node *n)
{
    struct jinja_frame *before = e->frame;

    switch (n->kind) {
    case NODE_TEXT: jinja_buf_put_str(&e->run, e->out, n->value.u.str); break;
    case NODE_OUTPUT: jinja_print(&e->run, e->out, jinja_evaluate(e, n->a)); break;
    case NODE_IF: return exec_if(e, n);
    case NODE_FOR: return run_loop(e, n, jinja_evaluate(e, n->b), before, 1);
    case NODE_SET: assign(e, n->a, jinja_evaluate(e, n->b)); break;
    case NODE_SET_BLOCK: assign(e, n->a, jinja_apply_filters(e, n->b, capture_scoped(e, &n->body))); break;
    case NODE_MACRO: jinja_bind_name(e, n->name, jinja_make_macro(e, n)); break;
    case NODE_CALL_BLOCK: exec_call_block(e, n); break;
    case NODE_FILTER_BLOCK: jinja_print(&e->run, e->out, jinja_apply_filters(e, n->a, capture_scoped(e, &n->body))); break;
    case NODE_WITH: exec_with(e, n); return exec_scope(e, &n->body, before);
    case NODE_SCOPE: e->frame = open_frame(e, before); return exec_scope(e, &n->body, before);
    case NODE_BREAK: return FLOW_BREAK;
    case NODE_CONTINUE: return FLOW_CONTINUE;
    default: must(!"a statement node");
    }
    return FLOW_NEXT;
}

enum jinja_flow jinja_exec(struct jinja_eval *e, const struct jinja_body *body)
{
    enum jinja_flow flow = FLOW_NEXT;

    jinja_enter(&e->run);
    for (uint32_t i = 0; i < body->count && flow == FLOW_NEXT; i++) {
        jinja_step(&e->run, 1);
        e->run.line = body->nodes[i]->line;
        flow = exec_statement(e, body->nodes[i]);
    }
    jinja_leave(&e->run);
    return flow;
}
