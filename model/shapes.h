/* model/shapes.h - the shapes of published models, built in: a server can be measured on its real sizes without a checkpoint.
 *
 * A shape is the text of the two configuration files that a checkpoint of that model would bring; whoever serves it parses them as
 * any other. No weights, no tokenizer. */
#ifndef SLUICE_MODEL_SHAPES_H
#define SLUICE_MODEL_SHAPES_H

struct model_shape {
    const char *name;                 /* as --random-weights takes it */
    const char *config;               /* config.json; static */
    const char *generation;           /* generation_config.json; static */
};

/* The shape of that name, or NULL. */
const struct model_shape *model_shape_find(const char *name);

/* All names, separated by ", "; static. */
const char *model_shape_names(void);

#endif
