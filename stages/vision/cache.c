/* stages/vision/cache.c - see cache.h. */
#include "stages/vision/cache.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void cache_key(const struct media_file_hdr *hdr, const uint8_t *data, uint8_t key[SHA256_BYTES])
{
    struct sha256 s;

    sha256_begin(&s);
    sha256_add(&s, hdr, sizeof *hdr);
    sha256_add(&s, data, hdr->bytes);
    sha256_end(&s, key);
}

const struct cache_entry *cache_find(struct cache *c, const uint8_t key[SHA256_BYTES])
{
    for (struct cache_entry **at = &c->first, *e; (e = *at); at = &e->next) {
        if (memcmp(e->key, key, SHA256_BYTES) != 0) continue;
        *at = e->next;
        e->next = c->first;
        return c->first = e;
    }
    return NULL;
}

static void drop_last(struct cache *c)
{
    struct cache_entry **at = &c->first, *e;

    while ((*at)->next) at = &(*at)->next;
    e = *at;
    *at = NULL;
    c->bytes -= e->bytes;
    munmap(e->data, e->bytes);
    free(e);
}

void cache_clear(struct cache *c)
{
    while (c->first) drop_last(c);
}

void cache_put(struct cache *c, const uint8_t key[SHA256_BYTES], const struct media_item *item, const uint8_t *data, uint64_t bytes)
{
    if (bytes == 0 || bytes > c->bytes_max || cache_find(c, key)) return;
    while (c->bytes > c->bytes_max - bytes) drop_last(c);
    struct cache_entry *e = malloc(sizeof *e);
    void *copy = e ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
    if (copy == MAP_FAILED || madvise(copy, bytes, MADV_DONTFORK) != 0) { /* no memory, no cache */
        if (copy != MAP_FAILED) munmap(copy, bytes);
        free(e);
        return;
    }
    memcpy(copy, data, bytes);
    *e = (struct cache_entry){.next = c->first, .item = *item, .bytes = bytes, .data = copy};
    memcpy(e->key, key, SHA256_BYTES);
    c->first = e;
    c->bytes += bytes;
}
