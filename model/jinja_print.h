/* model/jinja_print.h - values to text: str(), repr() and json.dumps() of Python.
 *
 * Text taken from strings keeps its trust; what the printing itself adds around request data (quotes,
 * braces, digits of the request's numbers) is not trusted. Fails by the run. */
#ifndef SLUICE_MODEL_JINJA_PRINT_H
#define SLUICE_MODEL_JINJA_PRINT_H

#include "model/jinja_value.h"

struct jinja_str *jinja_str_of(struct jinja_run *r, struct jinja_value v);             /* str(v) */
struct jinja_str *jinja_repr(struct jinja_run *r, struct jinja_value v);
void jinja_print(struct jinja_run *r, struct jinja_buf *b, struct jinja_value v);      /* what {{ v }} writes */

struct jinja_json_style {
    bool ensure_ascii, sort_keys;
    int64_t indent_count;             /* < 0: one line */
    struct jinja_str *indent;         /* instead of indent_count spaces; or NULL */
    struct jinja_str *item_separator, *key_separator;   /* NULL: json's defaults */
};
struct jinja_str *jinja_json(struct jinja_run *r, struct jinja_value v, const struct jinja_json_style *style);

enum { JINJA_FLOAT_BYTES = 40 };
/* repr of a float: the shortest digits that read back as the same number. */
int jinja_float_text(char out[JINJA_FLOAT_BYTES], double value);

#endif
