/* tests/fuzz/sound_fuzz.c - a sound file of unknown origin: what is accepted is no longer than allowed and holds numbers only. */
#include "schemas/sound.h"

#include <math.h>
#include <stdlib.h>

/* libsndfile 1.2.0 forgets a few KB of libvorbis for a broken file: the decoding process is replaced now and then for such reasons. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:vorbis_info_init\nleak:libvorbis\nleak:libsndfile"; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char why[SOUND_ERROR_BYTES] = "";
    struct sound sound;

    if (sound_decode(data, bytes, 1.0, &sound, why) != 0) {
        if (!why[0] || sound.samples) abort();
        return 0;
    }
    if (sound.frame_count == 0 || sound.frame_count > SOUND_RATE / SOUND_FRAME + 1) abort();
    for (size_t i = 0; i < (size_t)sound.frame_count * SOUND_FRAME; i++)
        if (!isfinite(sound.samples[i])) abort();
    free(sound.samples);
    return 0;
}
