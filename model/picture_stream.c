/* model/picture_stream.c - rows in, lines out: a window of rows slides along (contract in picture_stream.h). */
#include "model/picture_stream.h"

#include "shm/error.h"
#include "shm/must.h"

#include <stdlib.h>
#include <string.h>

#define CHANNELS PICTURE_CHANNELS
#define WINDOW_SLACK 32u /* rows: the window moves once in so many */
#define GROUP_ROWS 8u    /* the passes take as many at once; fewer cost more each */

/* The weights for a picture whose pixels come in the opposite order, for results in the opposite order. */
static void mirror(struct picture_taps *t, uint32_t in, uint32_t out)
{
    for (uint32_t i = 0, k = out - 1; i <= k && k < out; i++, k--) {
        const uint32_t first = t->first[i], count = t->count[i];
        t->first[i] = in - t->first[k] - t->count[k];
        t->count[i] = t->count[k];
        t->first[k] = in - first - count;
        t->count[k] = count;
        int16_t *a = t->weight + (size_t)i * t->stride, *b = t->weight + (size_t)k * t->stride;
        for (uint32_t j = 0; i != k && j < t->stride; j++) {
            const int16_t w = a[j];
            a[j] = b[j];
            b[j] = w;
        }
    }
    for (uint32_t i = 0; i < out; i++) {
        int16_t *w = t->weight + (size_t)i * t->stride;
        for (uint32_t j = 0; j < t->count[i] / 2; j++) {
            const int16_t last = w[t->count[i] - 1 - j];
            w[t->count[i] - 1 - j] = w[j];
            w[j] = last;
        }
    }
}

static int open_taps(struct picture_taps *t, uint32_t in, uint32_t out, enum picture_filter filter, bool mirrored)
{
    if (in == out) return 0; /* the reference leaves it alone, too */
    const int rc = picture_taps_open(t, in, out, filter);
    if (rc == 0 && mirrored) mirror(t, in, out);
    return rc;
}

static uint32_t most_rows(const struct picture_taps *t, uint32_t out)
{
    uint32_t most = 1;

    for (uint32_t i = 0; t->first && i < out; i++)
        if (t->count[i] > most) most = t->count[i];
    return most;
}

static bool side_is_bad(uint32_t side)
{
    return side == 0 || side > PICTURE_SIDE_MAX;
}

int picture_stream_open(struct picture_stream *s, const struct picture_stream_job *j)
{
    memset(s, 0, sizeof *s);
    if (side_is_bad(j->width) || side_is_bad(j->height) || side_is_bad(j->out_width) || side_is_bad(j->out_height) || j->orientation < 1 || j->orientation > 8) return -E_RANGE;
    must(j->layout == PICTURE_ROWS || (j->out_width % PICTURE_PATCH == 0 && j->out_height % PICTURE_PATCH == 0));
    s->job = *j;
    s->passes = picture_passes_best();
    s->turned = j->orientation >= 5;
    s->mirror_x = j->orientation == 2 || j->orientation == 3 || j->orientation >= 7;
    s->mirror_y = j->orientation == 3 || j->orientation == 4 || j->orientation == 6 || j->orientation == 7;
    const uint32_t line = s->turned ? j->out_height : j->out_width; /* pixels */
    s->make = s->turned ? j->out_width : j->out_height;
    s->row_bytes = (s->turned ? j->width : j->out_width) * CHANNELS;
    int rc = open_taps(&s->along, j->width, line, j->filter, s->mirror_x);
    if (rc == 0 && s->along.first) rc = picture_taps_arrange(&s->along, line, s->passes);
    if (rc == 0) rc = open_taps(&s->across, j->height, s->make, j->filter, s->mirror_y);
    s->window_rows = most_rows(&s->across, s->make) + WINDOW_SLACK;
    if (rc == 0) {
        s->window = malloc((size_t)s->window_rows * s->row_bytes);
        s->line = malloc((size_t)line * CHANNELS);
        s->middle = malloc(s->row_bytes);
        if (s->window && s->line && s->middle) return 0;
    }
    picture_stream_close(s);
    return -E_NOMEM;
}

void picture_stream_close(struct picture_stream *s)
{
    picture_taps_close(&s->along);
    picture_taps_close(&s->across);
    free(s->window);
    free(s->line);
    free(s->middle);
    s->window = s->line = s->middle = NULL;
}

bool picture_stream_is_whole(const struct picture_stream *s)
{
    return s->made == s->make;
}

/* ---- where a line goes ------------------------------------------------------------------ */

