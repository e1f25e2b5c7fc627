/* bench/tokenizer_full.h - makes a tokenizer.json of Gemma's full size, for timing and for tests of size.
 *
 * 262,144 entries and about 680,000 merges, written with the line breaks of the published files
 * (about 30 MB). Its words are random: loading costs what the real file costs, encoded text
 * is not the real model's. Used by bench/tokenizer_bench.c and tests/unit/tokenizer_size_test.c. */
#ifndef SLUICE_BENCH_TOKENIZER_FULL_H
#define SLUICE_BENCH_TOKENIZER_FULL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_utf8.h"

#define FULL_VOCAB 262144u
#define FULL_SLOTS (1u << 20)

struct full_vocab {
    uint32_t offset[FULL_VOCAB + 1]; /* into text */
    char text[FULL_VOCAB * 24];
    uint32_t count;
    uint32_t slot[FULL_SLOTS];       /* index + 1 of a string, by hash */
    uint64_t state;
};

static inline uint32_t full_random(struct full_vocab *v, uint32_t below)
{
    v->state = v->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(v->state >> 33) % below;
}

/* The slot of a string: its own if it is there, else the empty one where it would go. */
static inline uint32_t *full_find(struct full_vocab *v, const char *text, size_t bytes)
{
    uint64_t hash = 0xCBF29CE484222325u;

    for (size_t i = 0; i < bytes; i++) hash = (hash ^ (uint8_t)text[i]) * 0x100000001B3u;
    for (uint32_t at = (uint32_t)(hash ^ hash >> 32) % FULL_SLOTS;; at = (at + 1) % FULL_SLOTS) {
        const uint32_t index = v->slot[at] - 1;
        if (v->slot[at] == 0) return &v->slot[at];
        if (v->offset[index + 1] - v->offset[index] == bytes && memcmp(v->text + v->offset[index], text, bytes) == 0) return &v->slot[at];
    }
}

static inline void full_add(struct full_vocab *v, const char *text, size_t bytes)
{
    uint32_t *slot = full_find(v, text, bytes);

    if (*slot != 0 || v->count == FULL_VOCAB || v->offset[v->count] + bytes > sizeof v->text) return;
    memcpy(v->text + v->offset[v->count], text, bytes);
    v->offset[v->count + 1] = v->offset[v->count] + (uint32_t)bytes;
    *slot = ++v->count;
}

/* A random word of up to six characters and every part of it, so that all its merges exist. */
static inline void full_add_word(struct full_vocab *v)
{
    static const char *const alphabet[] = { "etaoinshrdlucmfwypvbgkjqxz", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_" };
    char word[32];
    size_t begin[8], letters = 0, bytes = 0;
    const uint32_t kind = full_random(v, 20), want = 2 + full_random(v, 5);

    if (full_random(v, 2)) {
        begin[letters++] = 0;
        bytes = utf8_encode(0x2581, word);
    }
    while (letters < want) {
        begin[letters++] = bytes;
        if (kind == 0)      bytes += utf8_encode(0x4E00 + full_random(v, 3000), word + bytes);
        else if (kind == 1) bytes += utf8_encode(0x430 + full_random(v, 32), word + bytes);
        else                word[bytes++] = alphabet[kind % 2][full_random(v, kind % 2 ? 63 : 26)];
    }
    begin[letters] = bytes;
    for (size_t length = 2; length <= letters; length++)
        for (size_t at = 0; at + length <= letters; at++) full_add(v, word + begin[at], begin[at + length] - begin[at]);
}

static inline void full_fill(struct full_vocab *v)
{
    static const char *const named[] = { [0] = "<pad>", [1] = "<eos>", [2] = "<bos>", [3] = "<unk>", [4] = "<mask>", [46] = "<|tool>",
        [47] = "<tool|>", [48] = "<|tool_call>", [49] = "<tool_call|>", [50] = "<|tool_response>", [51] = "<tool_response|>", [52] = "<|\"|>",
        [98] = "<|think|>", [100] = "<|channel>", [101] = "<channel|>", [105] = "<|turn>", [106] = "<turn|>" };
    char text[128];

    for (unsigned id = 0; id < 107; id++)
        full_add(v, text, named[id] ? (size_t)sprintf(text, "%s", named[id]) : (size_t)sprintf(text, "<unused%u>", id));
    memset(text, '\n', 31);
    for (unsigned run = 1; run <= 31; run++) full_add(v, text, run);
    for (unsigned run = 0; run < 31; run++) utf8_encode(0x2581, text + 3 * run);
    for (unsigned run = 2; run <= 31; run++) full_add(v, text, 3 * run);
    for (unsigned byte = 0; byte < 256; byte++) full_add(v, text, (size_t)sprintf(text, "<0x%02X>", byte));
    for (uint32_t c = ' ' + 1; c < 0x600; c++)
        if (c < 0x7F || c > 0xA0) full_add(v, text, utf8_encode(c, text));
    full_add(v, text, utf8_encode(0x2581, text));
    for (uint32_t c = 0x3040; c < 0x3100; c++) full_add(v, text, utf8_encode(c, text));
    for (uint32_t c = 0x4E00; c < 0x9FA0; c++) full_add(v, text, utf8_encode(c, text));
    for (uint32_t c = 0x1F300; c < 0x1F650; c++) full_add(v, text, utf8_encode(c, text));
    while (v->count < FULL_VOCAB) full_add_word(v);
}

static inline void full_string(FILE *out, const char *text, size_t bytes)
{
    putc('"', out);
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '"' || text[i] == '\\') putc('\\', out);
        if (text[i] == '\n') fputs("\\n", out);
        else                 putc(text[i], out);
    }
    putc('"', out);
}

