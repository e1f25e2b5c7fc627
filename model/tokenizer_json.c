/* model/tokenizer_json.c - reads tokenizer.json in one pass.
 *
 * The file is large (30 MB, a million strings) and of a fixed shape, so it is read with
 * yajl callbacks straight into the tables (model/tokenizer_build.c); no tree is built. The
 * three small parts that describe behaviour (normalizer, pre_tokenizer, decoder) are noted
 * by position and parsed as trees at the end. Anything that is not the tokenizer
 * we implement is refused by name: a tokenizer that is nearly right is wrong.
 * Fails    -E_FORMAT, -E_UNSUPPORTED, -E_LIMIT or -E_NOMEM with a sentence in the builder */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_parse.h>

#include "model/tokenizer_internal.h"
#include "shm/error.h"

#define DEPTH_MAX      64u
#define PART_BYTES_MAX 65536u /* of normalizer, pre_tokenizer or decoder */

enum section { S_OTHER, S_ADDED, S_NORMALIZER, S_PRE, S_DECODER, S_MODEL, S_COUNT };
enum model_key { M_OTHER, M_TYPE, M_VOCAB, M_MERGES, M_BYTE_FALLBACK, M_REFUSE_SET, M_REFUSE_TRUE };
enum added_key { A_OTHER, A_ID, A_CONTENT, A_SPECIAL, A_LSTRIP, A_RSTRIP, A_SINGLE_WORD, A_NORMALIZED };

struct part {
    size_t begin, end; /* byte range in the file; end 0: absent or null */
};

struct reader {
    struct tokenizer_builder *b;
    yajl_handle yajl;
    unsigned depth;                             /* open containers */
    enum section section;
    unsigned seen;                              /* bit per section: each may stand once */
    struct part part[S_COUNT];
    enum model_key model_key;
    char model_name[64];                        /* the key, for messages */
    bool has_type, has_vocab, has_merges, byte_fallback;
    char token[TOKENIZER_TOKEN_BYTES_MAX];      /* key in vocab, content of an added token, left of a merge */
    size_t token_bytes;
    bool has_token;
    unsigned merge_parts;                       /* strings of the present [left, right] */
    enum added_key added_key;
    struct tokenizer_added added;
    bool added_has_id;
};

static bool is_text(const unsigned char *text, size_t bytes, const char *name)
{
    return bytes == strlen(name) && memcmp(text, name, bytes) == 0;
}

/* For the callbacks: 0 tells yajl to stop. */
static int refuse(struct reader *r, const char *what)
{
    static const char *const where[S_COUNT] = { "the file", "added_tokens", "normalizer", "pre_tokenizer", "decoder", "model" };

    tokenizer_fail(r->b, -E_FORMAT, "tokenizer.json: unexpected %s in %s%s%s", what, where[r->section],
                   r->section == S_MODEL && r->depth > 1 ? "." : "", r->section == S_MODEL && r->depth > 1 ? r->model_name : "");
    return 0;
}

static int keep_token(struct reader *r, const unsigned char *text, size_t bytes)
{
    char quoted[64];

    if (bytes > sizeof r->token) {
        tokenizer_fail(r->b, -E_LIMIT, "token \"%s\" has %zu bytes, the limit is %zu",
                       tokenizer_quote(quoted, (const char *)text, bytes), bytes, sizeof r->token);
        return 0;
    }
    memcpy(r->token, text, bytes);
    r->token_bytes = bytes;
    r->has_token = true;
    return 1;
}

/* ---- scalars ---- */

static int on_null(void *context)
{
    struct reader *r = context;

    if (r->section == S_MODEL && r->depth == 2 && r->model_key <= M_BYTE_FALLBACK && r->model_key != M_OTHER)
        return refuse(r, "null");
    if (r->section == S_MODEL && r->depth > 2 && (r->model_key == M_VOCAB || r->model_key == M_MERGES)) return refuse(r, "null");
    if (r->section == S_ADDED && r->depth >= 2) return refuse(r, "null");
    return 1; /* a null normalizer, pre_tokenizer or decoder counts as absent */
}

