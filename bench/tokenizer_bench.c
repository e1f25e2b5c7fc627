/* bench/tokenizer_bench.c - how long a tokenizer takes to load, and how fast it encodes and decodes.
 *
 * Without an argument: a made-up file of Gemma's full size (bench/tokenizer_full.h). With one:
 * that tokenizer.json. Prints one line per figure: the best of a few rounds, the machine's noise
 * is in the others. Exit code 1 when something fails. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/tokenizer_full.h"
#include "model/detok.h"
#include "model/tokenizer.h"

#define ROUNDS     5
#define TEXT_BYTES (4u << 20)

static double now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static char *read_file(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    char *text = NULL;

    if (!f) return NULL;
    if (fseek(f, 0, SEEK_END) == 0 && (*bytes = (size_t)ftell(f)) > 0 && (text = malloc(*bytes)) != NULL) {
        rewind(f);
        if (fread(text, 1, *bytes, f) != *bytes) *bytes = 0;
    }
    fclose(f);
    return text;
}

/* Texts that ask different things of an encoder. */
static size_t fill(char *text, size_t room, const char *kind)
{
    static const char *const prose[] = { "the ", "model ", "reads ", "one ", "token ", "and ", "writes ", "the ", "next, ", "while ", "every ",
        "stage ", "shares ", "memory ", "with ", "its ", "neighbours. ", "Nothing ", "was ", "lost.\n" };
    static const char *const code[] = { "    if (x", " == ", "42) {\n", "        return", " value;\n", "    }\n", "for (int i = 0; ", "i < n; i++)\n",
        "\t", "printf(\"%d\\n\", i);\n", "}\n\n" };
    static const char *const cjk[] = { "今天", "天气", "很好", "。", "我们", "一起", "学习", "编程", ",", "日本語", "の" };
    const char *const *list = strcmp(kind, "code") == 0 ? code : strcmp(kind, "Chinese and Japanese") == 0 ? cjk : prose;
    const uint32_t count = list == code ? 11 : list == cjk ? 11 : 20;
    uint64_t state = 1;
    size_t at = 0;

    if (strcmp(kind, "one letter, no cut") == 0) {
        memset(text, 'e', room);
        return room;
    }
    for (;;) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const char *word = list[(state >> 33) % count];
        if (strlen(word) > room - at) return at;
        memcpy(text + at, word, strlen(word));
        if (strcmp(kind, "prose on one line") == 0 && word[strlen(word) - 1] == '\n') text[at + strlen(word) - 1] = ' ';
        at += strlen(word);
    }
}

static int bench_text(const struct tokenizer *t, const char *kind, size_t room, char *text, uint32_t *ids)
{
    const size_t bytes = fill(text, room, kind);
    double best = 1e9, decode = 1e9;
    int count = 0;
    char out[DETOK_BYTES_MAX];

    for (int round = 0; round < ROUNDS; round++) {
        const double begin = now_s();
        count = tokenizer_encode(t, text, bytes, NULL, TOKENIZER_ALL_TRUSTED, ids, TEXT_BYTES);
        const double encoded = now_s() - begin;
        struct detok d;
        size_t wrote = 0;
        if (count < 0) return count;
        detok_init(&d);
        for (int i = 0; i < count; i++) wrote += (size_t)detok_feed(&d, t, ids[i], out, sizeof out, 0);
        const double decoded = now_s() - begin - encoded;
        if (wrote != bytes) return -1;
        if (encoded < best) best = encoded;
        if (decoded < decode) decode = decoded;
    }
    printf("encode %-22s %7.1f MB/s  %5.2f bytes/token  %6.2f Mtoken/s  decode %6.1f Mtoken/s\n", kind, (double)bytes / best / 1e6,
           (double)bytes / count, count / best / 1e6, count / decode / 1e6);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct { const char *kind; size_t bytes; } texts[] = { { "prose", TEXT_BYTES }, { "prose on one line", 1u << 20 },
        { "code", TEXT_BYTES }, { "Chinese and Japanese", TEXT_BYTES }, { "one letter, no cut", 1u << 20 } };
    size_t json_bytes = 0;
    char *json = argc > 1 ? read_file(argv[1], &json_bytes) : tokenizer_full_json(&json_bytes);
    char *text = malloc(TEXT_BYTES), err[256] = "cannot read the file";
    uint32_t *ids = malloc(TEXT_BYTES * sizeof *ids);
    struct tokenizer *t = NULL;
    double best = 1e9;

    for (int round = 0; json && text && ids && round < ROUNDS; round++) {
        tokenizer_close(t);
        const double begin = now_s();
        if (tokenizer_open(&t, json, json_bytes, err, sizeof err) != 0) break;
        if (now_s() - begin < best) best = now_s() - begin;
    }
    if (!t) {
        fprintf(stderr, "tokenizer_bench: %s\n", err);
        return 1;
    }
    printf("load   %u entries, %.1f MB of JSON: %.0f ms, %.1f MB held\n", tokenizer_vocab_count(t), (double)json_bytes / 1e6, best * 1e3,
           (double)tokenizer_memory_bytes(t) / 1e6);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (bench_text(t, texts[i].kind, texts[i].bytes, text, ids) != 0) {
            fprintf(stderr, "tokenizer_bench: %s: wrong\n", texts[i].kind);
            return 1;
        }
    tokenizer_close(t);
    free(json);
    free(text);
    free(ids);
    return 0;
}
