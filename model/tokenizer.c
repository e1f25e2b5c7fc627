/* model/tokenizer.c - opening and closing a tokenizer, and looking things up in it.
 *
 * Owns     struct tokenizer and its tables (model/tokenizer_internal.h)
 * Fails    tokenizer_open with a sentence; the lookups cannot fail */
#include "model/tokenizer_internal.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/detok.h"
#include "model/tokenizer_utf8.h"
#include "shm/error.h"
#include "shm/must.h"

int tokenizer_fail(struct tokenizer_builder *b, int code, const char *format, ...)
{
    va_list list;

    must(code < 0);
    if (b->code != 0) return b->code; /* the first failure explains the later ones */
    b->code = code;
    if (b->err && b->err_bytes > 0) {
        va_start(list, format);
        vsnprintf(b->err, b->err_bytes, format, list);
        va_end(list);
    }
    return code;
}

const char *tokenizer_quote(char out[64], const char *text, size_t bytes)
{
    const size_t shown = bytes < 40 ? bytes : 40;
    size_t at;

    for (at = 0; at < shown; at++) out[at] = text[at] >= 0x20 && text[at] < 0x7F ? text[at] : '?';
    strcpy(out + at, shown < bytes ? "..." : "");
    return out;
}

int tokenizer_open(struct tokenizer **out, const char *json, size_t json_bytes, char *err, size_t err_bytes)
{
    struct tokenizer_builder b = { .err = err, .err_bytes = err_bytes };
    int rc;

    *out = NULL;
    if (err && err_bytes > 0) err[0] = 0;
    if (json_bytes > TOKENIZER_JSON_BYTES_MAX)
        return tokenizer_fail(&b, -E_LIMIT, "tokenizer.json has %zu bytes, the limit is %zu", json_bytes,
                              TOKENIZER_JSON_BYTES_MAX);
    b.t = calloc(1, sizeof *b.t);
    if (!b.t) return tokenizer_fail(&b, -E_NOMEM, "no memory for a tokenizer");

    rc = tokenizer_json_read(&b, json, json_bytes);
    if (rc == 0) rc = tokenizer_build_finish(&b);
    tokenizer_build_release(&b);
    if (rc != 0) {
        tokenizer_close(b.t);
        return rc;
    }
    *out = b.t;
    return 0;
}

int tokenizer_open_file(struct tokenizer **out, const char *path, char *err, size_t err_bytes)
{
    struct tokenizer_builder b = { .err = err, .err_bytes = err_bytes };
    struct stat info;
    void *json;
    int rc;

    *out = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return tokenizer_fail(&b, -E_IO, "cannot open %s: %m", path);
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size <= 0) {
        close(fd);
        return tokenizer_fail(&b, -E_IO, "%s is not a regular file with content", path);
    }
    json = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (json == MAP_FAILED) return tokenizer_fail(&b, -E_IO, "cannot map %s: %m", path);
    rc = tokenizer_open(out, json, (size_t)info.st_size, err, err_bytes);
    munmap(json, (size_t)info.st_size);
    return rc;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    free(t->text);
    free(t->folded);
    free(t->token);
    free(t->index);
    free(t->merge);
    free(t->rank_id);
    free(t->scalar_id);
    free(t->bigram);
    free(t->raw.list);
    free(t->normalized.list);
    free(t);
}

uint32_t tokenizer_vocab_count(const struct tokenizer *t)
{
    return t->vocab_count;
}

size_t tokenizer_memory_bytes(const struct tokenizer *t)
{
    return sizeof *t + t->text_bytes + t->folded_bytes + t->vocab_count * sizeof *t->token
         + ((size_t)t->index_mask + 1) * sizeof *t->index + ((size_t)t->merge_mask + 1) * sizeof *t->merge
         + t->merge_count * sizeof *t->rank_id + TOKENIZER_BMP * sizeof *t->scalar_id + TOKENIZER_BIGRAM_BITS / 8
         + ((size_t)t->raw.count + t->normalized.count) * sizeof *t->raw.list;
}

uint32_t tokenizer_id(const struct tokenizer *t, const char *name)
{
    return tokenizer_id_bytes(t, name, strlen(name));
}

static const struct tokenizer_token *token_at(const struct tokenizer *t, uint32_t id)
{
    return id < t->vocab_count && (t->token[id].flags & TOKEN_USED) ? &t->token[id] : NULL;
}

const char *tokenizer_token_text(const struct tokenizer *t, uint32_t id, size_t *bytes)
{
    const struct tokenizer_token *token = token_at(t, id);

    *bytes = token ? token->bytes : 0;
    return token ? t->text + token->offset : NULL;
}

static bool has_flag(const struct tokenizer *t, uint32_t id, uint8_t flag)
{
    const struct tokenizer_token *token = token_at(t, id);

    return token && (token->flags & flag);
}

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id) { return has_flag(t, id, TOKEN_SPECIAL); }
bool tokenizer_is_added(const struct tokenizer *t, uint32_t id)   { return has_flag(t, id, TOKEN_ADDED); }
bool tokenizer_is_byte(const struct tokenizer *t, uint32_t id)    { return has_flag(t, id, TOKEN_BYTE); }

int tokenizer_byte_value(const struct tokenizer *t, uint32_t id)
{
    return tokenizer_is_byte(t, id) ? t->token[id].byte_value : -E_RANGE;
}

int tokenizer_token_bytes(const struct tokenizer *t, uint32_t id, char *out, size_t out_bytes, unsigned flags)
{
    static const char space[3] = "\xE2\x96\x81"; /* TOKENIZER_SPACE */
    const struct tokenizer_token *token = token_at(t, id);
    size_t at = 0, wrote = 0;

    if (id >= t->vocab_count) return -E_RANGE;
    if (!token || ((flags & DETOK_SKIP_SPECIAL) && (token->flags & TOKEN_SPECIAL))) return 0;
    if (token->flags & TOKEN_BYTE) {
        if (out_bytes < 1) return -E_FULL;
        out[0] = (char)token->byte_value;
        return 1;
    }
    const char *text = t->text + token->offset;
    while (at < token->bytes) {
        const bool is_space = token->bytes - at >= 3 && memcmp(text + at, space, 3) == 0;
        if (wrote == out_bytes) return -E_FULL;
        out[wrote++] = is_space ? ' ' : text[at];
        at += is_space ? 3 : 1;
    }
    return (int)wrote;
}
