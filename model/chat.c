/* model/chat.c - renders chat requests (model/chat.h).
 *
 * Reads    a chat request in msgpack (schemas/chat_request.md), copied first
 * Writes   a prompt with its trusted spans, malloc'ed for the caller
 * Owns     nothing between calls but opened templates
 * Fails    with a negative code and a sentence. */
#include "model/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat_request.h"
#include "model/jinja.h"
#include "shm/error.h"

struct chat_template { struct jinja_template *jinja; };

struct job {
    const void *request;
    size_t request_bytes;
    const struct chat_options *options;
    struct chat_text *out;
};

int chat_template_open(struct chat_template **out, const char *source, size_t bytes, char *err, size_t err_bytes)
{
    struct chat_template *t;
    int rc;

    *out = NULL;
    if (!(t = malloc(sizeof *t))) {
        if (err && err_bytes) snprintf(err, err_bytes, "out of memory");
        return -E_NOMEM;
    }
    if ((rc = jinja_open(&t->jinja, source, bytes, err, err_bytes)) != 0) {
        free(t);
        return rc;
    }
    *out = t;
    return 0;
}

void chat_template_close(struct chat_template *t)
{
    if (!t) return;
    jinja_close(t->jinja);
    free(t);
}

/* ------------------------------------------------------------------ the request */

enum request_key { KEY_MESSAGES, KEY_TOOLS, KEY_DOCUMENTS, KEY_ADD_GENERATION_PROMPT, KEY_TEMPLATE_KWARGS, KEY_FORCED_CALL, KEY_COUNT };
static const char *const key_names[KEY_COUNT] = {"messages", "tools", "documents", "add_generation_prompt", "template_kwargs", "forced_call"};

static void put(struct jinja_run *r, struct jinja_dict *d, const char *name, struct jinja_value v)
{
    jinja_dict_put(r, d, jinja_string(jinja_str_constant(r, name, true)), v);
}

static void check_maps(struct jinja_run *r, struct jinja_value v, const char *what)
{
    if (v.type != JINJA_LIST) jinja_fail(r, E_FORMAT, "'%s' must be a list", what);
    for (uint32_t i = 0; i < v.u.list->count; i++)
        if (v.u.list->items[i].type != JINJA_DICT) jinja_fail(r, E_FORMAT, "'%s'[%u] must be an object", what, i);
}

static void sort_keys(struct jinja_run *r, struct jinja_value request, struct jinja_value keys[KEY_COUNT])
{
    for (int k = 0; k < KEY_COUNT; k++) keys[k] = jinja_none();
    if (request.type != JINJA_DICT) jinja_fail(r, E_FORMAT, "a chat request must be a map");
    for (uint32_t i = 0; i < request.u.dict->count; i++) {
        struct jinja_str *name = request.u.dict->entries[i].key.u.str;
        int k = 0;
        while (k < KEY_COUNT && !jinja_str_is(r, name, key_names[k])) k++;
        if (k == KEY_COUNT) jinja_fail(r, E_FORMAT, "a chat request has no member '%.*s'", (int)(name->bytes < 64 ? name->bytes : 64), name->text);
        keys[k] = request.u.dict->entries[i].value;
    }
    check_maps(r, keys[KEY_MESSAGES], "messages");
    if (keys[KEY_TOOLS].type != JINJA_NONE) check_maps(r, keys[KEY_TOOLS], "tools");
    if (keys[KEY_DOCUMENTS].type != JINJA_NONE) check_maps(r, keys[KEY_DOCUMENTS], "documents");
    if (keys[KEY_ADD_GENERATION_PROMPT].type == JINJA_NONE) keys[KEY_ADD_GENERATION_PROMPT] = jinja_bool(false);
    if (keys[KEY_ADD_GENERATION_PROMPT].type != JINJA_BOOL) jinja_fail(r, E_FORMAT, "'add_generation_prompt' must be a boolean");
    if (keys[KEY_TEMPLATE_KWARGS].type != JINJA_NONE && keys[KEY_TEMPLATE_KWARGS].type != JINJA_DICT)
        jinja_fail(r, E_FORMAT, "'template_kwargs' must be an object");
    if (keys[KEY_FORCED_CALL].type != JINJA_NONE && keys[KEY_FORCED_CALL].type != JINJA_STRING) jinja_fail(r, E_FORMAT, "'forced_call' must be a string");
}

