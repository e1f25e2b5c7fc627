/* schemas/metrics.c - what /metrics and /health say.
 *
 * Reads memory only: our counters, those of the other stages, the launcher's board. A
 * scrape never waits for anybody. Histograms live in our stage_status, so a new gateway
 * goes on counting where the last one stopped. */
#include "schemas/front.h"

#include "schemas/counters.h"

#include <stdio.h>
#include <string.h>

#define BUCKETS 9u /* finite upper bounds; one more counts what lies above, one more the sum in microseconds */
#define HISTOGRAM_WORDS (BUCKETS + 2)
static_assert(GATEWAY_HISTOGRAMS + HISTOGRAM_COUNT * HISTOGRAM_WORDS <= STATUS_COUNTERS, "histograms fit the counters of a stage");

struct histogram_shape {
    const char *name, *help;
    uint32_t bound_us[BUCKETS];
};

#define MS 1000u
#define S 1000000u
static const struct histogram_shape shapes[HISTOGRAM_COUNT] = {
    [HISTOGRAM_TTFT] = {"time_to_first_token_seconds", "From acceptance to the first token.", {10 * MS, 25 * MS, 50 * MS, 100 * MS, 250 * MS, S, 3 * S, 10 * S, 60 * S}},
    [HISTOGRAM_INTER_TOKEN] = {"inter_token_latency_seconds", "Time between output tokens.", {1 * MS, 2500, 5 * MS, 10 * MS, 25 * MS, 50 * MS, 100 * MS, 500 * MS, 2 * S}},
    [HISTOGRAM_END_TO_END] = {"e2e_request_latency_seconds", "From acceptance to the last token.", {100 * MS, 500 * MS, S, 3 * S, 10 * S, 30 * S, 60 * S, 300 * S, 1800 * S}},
    [HISTOGRAM_QUEUE] = {"request_queue_time_seconds", "From tokenized prompt to the start of prefill.", {1 * MS, 5 * MS, 25 * MS, 100 * MS, 500 * MS, S, 5 * S, 30 * S, 120 * S}},
    [HISTOGRAM_PREFILL] = {"request_prefill_time_seconds", "Time in prefill.", {5 * MS, 25 * MS, 50 * MS, 100 * MS, 500 * MS, S, 5 * S, 30 * S, 120 * S}},
    [HISTOGRAM_DECODE] = {"request_decode_time_seconds", "From the first to the last token.", {100 * MS, 500 * MS, S, 3 * S, 10 * S, 30 * S, 60 * S, 300 * S, 1800 * S}},
};

static const char *const finish_names[] = {"none", "stop", "length", "cancelled", "stop_string", "stop_token", "failed", "prefilled"};

/* ---- observing -------------------------------------------------------------------------- */

void metrics_observe(struct front *f, enum histogram h, uint64_t ns, uint64_t times)
{
    const uint64_t us = ns / 1000;
    unsigned bucket = 0;

    while (bucket < BUCKETS && us > shapes[h].bound_us[bucket]) bucket++;
    stage_count(&f->stage, GATEWAY_HISTOGRAMS + h * HISTOGRAM_WORDS + bucket, times);
    stage_count(&f->stage, GATEWAY_HISTOGRAMS + h * HISTOGRAM_WORDS + BUCKETS + 1, us * times);
}

static void observe_between(struct front *f, enum histogram h, uint64_t from_ns, uint64_t to_ns)
{
    if (from_ns && to_ns >= from_ns) metrics_observe(f, h, to_ns - from_ns, 1);
}

void metrics_finished(struct front *f, const struct view *v)
{
    const struct gateway_slot *g = table_gateway(&f->table, v->slot);
    const struct tokenize_slot *t = table_tokenize(&f->table, v->slot);
    const struct prefill_slot *p = table_prefill(&f->table, v->slot);
    const struct verify_slot *y = table_verify(&f->table, v->slot);
    const uint32_t finish = word_for(&y->finish, v->generation), tokens = word_for(&y->commit, v->generation);

    if (finish == FINISH_NONE) {
        stage_count(&f->stage, GATEWAY_REFUSED, 1);
        return;
    }
    stage_count(&f->stage, GATEWAY_FINISHED + (finish < 8 ? finish : FINISH_FAILED), 1);
    stage_count(&f->stage, GATEWAY_PROMPT_TOKENS, view_prompt_tokens(v));
    stage_count(&f->stage, GATEWAY_OUTPUT_TOKENS, tokens);
    if (finish == FINISH_CANCELLED || finish == FINISH_FAILED || tokens == 0) return; /* their times would say nothing about service */
    observe_between(f, HISTOGRAM_TTFT, g->accepted_ns, y->first_ns);
    observe_between(f, HISTOGRAM_END_TO_END, g->accepted_ns, y->last_ns);
    observe_between(f, HISTOGRAM_QUEUE, t->done_ns, p->started_ns);
    observe_between(f, HISTOGRAM_PREFILL, p->started_ns, p->done_ns);
    observe_between(f, HISTOGRAM_DECODE, y->first_ns, y->last_ns);
}