static int on_boolean(void *context, int value)
{
    struct reader *r = context;
    char name[64];

    if (r->section == S_ADDED && r->depth == 3) {
        static const uint8_t flag[] = { [A_SPECIAL] = PATTERN_SPECIAL, [A_LSTRIP] = PATTERN_LSTRIP,
                                        [A_RSTRIP] = PATTERN_RSTRIP, [A_SINGLE_WORD] = PATTERN_SINGLE_WORD,
                                        [A_NORMALIZED] = 0 };
        if (r->added_key == A_ID || r->added_key == A_CONTENT) return refuse(r, "boolean");
        if (r->added_key == A_NORMALIZED) r->added.normalized = value;
        else if (value && r->added_key != A_OTHER) r->added.flags |= flag[r->added_key];
        return 1;
    }
    if (r->section == S_MODEL && r->depth == 2) {
        if (r->model_key == M_BYTE_FALLBACK) r->byte_fallback = value;
        if ((r->model_key == M_REFUSE_TRUE && value) || r->model_key == M_REFUSE_SET) {
            tokenizer_fail(r->b, -E_UNSUPPORTED, "model.%s is set, which is not supported",
                           tokenizer_quote(name, r->model_name, strlen(r->model_name)));
            return 0;
        }
        return r->model_key == M_TYPE || r->model_key == M_VOCAB || r->model_key == M_MERGES ? refuse(r, "boolean") : 1;
    }
    if (r->section == S_MODEL && r->depth > 2 && r->model_key != M_OTHER) return refuse(r, "boolean");
    if (r->depth <= 1 && r->section != S_OTHER) return refuse(r, "boolean");
    return 1;
}

/* A decimal id; false when it is anything else. */
static bool read_id(const char *text, size_t bytes, uint32_t *id)
{
    uint64_t value = 0;

    if (bytes == 0 || bytes > 10) return false;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        value = value * 10 + (uint64_t)(text[i] - '0');
    }
    if (value >= UINT32_MAX) return false;
    *id = (uint32_t)value;
    return true;
}

static int on_number(void *context, const char *text, size_t bytes)
{
    struct reader *r = context;
    uint32_t id;

    if (r->section == S_MODEL && r->model_key == M_VOCAB && r->depth == 3) {
        if (!r->has_token || !read_id(text, bytes, &id)) return refuse(r, "number (an id is a whole number)");
        r->has_token = false;
        return tokenizer_build_token(r->b, r->token, r->token_bytes, id) == 0;
    }
    if (r->section == S_ADDED && r->depth == 3) {
        if (r->added_key == A_OTHER) return 1;
        if (r->added_key != A_ID || !read_id(text, bytes, &r->added.id)) return refuse(r, "number");
        r->added_has_id = true;
        return 1;
    }
    if (r->section == S_MODEL && r->depth == 2 && r->model_key == M_REFUSE_SET) {
        tokenizer_fail(r->b, -E_UNSUPPORTED, "model.%s is set, which is not supported", r->model_name);
        return 0;
    }
    if (r->section == S_MODEL && r->depth >= 2 && r->model_key != M_OTHER) return refuse(r, "number");
    if (r->depth <= 1 && r->section != S_OTHER) return refuse(r, "number");
    return r->section == S_ADDED ? refuse(r, "number") : 1;
}

/* "left right": the older way to write a merge. Exactly one space, as in the reference. */
static int merge_of_one_string(struct reader *r, const char *text, size_t bytes)
{
    const char *space = memchr(text, ' ', bytes);

    if (!space || memchr(space + 1, ' ', (size_t)(text + bytes - space - 1))) return refuse(r, "string (a merge is two tokens)");
    return tokenizer_build_merge(r->b, text, (size_t)(space - text), space + 1, (size_t)(text + bytes - space - 1)) == 0;
}

