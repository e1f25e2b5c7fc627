/* stages/prefill/prompt.c - what a page of a prompt is, as the table has it (contract in prompt.h). */
#include "stages/prefill/prompt.h"

#include "schemas/sha256.h"

#include <string.h>

_Static_assert(SHA256_BYTES == PREFIX_MARK_WORDS * sizeof(uint64_t), "a mark is a hash");

static bool is_picture(const struct media_item *item) { return item->kind != MEDIA_SOUND; }

bool prompt_cuts_picture(const struct table *table, uint32_t slot, uint32_t position)
{
    const struct tokenize_slot *t = table_tokenize(table, slot);

    for (uint32_t i = 0; i < t->media_count; i++) {
        const struct media_item *item = &table_vision(table, slot)->item[i];
        if (is_picture(item) && t->media_first[i] < position && position - t->media_first[i] < item->tokens) return true;
    }
    return false;
}

/* The content of an item is known by the hash of its file; a vision stage that gives none (zeros) keeps its pictures to itself. */
static bool is_identified(const struct media_item *item)
{
    static const uint8_t none[sizeof item->content];

    return memcmp(item->content, none, sizeof none) != 0;
}

uint32_t prompt_known_pages(const struct table *table, uint32_t slot, uint32_t tokens)
{
    const struct tokenize_slot *t = table_tokenize(table, slot);

    for (uint32_t i = 0; i < t->media_count; i++)
        if (t->media_first[i] < tokens && !is_identified(&table_vision(table, slot)->item[i])) tokens = t->media_first[i];
    return tokens / KV_PAGE_TOKENS;
}

/* Which piece of its file item i is. */
static uint32_t part_of(const struct media_item *items, uint32_t i)
{
    uint32_t part = 0;

    while (part < i && items[i - part - 1].file == items[i].file) part++;
    return part;
}

void prompt_page(const struct table *table, uint32_t slot, uint32_t index, struct prefix_page *page)
{
    const struct tokenize_slot *t = table_tokenize(table, slot);
    const struct request_params *params = &table_gateway(table, slot)->params;
    const uint32_t first = index * KV_PAGE_TOKENS, end = first + KV_PAGE_TOKENS;
    struct sha256 hash;
    bool marked = index == 0 && params->is_salted;

    sha256_begin(&hash);
    if (marked) sha256_add(&hash, params->cache_salt, sizeof params->cache_salt);
    for (uint32_t i = 0; i < t->media_count; i++) {
        const struct media_item *items = table_vision(table, slot)->item, *item = &items[i];
        const uint32_t place[] = {item->kind, item->tokens, item->columns, part_of(items, i), first - t->media_first[i]};
        if (t->media_first[i] >= end || t->media_first[i] + item->tokens <= first) continue;
        sha256_add(&hash, place, sizeof place);
        sha256_add(&hash, item->content, sizeof item->content);
        marked = true;
    }
    memset(page->mark, 0, sizeof page->mark);
    if (marked) sha256_end(&hash, (uint8_t *)page->mark);
    memcpy(page->token, table_prompt(table, slot) + first, sizeof page->token);
}
