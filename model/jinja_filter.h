/* model/jinja_filter.h - the table of filters. Internal to model/jinja_filter*.c.
 *
 * A filter with a list of parameters gets its arguments bound: v[0] is the input, then one value per
 * parameter, MISSING where none was given. One without gets them as they came. */
#ifndef SLUICE_MODEL_JINJA_FILTER_H
#define SLUICE_MODEL_JINJA_FILTER_H

#include "model/jinja_eval.h"

enum { FILTER_PARAMS_MAX = 5 };

typedef struct jinja_value jinja_filter_fn(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args);

struct jinja_filter_entry {
    const char *name;
    jinja_filter_fn *run;
    const char *params[FILTER_PARAMS_MAX];   /* NULL-terminated if fewer */
    uint8_t required;
    bool raw;                                /* arguments not bound: map, select, format */
};

/* jinja_filter_list.c */
jinja_filter_fn jinja_filter_batch, jinja_filter_dictsort, jinja_filter_first, jinja_filter_groupby, jinja_filter_items, jinja_filter_join,
    jinja_filter_last, jinja_filter_length, jinja_filter_list, jinja_filter_map, jinja_filter_max, jinja_filter_min, jinja_filter_reject,
    jinja_filter_rejectattr, jinja_filter_reverse, jinja_filter_select, jinja_filter_selectattr, jinja_filter_slice, jinja_filter_sort,
    jinja_filter_sum, jinja_filter_unique;
/* jinja_filter_number.c */
jinja_filter_fn jinja_filter_abs, jinja_filter_float, jinja_filter_int, jinja_filter_round;

#endif