/* ---- printing ------------------------------------------------------------------------------ */

static const struct stage_status *status_of(const struct front *f, int role)
{
    return f->stage.segment[role] ? (const struct stage_status *)(f->stage.segment[role] + SEGMENT_STATUS_OFFSET) : NULL;
}

static uint64_t counter(const struct front *f, int role, unsigned index)
{
    const struct stage_status *s = status_of(f, role);

    return s ? shm_load_relaxed(&s->counters[index]) : 0;
}

static void family(struct wire *out, const char *name, const char *type, const char *help)
{
    wire_format(out, "# HELP sluice_%s %s\n# TYPE sluice_%s %s\n", name, help, name, type);
}

static void single(struct wire *out, const char *name, const char *type, const char *help, uint64_t value)
{
    family(out, name, type, help);
    wire_format(out, "sluice_%s %llu\n", name, (unsigned long long)value);
}

static void histograms(struct front *f, struct wire *out)
{
    for (unsigned h = 0; h < HISTOGRAM_COUNT; h++) {
        const unsigned at = GATEWAY_HISTOGRAMS + h * HISTOGRAM_WORDS;
        uint64_t count = 0;

        family(out, shapes[h].name, "histogram", shapes[h].help);
        for (unsigned b = 0; b < BUCKETS; b++) {
            count += counter(f, ROLE_GATEWAY, at + b);
            wire_format(out, "sluice_%s_bucket{le=\"%g\"} %llu\n", shapes[h].name, shapes[h].bound_us[b] / 1e6, (unsigned long long)count);
        }
        count += counter(f, ROLE_GATEWAY, at + BUCKETS);
        wire_format(out, "sluice_%s_bucket{le=\"+Inf\"} %llu\nsluice_%s_sum %.6f\nsluice_%s_count %llu\n", shapes[h].name, (unsigned long long)count, shapes[h].name,
                    (double)counter(f, ROLE_GATEWAY, at + BUCKETS + 1) / 1e6, shapes[h].name, (unsigned long long)count);
    }
}

