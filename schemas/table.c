/* schemas/table.c - offsets and strides of the sequence table. */
#include "schemas/table.h"

#define PAGE 4096u
#define LOG_BYTES_PER_TOKEN 64u /* a record header and the longest usual token; past it the output ends with "length" */

static uint64_t round_up(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

uint32_t table_log_bytes(uint32_t context_max)
{
    const uint64_t bytes = (uint64_t)context_max * LOG_BYTES_PER_TOKEN + 65536;

    return bytes > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)bytes;
}

void table_init(struct table *t, const struct table_limits *limits)
{
    t->limits = *limits;
    t->request_offset = round_up(sizeof(struct gateway_slot), PAGE);
    t->prompt_offset = round_up(sizeof(struct tokenize_slot), PAGE);
    t->full_pages_offset = round_up(sizeof(struct prefill_slot), 64);
    t->sliding_pages_offset = t->full_pages_offset + round_up(sizeof(uint32_t) * (uint64_t)limits->full_pages_max, 64);
    t->output_offset = round_up(sizeof(struct verify_slot), PAGE);
    t->logprobs_offset = t->output_offset + round_up(sizeof(uint32_t) * (uint64_t)limits->context_max, PAGE);
    t->log_offset = round_up(sizeof(struct detokenize_slot), PAGE);
    for (int role = 0; role < ROLE_COUNT; role++) t->stride[role] = table_stride(limits, role);
}

uint64_t table_stride(const struct table_limits *limits, int role)
{
    const uint64_t tokens_bytes = round_up(sizeof(uint32_t) * (uint64_t)limits->context_max, PAGE);

    switch (role) {
    case ROLE_LAUNCHER: return round_up(sizeof(struct launcher_slot), 128);
    case ROLE_GATEWAY: return round_up(sizeof(struct gateway_slot), PAGE) + round_up(limits->request_bytes_max, PAGE);
    case ROLE_TOKENIZE: return round_up(sizeof(struct tokenize_slot), PAGE) + tokens_bytes;
    case ROLE_PREFILL:
        return round_up(round_up(sizeof(struct prefill_slot), 64) + round_up(sizeof(uint32_t) * (uint64_t)limits->full_pages_max, 64) +
                            sizeof(uint32_t) * (uint64_t)limits->sliding_pages_max, PAGE);
    case ROLE_VERIFY:
        return round_up(sizeof(struct verify_slot), PAGE) + tokens_bytes +
               round_up(sizeof(struct token_logprobs) * (uint64_t)limits->context_max, PAGE);
    case ROLE_DETOKENIZE: return round_up(sizeof(struct detokenize_slot), PAGE) + round_up(limits->log_bytes_max, PAGE);
    default: return 0;
    }
}
