/* model/tokenizer_match.c - finds added tokens in text.
 *
 * The patterns are sorted, so those that begin with the bytes read so far are one range of
 * the list; each further byte narrows the range by two binary searches. No automaton is
 * built: nearly all positions of a text begin no pattern, and that costs one table look-up
 * in the caller. Cannot fail. */
#include "model/tokenizer_internal.h"

/* The first index in [low, high) whose byte at depth is not below wanted. All of them agree
 * on the bytes before depth and are longer than depth. */
static uint32_t lower_bound(const struct tokenizer_pattern_set *set, uint32_t low, uint32_t high, size_t depth, unsigned wanted)
{
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if ((uint8_t)set->list[middle].text[depth] < wanted) low = middle + 1;
        else                                                 high = middle;
    }
    return low;
}

/* One byte of the text as the set compares it; *used: how many bytes of text it stands for. */
static unsigned next_byte(const struct tokenizer_pattern_set *set, const char *text, size_t at, size_t end, size_t *used)
{
    const uint8_t *p = (const uint8_t *)text + at;

    *used = 1;
    if (set->folded && p[0] == 0xE2 && end - at >= 3 && p[1] == 0x96 && p[2] == 0x81) {
        *used = 3;
        return ' ';
    }
    return p[0];
}

const struct tokenizer_pattern *tokenizer_match(const struct tokenizer_pattern_set *set, const char *text,
                                                size_t at, size_t end, size_t trusted_end, size_t *match_bytes)
{
    const struct tokenizer_pattern *best = NULL;
    const size_t begin = at;
    uint32_t low = 0, high = set->count;
    size_t used;

    for (size_t depth = 0; at < end && low < high; depth++) {
        const unsigned byte = next_byte(set, text, at, end, &used);

        if (depth == 0) {
            low = set->first[byte];
            high = set->first[byte + 1];
        } else {
            low = lower_bound(set, low, high, depth, byte);
            high = lower_bound(set, low, high, depth, byte + 1);
        }
        at += used;
        if (low == high || set->list[low].bytes != depth + 1) continue;
        const struct tokenizer_pattern *p = &set->list[low++]; /* a whole pattern; longer ones follow it */
        if ((p->flags & PATTERN_SPECIAL) && at > trusted_end) continue;
        best = p;
        *match_bytes = at - begin;
    }
    return best;
}

bool tokenizer_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A)
        || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}
