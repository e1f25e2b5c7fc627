/* schemas/table.h - the sequence table: what each stage commits about each request.
 *
 * A request lives in one slot, under one generation. Slot s consists of one record
 * per role, each in the role's own segment, written by that role alone:
 *
 *   gateway     the request: parameters, messages (msgpack), cancel flag
 *   vision      pictures and sound as the model takes them in (only when the model does: else the role has no slots)
 *   tokenize    prompt token ids, or why the request was refused
 *   prefill     KV page tables; how many prompt tokens are in the KV cache
 *   verify      the committed output tokens: the truth of the stream
 *   detokenize  the log: text, reasoning and tool-call deltas, in the order clients see them
 *   launcher    verdicts: which requests killed a stage
 *
 * Commit words are u64 = generation << 32 | value, stored with release after the
 * data they cover, loaded with acquire. A word of another generation says nothing
 * about this one. Generations of a slot only grow; 0 means never used.
 *
 * Life of a slot: gateway commits REQUESTED -> (vision commits its pictures and sound) -> tokenize commits its prompt (or a
 * refusal: the end) -> prefill assigns pages, fills, hands over -> verify commits
 * tokens and then a finish reason (the pages are free) -> detokenize commits a
 * LOG_END record. The gateway may give the slot to the next request when
 * slot_is_over() and nobody wants its log any more. Cancellation, quarantine and
 * deadlines go the same way: verify commits a finish reason, detokenize ends the log.
 *
 * A redone step writes the same bytes, so any stage may be killed anywhere. */
#ifndef SLUICE_SCHEMAS_TABLE_H
#define SLUICE_SCHEMAS_TABLE_H

#include "model/sampler.h" /* struct sampling_params: fixed-width, no pointers */
#include "schemas/media.h"
#include "shm/atomic.h"
#include "shm/pipeline.h"

#include <stdbool.h>

#define STOP_STRINGS_MAX 16u
#define STOP_STRING_BYTES 256u
#define STOP_TOKENS_MAX 16u
#define RESPONSE_ID_BYTES 64u
#define ERROR_TEXT_BYTES 512u
#define LOGPROBS_TOP_MAX SAMPLER_LOGPROBS_MAX
#define DRAFT_POSITIONS_MAX 16u

static inline uint64_t word_pack(uint32_t generation, uint32_t value) { return (uint64_t)generation << 32 | value; }
static inline uint32_t word_generation(uint64_t word) { return (uint32_t)(word >> 32); }
static inline uint32_t word_value(uint64_t word) { return (uint32_t)word; }

/* The value of a commit word if it speaks of `generation`, else 0. Acquire. */
static inline uint32_t word_for(const uint64_t *word, uint32_t generation)
{
    const uint64_t w = shm_load_acquire(word);

    return word_generation(w) == generation ? word_value(w) : 0;
}

/* ---- gateway ---------------------------------------------------------------- */

enum slot_phase {
    PHASE_FREE = 0,      /* nobody's */
    PHASE_REQUESTED = 1, /* params and request are whole: stages may work */
    PHASE_CLOSED = 2     /* over; the record is kept for resume and previous_response_id until the slot is needed */
};

enum request_flag {
    REQUEST_IGNORE_EOS = 1,    /* end-of-sequence tokens do not end the output */
    REQUEST_RAW_PROMPT = 2,    /* "prompt" in the request is text or token ids: no chat template */
    REQUEST_RAW_OUTPUT = 4,    /* all output is text: no reasoning, no tool calls */
    REQUEST_PREFILL_ONLY = 8,  /* generate nothing: fill the KV cache and finish */
    REQUEST_SPECIAL_TEXT = 16, /* with RAW_OUTPUT: print special tokens as their text */
    REQUEST_NO_BOS = 32,       /* with RAW_PROMPT, text: nothing is put in front of it */
    REQUEST_ONE_CALL = 64      /* the output ends with its first tool call */
};