static int on_model_string(struct reader *r, const unsigned char *text, size_t bytes)
{
    char quoted[64];

    if (r->model_key == M_MERGES && r->depth == 3) return merge_of_one_string(r, (const char *)text, bytes);
    if (r->model_key == M_MERGES && r->depth == 4) {
        if (r->merge_parts++ == 0) return keep_token(r, text, bytes);
        if (r->merge_parts > 2) return refuse(r, "third string of a merge");
        return tokenizer_build_merge(r->b, r->token, r->token_bytes, (const char *)text, bytes) == 0;
    }
    if (r->depth != 2) return r->model_key == M_OTHER ? 1 : refuse(r, "string");
    if (r->model_key == M_TYPE) {
        r->has_type = true;
        if (is_text(text, bytes, "BPE")) return 1;
        tokenizer_fail(r->b, -E_UNSUPPORTED, "tokenizer model \"%s\" is not supported, only BPE",
                       tokenizer_quote(quoted, (const char *)text, bytes));
        return 0;
    }
    if (r->model_key == M_REFUSE_SET && bytes > 0) {
        tokenizer_fail(r->b, -E_UNSUPPORTED, "model.%s is set, which is not supported", r->model_name);
        return 0;
    }
    return r->model_key == M_OTHER || r->model_key == M_REFUSE_SET ? 1 : refuse(r, "string");
}

static int on_string(void *context, const unsigned char *text, size_t bytes)
{
    struct reader *r = context;

    if (r->section == S_MODEL && r->depth >= 2) return on_model_string(r, text, bytes);
    if (r->section == S_ADDED && r->depth == 3) {
        if (r->added_key == A_OTHER) return 1;
        return r->added_key == A_CONTENT ? keep_token(r, text, bytes) : refuse(r, "string");
    }
    if (r->section == S_ADDED || (r->depth <= 1 && r->section != S_OTHER)) return refuse(r, "string");
    return 1;
}

/* ---- keys ---- */

static int on_root_key(struct reader *r, const unsigned char *text, size_t bytes)
{
    static const char *const name[S_COUNT] = { NULL, "added_tokens", "normalizer", "pre_tokenizer", "decoder", "model" };

    r->section = S_OTHER;
    for (unsigned s = 1; s < S_COUNT; s++) {
        if (!is_text(text, bytes, name[s])) continue;
        r->section = s;
        if (r->seen & 1u << s) return refuse(r, "second appearance");
        r->seen |= 1u << s;
    }
    return 1;
}

static int on_model_key(struct reader *r, const unsigned char *text, size_t bytes)
{
    static const struct { const char *name; enum model_key key; } known[] = {
        { "type", M_TYPE }, { "vocab", M_VOCAB }, { "merges", M_MERGES }, { "byte_fallback", M_BYTE_FALLBACK },
        { "dropout", M_REFUSE_SET }, { "continuing_subword_prefix", M_REFUSE_SET },
        { "end_of_word_suffix", M_REFUSE_SET }, { "ignore_merges", M_REFUSE_TRUE },
    };

    tokenizer_quote(r->model_name, (const char *)text, bytes);
    r->model_key = M_OTHER;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (is_text(text, bytes, known[i].name)) r->model_key = known[i].key;
    if (r->model_key == M_VOCAB && r->has_vocab)   return refuse(r, "second vocab");
    if (r->model_key == M_MERGES && r->has_merges) return refuse(r, "second merges");
    if (r->model_key == M_MERGES && !r->has_vocab) {
        tokenizer_fail(r->b, -E_UNSUPPORTED, "model.merges stands before model.vocab; write the vocabulary first");
        return 0;
    }
    return 1;
}

static int on_key(void *context, const unsigned char *text, size_t bytes)
{
    static const struct { const char *name; enum added_key key; } known[] = {
        { "id", A_ID }, { "content", A_CONTENT }, { "special", A_SPECIAL }, { "lstrip", A_LSTRIP }, { "rstrip", A_RSTRIP },
        { "single_word", A_SINGLE_WORD }, { "normalized", A_NORMALIZED },
    };
    struct reader *r = context;

    if (r->depth == 1) return on_root_key(r, text, bytes);
    if (r->section == S_MODEL && r->depth == 2) return on_model_key(r, text, bytes);
    if (r->section == S_MODEL && r->model_key == M_VOCAB) return keep_token(r, text, bytes);
    if (r->section == S_ADDED && r->depth == 3) {
        r->added_key = A_OTHER;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (is_text(text, bytes, known[i].name)) r->added_key = known[i].key;
    }
    return 1;
}

