/* model/tokenizer_encode.c - text to ids: added tokens out first, the rest by BPE.
 *
 * Three levels, each hands pieces to the next: the text is cut at added tokens that match
 * as written; those pieces at added tokens that match after normalising; what is left goes
 * character by character into stretches of symbols, which model/tokenizer_bpe.c merges.
 * A stretch ends where no token of the vocabulary can cross ("cut"), which changes no
 * result and keeps stretches to about a word.
 * Fails    -E_FULL, -E_LIMIT, -E_RANGE, -E_NOMEM; all memory is given back before returning */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/tokenizer_utf8.h"
#include "shm/error.h"

struct encoder {
    const struct tokenizer *t;
    const char *text;                /* valid UTF-8: the caller's, or a cleaned copy */
    size_t bytes;
    struct tokenizer_span *span;     /* trusted ranges of text, joined where they touch */
    size_t span_count;
    uint32_t *ids;
    size_t ids_count, ids_max;
    struct tokenizer_scratch scratch;
    size_t symbols;                  /* of the present stretch, in scratch.ids */
};

/* ---- plain text ---- */

static int emit_stretch(struct encoder *e)
{
    const int64_t count = tokenizer_bpe_merge(e->t, &e->scratch, e->symbols);

    e->symbols = 0;
    if (count < 0) return (int)count;
    if ((size_t)count > e->ids_max - e->ids_count) return -E_FULL;
    memcpy(e->ids + e->ids_count, e->scratch.ids, (size_t)count * sizeof *e->ids);
    e->ids_count += (size_t)count;
    return 0;
}

static int scratch_room(struct tokenizer_scratch *s, size_t needed)
{
    if (needed <= s->room) return 0;
    const size_t room = s->room ? s->room * 2 : 1024;
    uint32_t *ids = realloc(s->ids, room * sizeof *ids);
    if (!ids) return -E_NOMEM;
    s->ids = ids;
    s->room = room;
    return 0;
}

static bool may_join(const struct tokenizer *t, uint32_t before, uint32_t scalar)
{
    const uint32_t bit = tokenizer_bigram_bit(before, scalar);

    return t->bigram[bit / 64] >> bit % 64 & 1;
}

static int encode_plain(struct encoder *e, size_t begin, size_t end)
{
    const struct tokenizer *t = e->t;
    uint32_t before = 0, scalar;
    bool before_bytes = false;
    size_t used;
    int rc;

    for (size_t at = begin; at < end; at += used) {
        utf8_decode(e->text + at, end - at, &scalar, &used);
        if (scalar == ' ') scalar = TOKENIZER_SPACE;
        const uint32_t id = tokenizer_scalar_id(t, scalar);
        const bool as_bytes = id == TOKENIZER_NO_ID;
        const bool joined = may_join(t, before, scalar) || (t->bytes_merge && (as_bytes || before_bytes));

        if (e->symbols > 0 && !joined && (rc = emit_stretch(e)) != 0) return rc;
        if ((rc = scratch_room(&e->scratch, e->symbols + 4)) != 0)    return rc;
        if (as_bytes)
            for (size_t i = 0; i < used; i++) e->scratch.ids[e->symbols++] = t->byte_id[(uint8_t)e->text[at + i]];
        else
            e->scratch.ids[e->symbols++] = id;
        before = scalar;
        before_bytes = as_bytes;
    }
    return e->symbols > 0 ? emit_stretch(e) : 0;
}

/* ---- added tokens ---- */

/* Where the trusted range that holds position at ends; at itself when none does. */
static size_t trusted_end(const struct encoder *e, size_t at)
{
    size_t low = 0, high = e->span_count; /* the first range that begins behind at is in [low, high] */

    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (e->span[middle].begin_bytes <= at) low = middle + 1;
        else                                   high = middle;
    }
    return low > 0 && e->span[low - 1].end_bytes > at ? e->span[low - 1].end_bytes : at;
}

static size_t previous(const char *text, size_t at)
{
    do at--; while (((uint8_t)text[at] & 0xC0) == 0x80);
    return at;
}

/* In normalised text ' ' has become U+2581, which is no white space. */
static bool is_space_at(const struct encoder *e, size_t at, size_t end, bool folded, size_t *used)
{
    uint32_t scalar;

    utf8_decode(e->text + at, end - at, &scalar, used);
    return tokenizer_is_space(scalar) && !(folded && scalar == ' ');
}

static bool is_word_at(const struct encoder *e, size_t at, size_t end)
{
    uint32_t scalar;
    size_t used;

    utf8_decode(e->text + at, end - at, &scalar, &used);
    return tokenizer_is_word(scalar);
}

struct match {
    size_t begin, end; /* of the token; white space it swallows included */
};

/* Applies single_word, lstrip and rstrip; false: the match does not count. A token with lstrip
 * whose all is white space that the token before it swallowed vanishes, as in the reference
 * (which in the worst of these cases does not survive). */
static bool settle(const struct encoder *e, const struct tokenizer_pattern *p, bool folded, size_t begin, size_t end,
                   size_t done, struct match *m)
{
    size_t used, at;

    if (p->flags & PATTERN_SINGLE_WORD) {
        if (m->begin > begin && is_word_at(e, previous(e->text, m->begin), end)) return false;
        if (m->end < end && is_word_at(e, m->end, end)) return false;
    }
    if (p->flags & PATTERN_LSTRIP) {
        while (m->begin > begin && m->begin > done
               && is_space_at(e, at = previous(e->text, m->begin), end, folded, &used)) m->begin = at;
        if (m->begin < done) m->begin = done;
    }
    if (p->flags & PATTERN_RSTRIP)
        while (m->end < end && is_space_at(e, m->end, end, folded, &used)) m->end += used;
    return m->begin < m->end;
}

