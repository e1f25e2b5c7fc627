/* stages/vision/cache.h - results of files that were decoded before, by the hash of their content.
 *
 * A conversation sends its pictures again with every turn; so does everybody who asks about the same one. The key is SHA-256 over kind, budget and bytes: no
 * client can make another file that is taken for it. Private memory of the main process, which no worker inherits; lost with the process, and nothing is lost by that.
 * The longest unused go first. */
#ifndef SLUICE_VISION_CACHE_H
#define SLUICE_VISION_CACHE_H

#include "schemas/media.h"
#include "schemas/sha256.h"

struct cache_entry {
    struct cache_entry *next;         /* owned by the cache; most recently used first */
    uint8_t key[SHA256_BYTES];
    struct media_item item;           /* offset is unused */
    uint64_t bytes;
    uint8_t *data;                    /* owned: a mapping that children do not get */
};

struct cache {
    struct cache_entry *first;
    uint64_t bytes, bytes_max;        /* bytes_max 0: nothing is kept */
};

void cache_key(const struct media_file_hdr *hdr, const uint8_t *data, uint8_t key[SHA256_BYTES]);
/* Borrowed until the next call of cache_put; NULL: not here. */
const struct cache_entry *cache_find(struct cache *c, const uint8_t key[SHA256_BYTES]);
void cache_put(struct cache *c, const uint8_t key[SHA256_BYTES], const struct media_item *item, const uint8_t *data, uint64_t bytes);
void cache_clear(struct cache *c);

#endif