/* ---- containers ---- */

static bool is_part(const struct reader *r)
{
    return r->section == S_NORMALIZER || r->section == S_PRE || r->section == S_DECODER;
}

/* May a container begin here? r->depth is its depth before it opens. */
static bool may_open(const struct reader *r, bool is_map)
{
    if (r->depth == 0) return is_map;
    if (r->section == S_ADDED) return r->depth == 1 ? !is_map : r->depth == 2 ? is_map : r->added_key == A_OTHER && r->depth > 2;
    if (is_part(r)) return is_map || r->depth > 1;
    if (r->section != S_MODEL) return true;
    if (r->depth == 1) return is_map;
    switch (r->model_key) {
    case M_VOCAB:  return r->depth == 2 && is_map;
    case M_MERGES: return !is_map && r->depth <= 3;
    case M_OTHER:  return true;
    default:       return false;
    }
}

static int open_container(struct reader *r, bool is_map)
{
    if (r->depth == DEPTH_MAX) {
        tokenizer_fail(r->b, -E_LIMIT, "tokenizer.json is nested deeper than %u", DEPTH_MAX);
        return 0;
    }
    if (!may_open(r, is_map)) return refuse(r, is_map ? "object" : "array");
    if (r->depth == 1 && is_part(r)) r->part[r->section].begin = yajl_get_bytes_consumed(r->yajl) - 1;
    if (r->section == S_MODEL && r->depth == 2 && r->model_key == M_VOCAB)  r->has_vocab = true;
    if (r->section == S_MODEL && r->depth == 2 && r->model_key == M_MERGES) r->has_merges = true;
    if (r->section == S_MODEL && r->depth == 3 && r->model_key == M_MERGES) r->merge_parts = 0;
    if (r->section == S_ADDED && r->depth == 2) {
        memset(&r->added, 0, sizeof r->added);
        r->added_has_id = r->has_token = false;
    }
    r->depth++;
    return 1;
}

static int close_container(struct reader *r)
{
    r->depth--;
    if (r->depth == 1 && is_part(r)) r->part[r->section].end = yajl_get_bytes_consumed(r->yajl);
    if (r->section == S_MODEL && r->model_key == M_MERGES && r->depth == 3 && r->merge_parts != 2)
        return refuse(r, "merge that is not two strings");
    if (r->section == S_ADDED && r->depth == 2) {
        if (!r->added_has_id || !r->has_token) return refuse(r, "entry without id or content");
        r->has_token = false;
        return tokenizer_build_added(r->b, &r->added, r->token, r->token_bytes) == 0;
    }
    return 1;
}

static int on_start_map(void *context)   { return open_container(context, true); }
static int on_start_array(void *context) { return open_container(context, false); }
static int on_end(void *context)         { return close_container(context); }

/* ---- the parts that describe behaviour ---- */

static bool text_is(const json_t *object, const char *key, const char *value)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text && strcmp(text, value) == 0;
}

static bool is_replace(const json_t *step, const char *pattern, const char *content)
{
    return text_is(step, "type", "Replace") && text_is(json_object_get(step, "pattern"), "String", pattern)
        && text_is(step, "content", content);
}

static bool good_normalizer(const json_t *root)
{
    if (text_is(root, "type", "Sequence")) {
        const json_t *steps = json_object_get(root, "normalizers");
        return json_array_size(steps) == 1 && good_normalizer(json_array_get(steps, 0));
    }
    return is_replace(root, " ", "\xE2\x96\x81");
}

/* A split at ' ' finds none: the normalizer has replaced them all. */
static bool good_pre_tokenizer(const json_t *root)
{
    if (text_is(root, "type", "Sequence")) {
        const json_t *steps = json_object_get(root, "pretokenizers");
        return json_array_size(steps) == 1 && good_pre_tokenizer(json_array_get(steps, 0));
    }
    return text_is(root, "type", "Split") && text_is(json_object_get(root, "pattern"), "String", " ")
        && json_is_false(json_object_get(root, "invert"));
}