struct request_params {
    struct sampling_params sampling;
    uint32_t max_tokens; /* 0: as many as the context holds */
    uint32_t flags;      /* enum request_flag */
    uint32_t stop_token_count;
    uint32_t stop_tokens[STOP_TOKENS_MAX];
    uint32_t stop_count;
    uint32_t stop_bytes[STOP_STRINGS_MAX];
    char stop[STOP_STRINGS_MAX][STOP_STRING_BYTES];
    uint32_t is_salted; /* 1: shares what the KV cache has of its prompt only with requests of the same salt */
    uint8_t cache_salt[32]; /* SHA-256 of it */
};

struct gateway_slot {
    uint64_t commit; /* generation | enum slot_phase */
    uint8_t pad0[120];
    uint64_t cancel; /* generation | 1 once nobody wants the output any more */
    uint8_t pad1[120];
    uint64_t order;       /* admission number: first come, first prefilled; only grows, from 1 */
    uint64_t accepted_ns; /* CLOCK_MONOTONIC */
    uint64_t created_s;   /* seconds since 1970 */
    uint64_t key_hash;    /* of the API key that asked; 0 without keys */
    char id[RESPONSE_ID_BYTES];
    struct request_params params;
    uint64_t request_bytes; /* msgpack map (schemas/chat_request.md) at table.request_offset of this record */
    uint64_t record_bytes;  /* all of the variable part: the request, the gateway's notes, media */
    uint64_t media_offset;  /* of the first file, from table.request_offset (schemas/media.h) */
    uint32_t media_count;   /* files; 0: the request is text */
    uint32_t pad2;
};

/* ---- vision ------------------------------------------------------------------ */

struct vision_slot {
    uint64_t commit; /* generation | enum media_status, after everything below; only when the request has media */
    uint8_t pad0[120];
    uint32_t count;  /* items, in the order of the request; one to a file, or more (media_item.file) */
    uint32_t tokens; /* soft tokens of all */
    uint64_t bytes;  /* of data */
    uint64_t done_ns;
    uint32_t area;   /* below slot_count: behind whose record the data lies; it is this request's until prefill has read it */
    uint32_t pad1;
    char error_text[ERROR_TEXT_BYTES];
    struct media_item item[MEDIA_ITEMS_MAX];
    /* an area at table.media_offset: media_tokens_max * MEDIA_TOKEN_BYTES */
};

/* ---- tokenize --------------------------------------------------------------- */

enum prompt_status {
    PROMPT_NONE = 0,
    PROMPT_READY = 1,
    PROMPT_TEMPLATE_ERROR = 2, /* the chat template refused the messages: error_text has its words */
    PROMPT_TOO_LONG = 3,       /* more tokens than the context holds */
    PROMPT_EMPTY = 4,
    PROMPT_BAD_TOKEN = 5,      /* a given token id is outside the vocabulary */
    PROMPT_MALFORMED = 6,      /* the request record cannot be read */
    PROMPT_FAILED = 7,         /* quarantined: this request killed the stage */
    PROMPT_MEDIA_BAD = 8,      /* vision refused a file: error_text has its words */
    PROMPT_MEDIA_LARGE = 9,    /* the same: too many pixels, seconds or soft tokens */
    PROMPT_MEDIA_FAILED = 10   /* the same: the server's fault */
};

struct tokenize_slot {
    uint64_t commit; /* generation | enum prompt_status, after everything below */
    uint8_t pad0[120];
    uint32_t prompt_count; /* tokens */
    uint32_t max_output;   /* tokens: min(max_tokens, context - prompt_count) */
    uint64_t done_ns;
    char error_text[ERROR_TEXT_BYTES];
    uint32_t media_count; /* of vision's items; item i fills the prompt from media_first[i] on */
    uint32_t media_first[MEDIA_ITEMS_MAX];
    uint32_t pad1;
    /* uint32_t tokens[context_max] at table.prompt_offset */
};