static uint8_t *place_of(const struct picture_stream_job *j, uint32_t x, uint32_t y)
{
    if (j->layout == PICTURE_ROWS) return j->out + ((size_t)y * j->out_width + x) * CHANNELS;
    const size_t block = (size_t)(y / PICTURE_PATCH) * (j->out_width / PICTURE_PATCH) + x / PICTURE_PATCH;
    return j->out + block * PICTURE_PATCH_BYTES + ((size_t)(y % PICTURE_PATCH) * PICTURE_PATCH + x % PICTURE_PATCH) * CHANNELS;
}

static void reverse(uint8_t *line, uint32_t pixels)
{
    for (uint32_t i = 0, k = pixels - 1; i < k; i++, k--)
        for (uint32_t c = 0; c < CHANNELS; c++) {
            const uint8_t v = line[i * CHANNELS + c];
            line[i * CHANNELS + c] = line[k * CHANNELS + c];
            line[k * CHANNELS + c] = v;
        }
}

static void place_row(struct picture_stream *s, const uint8_t *line)
{
    const struct picture_stream_job *j = &s->job;
    const uint32_t y = s->mirror_y ? s->make - 1 - s->made : s->made, step = j->layout == PICTURE_ROWS ? j->out_width : PICTURE_PATCH;

    for (uint32_t x = 0; x < j->out_width; x += step) memcpy(place_of(j, x, y), line + (size_t)x * CHANNELS, (size_t)step * CHANNELS);
}

static void place_column(struct picture_stream *s, const uint8_t *line)
{
    const uint32_t x = s->mirror_y ? s->make - 1 - s->made : s->made;

    for (uint32_t y = 0; y < s->job.out_height; y++) memcpy(place_of(&s->job, x, y), line + (size_t)y * CHANNELS, CHANNELS);
}

/* ---- lines ---------------------------------------------------------------------------------- */

static uint32_t first_needed(const struct picture_stream *s)
{
    return s->made == s->make ? s->taken : s->across.first ? s->across.first[s->made] : s->made;
}

static uint32_t needed(const struct picture_stream *s)
{
    return s->across.first ? s->across.count[s->made] : 1;
}

/* The line that comes next; its rows are in the window. */
static void make_line(struct picture_stream *s)
{
    const struct picture_stream_job *j = &s->job;
    const uint8_t *rows = s->window + (size_t)(first_needed(s) - s->window_first) * s->row_bytes;
    const uint32_t pixels = s->turned ? j->out_height : j->out_width;
    uint8_t *narrowed = s->turned && s->along.first ? s->middle : s->line;

    if (s->across.first) s->passes->down(rows, s->row_bytes, narrowed, s->made, &s->across);
    else memcpy(narrowed, rows, s->row_bytes);
    if (narrowed != s->line) s->passes->across(narrowed, j->width, 1, s->line, j->out_height, &s->along);
    if (s->mirror_x) reverse(s->line, pixels);
    if (s->turned) place_column(s, s->line);
    else place_row(s, s->line);
    s->made++;
}

/* Rows that no line needs any more make room for the next. */
static void slide(struct picture_stream *s)
{
    uint32_t drop = first_needed(s) - s->window_first;

    if (drop > s->held) drop = s->held; /* enlarged or cut so that rows are never looked at */
    memmove(s->window, s->window + (size_t)drop * s->row_bytes, (size_t)(s->held - drop) * s->row_bytes);
    s->window_first += drop;
    s->held -= drop;
}

void picture_stream_rows(struct picture_stream *s, const uint8_t *rgb, uint32_t rows)
{
    const size_t in_bytes = (size_t)s->job.width * CHANNELS;

    if (rows > s->job.height - s->taken) rows = s->job.height - s->taken;
    while (rows > 0) {
        if (rows > s->window_rows - s->held) slide(s);
        must(s->held < s->window_rows);
        uint32_t n = rows < s->window_rows - s->held ? rows : s->window_rows - s->held;
        if (n < rows && n > GROUP_ROWS) n -= n % GROUP_ROWS;
        uint8_t *to = s->window + (size_t)s->held * s->row_bytes;
        if (!s->turned && s->along.first) s->passes->across(rgb, s->job.width, n, to, s->job.out_width, &s->along);
        else memcpy(to, rgb, n * in_bytes);
        rgb += n * in_bytes;
        rows -= n;
        s->held += n;
        s->taken += n;
        while (s->made < s->make && first_needed(s) + needed(s) <= s->taken) make_line(s);
    }
}
