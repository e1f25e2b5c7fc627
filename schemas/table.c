/* schemas/table.c - offsets and strides of the sequence table. */
#include "schemas/table.h"

#include "shm/stage.h"

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
    t->media_offset = round_up(sizeof(struct vision_slot), PAGE);
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
    case ROLE_VISION: return limits->media_tokens_max ? round_up(sizeof(struct vision_slot), PAGE) + round_up((uint64_t)limits->media_tokens_max * MEDIA_TOKEN_BYTES, PAGE) : 0;
    default: return 0;
    }
}

void table_attach(struct table *t, struct stage *s)
{
    const struct wiring *w = &s->wiring;
    const struct table_limits limits = {
        .slot_count = (uint32_t)wiring_u64(w, "table.slots", 0),
        .context_max = (uint32_t)wiring_u64(w, "model.context_max", 0),
        .request_bytes_max = (uint32_t)wiring_u64(w, "table.request_bytes_max", 0),
        .full_pages_max = (uint32_t)wiring_u64(w, "kv.full_pages_per_seq", 0),
        .sliding_pages_max = (uint32_t)wiring_u64(w, "kv.sliding_pages_per_seq", 0),
        .log_bytes_max = (uint32_t)wiring_u64(w, "table.log_bytes_max", 0),
        .media_tokens_max = (uint32_t)wiring_u64(w, "table.media_tokens_max", 0),
    };

    table_init(t, &limits);
    for (int role = 0; role < ROLE_COUNT; role++) {
        const struct segment_hdr *h = (const struct segment_hdr *)s->segment[role];
        t->base[role] = NULL;
        if (!h || t->stride[role] == 0) continue;
        const uint64_t board_bytes = role == ROLE_LAUNCHER ? LAUNCHER_BOARD_BYTES : 0;
        if (h->slot_stride != t->stride[role] || h->slot_count != limits.slot_count || limits.slot_count == 0 ||
            h->bytes < h->slots_offset + board_bytes + h->slot_stride * h->slot_count)
            stage_exit(s, EXIT_CONFIG, "the slots of %s do not have the size this executable computes: use executables of one build", role_name(role));
        t->base[role] = s->segment[role] + h->slots_offset + board_bytes;
        if (role == ROLE_LAUNCHER) t->board = (struct launcher_board *)(s->segment[role] + h->slots_offset);
    }
}
