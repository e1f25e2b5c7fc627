/* schemas/sound.h - sound as clients send it: WAV, FLAC, MP3, Ogg Vorbis and Opus files to the samples that the model hears.
 *
 * Decoding is libsndfile's, resampling to 16 kHz libsoxr's at its "high quality" recipe: the same libraries and settings as the reference's loader,
 * channels averaged before resampling as it does. The model takes the samples as they are, 640 (40 ms) to a soft token; there is no spectrogram.
 *
 * What a file claims about its length is not believed: samples are counted as they come, and more than seconds_max refuse the file. Run
 * it where a crash costs nothing (stages/vision.c). */
#ifndef SLUICE_SCHEMAS_SOUND_H
#define SLUICE_SCHEMAS_SOUND_H

#include <stddef.h>
#include <stdint.h>

#define SOUND_RATE 16000u             /* Hz */
#define SOUND_FRAME 640u              /* samples of a soft token */
#define SOUND_SECONDS_MAX 30.0        /* what the model was trained for: 750 soft tokens */
#define SOUND_CHANNELS_MAX 8
#define SOUND_RATE_MIN 1000
#define SOUND_RATE_MAX 384000
#define SOUND_SAMPLE_MAX 1e6f         /* floats of a damaged file: their squares would overflow in the model */
#define SOUND_ERROR_BYTES 160u

struct sound {
    float *samples;                   /* owned; free(). 16 kHz mono in about [-1, 1], zeros behind the end up to a whole frame */
    uint32_t frame_count;             /* soft tokens; samples holds frame_count * SOUND_FRAME */
    double seconds;
};

/* 0; -E_FORMAT (no known format, broken, no samples), -E_RANGE (too long, a rate or channel count out of limits), -E_NOMEM. why: in words for the client. */
int sound_decode(const uint8_t *file, size_t file_bytes, double seconds_max, struct sound *out, char why[SOUND_ERROR_BYTES]);

#endif
