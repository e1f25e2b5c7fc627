/* stages/keeper/keeper.h - the keeper's parts: where the model shall run, how large its cache may be, and loading its weights. */
#ifndef SLUICE_KEEPER_KEEPER_H
#define SLUICE_KEEPER_KEEPER_H

#include "model/cuda_library.h"
#include "model/engine.h"
#include "model/kv.h"
#include "model/media.h"
#include "model/weights.h"
#include "shm/stage.h"

struct keeper {
    struct stage stage;
    struct model_files files;         /* of the checkpoint; with random weights: a built-in shape and the demo's tokenizer */
    struct model_config config;
    struct generation_config generation;
    struct model_weights weights;     /* empty with random weights */
    struct model_media media;         /* all zero: text alone */
    bool random;                      /* no checkpoint: the device is filled with random values */
    struct kv_geometry geometry;
    struct wiring out;                /* the message "model" */
    bool cuda;                        /* runs on the GPU; the fields below are only used then */
    struct cuda_library lib;
    struct cuda_device_facts facts;
    struct cuda_model_spec spec;
    uint64_t weights_bytes;           /* of the packed arena */
    uint32_t feature_places, feature_sources, feature_element_bytes; /* model/features.h; 0: no drafter reads outputs of layers */
    uint64_t drafter_bytes;           /* device memory that it will want: weights, keys and values */
};

/* device.c: decides by option `device` whether the GPU is used, opens library and device, and fills spec and weights_bytes (for a cache
 * geometry of any size). Falls back to the CPU with a reason in why[], or exits when the GPU was asked for by name. */
void device_choose(struct keeper *k, char *why, size_t why_bytes);
/* After a restart: what device_choose found then, from the wiring. Exits when it is no longer there. */
void device_reopen(struct keeper *k);

/* memory.c: host memory that stages share, as a sealed descriptor of its own; exits when there is none. */
int keeper_memfd(struct keeper *k, const char *name, const char *what, uint64_t bytes);

/* features.c: device memory for outputs of layers, if the server begins with a drafter that reads them (descriptors draft.*). features_plan: its layout, and all
 * that this drafter may take of the device (0: nothing); features_make: the descriptor, and options features.* for the stages. On the CPU: sparse host memory for any. */
uint64_t features_plan(struct keeper *k);
void features_make(struct keeper *k);

/* leave.c: asked to stop, or the launcher is gone: then what it left in the file system goes, too. Does not return. */
void keeper_leave(struct keeper *k) __attribute__((noreturn));

/* load.c: fills the weight arena (descriptor gpu.weights); beats the heart, counts bytes, exits 111 when the files or the device fail. */
void load_weights(struct keeper *k, int weights_fd);

/* cache.c: page counts of a cache of at most limit_bytes for up to `sequences` sequences of `context` tokens: every sequence at full
 * length if that fits; else sliding pages for as many sequences as half the limit holds, and the rest for the full layers, whose pages go by
 * the real length. 0; -E_LIMIT: not even one whole sequence fits; -E_RANGE: the context cannot be laid out. */
struct cache_wish { enum kv_dtype dtype; uint32_t context, rows_max, sequences; uint64_t limit_bytes; };
int cache_size(struct kv_geometry *geometry, const struct model_config *config, const struct cache_wish *wish);

#endif