/* ---- prefill: owner of the KV pages ------------------------------------------ */

struct prefill_slot {
    uint64_t pages; /* generation | 1 once the page tables below are whole and ours */
    uint8_t pad0[120];
    uint64_t filled; /* generation | prompt tokens whose K and V are in the cache */
    uint8_t pad1[120];
    uint64_t ready; /* generation | 1: handed over to verify (the whole prompt is in the cache, the state of its last token in arena.states) */
    uint8_t pad2[120];
    uint32_t full_page_count;
    uint32_t sliding_page_count;
    uint64_t started_ns;
    uint64_t done_ns;
    uint32_t cached_tokens; /* of the prompt, that were in the KV cache already */
    uint32_t pad3;
    /* uint32_t full_pages[full_pages_max], sliding_pages[sliding_pages_max] at table.full_pages_offset, sliding_pages_offset */
};

/* ---- verify: the only one who decides tokens --------------------------------- */

enum finish_reason {
    FINISH_NONE = 0,
    FINISH_EOS = 1,         /* the model ended its turn; the ending token is committed as the last one */
    FINISH_LENGTH = 2,      /* max_output reached */
    FINISH_CANCELLED = 3,   /* the gateway's cancel flag */
    FINISH_STOP_STRING = 4, /* detokenize saw a stop string */
    FINISH_STOP_TOKEN = 5,  /* one of stop_tokens; committed as the last token */
    FINISH_FAILED = 6,      /* quarantined: this request killed a stage twice */
    FINISH_PREFILLED = 7    /* REQUEST_PREFILL_ONLY: nothing was generated */
};

struct verify_slot {
    uint64_t commit; /* generation | committed output tokens */
    uint8_t pad0[120];
    uint64_t finish; /* generation | enum finish_reason: after the last commit. From now on verify touches nothing of this slot */
    uint8_t pad1[120];
    uint64_t first_ns; /* CLOCK_MONOTONIC: first and last commit */
    uint64_t last_ns;
    uint32_t rounds;   /* steps this sequence took part in */
    uint32_t drafted;  /* draft tokens scored */
    uint32_t accepted; /* of them, accepted */
    uint32_t pad2;
    uint32_t drafted_at[DRAFT_POSITIONS_MAX]; /* per position in the block */
    uint32_t accepted_at[DRAFT_POSITIONS_MAX];
    /* uint32_t tokens[context_max] at table.output_offset
     * struct token_logprobs logprobs[context_max] at table.logprobs_offset: written only when asked for */
};

struct token_logprobs {
    float logprob;      /* of the token itself */
    uint32_t top_count; /* <= LOGPROBS_TOP_MAX */
    uint32_t top_token[LOGPROBS_TOP_MAX];
    float top_logprob[LOGPROBS_TOP_MAX];
};

/* ---- detokenize --------------------------------------------------------------- */

enum log_type {
    LOG_REASONING = 1, /* payload: UTF-8 */
    LOG_TEXT = 2,      /* payload: UTF-8 */
    LOG_TOOL_BEGIN = 3, /* payload: function name */
    LOG_TOOL_ARGS = 4,  /* payload: a piece of the arguments' JSON text */
    LOG_TOOL_END = 5,   /* no payload */
    LOG_END = 6         /* payload: struct log_end; nothing follows */
};

struct log_record {
    uint32_t bytes;  /* payload bytes; the next record begins at the next multiple of 8 */
    uint32_t type;   /* enum log_type */
    uint32_t tokens; /* output tokens consumed when its last byte came: a function of the tokens, not of rounds; where a restarted detokenize goes on */
    uint32_t pad;
};

struct log_end {
    uint32_t finish;           /* enum finish_reason */
    uint32_t output_tokens;    /* usage: up to and with the token that ended the output */
    uint32_t reasoning_tokens; /* of them, inside reasoning */
    uint32_t tool_calls;
};