/* Every way to make token id of two others. Returns how many have been written so far. */
static inline size_t full_merges(struct full_vocab *v, uint32_t id, FILE *out, size_t written)
{
    const char *text = v->text + v->offset[id];
    const size_t bytes = v->offset[id + 1] - v->offset[id];

    for (size_t cut = 1; cut < bytes; cut++) {
        if (((uint8_t)text[cut] & 0xC0) == 0x80 || *full_find(v, text, cut) == 0 || *full_find(v, text + cut, bytes - cut) == 0) continue;
        fputs(written++ ? ",\n      [\n        " : "\n      [\n        ", out);
        full_string(out, text, cut);
        fputs(",\n        ", out);
        full_string(out, text + cut, bytes - cut);
        fputs("\n      ]", out);
    }
    return written;
}

/* The file's text, to be freed by the caller; NULL without memory. */
static inline char *tokenizer_full_json(size_t *bytes)
{
    struct full_vocab *v = calloc(1, sizeof *v);
    char *json = NULL;
    FILE *out = v ? open_memstream(&json, bytes) : NULL;
    size_t merges = 0;

    if (!out) {
        free(v);
        return NULL;
    }
    full_fill(v);
    fputs("{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [", out);
    for (uint32_t id = 0; id < 168; id++) {
        fprintf(out, "%s\n    {\n      \"id\": %u,\n      \"content\": ", id ? "," : "", id);
        full_string(out, v->text + v->offset[id], v->offset[id + 1] - v->offset[id]);
        fprintf(out, ",\n      \"single_word\": false,\n      \"lstrip\": false,\n      \"rstrip\": false,\n      \"normalized\": false,\n"
                     "      \"special\": %s\n    }", id < 107 ? "true" : "false");
    }
    fputs("\n  ],\n  \"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\xE2\x96\x81\"},\n"
          "  \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \" \"}, \"behavior\": \"MergedWithPrevious\", \"invert\": false},\n"
          "  \"post_processor\": null,\n  \"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": {\"String\": "
          "\"\xE2\x96\x81\"}, \"content\": \" \"}, {\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}]},\n"
          "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": \"<unk>\",\n    \"continuing_subword_prefix\": null,\n"
          "    \"end_of_word_suffix\": null,\n    \"fuse_unk\": true,\n    \"byte_fallback\": true,\n    \"ignore_merges\": false,\n    \"vocab\": {", out);
    for (uint32_t id = 0; id < v->count; id++) {
        fputs(id ? ",\n      " : "\n      ", out);
        full_string(out, v->text + v->offset[id], v->offset[id + 1] - v->offset[id]);
        fprintf(out, ": %u", id);
    }
    fputs("\n    },\n    \"merges\": [", out);
    for (uint32_t id = 107; id < v->count; id++) merges = full_merges(v, id, out, merges);
    fputs("\n    ]\n  }\n}\n", out);
    free(v);
    if (fclose(out) == 0) return json;
    free(json);
    return NULL;
}

#endif
