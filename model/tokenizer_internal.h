/* model/tokenizer_internal.h - the tables of an opened tokenizer, shared by model/tokenizer*.c.
 *
 * All tables are written once, by tokenizer_open, and constant afterwards. Every pointer
 * is owned by struct tokenizer and freed by tokenizer_close. */
#ifndef SLUICE_MODEL_TOKENIZER_INTERNAL_H
#define SLUICE_MODEL_TOKENIZER_INTERNAL_H

#include "model/tokenizer.h"

#define TOKENIZER_SPACE       0x2581u        /* what the normalizer puts in place of ' ' */
#define TOKENIZER_BIGRAM_BITS (1u << 23)     /* 1 MiB; about 4 % false hits for 300,000 bigrams */
#define TOKENIZER_BMP         0x10000u

enum tokenizer_token_flags {
    TOKEN_USED = 1,     /* the id exists */
    TOKEN_ADDED = 2,
    TOKEN_SPECIAL = 4,
    TOKEN_BYTE = 8,     /* "<0xHH>": value in byte_value */
    TOKEN_MERGED = 16,  /* some merge makes it */
    TOKEN_OUTSIDE = 32, /* an added token the model's own vocabulary does not have: BPE cannot make it */
};

struct tokenizer_token {
    uint32_t offset;     /* into text */
    uint16_t bytes;      /* <= TOKENIZER_TOKEN_BYTES_MAX */
    uint8_t flags;
    uint8_t byte_value;
};

struct tokenizer_merge {
    uint32_t left, right; /* left TOKENIZER_NO_ID: empty slot */
    uint32_t rank;        /* lower is merged first */
    uint32_t id;          /* what it becomes; TOKENIZER_NO_ID: never merged (would make a special token) */
};

enum tokenizer_pattern_flags {
    PATTERN_SPECIAL = 1,
    PATTERN_LSTRIP = 2,
    PATTERN_RSTRIP = 4,
    PATTERN_SINGLE_WORD = 8,
};

/* An added token as something to look for. */
struct tokenizer_pattern {
    const char *text;     /* into struct tokenizer's text or folded */
    uint32_t id;
    uint16_t bytes;
    uint8_t flags;
};

/* Patterns sorted by their bytes, a prefix before what it begins. */
struct tokenizer_pattern_set {
    struct tokenizer_pattern *list;
    uint32_t count;
    uint32_t first[257]; /* patterns that begin with byte b: first[b] .. first[b + 1] */
    bool folded;         /* text is compared with U+2581 read as ' ' (the "normalized" ones) */
};

struct tokenizer {
    char *text;                    /* all vocabulary strings, end to end */
    char *folded;                  /* the normalized patterns with U+2581 as ' ' */
    size_t text_bytes, folded_bytes;
    struct tokenizer_token *token; /* [vocab_count] */
    uint32_t vocab_count;
    uint32_t longest_bytes;        /* of all tokens */
    uint64_t *index;               /* open addressing: hash << 32 | id + 1; 0: empty */
    uint32_t index_mask, index_count;
    struct tokenizer_merge *merge; /* open addressing */
    uint32_t merge_mask, merge_count;
    uint32_t *rank_id;             /* [merge_count] what the merge of that rank becomes */
    uint32_t *scalar_id;           /* [TOKENIZER_BMP] id of a one-character token, or TOKENIZER_NO_ID */
    uint64_t *bigram;              /* bit set: this pair of characters may stand inside a token */
    uint32_t byte_id[256];
    bool bytes_merge;              /* some merge takes a byte token */
    bool strips;                   /* some added token swallows neighbouring white space */
    struct tokenizer_pattern_set raw, normalized;
};

/* The tables while they are filled; tokenizer_build.c. */
struct tokenizer_added {
    uint32_t offset, id; /* offset into text */
    uint16_t bytes;
    uint8_t flags;       /* enum tokenizer_pattern_flags */
    bool normalized;
};