struct detokenize_slot {
    uint64_t commit; /* generation | committed log bytes */
    uint8_t pad0[120];
    uint64_t stop; /* generation | 1: a stop string was seen; verify ends the sequence */
    uint8_t pad1[120];
    uint64_t over; /* generation | 1: LOG_END is committed */
    uint8_t pad2[120];
    uint64_t thinking; /* generation | 1: the newest tokens are reasoning, not answer. For statistics: it lags behind the tokens */
    uint8_t pad3[120];
    /* the log at table.log_offset: log_bytes_max bytes */
};

/* ---- launcher ------------------------------------------------------------------ */

enum pipeline_phase { PIPELINE_STARTING = 0, PIPELINE_SERVING = 1, PIPELINE_DRAINING = 2, PIPELINE_STOPPING = 3 };

struct launcher_board { /* at slots_offset of the launcher's segment, before its slots */
    uint64_t phase; /* enum pipeline_phase */
    uint8_t pad0[120];
    uint64_t started_ns;
    uint64_t restarts[ROLE_COUNT];   /* deaths since start */
    uint64_t pid[ROLE_COUNT];        /* 0: not running */
    uint64_t up_since_ns[ROLE_COUNT]; /* 0: not ready */
};
#define LAUNCHER_BOARD_BYTES 4096u
static_assert(sizeof(struct launcher_board) <= LAUNCHER_BOARD_BYTES, "board fits its page");

struct launcher_slot {
    uint64_t strikes; /* generation | stage deaths this request was suspected of; > 0: run it alone for suspect_steps() */
    uint8_t pad0[56];
    uint64_t verdict; /* generation | 1 + role that it killed while alone: nobody touches it again (draft: only draft does not) */
    uint8_t pad1[56];
};

/* ---- where things lie ------------------------------------------------------------ */

struct table_limits { /* chosen by the launcher from configuration and model, the same for all */
    uint32_t slot_count;
    uint32_t context_max;       /* tokens: prompt + output */
    uint32_t request_bytes_max; /* msgpack */
    uint32_t full_pages_max;    /* per sequence */
    uint32_t sliding_pages_max;
    uint32_t log_bytes_max;
    uint32_t media_tokens_max; /* soft tokens of one request; 0: the model takes text alone */
};

struct table {
    struct table_limits limits;
    uint8_t *base[ROLE_COUNT]; /* first slot record; only our own role's is writable. Borrowed from the mappings */
    uint64_t stride[ROLE_COUNT];
    struct launcher_board *board;
    uint64_t request_offset, prompt_offset, full_pages_offset, sliding_pages_offset, output_offset, logprobs_offset, log_offset, media_offset;
};

/* Steps that a suspect with so many strikes is run alone. */
static inline uint32_t suspect_steps(uint32_t strikes) { return 1u << (strikes < 6 ? 2 * strikes : 12); }

/* Bytes of one slot record of `role` (0: the role has none): a multiple of 4096, of the launcher's 128. */
uint64_t table_stride(const struct table_limits *limits, int role);

/* Fills offsets and strides; the caller sets base[] and board. */
void table_init(struct table *t, const struct table_limits *limits);

/* Bytes of log that context_max tokens may need. */
uint32_t table_log_bytes(uint32_t context_max);

struct stage;

/* Limits from the wiring, bases from the mapped segments. Exits through stage_exit() when the launcher's figures and
 * the segments do not agree. */
void table_attach(struct table *t, struct stage *s);

