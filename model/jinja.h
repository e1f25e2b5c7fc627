/* model/jinja.h - a Jinja template parsed once and rendered many times, as Python's jinja2 renders
 * chat templates: trim_blocks, lstrip_blocks, the immutable sandbox, loop controls, json.dumps as tojson.
 *
 * model/chat.h is what stages use; this is the layer below it, without msgpack, for tests and for
 * whoever has values of another origin. A template is immutable and may be shared by threads.
 *
 * Not built: include, import, extends, block (-E_UNSUPPORTED at open); the filters random, urlize,
 * striptags, xmlattr, wordwrap, filesizeformat, pprint; integers beyond 64 bits (-E_RANGE). */
#ifndef SLUICE_MODEL_JINJA_H
#define SLUICE_MODEL_JINJA_H

#include <stddef.h>
#include <stdint.h>

#include "model/jinja_value.h"

struct jinja_template;

#define JINJA_SOURCE_BYTES_MAX (4u << 20)
#define JINJA_PARSE_MEMORY_MAX ((size_t)512 << 20)

/* 0: *t is the caller's to close. -E_FORMAT, -E_UNSUPPORTED, -E_LIMIT, -E_NOMEM: err says where and why. */
int jinja_open(struct jinja_template **t, const char *source, size_t bytes, char *err, size_t err_bytes);
void jinja_close(struct jinja_template *t);

struct jinja_limits {
    uint64_t steps;            /* evaluations, items and 16-byte pieces of text touched */
    size_t memory_bytes;       /* the arena */
    uint32_t output_bytes;     /* of the result and of each string on the way */
    int64_t now_seconds;       /* for strftime_now; 0: the clock */
};

/* Builds the variables inside the render's own arena; may leave by jinja_fail. */
typedef struct jinja_dict *jinja_context_fn(struct jinja_run *r, void *user);

/* Where a result goes, called inside the render's guard: copy `text`, the arena goes with the return. 0 or -E_CODE. */
typedef int jinja_result_fn(struct jinja_run *r, struct jinja_str *text, void *user);

/* Renders. 0 or -E_CODE with a sentence in err; for raise_exception the template's own words. */
int jinja_render(const struct jinja_template *t, const struct jinja_limits *limits, jinja_context_fn *context, jinja_result_fn *result,
                 void *user, char *err, size_t err_bytes);

#endif
