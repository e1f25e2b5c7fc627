/* tests/unit/front_table.h - a sequence table in plain memory, with one request in slot 0, for tests of what the gateway
 * derives from it. Included by one test program each. */
#ifndef SLUICE_TESTS_FRONT_TABLE_H
#define SLUICE_TESTS_FRONT_TABLE_H

#include "schemas/pack.h"
#include "schemas/table.h"
#include "schemas/view.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GENERATION 7u
#define CONTEXT 512u

struct fake {
    struct table table;
    uint32_t log_bytes;
};

static inline void fake_open(struct fake *k)
{
    const struct table_limits limits = {.slot_count = 2, .context_max = CONTEXT, .request_bytes_max = 65536, .full_pages_max = 4, .sliding_pages_max = 4,
                                        .log_bytes_max = table_log_bytes(CONTEXT)};

    memset(k, 0, sizeof *k);
    table_init(&k->table, &limits);
    for (int role = 0; role < ROLE_COUNT; role++)
        if (k->table.stride[role]) k->table.base[role] = calloc(limits.slot_count, k->table.stride[role]);
}

static inline void fake_close(struct fake *k)
{
    for (int role = 0; role < ROLE_COUNT; role++) free(k->table.base[role]);
}

static inline void fake_request(struct fake *k, const char *id, const char *meta, const char *chat)
{
    struct gateway_slot *g = table_gateway(&k->table, 0);
    json_t *body = json_loads(chat, 0, NULL);
    msgpack_sbuffer record;

    msgpack_sbuffer_init(&record);
    g->request_bytes = pack_record(&record, meta, strlen(meta), body);
    memcpy(table_request(&k->table, 0), record.data, record.size);
    msgpack_sbuffer_destroy(&record);
    json_decref(body);
    snprintf(g->id, sizeof g->id, "%s", id);
    g->created_s = 1700000000;
    g->accepted_ns = 1000000;
    g->commit = word_pack(GENERATION, PHASE_REQUESTED);
}

static inline void fake_prompt(struct fake *k, uint32_t tokens)
{
    struct tokenize_slot *t = table_tokenize(&k->table, 0);

    for (uint32_t i = 0; i < tokens; i++) table_prompt(&k->table, 0)[i] = 100 + i;
    t->prompt_count = tokens;
    t->commit = word_pack(GENERATION, PROMPT_READY);
}

static inline void fake_refuse(struct fake *k, enum prompt_status status, const char *text)
{
    struct tokenize_slot *t = table_tokenize(&k->table, 0);

    snprintf(t->error_text, sizeof t->error_text, "%s", text);
    t->commit = word_pack(GENERATION, status);
}

/* Appends a record as detokenize does; `tokens` output tokens are behind it. */
static inline void fake_log(struct fake *k, enum log_type type, const void *payload, uint32_t bytes, uint32_t tokens)
{
    const struct log_record r = {.bytes = bytes, .type = type, .tokens = tokens};
    uint8_t *at = table_log(&k->table, 0) + k->log_bytes;

    memcpy(at, &r, sizeof r);
    if (bytes) memcpy(at + sizeof r, payload, bytes);
    k->log_bytes += (uint32_t)sizeof r + ((bytes + 7) & ~7u);
    table_verify(&k->table, 0)->commit = word_pack(GENERATION, tokens);
    table_detokenize(&k->table, 0)->commit = word_pack(GENERATION, k->log_bytes);
}

static inline void fake_text(struct fake *k, enum log_type type, const char *text, uint32_t tokens)
{
    fake_log(k, type, text, (uint32_t)strlen(text), tokens);
}

static inline void fake_end(struct fake *k, enum finish_reason finish, uint32_t tokens, uint32_t reasoning, uint32_t calls)
{
    const struct log_end end = {.finish = finish, .output_tokens = tokens, .reasoning_tokens = reasoning, .tool_calls = calls};

    fake_log(k, LOG_END, &end, sizeof end, tokens);
    table_verify(&k->table, 0)->finish = word_pack(GENERATION, finish);
    table_detokenize(&k->table, 0)->over = word_pack(GENERATION, 1);
}

#endif