/* Cuts text[begin, end) at the added tokens of set; what lies between goes to plain. */
static int split(struct encoder *e, const struct tokenizer_pattern_set *set, size_t begin, size_t end,
                 int (*plain)(struct encoder *, size_t, size_t))
{
    size_t done = begin, at = begin, match_bytes;
    int rc;

    while (at < end) {
        const uint8_t byte = (uint8_t)e->text[at];
        const struct tokenizer_pattern *p = NULL;

        if (set->first[byte] != set->first[byte + 1] || (set->folded && byte == 0xE2))
            p = tokenizer_match(set, e->text, at, end, trusted_end(e, at), &match_bytes);
        if (!p) {
            at++;
            continue;
        }
        struct match m = { at, at + match_bytes };
        at += match_bytes; /* the search goes on behind the match, whether it counts or not */
        if (!settle(e, p, set->folded, begin, end, done, &m)) continue;
        if (done < m.begin && (rc = plain(e, done, m.begin)) != 0) return rc;
        if (e->ids_count == e->ids_max) return -E_FULL;
        e->ids[e->ids_count++] = p->id;
        done = m.end;
    }
    return done < end ? plain(e, done, end) : 0;
}

static int split_normalized(struct encoder *e, size_t begin, size_t end)
{
    if (e->t->normalized.count == 0) return encode_plain(e, begin, end);
    return split(e, &e->t->normalized, begin, end, encode_plain);
}

/* ---- what comes in ---- */

static int copy_spans(struct encoder *e, const struct tokenizer_span *trusted, size_t count)
{
    uint32_t last = 0;

    e->span = calloc(count, sizeof *e->span); /* calloc: checks the product */
    if (!e->span) return -E_NOMEM;
    for (size_t i = 0; i < count; i++) {
        const struct tokenizer_span s = trusted[i];
        if (s.begin_bytes < last || s.end_bytes < s.begin_bytes || s.end_bytes > e->bytes) return -E_RANGE;
        if (e->span_count > 0 && s.begin_bytes == last) e->span[e->span_count - 1].end_bytes = s.end_bytes;
        else                                            e->span[e->span_count++] = s;
        last = s.end_bytes;
    }
    return 0;
}

/* Makes *copy valid UTF-8 and moves the trusted ranges with it. A range that begins or ends
 * inside a malformed piece loses that piece: nothing becomes trusted that was not. */
static int clean(struct encoder *e, char **copy)
{
    size_t begin_at = 0, end_at = 0, wrote = 0, used;
    uint32_t scalar;

    if (e->bytes > TOKENIZER_TEXT_BYTES_MAX / 3) return -E_LIMIT;
    *copy = malloc(e->bytes * 3 + 4); /* each bad byte becomes three */
    if (!*copy) return -E_NOMEM;
    for (size_t at = 0; at < e->bytes; at += used) {
        while (begin_at < e->span_count && e->span[begin_at].begin_bytes <= at) e->span[begin_at++].begin_bytes = (uint32_t)wrote;
        utf8_decode(e->text + at, e->bytes - at, &scalar, &used);
        while (end_at < e->span_count && e->span[end_at].end_bytes < at + used) e->span[end_at++].end_bytes = (uint32_t)wrote;
        wrote += utf8_encode(scalar, *copy + wrote);
    }
    for (; begin_at < e->span_count; begin_at++) e->span[begin_at].begin_bytes = (uint32_t)wrote;
    for (; end_at < e->span_count; end_at++)     e->span[end_at].end_bytes = (uint32_t)wrote;
    for (size_t i = 0; i < e->span_count; i++)
        if (e->span[i].end_bytes < e->span[i].begin_bytes) e->span[i].end_bytes = e->span[i].begin_bytes;
    e->text = *copy;
    e->bytes = wrote;
    return 0;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes,
                     const struct tokenizer_span *trusted, size_t trusted_count, uint32_t *ids, size_t ids_max)
{
    const struct tokenizer_span all = { 0, (uint32_t)bytes };
    struct encoder e = { .t = t, .text = text, .bytes = bytes, .ids = ids,
                         .ids_max = ids_max < INT_MAX ? ids_max : INT_MAX };
    char *copy = NULL;
    int rc = 0;

    if (bytes > TOKENIZER_TEXT_BYTES_MAX) return -E_LIMIT;
    /* No need to look at text that cannot fit: a token stands for at most longest_bytes of it. */
    if (!t->strips && bytes / t->longest_bytes > ids_max) return -E_FULL;
    if (trusted_count == TOKENIZER_ALL_TRUSTED) {
        trusted = &all;
        trusted_count = 1;
    }
    if (trusted_count > 0) rc = copy_spans(&e, trusted, trusted_count);
    if (rc == 0 && !utf8_is_valid(text, bytes)) rc = clean(&e, &copy);
    if (rc == 0) rc = split(&e, &t->raw, 0, e.bytes, split_normalized);
    free(copy);
    free(e.span);
    free(e.scratch.ids);
    free(e.scratch.work);
    return rc != 0 ? rc : (int)e.ids_count;
}