static bool good_decoder(const json_t *root)
{
    const json_t *steps = json_object_get(root, "decoders");

    return text_is(root, "type", "Sequence") && json_array_size(steps) == 3
        && is_replace(json_array_get(steps, 0), "\xE2\x96\x81", " ")
        && text_is(json_array_get(steps, 1), "type", "ByteFallback") && text_is(json_array_get(steps, 2), "type", "Fuse");
}

static int check_part(struct reader *r, const char *json, enum section section, const char *name, const char *wanted,
                      bool (*is_good)(const json_t *), bool needed)
{
    const struct part *part = &r->part[section];
    char type[64];
    int rc = 0;

    if (part->end == 0)
        return needed ? tokenizer_fail(r->b, -E_UNSUPPORTED, "tokenizer.json has no %s; needed is %s", name, wanted) : 0;
    if (part->end - part->begin > PART_BYTES_MAX)
        return tokenizer_fail(r->b, -E_LIMIT, "the %s has more than %u bytes", name, PART_BYTES_MAX);
    json_t *root = json_loadb(json + part->begin, part->end - part->begin, JSON_ALLOW_NUL, NULL);
    if (!root) return tokenizer_fail(r->b, -E_FORMAT, "the %s cannot be read", name);
    if (!is_good(root)) {
        const char *found = json_string_value(json_object_get(root, "type"));
        rc = tokenizer_fail(r->b, -E_UNSUPPORTED, "%s \"%s\" as it is set up here is not supported; needed is %s", name,
                            found ? tokenizer_quote(type, found, strlen(found)) : "without type", wanted);
    }
    json_decref(root);
    return rc;
}

static int check_all(struct reader *r, const char *json)
{
    int rc;

    if (!(r->seen & 1u << S_MODEL) || !r->has_type || !r->has_vocab || !r->has_merges)
        return tokenizer_fail(r->b, -E_FORMAT, "tokenizer.json lacks model.type, model.vocab or model.merges");
    if (!r->byte_fallback)
        return tokenizer_fail(r->b, -E_UNSUPPORTED, "a BPE model without byte_fallback is not supported");
    if ((rc = check_part(r, json, S_NORMALIZER, "normalizer", "Replace \" \" by U+2581", good_normalizer, true)) != 0) return rc;
    if ((rc = check_part(r, json, S_PRE, "pre_tokenizer", "none, or Split at \" \"", good_pre_tokenizer, false)) != 0) return rc;
    return check_part(r, json, S_DECODER, "decoder", "Sequence of Replace U+2581 by \" \", ByteFallback, Fuse", good_decoder, true);
}

int tokenizer_json_read(struct tokenizer_builder *b, const char *json, size_t json_bytes)
{
    static const yajl_callbacks callbacks = {
        .yajl_null = on_null, .yajl_boolean = on_boolean, .yajl_number = on_number, .yajl_string = on_string,
        .yajl_start_map = on_start_map, .yajl_map_key = on_key, .yajl_end_map = on_end,
        .yajl_start_array = on_start_array, .yajl_end_array = on_end,
    };
    struct reader *r = calloc(1, sizeof *r);

    if (!r) return tokenizer_fail(b, -E_NOMEM, "no memory to read tokenizer.json");
    r->b = b;
    r->yajl = yajl_alloc(&callbacks, NULL, r);
    if (!r->yajl) {
        free(r);
        return tokenizer_fail(b, -E_NOMEM, "no memory to read tokenizer.json");
    }
    yajl_status status = yajl_parse(r->yajl, (const unsigned char *)json, json_bytes);
    if (status == yajl_status_ok) status = yajl_complete_parse(r->yajl);
    if (status != yajl_status_ok && b->code == 0)
        tokenizer_fail(b, -E_FORMAT, "tokenizer.json is not valid JSON near byte %zu", yajl_get_bytes_consumed(r->yajl));
    if (b->code == 0) check_all(r, json);
    yajl_free(r->yajl);
    free(r);
    return b->code;
}
