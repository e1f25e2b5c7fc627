/* schemas/sound.c - a sound file in memory through libsndfile and libsoxr. */
#include "schemas/sound.h"

#include "shm/error.h"

#include <math.h>
#include <sndfile.h>
#include <soxr.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_FRAMES 4096u

__attribute__((format(printf, 3, 4))) static int refuse(int code, char *why, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(why, SOUND_ERROR_BYTES, format, args);
    va_end(args);
    return code;
}

/* ---- a file that lies in memory ---------------------------------------------------------- */

struct memory { const uint8_t *data; sf_count_t bytes, at; };

static sf_count_t memory_bytes(void *m)
{
    return ((struct memory *)m)->bytes;
}

static sf_count_t memory_tell(void *m)
{
    return ((struct memory *)m)->at;
}

static sf_count_t memory_seek(sf_count_t offset, int whence, void *user)
{
    struct memory *m = user;
    const sf_count_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? m->at : m->bytes;

    if (offset < -from || offset > m->bytes - from) return -1;
    return m->at = from + offset;
}

static sf_count_t memory_read(void *to, sf_count_t bytes, void *user)
{
    struct memory *m = user;

    if (bytes > m->bytes - m->at) bytes = m->bytes - m->at;
    if (bytes <= 0) return 0;
    memcpy(to, m->data + m->at, (size_t)bytes);
    m->at += bytes;
    return bytes;
}

static SNDFILE *open_memory(struct memory *m, SF_INFO *info)
{
    static SF_VIRTUAL_IO io = {.get_filelen = memory_bytes, .seek = memory_seek, .read = memory_read, .write = NULL, .tell = memory_tell};

    memset(info, 0, sizeof *info);
    return sf_open_virtual(&io, SFM_READ, info, m);
}

/* libsndfile knows two dozen formats; the rest of them is more code to attack than anybody needs. */
static int is_wanted(const SF_INFO *info)
{
    switch (info->format & SF_FORMAT_TYPEMASK) {
    case SF_FORMAT_WAV:
    case SF_FORMAT_WAVEX:
    case SF_FORMAT_RF64:
    case SF_FORMAT_FLAC:
    case SF_FORMAT_OGG:
    case SF_FORMAT_MPEG: return 1;
    default: return 0;
    }
}

/* By its first bytes, before libsndfile may choose among its parsers. */
static int looks_wanted(const uint8_t *f, size_t bytes)
{
    if (bytes < 12) return 0;
    if ((memcmp(f, "RIFF", 4) == 0 || memcmp(f, "RF64", 4) == 0) && memcmp(f + 8, "WAVE", 4) == 0) return 1;
    return memcmp(f, "fLaC", 4) == 0 || memcmp(f, "OggS", 4) == 0 || memcmp(f, "ID3", 3) == 0 || (f[0] == 0xff && (f[1] & 0xe0) == 0xe0);
}

/* ---- samples -------------------------------------------------------------------------------- */

struct samples { float *value; size_t count, capacity; };

static int append(struct samples *s, const float *block, size_t frames, int channels)
{
    if (s->count + frames > s->capacity) {
        const size_t capacity = s->capacity ? 2 * s->capacity : 16 * BLOCK_FRAMES;
        float *grown = realloc(s->value, capacity * sizeof *grown);
        if (!grown) return -E_NOMEM;
        s->value = grown;
        s->capacity = capacity;
    }
    for (size_t i = 0; i < frames; i++) {
        float sum = 0;
        for (int c = 0; c < channels; c++) sum += block[i * (size_t)channels + (size_t)c];
        s->value[s->count++] = channels == 1 ? sum : sum / (float)channels;
    }
    return 0;
}

