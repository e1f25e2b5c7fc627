/* model/forward_rope.c - see forward_rope.h. */
#include "model/forward_rope.h"
#include "shm/must.h"
#include <math.h>

void rope_table_init(struct rope_table *table, const struct rope_config *rope, uint32_t head_dim)
{
    const uint32_t half = head_dim / 2;
    uint32_t turning = half;

    must(half % 16 == 0 && half <= ROPE_PAIRS_MAX);
    /* the share is taken of the head and cut to whole pairs, as the reference does */
    if (rope->type == ROPE_PROPORTIONAL) turning = (uint32_t)floor(rope->partial_rotary_factor * head_dim / 2);
    table->half = half;
    table->turned = (turning + 15) / 16 * 16;
    for (uint32_t i = 0; i < table->turned; i++) {
        const float exponent = (float)(2 * i) / (float)head_dim;
        const float power = (float)pow(rope->theta, (double)exponent);

        table->inv_freq[i] = i < turning ? 1.0f / power : 0.0f;
        if (rope->factor != 1.0) table->inv_freq[i] /= (float)rope->factor;
    }
}

void rope_table_angles(const struct rope_table *table, uint32_t position, float *cosine, float *sine)
{
    for (uint32_t i = 0; i < table->turned; i++) {
        const float angle = table->inv_freq[i] * (float)position;
        double s, c;

        sincos((double)angle, &s, &c);
        cosine[i] = (float)c;
        sine[i] = (float)s;
    }
}