struct tokenizer_builder {
    struct tokenizer *t;
    size_t text_room;
    uint32_t token_room;
    struct tokenizer_added *added;
    uint32_t added_count, added_room;
    struct tokenizer_merge *merges; /* in order of rank */
    uint32_t merges_count, merges_room;
    char *err;                      /* borrowed from the caller */
    size_t err_bytes;
    int code;                       /* the first failure, 0 so far */
};

/* Notes the first failure and its sentence; returns the code. */
__attribute__((format(printf, 3, 4)))
int tokenizer_fail(struct tokenizer_builder *b, int code, const char *format, ...);

/* A readable piece of a name for error messages: printable ASCII, at most 40 bytes. */
const char *tokenizer_quote(char out[64], const char *text, size_t bytes);

int tokenizer_build_token(struct tokenizer_builder *b, const char *text, size_t bytes, uint32_t id);
int tokenizer_build_added(struct tokenizer_builder *b, const struct tokenizer_added *added,
                          const char *text, size_t bytes);
int tokenizer_build_merge(struct tokenizer_builder *b, const char *left, size_t left_bytes,
                          const char *right, size_t right_bytes);
int tokenizer_build_finish(struct tokenizer_builder *b);
void tokenizer_build_release(struct tokenizer_builder *b);

/* Fills the builder from the JSON text; tokenizer_json.c. */
int tokenizer_json_read(struct tokenizer_builder *b, const char *json, size_t json_bytes);

/* True where a token may cross from character a to character b: false means a safe cut. */
static inline uint32_t tokenizer_bigram_bit(uint32_t a, uint32_t b)
{
    const uint64_t mixed = ((uint64_t)a << 21 | b) * 0x9E3779B97F4A7C15u;

    return (uint32_t)(mixed >> 41) & (TOKENIZER_BIGRAM_BITS - 1);
}

static inline uint32_t tokenizer_pair_hash(uint32_t left, uint32_t right)
{
    uint64_t mixed = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;

    mixed ^= mixed >> 32;
    return (uint32_t)(mixed * 0xD6E8FEB86659FD93u >> 32);
}

/* The merge of two neighbours, or NULL. */
static inline const struct tokenizer_merge *tokenizer_find_merge(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    uint32_t at = tokenizer_pair_hash(left, right) & t->merge_mask;

    for (; t->merge[at].left != TOKENIZER_NO_ID; at = (at + 1) & t->merge_mask) {
        const struct tokenizer_merge *m = &t->merge[at];
        if (m->left == left && m->right == right) return m->id == TOKENIZER_NO_ID ? NULL : m;
    }
    return NULL;
}

/* One character of plain text -> the id of its token, or TOKENIZER_NO_ID (then: its bytes). */
uint32_t tokenizer_scalar_id(const struct tokenizer *t, uint32_t scalar);

/* Merges ids[0..count) in place, lowest rank first, leftmost on ties; tokenizer_bpe.c. */
struct tokenizer_scratch {
    uint32_t *ids;     /* [room] the symbols of one stretch */
    size_t room;
    void *work;        /* links and heap of tokenizer_bpe_merge */
    size_t work_bytes;
};

/* Returns how many ids are left, or -E_NOMEM. */
int64_t tokenizer_bpe_merge(const struct tokenizer *t, struct tokenizer_scratch *s, size_t count);

/* The matching added token at text[at], the longest that is allowed there; NULL: none.
 * A special one must end at or before trusted_end. *match_bytes: its bytes in the text. */
const struct tokenizer_pattern *tokenizer_match(const struct tokenizer_pattern_set *set, const char *text,
                                                size_t at, size_t end, size_t trusted_end, size_t *match_bytes);

/* Does a character belong to a word (regular expression \w), is it white space (\s). */
bool tokenizer_is_word(uint32_t scalar);
bool tokenizer_is_space(uint32_t scalar);

#endif