static int read_mono(SNDFILE *file, const SF_INFO *info, double seconds_max, struct samples *s, char *why)
{
    float block[BLOCK_FRAMES * SOUND_CHANNELS_MAX];
    const size_t most = (size_t)(seconds_max * info->samplerate);
    sf_count_t n;

    while ((n = sf_readf_float(file, block, BLOCK_FRAMES)) > 0) {
        if (s->count + (size_t)n > most) return refuse(-E_RANGE, why, "the sound is longer than %g seconds", seconds_max);
        if (append(s, block, (size_t)n, info->channels) != 0) return refuse(-E_NOMEM, why, "there is no memory for the sound");
    }
    if (sf_error(file) != SF_ERR_NO_ERROR) return refuse(-E_FORMAT, why, "the sound file is damaged: %.100s", sf_strerror(file));
    for (size_t i = 0; i < s->count; i++)
        if (!(fabsf(s->value[i]) <= SOUND_SAMPLE_MAX)) return refuse(-E_FORMAT, why, "the sound has samples that are no numbers, or far outside of -1 to 1");
    return s->count ? 0 : refuse(-E_FORMAT, why, "the sound file holds no samples");
}

static int resample(struct samples *s, int rate, char *why)
{
    const soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, 0);
    const soxr_io_spec_t io = soxr_io_spec(SOXR_FLOAT32_I, SOXR_FLOAT32_I);
    const size_t room = (size_t)((double)s->count * SOUND_RATE / rate) + 1;
    size_t taken = 0, made = 0;
    float *out;

    if (rate == (int)SOUND_RATE) return 0;
    out = malloc(room * sizeof *out);
    if (!out || soxr_oneshot(rate, SOUND_RATE, 1, s->value, s->count, &taken, out, room, &made, &io, &quality, NULL) != NULL || made == 0) {
        free(out);
        return refuse(out ? -E_FORMAT : -E_NOMEM, why, "the sound cannot be brought to %u Hz", SOUND_RATE);
    }
    free(s->value);
    *s = (struct samples){.value = out, .count = made, .capacity = room};
    return 0;
}

static int pad(struct samples *s, struct sound *out, char *why)
{
    const size_t frames = (s->count + SOUND_FRAME - 1) / SOUND_FRAME, all = frames * SOUND_FRAME;
    float *grown = realloc(s->value, all * sizeof *grown);

    if (!grown) return refuse(-E_NOMEM, why, "there is no memory for the sound");
    memset(grown + s->count, 0, (all - s->count) * sizeof *grown);
    s->value = NULL;
    *out = (struct sound){.samples = grown, .frame_count = (uint32_t)frames, .seconds = (double)s->count / SOUND_RATE};
    return 0;
}

int sound_decode(const uint8_t *file, size_t file_bytes, double seconds_max, struct sound *out, char why[SOUND_ERROR_BYTES])
{
    struct memory memory = {.data = file, .bytes = (sf_count_t)file_bytes};
    struct samples s = {0};
    SF_INFO info;
    int rc;

    memset(out, 0, sizeof *out);
    if (!looks_wanted(file, file_bytes)) return refuse(-E_FORMAT, why, "the sound is of no format known here; send WAV, FLAC, MP3 or Ogg (Vorbis, Opus)");
    SNDFILE *opened = open_memory(&memory, &info);
    if (!opened) return refuse(-E_FORMAT, why, "the sound file cannot be read: %.100s", sf_strerror(NULL));
    if (!is_wanted(&info)) rc = refuse(-E_FORMAT, why, "the sound is of no format known here; send WAV, FLAC, MP3 or Ogg (Vorbis, Opus)");
    else if (info.channels < 1 || info.channels > SOUND_CHANNELS_MAX) rc = refuse(-E_RANGE, why, "the sound has %d channels; 1 to %d are taken", info.channels, SOUND_CHANNELS_MAX);
    else if (info.samplerate < SOUND_RATE_MIN || info.samplerate > SOUND_RATE_MAX)
        rc = refuse(-E_RANGE, why, "the sound has %d samples a second; %d to %d are taken", info.samplerate, SOUND_RATE_MIN, SOUND_RATE_MAX);
    else rc = read_mono(opened, &info, seconds_max, &s, why);
    sf_close(opened);
    if (rc == 0) rc = resample(&s, info.samplerate, why);
    if (rc == 0) rc = pad(&s, out, why);
    free(s.value);
    return rc;
}
