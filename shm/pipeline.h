/* shm/pipeline.h - the processes of Sluice, the rings between them, and where
 * each lies in shared memory.
 *
 * Every role owns ONE segment (a memfd) that it alone may write; all others map
 * it read-only, so a wild write of a dying stage cannot reach its neighbours'
 * words. A segment holds, in this order:
 *
 *     0        struct segment_hdr     written by the launcher before the role starts, then never again
 *     4096     struct stage_status    heartbeat, slots in hand, counters, last words
 *     8192..   producer side of each ring the role writes: struct ring_producer
 *              consumer side of each ring the role reads:  struct ring_consumer
 *     slots    slot_count records of slot_stride bytes (schemas/table.h says what they are)
 *
 * The layout is a file format: change it and bump LAYOUT_VERSION. */
#ifndef SLUICE_SHM_PIPELINE_H
#define SLUICE_SHM_PIPELINE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

enum role {
    ROLE_LAUNCHER = 0,
    ROLE_KEEPER,
    ROLE_GATEWAY,
    ROLE_TOKENIZE,
    ROLE_PREFILL,
    ROLE_DRAFT,
    ROLE_VERIFY,
    ROLE_DETOKENIZE,
    ROLE_VISION,
    ROLE_FETCH,
    ROLE_COUNT
};

/* One producer, one consumer each. Messages are hints: the truth is in the sequence table. */
enum ring_id {
    RING_GATEWAY_TOKENIZE = 0, /* a request waits in slot s */
    RING_GATEWAY_VERIFY,       /* slot s was cancelled */
    RING_TOKENIZE_GATEWAY,     /* slot s was refused */
    RING_TOKENIZE_PREFILL,     /* the prompt of slot s is tokens now */
    RING_PREFILL_VERIFY,       /* the KV cache of slot s is filled up to the last prompt token */
    RING_VERIFY_PREFILL,       /* slot s is finished: its KV pages are free */
    RING_VERIFY_DRAFT,         /* slot s has n committed tokens: propose what follows */
    RING_DRAFT_VERIFY,         /* a proposal (struct ring_msg.tokens) */
    RING_VERIFY_DETOKENIZE,    /* slot s has new committed tokens, or is finished */
    RING_DETOKENIZE_VERIFY,    /* a stop string ended slot s */
    RING_DETOKENIZE_GATEWAY,   /* the log of slot s has grown */
    RING_GATEWAY_VISION,       /* slot s has pictures or sound */
    RING_VISION_TOKENIZE,      /* they are soft tokens now, or refused */
    RING_COUNT
};

#define LAYOUT_VERSION 5u
#define SEGMENT_MAGIC 0x31454349554c53ull /* "SLUICE1" */
#define RING_SLOTS 1024u                  /* power of two; more than one message per table slot and edge in normal running */
#define RING_TOKENS_MAX 12u
#define RING_DRAFTS_COME 0xffffffffu
#define RING_DRAFTS_WANTED 1u     /* in tokens[4] of RING_VERIFY_DRAFT: no question, but what rounds that are begun before they are asked for shall bring */
#define STATUS_COUNTERS 96u
#define STATUS_BUSY_MAX 128u
#define STATUS_PANIC_BYTES 256u
#define SLOTS_MAX 4096u

/* What a ring carries: look at slot `slot`, generation `generation`. 64 bytes. */
struct ring_msg {
    uint32_t slot;
    uint32_t generation;
    uint32_t base;                    /* RING_DRAFT_VERIFY: committed output tokens the proposal follows */
    uint32_t count;                   /* RING_DRAFT_VERIFY: tokens proposed, <= RING_TOKENS_MAX; RING_DRAFTS_COME: they come over the device, for the tag in tokens[0] and [1] */
    uint32_t tokens[RING_TOKENS_MAX]; /* advisory: verify checks each one */
};
static_assert(sizeof(struct ring_msg) == 64, "changed layout: bump LAYOUT_VERSION");

struct ring_producer {
    uint64_t tail; /* producer; messages ever published. Its low half is the futex that readers sleep on */
    uint8_t pad0[120];
    uint64_t lost; /* producer; messages dropped because the ring was full: the reader scans the table when it moves */
    uint8_t pad1[120];
    struct ring_msg slots[RING_SLOTS];
};
struct ring_consumer {
    uint64_t head; /* consumer; messages ever taken */
    uint8_t pad0[120];
    uint64_t sleeping; /* consumer; 1 while it may be asleep: only then does a publish cost a system call */
    uint8_t pad1[120];
};
static_assert(sizeof(struct ring_producer) == 256 + 64 * RING_SLOTS, "ring_producer");
static_assert(offsetof(struct ring_producer, lost) == 128 && sizeof(struct ring_consumer) == 256, "ring sides");

struct segment_hdr {
    uint64_t magic; /* launcher, stored last (R0) */
    uint32_t version;
    uint32_t role;
    uint64_t bytes;
    uint64_t slots_offset;
    uint64_t slot_stride; /* bytes */
    uint32_t slot_count;
    uint32_t pad;
};

enum stage_state { STAGE_STATE_NONE = 0, STAGE_STATE_STARTING = 1, STAGE_STATE_READY = 2, STAGE_STATE_STOPPING = 3 };

struct stage_status { /* all written by the role itself */
    uint64_t heartbeat; /* only grows; the launcher kills a stage whose heartbeat stands still */
    uint8_t pad0[120];
    uint64_t pid;
    uint64_t state;      /* enum stage_state */
    uint64_t started_ns; /* CLOCK_MONOTONIC */
    uint64_t attached;   /* how many processes have served this role so far */
    uint8_t pad1[96];
    uint64_t busy_count; /* slots in hand: the suspects if the process dies now */
    uint32_t busy_slot[STATUS_BUSY_MAX];
    uint32_t busy_generation[STATUS_BUSY_MAX];
    char panic[STATUS_PANIC_BYTES]; /* last words; "" means it did not see its death coming */
    uint64_t counters[STATUS_COUNTERS]; /* meaning per role: schemas/counters.h */
};

#define SEGMENT_STATUS_OFFSET 4096u
#define SEGMENT_RINGS_OFFSET 8192u
static_assert(sizeof(struct segment_hdr) <= SEGMENT_STATUS_OFFSET, "header fits its page");
static_assert(sizeof(struct stage_status) <= SEGMENT_RINGS_OFFSET - SEGMENT_STATUS_OFFSET, "status fits its page");

struct ring_edge {
    const char *name;
    enum role producer, consumer;
};

/* Name of a role ("verify"), or NULL when out of range; role of a name, or -E_NOT_FOUND. */
const char *role_name(int role);
int role_from_name(const char *name);

/* Static description of a ring; `ring` < RING_COUNT. */
const struct ring_edge *ring_edge(int ring);

/* Offsets inside the segment of the ring's producer / consumer. */
uint64_t ring_producer_offset(int ring);
uint64_t ring_consumer_offset(int ring);

/* First byte after the rings of a role: a multiple of 4096, where its slots begin. */
uint64_t segment_slots_offset(int role);

#endif
