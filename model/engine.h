/* model/engine.h - a stage's view of the model: files by descriptor, configuration, weights, KV arena, forward pass.
 *
 * Used by the stages that compute (prefill, verify) and, without engine_open_forward,
 * by those that only need the configuration. Everything comes through the wiring: no
 * path is opened, so that a restarted stage sees the very files the server began with. */
#ifndef SLUICE_MODEL_ENGINE_H
#define SLUICE_MODEL_ENGINE_H

#include "model/config.h"
#include "model/forward.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "shm/stage.h"

struct engine {
    struct model_files files;
    struct model_config config;
    struct generation_config generation;
    struct model_weights weights;
    struct kv_geometry geometry;
    uint8_t *kv; /* the arena, mapped; lives as long as the process */
    struct forward *forward;
};

/* Files and configuration. Exits through stage_exit() with a reason on failure. */
void engine_open_config(struct engine *e, struct stage *s);

/* Also weights, KV arena and a forward pass of up to rows_max rows a call, which beats the stage's heart. */
void engine_open_forward(struct engine *e, struct stage *s, uint32_t rows_max);

/* The checkpoint's tokenizer, checked against the model's vocabulary; open until the process ends. Exits on failure. */
struct tokenizer *engine_open_tokenizer(const struct engine *e, struct stage *s);

/* Does this token end the output of a request? The one rule, for verify (which ends there) and detokenize
 * (which does not print it). FINISH_NONE, FINISH_EOS or FINISH_STOP_TOKEN. */
struct request_params;
uint32_t engine_finish_by_token(const struct generation_config *g, const struct request_params *p, uint32_t token);

#endif