static double share(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

static void requests(struct front *f, struct wire *out)
{
    single(out, "num_requests_running", "gauge", "Requests in the pipeline.", slots_running(f));
    single(out, "num_requests_waiting", "gauge", "Requests that wait for a slot or for KV pages.", f->waiting_count + counter(f, ROLE_PREFILL, PREFILL_WAITING));
    single(out, "connections", "gauge", "Open connections.", f->connection_count);
    single(out, "websockets", "gauge", "Open WebSocket connections.", f->websocket_count);
    single(out, "connections_total", "counter", "Connections accepted.", counter(f, ROLE_GATEWAY, GATEWAY_CONNECTIONS));
    single(out, "requests_total", "counter", "Requests admitted.", counter(f, ROLE_GATEWAY, GATEWAY_REQUESTS));
    single(out, "requests_refused_total", "counter", "Requests refused with an error.", counter(f, ROLE_GATEWAY, GATEWAY_REFUSED));
    single(out, "requests_overloaded_total", "counter", "Requests refused because all slots and waiting places were taken.", counter(f, ROLE_GATEWAY, GATEWAY_OVERLOADED));
    single(out, "responses_resumed_total", "counter", "Streams taken up again after a lost connection.", counter(f, ROLE_GATEWAY, GATEWAY_RESUMED));
    single(out, "prompt_tokens_total", "counter", "Prompt tokens of ended requests.", counter(f, ROLE_GATEWAY, GATEWAY_PROMPT_TOKENS));
    single(out, "generation_tokens_total", "counter", "Output tokens of ended requests.", counter(f, ROLE_GATEWAY, GATEWAY_OUTPUT_TOKENS));
    family(out, "request_success_total", "counter", "Ended requests by finish reason.");
    for (unsigned i = 1; i < sizeof finish_names / sizeof *finish_names; i++)
        wire_format(out, "sluice_request_success_total{finished_reason=\"%s\"} %llu\n", finish_names[i], (unsigned long long)counter(f, ROLE_GATEWAY, GATEWAY_FINISHED + i));
}

static void memory_and_draft(struct front *f, struct wire *out)
{
    family(out, "kv_cache_usage_perc", "gauge", "Share of KV pages in use, 0 to 1.");
    wire_format(out, "sluice_kv_cache_usage_perc{layers=\"full\"} %.6f\n",
                share(counter(f, ROLE_PREFILL, PREFILL_FULL_PAGES_USED), counter(f, ROLE_PREFILL, PREFILL_FULL_PAGES_TOTAL)));
    wire_format(out, "sluice_kv_cache_usage_perc{layers=\"sliding\"} %.6f\n",
                share(counter(f, ROLE_PREFILL, PREFILL_SLIDING_PAGES_USED), counter(f, ROLE_PREFILL, PREFILL_SLIDING_PAGES_TOTAL)));
    single(out, "prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", counter(f, ROLE_PREFILL, PREFILL_PROMPT_TOKENS));
    single(out, "prefix_cache_hits_total", "counter", "Of them, found there and not computed again.", counter(f, ROLE_PREFILL, PREFILL_CACHED_TOKENS));
    family(out, "prefix_cache_pages", "gauge", "KV pages of prompts that are over, kept until their room is wanted.");
    wire_format(out, "sluice_prefix_cache_pages{layers=\"full\"} %llu\n", (unsigned long long)counter(f, ROLE_PREFILL, PREFILL_FULL_PAGES_KEPT));
    wire_format(out, "sluice_prefix_cache_pages{layers=\"sliding\"} %llu\n", (unsigned long long)counter(f, ROLE_PREFILL, PREFILL_SLIDING_PAGES_KEPT));
    single(out, "decode_rounds_total", "counter", "Rounds of verify.", counter(f, ROLE_VERIFY, VERIFY_ROUNDS));
    single(out, "draft_tokens_total", "counter", "Draft tokens scored.", counter(f, ROLE_VERIFY, VERIFY_DRAFTED));
    single(out, "draft_tokens_accepted_total", "counter", "Draft tokens accepted.", counter(f, ROLE_VERIFY, VERIFY_ACCEPTED));
    single(out, "draft_thinking_tokens_total", "counter", "Draft tokens scored inside reasoning.", counter(f, ROLE_VERIFY, VERIFY_THINKING_DRAFTED));
    single(out, "draft_thinking_tokens_accepted_total", "counter", "Draft tokens accepted inside reasoning.", counter(f, ROLE_VERIFY, VERIFY_THINKING_ACCEPTED));
    single(out, "draft_handed_over_total", "counter", "Steps whose drafts came over the device.", counter(f, ROLE_VERIFY, VERIFY_HANDED));
    single(out, "draft_ahead_total", "counter", "Steps whose drafts were begun before anybody asked for them.", counter(f, ROLE_VERIFY, VERIFY_AHEAD));
    single(out, "draft_unpaid_total", "counter", "Blocks scored without drafts because drafts did not pay.", counter(f, ROLE_VERIFY, VERIFY_UNPAID));
    single(out, "draft_neural_questions_total", "counter", "Questions that a neural drafter answered.", counter(f, ROLE_DRAFT, DRAFT_NEURAL));
    single(out, "draft_failed_rounds_total", "counter", "Rounds in which a neural drafter had no advice.", counter(f, ROLE_DRAFT, DRAFT_FAILED));
    family(out, "draft_position_tokens_total", "counter", "Draft tokens scored, per position in the block.");
    for (unsigned i = 0; i < DRAFT_POSITIONS_MAX; i++)
        wire_format(out, "sluice_draft_position_tokens_total{position=\"%u\"} %llu\n", i, (unsigned long long)counter(f, ROLE_VERIFY, VERIFY_DRAFTED_AT + i));
    family(out, "draft_position_accepted_total", "counter", "Draft tokens accepted, per position in the block.");
    for (unsigned i = 0; i < DRAFT_POSITIONS_MAX; i++)
        wire_format(out, "sluice_draft_position_accepted_total{position=\"%u\"} %llu\n", i, (unsigned long long)counter(f, ROLE_VERIFY, VERIFY_ACCEPTED_AT + i));
}

static void media(struct front *f, struct wire *out)
{
    if (f->table.limits.media_tokens_max == 0) return;
    single(out, "media_requests_total", "counter", "Requests with pictures or sound that the vision stage has settled.", counter(f, ROLE_VISION, VISION_REQUESTS));
    single(out, "media_refused_total", "counter", "Of them, refused for a file.", counter(f, ROLE_VISION, VISION_REFUSED));
    single(out, "media_files_total", "counter", "Pictures and sounds.", counter(f, ROLE_VISION, VISION_FILES));
    single(out, "media_files_cached_total", "counter", "Of them, known from before.", counter(f, ROLE_VISION, VISION_CACHED));
    single(out, "media_files_fetched_total", "counter", "Pictures that were asked for by their address.", counter(f, ROLE_VISION, VISION_FETCHED));
    single(out, "media_soft_tokens_total", "counter", "Soft tokens made.", counter(f, ROLE_VISION, VISION_TOKENS));
    single(out, "media_worker_deaths_total", "counter", "Decoders that died at work.", counter(f, ROLE_VISION, VISION_WORKER_DEATHS));
    single(out, "media_held_bytes", "gauge", "Pixels and samples that prefill has not read yet.", counter(f, ROLE_VISION, VISION_HELD_BYTES));
}

/* A stage that this server is without (fetch, vision of a text model) is not one that is down. */
static bool is_used(const struct launcher_board *board, int role)
{
    return board && (board->pid[role] || board->restarts[role]);
}

static void stages(struct front *f, struct wire *out)
{
    static const struct { int role; unsigned work; } timed[] = {
        {ROLE_TOKENIZE, TOKENIZE_WORK_NS}, {ROLE_PREFILL, PREFILL_WORK_NS}, {ROLE_DRAFT, DRAFT_WORK_NS}, {ROLE_VERIFY, VERIFY_WORK_NS}, {ROLE_DETOKENIZE, DETOKENIZE_WORK_NS}, {ROLE_VISION, VISION_WORK_NS}};
    const struct launcher_board *board = f->table.board;

    family(out, "stage_up", "gauge", "1 while the stage is ready.");
    for (int role = ROLE_KEEPER; role < ROLE_COUNT; role++)
        if (is_used(board, role)) wire_format(out, "sluice_stage_up{stage=\"%s\"} %d\n", role_name(role), board->pid[role] && board->up_since_ns[role]);
    family(out, "stage_restarts_total", "counter", "Deaths of the stage.");
    for (int role = ROLE_KEEPER; role < ROLE_COUNT; role++)
        if (is_used(board, role)) wire_format(out, "sluice_stage_restarts_total{stage=\"%s\"} %llu\n", role_name(role), (unsigned long long)board->restarts[role]);
    family(out, "stage_heartbeats_total", "counter", "Heartbeats of the stage; standing still means it hangs.");
    for (int role = ROLE_KEEPER; role < ROLE_COUNT; role++)
        if (is_used(board, role) && status_of(f, role)) wire_format(out, "sluice_stage_heartbeats_total{stage=\"%s\"} %llu\n", role_name(role), (unsigned long long)shm_load_relaxed(&status_of(f, role)->heartbeat));
    family(out, "stage_work_seconds_total", "counter", "Time the stage worked.");
    for (size_t i = 0; i < sizeof timed / sizeof *timed; i++)
        wire_format(out, "sluice_stage_work_seconds_total{stage=\"%s\"} %.6f\n", role_name(timed[i].role), (double)counter(f, timed[i].role, timed[i].work) / 1e9);
    family(out, "ring_depth", "gauge", "Messages waiting in the ring.");
    for (int id = 0; id < RING_COUNT; id++) {
        const struct ring_edge *e = ring_edge(id);
        if (!f->stage.segment[e->producer] || !f->stage.segment[e->consumer]) continue;
        const struct ring r = {.producer = (struct ring_producer *)(f->stage.segment[e->producer] + ring_producer_offset(id)),
                               .consumer = (struct ring_consumer *)(f->stage.segment[e->consumer] + ring_consumer_offset(id))};
        wire_format(out, "sluice_ring_depth{ring=\"%s\"} %llu\n", e->name, (unsigned long long)ring_depth(&r));
    }
}

void metrics_text(struct front *f, struct wire *out)
{
    requests(f, out);
    memory_and_draft(f, out);
    media(f, out);
    histograms(f, out);
    stages(f, out);
}

/* ---- health ----------------------------------------------------------------------------------- */

bool front_is_draining(const struct front *f)
{
    return f->stopping || (f->table.board && shm_load_acquire(&f->table.board->phase) >= PIPELINE_DRAINING);
}

bool metrics_healthy(const struct front *f, char *why, size_t why_bytes)
{
    static const int needed[] = {ROLE_TOKENIZE, ROLE_PREFILL, ROLE_VERIFY, ROLE_DETOKENIZE}; /* draft only helps; keeper is done */

    if (front_is_draining(f)) {
        snprintf(why, why_bytes, "draining");
        return false;
    }
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        const struct stage_status *s = status_of(f, needed[i]);
        const bool up = f->table.board && shm_load_acquire(&f->table.board->up_since_ns[needed[i]]) && shm_load_relaxed(&f->table.board->pid[needed[i]]);
        if (s && up && shm_load_acquire(&s->state) == STAGE_STATE_READY) continue;
        snprintf(why, why_bytes, "stage %s is not ready", role_name(needed[i]));
        return false;
    }
    return true;
}