static void note_call(struct jinja_run *r, struct jinja_value name, struct chat_text *out)
{
    if (name.type != JINJA_STRING) return;
    out->forced_call = strndup(jinja_str_text(r, name.u.str), name.u.str->bytes);
    if (!out->forced_call) jinja_fail(r, E_NOMEM, "out of memory");
}

/* The template's variables: what transformers passes, then the request's own; nothing may be passed twice. */
static struct jinja_dict *variables(struct jinja_run *r, void *user)
{
    const struct job *j = user;
    char *copy = jinja_alloc(r, j->request_bytes);
    struct jinja_dict *d = jinja_dict_new(r, 16), *kwargs;
    struct jinja_value keys[KEY_COUNT];

    if (j->request_bytes) memcpy(copy, j->request, j->request_bytes);   /* from here on nobody can change it */
    sort_keys(r, chat_request_decode(r, copy, j->request_bytes), keys);
    note_call(r, keys[KEY_FORCED_CALL], j->out);
    for (size_t i = 0; j->options && i < j->options->token_count; i++) {
        const struct chat_token *t = &j->options->tokens[i];
        put(r, d, t->name, jinja_string(jinja_str_constant(r, t->text, true)));
    }
    for (int k = KEY_MESSAGES; k < KEY_TEMPLATE_KWARGS; k++) put(r, d, key_names[k], keys[k]);
    if (keys[KEY_TEMPLATE_KWARGS].type == JINJA_NONE) return d;
    kwargs = keys[KEY_TEMPLATE_KWARGS].u.dict;
    for (uint32_t i = 0; i < kwargs->count; i++) {
        struct jinja_str *name = kwargs->entries[i].key.u.str;
        if (jinja_dict_get_str(r, d, name))
            jinja_fail(r, E_FORMAT, "template_kwargs may not set '%.*s'", (int)(name->bytes < 64 ? name->bytes : 64), jinja_str_text(r, name));
        jinja_dict_put(r, d, kwargs->entries[i].key, kwargs->entries[i].value);
    }
    return d;
}

static int keep(struct jinja_run *r, struct jinja_str *s, void *user)
{
    struct chat_text *out = ((struct job *)user)->out;
    const uint32_t count = s->trust == JINJA_TRUST_NONE || !s->bytes ? 0 : s->trust == JINJA_TRUST_ALL ? 1 : s->span_count;
    const char *text = jinja_str_text(r, s);

    out->text = malloc((size_t)s->bytes + 1);
    out->trusted = malloc((count ? count : 1) * sizeof *out->trusted);
    if (!out->text || !out->trusted) {
        chat_text_free(out);
        return -E_NOMEM;
    }
    if (s->bytes) memcpy(out->text, text, s->bytes);
    out->text[s->bytes] = 0;
    out->bytes = s->bytes;
    out->trusted_count = count;
    for (uint32_t i = 0; i < count; i++) {
        out->trusted[i].begin_bytes = s->trust == JINJA_TRUST_ALL ? 0 : s->spans[i].begin;
        out->trusted[i].end_bytes = s->trust == JINJA_TRUST_ALL ? s->bytes : s->spans[i].end;
    }
    return 0;
}

int chat_render(const struct chat_template *t, const void *msgpack_request, size_t bytes, const struct chat_options *options,
                struct chat_text *out, char *err, size_t err_bytes)
{
    struct job j = {.request = msgpack_request, .request_bytes = bytes, .options = options, .out = out};
    struct jinja_limits limits = {.steps = CHAT_STEPS_MAX, .memory_bytes = CHAT_MEMORY_BYTES_MAX, .output_bytes = CHAT_OUTPUT_BYTES_MAX};

    memset(out, 0, sizeof *out);
    if (options && options->steps_max) limits.steps = options->steps_max;
    if (options && options->memory_bytes_max) limits.memory_bytes = options->memory_bytes_max;
    if (options && options->output_bytes_max)
        limits.output_bytes = options->output_bytes_max < UINT32_MAX / 2 ? (uint32_t)options->output_bytes_max : UINT32_MAX / 2;
    if (options) limits.now_seconds = options->now_seconds;
    const int rc = jinja_render(t->jinja, &limits, variables, keep, &j, err, err_bytes);
    if (rc != 0) chat_text_free(out);
    return rc;
}

void chat_text_free(struct chat_text *text)
{
    free(text->text);
    free(text->trusted);
    free(text->forced_call);
    memset(text, 0, sizeof *text);
}
