/* model/output_stops.c - finds stop strings in a stream of text.
 *
 * One Knuth-Morris-Pratt state per stop string; the text that could still become one is
 * held back (the longest matched beginning of any of them) and given out when it cannot.
 * Work per byte is bounded by the number of stop strings, memory is fixed. */
#include "model/output_private.h"

#include <string.h>

#include "model/tokenizer_utf8.h"
#include "shm/error.h"
#include "shm/must.h"

static int add(struct output_stop_state *s, const struct output_stop *stop)
{
    if (stop->bytes == 0 || stop->bytes > OUTPUT_STOP_BYTES_MAX) return -E_RANGE;
    if (!utf8_is_valid(stop->text, stop->bytes)) return -E_FORMAT; /* else a match could cut a character in two */
    memcpy(s->text, stop->text, stop->bytes);
    s->bytes = (uint16_t)stop->bytes;
    s->matched = 0;
    s->fallback[0] = 0;
    for (size_t i = 1, border = 0; i < stop->bytes; i++) {
        while (border > 0 && s->text[i] != s->text[border]) border = s->fallback[border - 1];
        if (s->text[i] == s->text[border]) border++;
        s->fallback[i] = (uint8_t)border; /* <= i <= 255 */
    }
    return 0;
}

int output_stops_init(struct output_stops *s, const struct output_stop *stops, size_t count)
{
    int rc;

    s->count = 0;
    s->held_count = 0;
    if (count > OUTPUT_STOPS_MAX) return -E_RANGE;
    for (size_t i = 0; i < count; i++)
        if ((rc = add(&s->stop[i], &stops[i])) != 0) return rc;
    s->count = (uint32_t)count;
    return 0;
}

void output_stops_reset(struct output_stops *s)
{
    for (uint32_t i = 0; i < s->count; i++) s->stop[i].matched = 0;
    s->held_count = 0;
}

static bool advance(struct output_stop_state *s, uint8_t byte)
{
    while (s->matched > 0 && s->text[s->matched] != byte) s->matched = s->fallback[s->matched - 1];
    if (s->text[s->matched] == byte) s->matched++;
    return s->matched == s->bytes;
}

const struct output_stop_state *output_stops_byte(struct output_stops *s, uint8_t byte, size_t *release)
{
    const struct output_stop_state *hit = NULL;
    size_t keep = 0;

    must(s->held_count < sizeof s->held);
    s->held[s->held_count++] = byte;
    for (uint32_t i = 0; i < s->count; i++) {
        struct output_stop_state *stop = &s->stop[i];
        if (advance(stop, byte) && (!hit || stop->bytes > hit->bytes)) hit = stop;
        if (stop->matched > keep) keep = stop->matched;
    }
    if (hit) keep = hit->bytes;
    must(keep <= s->held_count);
    *release = s->held_count - keep;
    return hit;
}

void output_stops_drop(struct output_stops *s, size_t count)
{
    must(count <= s->held_count);
    s->held_count -= (uint32_t)count;
    memmove(s->held, s->held + count, s->held_count);
}
