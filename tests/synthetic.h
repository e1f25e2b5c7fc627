/* tests/synthetic.h - random checkpoints that are computed, not stored: for tests and benches.
 *
 * Every weight is a hash of its tensor's name and index, by the rules of tests/oracle/make_forward_golden.py, so that the reference
 * sees the same checkpoint. The result is a real safetensors file (or several) in memory, opened through
 * model_files_add like any other. Fails by exit: this is test code. */
#ifndef SLUICE_TESTS_SYNTHETIC_H
#define SLUICE_TESTS_SYNTHETIC_H

#include "kernels/bf16.h"
#include "model/weights.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct synthetic_options {
    bool f32;                         /* else bf16 */
    const char *prefix;               /* before every name */
    uint32_t shards;                  /* files; 0 is 1 */
    const char *omit;                 /* a name (without prefix) to leave out */
    const char *extra;                /* a full name to add, empty */
    const char *misshape;             /* a name whose first dimension is stored one too small */
    const char *retype;               /* a name stored as F16 (same bytes as bf16) */
    uint32_t cut_bytes;               /* bytes missing at the end of the last file */
};

struct synthetic_tensor { char name[96]; uint64_t rows, columns; };   /* columns 0: a vector */

#define SYNTHETIC_TENSORS_MAX 2048

static inline uint64_t synthetic_fnv1a(const char *text)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *text; text++) h = (h ^ (uint8_t)*text) * 0x100000001b3u;
    return h;
}

/* uniform in [-1, 1), 24 bits */
static inline float synthetic_hash(uint64_t seed, uint64_t index)
{
    uint64_t z = index * 0x9e3779b97f4a7c15u + seed;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (float)((int64_t)(z >> 40) - (1 << 23)) * 0x1p-23f;
}

static inline bool synthetic_ends(const char *name, const char *end)
{
    return strlen(name) >= strlen(end) && strcmp(name + strlen(name) - strlen(end), end) == 0;
}

/* amplitude and middle of a tensor's values */
static inline void synthetic_rule(const struct synthetic_tensor *t, bool plus_one, float *amplitude, float *middle)
{
    const char *name = t->name;

    *middle = 0;
    if (synthetic_ends(name, "layer_scalar")) *amplitude = 0.125f, *middle = 0.875f;
    else if (synthetic_ends(name, "q_norm.weight") || synthetic_ends(name, "k_norm.weight")) {
        *amplitude = plus_one ? 0.5f : 0.125f;
        *middle = plus_one ? 0.0f : 0.25f;
    } else if (strcmp(name, "norm.weight") == 0) *amplitude = 3.0f, *middle = 5.0f;
    else if (strstr(name, "post_")) *amplitude = 0.25f, *middle = plus_one ? -0.5f : 0.5f;
    else if (strstr(name, "norm")) *amplitude = 0.5f, *middle = plus_one ? 0.0f : 1.0f;
    else if (strcmp(name, "embed_tokens.weight") == 0) *amplitude = 0.5f;
    else *amplitude = (float)(2.0 / sqrt((double)t->columns));
}

static inline uint64_t synthetic_elements(const struct synthetic_tensor *t) { return t->rows * (t->columns ? t->columns : 1); }

static inline void synthetic_add(struct synthetic_tensor *list, uint32_t *count, uint64_t rows, uint64_t columns, const char *format, uint32_t layer)
{
    struct synthetic_tensor *t = &list[(*count)++];

    if (*count > SYNTHETIC_TENSORS_MAX) abort();
    snprintf(t->name, sizeof(t->name), format, layer);
    t->rows = rows;
    t->columns = columns;
}

/* All tensors of a text model. */
static inline uint32_t synthetic_list(struct synthetic_tensor *list, const struct model_config *c)
{
    uint32_t count = 0;

    synthetic_add(list, &count, c->vocab, c->hidden, "embed_tokens.weight", 0);
    synthetic_add(list, &count, c->hidden, 0, "norm.weight", 0);
    for (uint32_t i = 0; i < c->layer_count; i++) {
        const uint32_t q = model_q_dim(c, i), kv = model_kv_dim(c, i), head = c->layer[i].head_dim;

        synthetic_add(list, &count, c->hidden, 0, "layers.%u.input_layernorm.weight", i);
        synthetic_add(list, &count, c->hidden, 0, "layers.%u.post_attention_layernorm.weight", i);
        synthetic_add(list, &count, c->hidden, 0, "layers.%u.pre_feedforward_layernorm.weight", i);
        synthetic_add(list, &count, c->hidden, 0, "layers.%u.post_feedforward_layernorm.weight", i);
        synthetic_add(list, &count, q, c->hidden, "layers.%u.self_attn.q_proj.weight", i);
        synthetic_add(list, &count, kv, c->hidden, "layers.%u.self_attn.k_proj.weight", i);
        if (c->layer[i].has_v) synthetic_add(list, &count, kv, c->hidden, "layers.%u.self_attn.v_proj.weight", i);
        synthetic_add(list, &count, c->hidden, q, "layers.%u.self_attn.o_proj.weight", i);
        synthetic_add(list, &count, head, 0, "layers.%u.self_attn.q_norm.weight", i);
        synthetic_add(list, &count, head, 0, "layers.%u.self_attn.k_norm.weight", i);
        synthetic_add(list, &count, c->intermediate, c->hidden, "layers.%u.mlp.gate_proj.weight", i);
        synthetic_add(list, &count, c->intermediate, c->hidden, "layers.%u.mlp.up_proj.weight", i);
        synthetic_add(list, &count, c->hidden, c->intermediate, "layers.%u.mlp.down_proj.weight", i);
        if (c->has_layer_scalar) synthetic_add(list, &count, 1, 0, "layers.%u.layer_scalar", i);
    }
    return count;
}