#define TABLE_SLOT(t, ROLE, type, s) ((struct type *)((t)->base[ROLE] + (uint64_t)(s) * (t)->stride[ROLE]))
static inline struct gateway_slot *table_gateway(const struct table *t, uint32_t s) { return TABLE_SLOT(t, ROLE_GATEWAY, gateway_slot, s); }
static inline struct tokenize_slot *table_tokenize(const struct table *t, uint32_t s) { return TABLE_SLOT(t, ROLE_TOKENIZE, tokenize_slot, s); }
static inline struct prefill_slot *table_prefill(const struct table *t, uint32_t s) { return TABLE_SLOT(t, ROLE_PREFILL, prefill_slot, s); }
static inline struct verify_slot *table_verify(const struct table *t, uint32_t s) { return TABLE_SLOT(t, ROLE_VERIFY, verify_slot, s); }
static inline struct detokenize_slot *table_detokenize(const struct table *t, uint32_t s) { return TABLE_SLOT(t, ROLE_DETOKENIZE, detokenize_slot, s); }
static inline struct launcher_slot *table_launcher(const struct table *t, uint32_t s) { return TABLE_SLOT(t, ROLE_LAUNCHER, launcher_slot, s); }

static inline struct vision_slot *table_vision(const struct table *t, uint32_t s) { return TABLE_SLOT(t, ROLE_VISION, vision_slot, s); }

static inline uint8_t *table_request(const struct table *t, uint32_t s) { return (uint8_t *)table_gateway(t, s) + t->request_offset; }
static inline uint32_t *table_prompt(const struct table *t, uint32_t s) { return (uint32_t *)((uint8_t *)table_tokenize(t, s) + t->prompt_offset); }
static inline uint32_t *table_full_pages(const struct table *t, uint32_t s) { return (uint32_t *)((uint8_t *)table_prefill(t, s) + t->full_pages_offset); }
static inline uint32_t *table_sliding_pages(const struct table *t, uint32_t s) { return (uint32_t *)((uint8_t *)table_prefill(t, s) + t->sliding_pages_offset); }
static inline uint32_t *table_output(const struct table *t, uint32_t s) { return (uint32_t *)((uint8_t *)table_verify(t, s) + t->output_offset); }
static inline struct token_logprobs *table_logprobs(const struct table *t, uint32_t s) { return (struct token_logprobs *)((uint8_t *)table_verify(t, s) + t->logprobs_offset); }
static inline uint8_t *table_media_area(const struct table *t, uint32_t area) { return (uint8_t *)table_vision(t, area) + t->media_offset; }
static inline uint8_t *table_media(const struct table *t, uint32_t s) { return table_media_area(t, table_vision(t, s)->area); } /* of a request that has data */
static inline uint8_t *table_log(const struct table *t, uint32_t s) { return (uint8_t *)table_detokenize(t, s) + t->log_offset; }

/* Generation of slot s if a request lives in it (PHASE_REQUESTED), else 0. Acquire: the request record is whole. */
static inline uint32_t slot_live(const struct table *t, uint32_t s)
{
    const uint64_t w = shm_load_acquire(&table_gateway(t, s)->commit);

    return word_value(w) == PHASE_REQUESTED ? word_generation(w) : 0;
}

/* The same also after the gateway has closed its side (PHASE_CLOSED): what a stage that frees or ends things goes by. */
static inline uint32_t slot_occupied(const struct table *t, uint32_t s)
{
    const uint64_t w = shm_load_acquire(&table_gateway(t, s)->commit);

    return word_value(w) != PHASE_FREE ? word_generation(w) : 0;
}

/* True when the request should not be worked on any more: cancelled, or convicted by the launcher (of killing
 * any stage but draft, which can simply be left out). */
static inline bool slot_is_unwanted(const struct table *t, uint32_t s, uint32_t generation)
{
    const uint32_t verdict = word_for(&table_launcher(t, s)->verdict, generation);

    return word_for(&table_gateway(t, s)->cancel, generation) || (verdict && verdict != 1 + ROLE_DRAFT);
}

/* True when no stage will touch this generation of the slot again, except detokenize and gateway with its log. */
static inline bool slot_is_over(const struct table *t, uint32_t s, uint32_t generation)
{
    const uint32_t prompt = word_for(&table_tokenize(t, s)->commit, generation);

    return prompt > PROMPT_READY || word_for(&table_verify(t, s)->finish, generation) != FINISH_NONE;
}

#endif
