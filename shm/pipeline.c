/* shm/pipeline.c - the topology: who writes which ring, and where it lies. */
#include "shm/pipeline.h"

#include "shm/error.h"
#include "shm/must.h"

#include <string.h>

static const char *const role_names[ROLE_COUNT] = {
    [ROLE_LAUNCHER] = "launcher", [ROLE_KEEPER] = "keeper", [ROLE_GATEWAY] = "gateway", [ROLE_TOKENIZE] = "tokenize",
    [ROLE_PREFILL] = "prefill",   [ROLE_DRAFT] = "draft",   [ROLE_VERIFY] = "verify",   [ROLE_DETOKENIZE] = "detokenize",
    [ROLE_VISION] = "vision",     [ROLE_FETCH] = "fetch",
};

static const struct ring_edge edges[RING_COUNT] = {
    [RING_GATEWAY_TOKENIZE] = {"gateway-tokenize", ROLE_GATEWAY, ROLE_TOKENIZE},
    [RING_GATEWAY_VERIFY] = {"gateway-verify", ROLE_GATEWAY, ROLE_VERIFY},
    [RING_TOKENIZE_GATEWAY] = {"tokenize-gateway", ROLE_TOKENIZE, ROLE_GATEWAY},
    [RING_TOKENIZE_PREFILL] = {"tokenize-prefill", ROLE_TOKENIZE, ROLE_PREFILL},
    [RING_PREFILL_VERIFY] = {"prefill-verify", ROLE_PREFILL, ROLE_VERIFY},
    [RING_VERIFY_PREFILL] = {"verify-prefill", ROLE_VERIFY, ROLE_PREFILL},
    [RING_VERIFY_DRAFT] = {"verify-draft", ROLE_VERIFY, ROLE_DRAFT},
    [RING_DRAFT_VERIFY] = {"draft-verify", ROLE_DRAFT, ROLE_VERIFY},
    [RING_VERIFY_DETOKENIZE] = {"verify-detokenize", ROLE_VERIFY, ROLE_DETOKENIZE},
    [RING_DETOKENIZE_VERIFY] = {"detokenize-verify", ROLE_DETOKENIZE, ROLE_VERIFY},
    [RING_DETOKENIZE_GATEWAY] = {"detokenize-gateway", ROLE_DETOKENIZE, ROLE_GATEWAY},
    [RING_GATEWAY_VISION] = {"gateway-vision", ROLE_GATEWAY, ROLE_VISION},
    [RING_VISION_TOKENIZE] = {"vision-tokenize", ROLE_VISION, ROLE_TOKENIZE},
};

const char *role_name(int role)
{
    return role >= 0 && role < ROLE_COUNT ? role_names[role] : NULL;
}

int role_from_name(const char *name)
{
    for (int role = 0; role < ROLE_COUNT; role++)
        if (strcmp(name, role_names[role]) == 0) return role;
    return -E_NOT_FOUND;
}

const struct ring_edge *ring_edge(int ring)
{
    must(ring >= 0 && ring < RING_COUNT);
    return &edges[ring];
}

/* Walks the rings of a role in the order of their ids; stops before `until` on the given side. */
static uint64_t walk(int role, int until, int until_consumer)
{
    uint64_t offset = SEGMENT_RINGS_OFFSET;

    for (int ring = 0; ring < RING_COUNT; ring++) {
        if ((int)edges[ring].producer == role) {
            if (ring == until && !until_consumer) return offset;
            offset += sizeof(struct ring_producer);
        }
        if ((int)edges[ring].consumer == role) {
            if (ring == until && until_consumer) return offset;
            offset += sizeof(struct ring_consumer);
        }
    }
    return offset;
}

uint64_t ring_producer_offset(int ring)
{
    return walk(ring_edge(ring)->producer, ring, 0);
}

uint64_t ring_consumer_offset(int ring)
{
    return walk(ring_edge(ring)->consumer, ring, 1);
}

uint64_t segment_slots_offset(int role)
{
    return (walk(role, -1, 0) + 4095) & ~(uint64_t)4095;
}
