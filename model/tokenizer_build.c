/* model/tokenizer_build.c - fills the tables of a tokenizer from what its file says.
 *
 * Called by model/tokenizer_json.c while it reads (token, added, merge), then once by
 * tokenizer_open (finish). Every check of the file's content is here: a failure leaves a
 * sentence in the builder, the tables are then thrown away. Memory is bounded by the
 * file's size and the limits in model/tokenizer.h: ids are checked before anything grows. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/tokenizer_utf8.h"
#include "shm/error.h"

/* Makes room for one more element; false: no memory. Doubling keeps the copies linear. */
static bool grow(void **list, uint32_t *room, uint32_t count, size_t element_bytes)
{
    if (count < *room) return true;
    const uint32_t more = *room ? *room * 2 : 1024;
    void *bigger = realloc(*list, more * element_bytes);
    if (!bigger) return false;
    *list = bigger;
    *room = more;
    return true;
}

static int no_memory(struct tokenizer_builder *b)
{
    return tokenizer_fail(b, -E_NOMEM, "no memory for the tokenizer's tables");
}

static uint32_t hash_bytes(const char *text, size_t bytes)
{
    uint64_t hash = bytes * 0x9E3779B97F4A7C15u, word;

    for (; bytes >= 8; text += 8, bytes -= 8) {
        memcpy(&word, text, 8);
        hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    word = 0;
    memcpy(&word, text, bytes);
    hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
    hash ^= hash >> 32;
    return (uint32_t)(hash * 0x9E3779B97F4A7C15u >> 32);
}

/* ---- strings and ids ---- */

uint32_t tokenizer_id_bytes(const struct tokenizer *t, const char *name, size_t bytes)
{
    if (!t->index || bytes > TOKENIZER_TOKEN_BYTES_MAX) return TOKENIZER_NO_ID;
    const uint32_t hash = hash_bytes(name, bytes);
    for (uint32_t at = hash & t->index_mask; t->index[at] != 0; at = (at + 1) & t->index_mask) {
        if ((uint32_t)(t->index[at] >> 32) != hash) continue;
        const uint32_t id = (uint32_t)t->index[at] - 1;
        const struct tokenizer_token *token = &t->token[id];
        if (token->bytes == bytes && memcmp(t->text + token->offset, name, bytes) == 0) return id;
    }
    return TOKENIZER_NO_ID;
}

static void index_put(uint64_t *index, uint32_t mask, uint64_t entry)
{
    uint32_t at = (uint32_t)(entry >> 32) & mask;

    while (index[at] != 0) at = (at + 1) & mask;
    index[at] = entry;
}

static int index_add(struct tokenizer_builder *b, uint32_t id, const char *text, size_t bytes)
{
    struct tokenizer *t = b->t;

    if (!t->index || t->index_count >= t->index_mask / 2) {
        const uint32_t mask = t->index ? t->index_mask * 2 + 1 : (1u << 12) - 1;
        uint64_t *index = calloc((size_t)mask + 1, sizeof *index);
        if (!index) return no_memory(b);
        for (uint32_t at = 0; t->index && at <= t->index_mask; at++)
            if (t->index[at] != 0) index_put(index, mask, t->index[at]);
        free(t->index);
        t->index = index;
        t->index_mask = mask;
    }
    index_put(t->index, t->index_mask, (uint64_t)hash_bytes(text, bytes) << 32 | (id + 1));
    t->index_count++;
    return 0;
}

/* Appends a string to the text arena; *offset is where it begins. */
static int text_add(struct tokenizer_builder *b, const char *text, size_t bytes, uint32_t *offset)
{
    struct tokenizer *t = b->t;

    if (bytes > b->text_room - t->text_bytes) {
        const size_t room = (b->text_room + bytes) * 2 + 4096;
        char *bigger = realloc(t->text, room);
        if (!bigger) return no_memory(b);
        t->text = bigger;
        b->text_room = room;
    }
    memcpy(t->text + t->text_bytes, text, bytes);
    *offset = (uint32_t)t->text_bytes; /* fits: a file is at most 256 MiB */
    t->text_bytes += bytes;
    return 0;
}

static int token_room(struct tokenizer_builder *b, uint32_t id)
{
    struct tokenizer *t = b->t;

    if (id >= b->token_room) {
        uint32_t room = b->token_room ? b->token_room : 4096;
        while (room <= id) room *= 2;
        struct tokenizer_token *bigger = realloc(t->token, room * sizeof *bigger);
        if (!bigger) return no_memory(b);
        memset(bigger + b->token_room, 0, (room - b->token_room) * sizeof *bigger);
        t->token = bigger;
        b->token_room = room;
    }
    if (id >= t->vocab_count) t->vocab_count = id + 1;
    return 0;
}

static int check_token(struct tokenizer_builder *b, const char *text, size_t bytes, uint32_t id)
{
    char quoted[64];

    tokenizer_quote(quoted, text, bytes);
    if (id >= TOKENIZER_VOCAB_MAX)
        return tokenizer_fail(b, -E_LIMIT, "token \"%s\" has id %u, the limit is %u", quoted, id, TOKENIZER_VOCAB_MAX - 1);
    if (bytes > TOKENIZER_TOKEN_BYTES_MAX)
        return tokenizer_fail(b, -E_LIMIT, "token \"%s\" has %zu bytes, the limit is %u", quoted, bytes,
                              TOKENIZER_TOKEN_BYTES_MAX);
    if (id < b->t->vocab_count && (b->t->token[id].flags & TOKEN_USED))
        return tokenizer_fail(b, -E_FORMAT, "id %u is given to two tokens, the second is \"%s\"", id, quoted);
    return 0;
}

int tokenizer_build_token(struct tokenizer_builder *b, const char *text, size_t bytes, uint32_t id)
{
    struct tokenizer *t = b->t;
    char quoted[64];
    uint32_t offset;
    int rc;

    if ((rc = check_token(b, text, bytes, id)) != 0) return rc;
    if (tokenizer_id_bytes(t, text, bytes) != TOKENIZER_NO_ID)
        return tokenizer_fail(b, -E_FORMAT, "token \"%s\" stands twice in the vocabulary", tokenizer_quote(quoted, text, bytes));
    if ((rc = token_room(b, id)) != 0)                   return rc;
    if ((rc = text_add(b, text, bytes, &offset)) != 0)   return rc;
    if ((rc = index_add(b, id, text, bytes)) != 0)       return rc;
    t->token[id] = (struct tokenizer_token){ .offset = offset, .bytes = (uint16_t)bytes, .flags = TOKEN_USED };
    if (bytes > t->longest_bytes) t->longest_bytes = (uint32_t)bytes;
    return 0;
}

int tokenizer_build_added(struct tokenizer_builder *b, const struct tokenizer_added *added,
                          const char *text, size_t bytes)
{
    struct tokenizer_added copy = *added;
    int rc;

    if (bytes == 0) return 0; /* the reference ignores them too */
    if (b->added_count == TOKENIZER_ADDED_MAX)
        return tokenizer_fail(b, -E_LIMIT, "more than %u added tokens", TOKENIZER_ADDED_MAX);
    if (bytes > TOKENIZER_TOKEN_BYTES_MAX)
        return tokenizer_fail(b, -E_LIMIT, "an added token has %zu bytes, the limit is %u", bytes, TOKENIZER_TOKEN_BYTES_MAX);
    if (!grow((void **)&b->added, &b->added_room, b->added_count, sizeof copy)) return no_memory(b);
    if ((rc = text_add(b, text, bytes, &copy.offset)) != 0) return rc;
    copy.bytes = (uint16_t)bytes;
    b->added[b->added_count++] = copy;
    return 0;
}

/* ---- merges ---- */

int tokenizer_build_merge(struct tokenizer_builder *b, const char *left, size_t left_bytes,
                          const char *right, size_t right_bytes)
{
    const struct tokenizer *t = b->t;
    char joined[TOKENIZER_TOKEN_BYTES_MAX], quoted[2][64];
    struct tokenizer_merge m = { .rank = b->merges_count, .id = TOKENIZER_NO_ID };

    if (b->merges_count == TOKENIZER_MERGES_MAX)
        return tokenizer_fail(b, -E_LIMIT, "more than %u merges", TOKENIZER_MERGES_MAX);
    m.left = tokenizer_id_bytes(t, left, left_bytes);
    m.right = tokenizer_id_bytes(t, right, right_bytes);
    if (left_bytes <= sizeof joined && right_bytes <= sizeof joined - left_bytes) {
        memcpy(joined, left, left_bytes);
        memcpy(joined + left_bytes, right, right_bytes);
        m.id = tokenizer_id_bytes(t, joined, left_bytes + right_bytes);
    }
    if (m.left == TOKENIZER_NO_ID || m.right == TOKENIZER_NO_ID || m.id == TOKENIZER_NO_ID)
        return tokenizer_fail(b, -E_FORMAT, "merge %u (\"%s\" + \"%s\") uses a token that is not in the vocabulary",
                              m.rank, tokenizer_quote(quoted[0], left, left_bytes),
                              tokenizer_quote(quoted[1], right, right_bytes));
    if (!grow((void **)&b->merges, &b->merges_room, b->merges_count, sizeof m)) return no_memory(b);
    b->merges[b->merges_count++] = m;
    return 0;
}

/* Notes which characters stand side by side inside a token that merging can make. */
static void note_bigrams(struct tokenizer *t, const struct tokenizer_token *token)
{
    uint32_t before = 0, scalar;
    size_t used;

    for (size_t at = 0; at < token->bytes; at += used) {
        utf8_decode(t->text + token->offset + at, token->bytes - at, &scalar, &used);
        if (at > 0) {
            const uint32_t bit = tokenizer_bigram_bit(before, scalar);
            t->bigram[bit / 64] |= 1ull << bit % 64;
        }
        before = scalar;
    }
}

static int finish_merges(struct tokenizer_builder *b)
{
    struct tokenizer *t = b->t;
    uint32_t slots = 4;

    while (slots / 4 * 3 <= b->merges_count) slots *= 2; /* at most three quarters full */
    t->merge_mask = slots - 1;
    t->merge_count = b->merges_count;
    t->merge = malloc(slots * sizeof *t->merge);
    t->rank_id = malloc((b->merges_count + 1) * sizeof *t->rank_id);
    t->bigram = calloc(TOKENIZER_BIGRAM_BITS / 64, sizeof *t->bigram);
    if (!t->merge || !t->rank_id || !t->bigram) return no_memory(b);
    for (uint32_t at = 0; at < slots; at++) t->merge[at].left = TOKENIZER_NO_ID;

    for (uint32_t rank = 0; rank < b->merges_count; rank++) {
        struct tokenizer_merge m = b->merges[rank];
        struct tokenizer_token *made = &t->token[m.id];
        uint32_t at = tokenizer_pair_hash(m.left, m.right) & t->merge_mask;

        if ((t->token[m.left].flags | t->token[m.right].flags) & TOKEN_BYTE) t->bytes_merge = true;
        if (made->flags & TOKEN_SPECIAL) {
            m.id = TOKENIZER_NO_ID; /* plain text must never turn into a control token */
        } else if (!(made->flags & TOKEN_MERGED)) {
            made->flags |= TOKEN_MERGED;
            note_bigrams(t, made);
        }
        t->rank_id[rank] = m.id;
        while (t->merge[at].left != TOKENIZER_NO_ID && (t->merge[at].left != m.left || t->merge[at].right != m.right))
            at = (at + 1) & t->merge_mask;
        t->merge[at] = m; /* a pair listed twice keeps the later rank, as in the reference */
    }
    return 0;
}

/* ---- added tokens, bytes, characters ---- */

static int finish_added(struct tokenizer_builder *b)
{
    struct tokenizer *t = b->t;
    char quoted[64];
    int rc;

    for (uint32_t i = 0; i < b->added_count; i++) {
        const struct tokenizer_added *a = &b->added[i];
        const uint32_t id = tokenizer_id_bytes(t, t->text + a->offset, a->bytes);

        tokenizer_quote(quoted, t->text + a->offset, a->bytes);
        if (id == TOKENIZER_NO_ID) {
            if ((rc = check_token(b, t->text + a->offset, a->bytes, a->id)) != 0)      return rc;
            if ((rc = token_room(b, a->id)) != 0)                                      return rc;
            if ((rc = index_add(b, a->id, t->text + a->offset, a->bytes)) != 0)        return rc;
            t->token[a->id] = (struct tokenizer_token){ .offset = a->offset, .bytes = a->bytes,
                                                          .flags = TOKEN_USED | TOKEN_OUTSIDE };
            if (a->bytes > t->longest_bytes) t->longest_bytes = a->bytes;
        } else if (id != a->id) {
            return tokenizer_fail(b, -E_FORMAT, "added token \"%s\" has id %u, the vocabulary gives it %u", quoted, a->id, id);
        } else if (t->token[id].flags & TOKEN_ADDED) {
            return tokenizer_fail(b, -E_FORMAT, "added token \"%s\" stands twice in the list", quoted);
        }
        t->token[a->id].flags |= TOKEN_ADDED | (a->flags & PATTERN_SPECIAL ? TOKEN_SPECIAL : 0);
        if (a->flags & (PATTERN_LSTRIP | PATTERN_RSTRIP)) t->strips = true;
    }
    return 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* Decoding takes either case of the digits for a byte, encoding only the upper, as the reference does. */
static int finish_bytes(struct tokenizer_builder *b)
{
    struct tokenizer *t = b->t;
    char name[8];

    for (uint32_t id = 0; id < t->vocab_count; id++) {
        struct tokenizer_token *token = &t->token[id];
        const char *text = t->text + token->offset;
        if (token->bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') continue;
        const int high = hex_digit(text[3]), low = hex_digit(text[4]);
        if (high < 0 || low < 0) continue;
        token->flags |= TOKEN_BYTE;
        token->byte_value = (uint8_t)(high * 16 + low);
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        memcpy(name, "<0x..>", 7);
        name[3] = "0123456789ABCDEF"[byte >> 4];
        name[4] = "0123456789ABCDEF"[byte & 15];
        t->byte_id[byte] = tokenizer_id_bytes(t, name, 6);
        if (t->byte_id[byte] == TOKENIZER_NO_ID || (t->token[t->byte_id[byte]].flags & TOKEN_OUTSIDE))
            return tokenizer_fail(b, -E_FORMAT, "byte fallback needs the token %s, the vocabulary lacks it", name);
    }
    return 0;
}

/* What plain text can become: a special token must not be reachable from it. */
static bool is_symbol(const struct tokenizer_token *token)
{
    return (token->flags & TOKEN_USED) && !(token->flags & (TOKEN_SPECIAL | TOKEN_OUTSIDE));
}

uint32_t tokenizer_scalar_id(const struct tokenizer *t, uint32_t scalar)
{
    char text[4];

    if (scalar < TOKENIZER_BMP) return t->scalar_id[scalar];
    const uint32_t id = tokenizer_id_bytes(t, text, utf8_encode(scalar, text));
    return id != TOKENIZER_NO_ID && is_symbol(&t->token[id]) ? id : TOKENIZER_NO_ID;
}

static int finish_scalars(struct tokenizer_builder *b)
{
    struct tokenizer *t = b->t;
    uint32_t scalar;
    size_t used;

    t->scalar_id = malloc(TOKENIZER_BMP * sizeof *t->scalar_id);
    if (!t->scalar_id) return no_memory(b);
    memset(t->scalar_id, 0xFF, TOKENIZER_BMP * sizeof *t->scalar_id);
    for (uint32_t id = 0; id < t->vocab_count; id++) {
        const struct tokenizer_token *token = &t->token[id];
        if (token->bytes == 0 || token->bytes > 3 || !is_symbol(token)) continue;
        if (utf8_decode(t->text + token->offset, token->bytes, &scalar, &used) != UTF8_GOOD) continue;
        if (used == token->bytes && scalar < TOKENIZER_BMP) t->scalar_id[scalar] = id;
    }
    return 0;
}

/* ---- patterns ---- */

static int compare_patterns(const void *left, const void *right)
{
    const struct tokenizer_pattern *a = left, *b = right;
    const size_t shared = a->bytes < b->bytes ? a->bytes : b->bytes;
    const int order = memcmp(a->text, b->text, shared);

    return order != 0 ? order : (int)a->bytes - (int)b->bytes;
}

/* The normalizer makes ' ' and U+2581 the same: compare both as ' '. Returns the new length. */
static uint16_t fold(char *out, const char *text, size_t bytes)
{
    size_t at = 0, wrote = 0;

    while (at < bytes) {
        const bool is_space = bytes - at >= 3 && memcmp(text + at, "\xE2\x96\x81", 3) == 0;
        out[wrote++] = is_space ? ' ' : text[at];
        at += is_space ? 3 : 1;
    }
    return (uint16_t)wrote;
}

static int fill_set(struct tokenizer_builder *b, struct tokenizer_pattern_set *set, bool normalized)
{
    const struct tokenizer *t = b->t;
    char *folded = t->folded;

    set->folded = normalized;
    set->list = calloc(b->added_count + 1, sizeof *set->list);
    if (!set->list) return no_memory(b);
    for (uint32_t i = 0; i < b->added_count; i++) {
        const struct tokenizer_added *a = &b->added[i];
        if (a->normalized != normalized) continue;
        struct tokenizer_pattern *p = &set->list[set->count++];
        *p = (struct tokenizer_pattern){ .text = t->text + a->offset, .id = a->id, .bytes = a->bytes, .flags = a->flags };
        if (!normalized) continue;
        p->text = folded;
        p->bytes = fold(folded, t->text + a->offset, a->bytes);
        folded += p->bytes;
    }
    qsort(set->list, set->count, sizeof *set->list, compare_patterns);
    for (uint32_t byte = 0, at = 0; byte <= 256; byte++) {
        while (at < set->count && (uint8_t)set->list[at].text[0] < byte) at++;
        set->first[byte] = at;
    }
    return 0;
}

int tokenizer_build_finish(struct tokenizer_builder *b)
{
    struct tokenizer *t = b->t;
    size_t folded_bytes = 1;
    int rc;

    if (t->vocab_count == 0) return tokenizer_fail(b, -E_FORMAT, "the vocabulary is empty");
    if ((rc = finish_added(b)) != 0) return rc;
    char *exact = realloc(t->text, t->text_bytes + 1); /* nothing is added to the text after this */
    if (exact) t->text = exact;
    for (uint32_t i = 0; i < b->added_count; i++)
        if (b->added[i].normalized) folded_bytes += b->added[i].bytes;
    t->folded = malloc(folded_bytes);
    if (!t->folded) return no_memory(b);
    t->folded_bytes = folded_bytes;

    if ((rc = finish_bytes(b)) != 0)                     return rc;
    if ((rc = finish_scalars(b)) != 0)                   return rc;
    if ((rc = finish_merges(b)) != 0)                    return rc;
    if ((rc = fill_set(b, &t->raw, false)) != 0)         return rc;
    return fill_set(b, &t->normalized, true);
}

void tokenizer_build_release(struct tokenizer_builder *b)
{
    free(b->added);
    free(b->merges);
    b->added = NULL;
    b->merges = NULL;
}
