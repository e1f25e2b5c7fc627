/* stages/prefill/crowd.h - many prompts at once: who gets how many rows of a call, and how many count as waiting. Rules alone: nothing is read or owned, nothing fails. */
#ifndef SLUICE_PREFILL_CROWD_H
#define SLUICE_PREFILL_CROWD_H

#include <stdint.h>

/* Rows of a call that those behind the first may share: half of them, so that a long prompt does not keep short ones waiting, and what the first, which has `left` to go,
 * does not need of the other half. The picture that it is at must fit, whatever the others take: picture <= rows. */
static inline uint32_t crowd_shared_rows(uint32_t rows, uint32_t left, uint32_t picture)
{
    const uint32_t half = rows - rows / 2, own = left < half ? left : half;

    return rows - (own > picture ? own : picture);
}

/* As how many `count` sequences count that wait for their first token, with `left` rows to go, a call's rows at most `chunk`. The last of a crowd count as the whole of it: few as
 * they are, they would get no more than their share, and who began together ends when the last of them does. most: of them since none waited; kept here. */
static inline uint32_t crowd_count(uint32_t *most, uint32_t count, uint64_t left, uint32_t chunk)
{
    if (count > *most || count == 0) *most = count;
    return left <= chunk ? *most : count;
}

#endif
