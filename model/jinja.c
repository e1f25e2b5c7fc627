/* model/jinja.c - opens templates and runs renders (model/jinja.h).
 *
 * Owns     a template's run (its arena holds the program); a render's arena, freed before it returns
 * Fails    as negative codes with a sentence; this is where the runs' longjmps end. */
#include "model/jinja.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja_eval.h"
#include "shm/error.h"

struct jinja_template {
    struct jinja_run run;          /* its arena holds the program */
    struct jinja_program program;
    struct jinja_value *built_in;  /* by name: the global function, or MISSING */
};

static void say(char *err, size_t err_bytes, const char *text)
{
    if (err && err_bytes) snprintf(err, err_bytes, "%s", text);
}

/* Separate from jinja_open so that no local of a function with setjmp changes after it. */
static int parse(struct jinja_template *t, const char *source, size_t bytes)
{
    int rc = jinja_run_guard(&t->run);

    if (rc != 0) return rc;
    jinja_parse(&t->run, source, bytes, &t->program);
    t->built_in = jinja_alloc_array(&t->run, t->program.name_count, sizeof *t->built_in);
    for (uint32_t i = 0; i < t->program.name_count; i++) {
        const int function = jinja_function_find(t->program.names[i]);
        if (function >= 0) t->built_in[i] = (struct jinja_value){.type = JINJA_FUNCTION, .u.function = (uint32_t)function};
    }
    return 0;
}

int jinja_open(struct jinja_template **out, const char *source, size_t bytes, char *err, size_t err_bytes)
{
    struct jinja_template *t;
    int rc;

    *out = NULL;
    if (bytes > JINJA_SOURCE_BYTES_MAX) {
        say(err, err_bytes, "the template is larger than 4 MiB");
        return -E_LIMIT;
    }
    if (!(t = calloc(1, sizeof *t))) {
        say(err, err_bytes, "out of memory");
        return -E_NOMEM;
    }
    jinja_run_init(&t->run, JINJA_PARSE_MEMORY_MAX, UINT64_MAX, JINJA_SOURCE_BYTES_MAX);
    if ((rc = parse(t, source, bytes)) != 0) {
        say(err, err_bytes, t->run.message);
        jinja_close(t);
        return rc;
    }
    *out = t;
    return 0;
}

void jinja_close(struct jinja_template *t)
{
    if (!t) return;
    jinja_run_free(&t->run);
    free(t);
}

/* ------------------------------------------------------------------ rendering */

struct render {
    const struct jinja_template *template;
    jinja_context_fn *context;
    jinja_result_fn *result;
    void *user;
    struct jinja_eval eval;
};

static void bind_context(struct jinja_eval *e, const struct jinja_template *t, const struct jinja_dict *variables)
{
    const uint32_t count = t->program.name_count;

    e->program = &t->program;
    e->root = jinja_alloc_array(&e->run, count, sizeof *e->root);
    e->context = jinja_alloc_array(&e->run, count, sizeof *e->context);
    memcpy(e->context, t->built_in, count * sizeof *e->context);
    for (uint32_t i = 0; i < count; i++) {
        const struct jinja_value *v = jinja_dict_get_str(&e->run, variables, t->program.names[i]);
        if (v) e->context[i] = *v;
    }
}

static int run_render(struct render *x)
{
    struct jinja_buf out = {0};
    int rc = jinja_run_guard(&x->eval.run);

    if (rc != 0) return rc;
    bind_context(&x->eval, x->template, x->context(&x->eval.run, x->user));
    x->eval.out = &out;
    jinja_exec(&x->eval, &x->template->program.body);
    x->eval.run.line = 0;
    return x->result(&x->eval.run, jinja_buf_finish(&x->eval.run, &out), x->user);
}

int jinja_render(const struct jinja_template *t, const struct jinja_limits *limits, jinja_context_fn *context, jinja_result_fn *result,
                 void *user, char *err, size_t err_bytes)
{
    struct render x = {.template = t, .context = context, .result = result, .user = user};
    int rc;

    jinja_run_init(&x.eval.run, limits->memory_bytes, limits->steps, limits->output_bytes);
    x.eval.now_seconds = limits->now_seconds;
    rc = run_render(&x);
    if (rc != 0) say(err, err_bytes, x.eval.run.message[0] ? x.eval.run.message : error_text(-rc));
    jinja_run_free(&x.eval.run);
    return rc;
}