static inline void synthetic_fill(uint8_t *data, const struct synthetic_tensor *t, bool f32, bool plus_one)
{
    const uint64_t count = synthetic_elements(t), seed = synthetic_fnv1a(t->name);
    float amplitude, middle;

    synthetic_rule(t, plus_one, &amplitude, &middle);
    for (uint64_t i = 0; i < count; i++) {
        const float value = synthetic_hash(seed, i) * amplitude + middle;

        if (f32) memcpy(data + 4 * i, &value, 4);
        else ((uint16_t *)data)[i] = bf16_of(value);
    }
}

/* Is this tensor to be stored in file `shard` of `shards`? */
static inline bool synthetic_in_shard(uint32_t index, uint32_t shard, uint32_t shards) { return index % shards == shard; }

/* The JSON header of one file; returns its bytes, padded to 8. */
static inline uint64_t synthetic_header(char *text, uint64_t room, const struct synthetic_tensor *list, uint32_t count, uint32_t shard,
                                        const struct synthetic_options *o, uint64_t *data_bytes)
{
    const uint32_t shards = o->shards ? o->shards : 1, element = o->f32 ? 4 : 2;
    uint64_t used = (uint64_t)snprintf(text, room, "{\"__metadata__\":{\"format\":\"pt\"}"), at = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct synthetic_tensor *t = &list[i];
        const bool odd = o->misshape && strcmp(o->misshape, t->name) == 0, other = o->retype && strcmp(o->retype, t->name) == 0;
        const uint64_t rows = t->rows - odd, bytes = rows * (t->columns ? t->columns : 1) * element;
        char shape[64];

        if (!synthetic_in_shard(i, shard, shards) || (o->omit && strcmp(o->omit, t->name) == 0)) continue;
        if (t->columns) snprintf(shape, sizeof(shape), "%llu,%llu", (unsigned long long)rows, (unsigned long long)t->columns);
        else snprintf(shape, sizeof(shape), "%llu", (unsigned long long)rows);
        used += (uint64_t)snprintf(text + used, room - used, ",\"%s%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
                                   o->prefix ? o->prefix : "", t->name, other ? "F16" : o->f32 ? "F32" : "BF16", shape,
                                   (unsigned long long)at, (unsigned long long)(at + bytes));
        at += bytes;
    }
    if (o->extra && shard == 0)
        used += (uint64_t)snprintf(text + used, room - used, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[%llu,%llu]}",
                                   o->extra, (unsigned long long)at, (unsigned long long)at);
    used += (uint64_t)snprintf(text + used, room - used, "}");
    while (used % 8 != 0) text[used++] = ' ';
    *data_bytes = at;
    return used;
}

/* One safetensors file in memory, added to `files`. */
static inline void synthetic_file(struct model_files *files, const struct model_config *c, const struct synthetic_tensor *list, uint32_t count,
                                  uint32_t shard, const struct synthetic_options *o)
{
    const uint32_t shards = o->shards ? o->shards : 1, element = o->f32 ? 4 : 2;
    const int fd = memfd_create("synthetic", MFD_CLOEXEC);
    char *header = malloc(1 << 20), name[64];
    uint64_t data_bytes, header_bytes = synthetic_header(header, 1 << 20, list, count, shard, o, &data_bytes), at = 8 + header_bytes;
    const uint64_t total = at + data_bytes;
    struct model_error err;
    uint8_t *map;

    if (fd < 0 || ftruncate(fd, (off_t)total) != 0) abort();
    if ((map = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) abort();
    memcpy(map, &header_bytes, 8);
    memcpy(map + 8, header, header_bytes);
    for (uint32_t i = 0; i < count; i++) {
        if (!synthetic_in_shard(i, shard, shards) || (o->omit && strcmp(o->omit, list[i].name) == 0)) continue;
        struct synthetic_tensor stored = list[i];

        stored.rows -= o->misshape && strcmp(o->misshape, stored.name) == 0;
        synthetic_fill(map + at, &stored, o->f32, c->norm_plus_one);
        at += synthetic_elements(&stored) * element;
    }
    munmap(map, total);
    free(header);
    if (o->cut_bytes && shard == shards - 1 && ftruncate(fd, (off_t)(total - o->cut_bytes)) != 0) abort();
    if (shards == 1) snprintf(name, sizeof(name), "model.safetensors");
    else snprintf(name, sizeof(name), "model-%05u-of-%05u.safetensors", shard + 1, shards);
    if (model_files_add(files, name, fd, &err) != 0) {
        fprintf(stderr, "synthetic: %s\n", err.text);
        abort();
    }
    close(fd);
}

/* Adds text as a file. */
static inline void synthetic_text(struct model_files *files, const char *name, const char *text)
{
    const int fd = memfd_create("synthetic", MFD_CLOEXEC);
    struct model_error err;

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || model_files_add(files, name, fd, &err) != 0) abort();
    close(fd);
}

/* config.json and the weights for it, as a set of files. */
static inline void synthetic_checkpoint(struct model_files *files, const char *config_json, const struct synthetic_options *o)
{
    struct synthetic_tensor *list = malloc(SYNTHETIC_TENSORS_MAX * sizeof(*list));
    struct model_config config;
    struct model_error err;
    uint32_t count;

    model_files_init(files);
    synthetic_text(files, "config.json", config_json);
    if (!list || model_config_parse(&config, (const uint8_t *)config_json, strlen(config_json), &err) != 0) {
        fprintf(stderr, "synthetic: %s\n", err.text);
        abort();
    }
    count = synthetic_list(list, &config);
    for (uint32_t i = 0; i < (o->shards ? o->shards : 1); i++) synthetic_file(files, &config, list, count, i, o);
    free(list);
}

#endif
