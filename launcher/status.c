/* launcher/status.c - what the server is doing, as JSON and for people. Reads shared memory only. */
#include "launcher/server.h"

#include "model/engine_draft.h"
#include "schemas/counters.h"
#include "shm/clock.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct stage_status *status_of(const struct server *v, int role)
{
    return v->segment[role] ? (const struct stage_status *)(v->segment[role] + SEGMENT_STATUS_OFFSET) : NULL;
}

static uint64_t counter(const struct server *v, int role, unsigned index)
{
    const struct stage_status *s = status_of(v, role);

    return s ? shm_load_relaxed(&s->counters[index]) : 0;
}

static const char *state_of(const struct child *c)
{
    if (!c->enabled) return "off";
    if (c->pid == 0) return c->restart_ns ? "restarting" : "stopped";
    if (c->kill_reason != KILL_NONE) return "stopping";
    return c->ready ? "ready" : "starting";
}

static json_t *stage_json(const struct server *v, const struct child *c, uint64_t now)
{
    json_t *o = json_pack("{s:s, s:I, s:s, s:I, s:s}", "name", role_name(c->role), "pid", (json_int_t)c->pid, "state", state_of(c), "restarts",
                          (json_int_t)c->deaths, "exe", c->exe);

    json_object_set_new(o, "heartbeat_age_ms", c->pid ? json_real((double)(v->watched_ns - c->heartbeat_ns) / 1e6) : json_null());
    json_object_set_new(o, "uptime_s", c->pid ? json_real((double)(now - c->started_ns) / 1e9) : json_null());
    if (c->recovery_ns) json_object_set_new(o, "last_recovery_ms", json_real((double)c->recovery_ns / 1e6));
    const struct stage_status *s = status_of(v, c->role);
    json_object_set_new(o, "busy", json_integer(s ? (json_int_t)shm_load_relaxed(&s->busy_count) : 0));
    return o;
}

static json_t *rings_json(const struct server *v)
{
    json_t *rings = json_array();

    for (int id = 0; v->model_known && id < RING_COUNT; id++) {
        const struct ring_edge *e = ring_edge(id);
        const struct ring_producer *p = (const struct ring_producer *)(v->segment[e->producer] + ring_producer_offset(id));
        const struct ring_consumer *c = (const struct ring_consumer *)(v->segment[e->consumer] + ring_consumer_offset(id));
        const uint64_t head = shm_load_acquire(&c->head), tail = shm_load_acquire(&p->tail);
        json_array_append_new(rings, json_pack("{s:s, s:I, s:i, s:I, s:I}", "name", e->name, "depth", (json_int_t)(tail - head), "slots", (int)RING_SLOTS,
                                               "messages", (json_int_t)tail, "lost", (json_int_t)shm_load_relaxed(&p->lost)));
    }
    return rings;
}

static const char *slot_state(const struct server *v, uint32_t s, uint32_t g)
{
    if (word_for(&table_verify(&v->table, s)->finish, g)) return "finishing";
    if (word_for(&table_prefill(&v->table, s)->ready, g)) return "decoding";
    if (word_for(&table_prefill(&v->table, s)->pages, g)) return "prefilling";
    return word_for(&table_tokenize(&v->table, s)->commit, g) ? "waiting" : "tokenizing";
}

static json_t *sequences_json(const struct server *v)
{
    json_t *list = json_array();
    json_int_t closed = 0, running = 0;
    const uint32_t slots = v->model_known ? v->table.limits.slot_count : 0;

    for (uint32_t s = 0; s < slots; s++) {
        const uint32_t g = slot_live(&v->table, s);
        closed += word_value(shm_load_acquire(&table_gateway(&v->table, s)->commit)) == PHASE_CLOSED;
        if (!g) continue;
        running++;
        json_array_append_new(list, json_pack("{s:i, s:I, s:s, s:I, s:I}", "slot", (int)s, "generation", (json_int_t)g, "state", slot_state(v, s, g),
                                              "prompt_tokens", (json_int_t)(word_for(&table_tokenize(&v->table, s)->commit, g) ? table_tokenize(&v->table, s)->prompt_count : 0),
                                              "output_tokens", (json_int_t)word_for(&table_verify(&v->table, s)->commit, g)));
    }
    return json_pack("{s:I, s:I, s:I, s:o}", "live", running, "kept", closed, "slots", (json_int_t)slots, "list", list);
}

static json_t *rates_json(const struct server *v)
{
    const double work_s = (double)counter(v, ROLE_VERIFY, VERIFY_WORK_NS) / 1e9, prefill_s = (double)counter(v, ROLE_PREFILL, PREFILL_WORK_NS) / 1e9;
    const double tokens = (double)counter(v, ROLE_VERIFY, VERIFY_TOKENS), drafted = (double)counter(v, ROLE_VERIFY, VERIFY_DRAFTED);

    return json_pack("{s:I, s:I, s:I, s:f, s:f, s:f}", "requests", (json_int_t)counter(v, ROLE_TOKENIZE, TOKENIZE_REQUESTS), "prompt_tokens",
                     (json_int_t)counter(v, ROLE_PREFILL, PREFILL_TOKENS), "output_tokens", (json_int_t)tokens, "decode_tokens_per_busy_s",
                     work_s > 0 ? tokens / work_s : 0.0, "prefill_tokens_per_busy_s",
                     prefill_s > 0 ? (double)counter(v, ROLE_PREFILL, PREFILL_TOKENS) / prefill_s : 0.0, "draft_acceptance",
                     drafted > 0 ? (double)counter(v, ROLE_VERIFY, VERIFY_ACCEPTED) / drafted : 0.0);
}

static json_t *kv_json(const struct server *v)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "dtype", wiring_text(&v->base, "kv.cache_dtype", ""), "full_pages_used", (json_int_t)counter(v, ROLE_PREFILL, PREFILL_FULL_PAGES_USED), "full_pages",
                     (json_int_t)counter(v, ROLE_PREFILL, PREFILL_FULL_PAGES_TOTAL), "sliding_pages_used",
                     (json_int_t)counter(v, ROLE_PREFILL, PREFILL_SLIDING_PAGES_USED), "sliding_pages",
                     (json_int_t)counter(v, ROLE_PREFILL, PREFILL_SLIDING_PAGES_TOTAL), "sequences_waiting",
                     (json_int_t)counter(v, ROLE_PREFILL, PREFILL_WAITING), "full_pages_kept", (json_int_t)counter(v, ROLE_PREFILL, PREFILL_FULL_PAGES_KEPT), "sliding_pages_kept",
                     (json_int_t)counter(v, ROLE_PREFILL, PREFILL_SLIDING_PAGES_KEPT), "prompt_tokens", (json_int_t)counter(v, ROLE_PREFILL, PREFILL_PROMPT_TOKENS),
                     "prompt_tokens_found", (json_int_t)counter(v, ROLE_PREFILL, PREFILL_CACHED_TOKENS));
}

static json_t *device_json(const struct server *v)
{
    const struct load_state l = load_state(v);
    const double seconds = (double)l.ns / 1e9;

    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:{s:b, s:I, s:I, s:f, s:f}}", "name", gpu_is_used(v) ? "cuda" : "cpu", "gpu", wiring_text(&v->base, "gpu.name", ""), "weights",
                     wiring_text(&v->base, "gpu.weights_format", ""), "sharing", gpu_sharing_name(v), "mps_pid", (json_int_t)v->gpu.pid, "load", "done", (int)l.loaded, "bytes",
                     (json_int_t)l.bytes_done, "bytes_total", (json_int_t)l.bytes_total, "seconds", seconds, "gb_per_s", seconds > 0 ? (double)l.bytes_done / 1e9 / seconds : 0.0);
}

/* null: the model takes text alone. */
static json_t *media_json(const struct server *v)
{
    if (!v->child[ROLE_VISION].enabled) return json_null();
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "picture_tokens_max", (json_int_t)wiring_u64(&v->base, "media.picture_budget", 0), "requests",
                     (json_int_t)counter(v, ROLE_VISION, VISION_REQUESTS), "refused", (json_int_t)counter(v, ROLE_VISION, VISION_REFUSED), "files",
                     (json_int_t)counter(v, ROLE_VISION, VISION_FILES), "cached", (json_int_t)counter(v, ROLE_VISION, VISION_CACHED), "worker_deaths",
                     (json_int_t)counter(v, ROLE_VISION, VISION_WORKER_DEATHS), "held_bytes", (json_int_t)counter(v, ROLE_VISION, VISION_HELD_BYTES), "work_s",
                     (double)counter(v, ROLE_VISION, VISION_WORK_NS) / 1e9);
}

/* What drafts now: as the stage says, which knows what its checkpoint is. */
static json_t *drafter_json(const struct server *v)
{
    const struct child *c = &v->child[ROLE_DRAFT];
    const uint64_t kind = counter(v, ROLE_DRAFT, DRAFT_KIND);
    const char *name = !c->enabled ? "none" : strcmp(c->exe, c->default_exe) != 0 ? "executable" : !c->ready || kind >= DRAFT_KIND_COUNT ? "starting" : engine_draft_kind_name((uint32_t)kind);

    return json_pack("{s:s, s:s, s:f, s:f, s:I}", "kind", name, "checkpoint", strcmp(name, "executable") == 0 ? "" : v->drafter->dir, "step_us", c->enabled ? (double)counter(v, ROLE_DRAFT, DRAFT_STEP_NS) / 1e3 : 0.0,
                     "round_us", c->enabled ? (double)counter(v, ROLE_DRAFT, DRAFT_ROUND_NS) / 1e3 : 0.0, "neural_answers", (json_int_t)counter(v, ROLE_DRAFT, DRAFT_NEURAL));
}

char *status_json(const struct server *v)
{
    static const char *const phases[] = {"starting", "serving", "draining", "stopping"};
    const uint64_t now = clock_ns();
    json_t *stages = json_array();

    json_array_append_new(stages, json_pack("{s:s, s:I, s:s, s:i}", "name", "launcher", "pid", (json_int_t)getpid(), "state", "ready", "restarts", 0));
    for (int role = ROLE_LAUNCHER + 1; role < ROLE_COUNT; role++) json_array_append_new(stages, stage_json(v, &v->child[role], now));
    json_t *o = json_pack("{s:s, s:s, s:s, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "address", v->address, "model", wiring_text(&v->base, "model.name", ""), "phase",
                          phases[v->phase], "uptime_s", (double)(now - v->started_ns) / 1e9, "stages", stages, "rings", rings_json(v), "sequences",
                          sequences_json(v), "rates", rates_json(v), "kv_cache", kv_json(v), "device", device_json(v), "media", media_json(v),
                          "drafter", drafter_json(v));
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    json_decref(o);
    if (!text) return NULL;
    const size_t bytes = strlen(text);
    char *line = realloc(text, bytes + 2);
    if (line) memcpy(line + bytes, "\n", 2);
    return line ? line : text;
}

static const char *text_at(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));

    return text ? text : "";
}

static double number_at(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

void status_print(const char *json)
{
    json_t *o = json_loads(json, 0, NULL), *entry;
    size_t i;

    printf("%s  %s at %s, up %.0f s\n\n", text_at(o, "phase"), text_at(o, "model"), text_at(o, "address"), number_at(o, "uptime_s"));
    printf("%-11s %8s  %-11s %8s %10s %12s\n", "stage", "pid", "state", "restarts", "heartbeat", "recovery");
    json_array_foreach(json_object_get(o, "stages"), i, entry)
    {
        printf("%-11s %8.0f  %-11s %8.0f", text_at(entry, "name"), number_at(entry, "pid"), text_at(entry, "state"), number_at(entry, "restarts"));
        if (json_is_real(json_object_get(entry, "heartbeat_age_ms"))) printf(" %7.0f ms", number_at(entry, "heartbeat_age_ms"));
        if (json_object_get(entry, "last_recovery_ms")) printf(" %9.1f ms", number_at(entry, "last_recovery_ms"));
        printf("\n");
    }
    printf("\n%-20s %6s %10s %6s\n", "ring", "depth", "messages", "lost");
    json_array_foreach(json_object_get(o, "rings"), i, entry)
        printf("%-20s %6.0f %10.0f %6.0f\n", text_at(entry, "name"), number_at(entry, "depth"), number_at(entry, "messages"), number_at(entry, "lost"));
    const json_t *d = json_object_get(o, "device"), *load = json_object_get(d, "load");
    if (strcmp(text_at(d, "name"), "cuda") == 0)
        printf("\ndevice     %s, %s weights, %s; %.1f of %.1f GB loaded, %.1f GB/s\n", text_at(d, "gpu"), text_at(d, "weights"), text_at(d, "sharing"), number_at(load, "bytes") / 1e9,
               number_at(load, "bytes_total") / 1e9, number_at(load, "gb_per_s"));
    const json_t *s = json_object_get(o, "sequences"), *r = json_object_get(o, "rates"), *k = json_object_get(o, "kv_cache");
    printf("\nsequences  %.0f live, %.0f kept, of %.0f slots; %.0f wait for KV pages\n", number_at(s, "live"), number_at(s, "kept"), number_at(s, "slots"),
           number_at(k, "sequences_waiting"));
    printf("KV cache   %s; full pages %.0f of %.0f, sliding pages %.0f of %.0f\n", text_at(k, "dtype"), number_at(k, "full_pages_used"), number_at(k, "full_pages"),
           number_at(k, "sliding_pages_used"), number_at(k, "sliding_pages"));
    printf("prefixes   %.0f of %.0f prompt tokens found; kept until their room is wanted: full pages %.0f, sliding pages %.0f\n", number_at(k, "prompt_tokens_found"), number_at(k, "prompt_tokens"),
           number_at(k, "full_pages_kept"), number_at(k, "sliding_pages_kept"));
    const json_t *m = json_object_get(o, "media");
    if (json_is_object(m))
        printf("media      %.0f files in %.0f requests, %.0f of them known already; %.0f requests refused, %.0f decoders died\n", number_at(m, "files"), number_at(m, "requests"), number_at(m, "cached"),
               number_at(m, "refused"), number_at(m, "worker_deaths"));
    printf("rates      decode %.0f tok/s, prefill %.0f tok/s while busy; %.0f requests, %.0f + %.0f tokens; draft acceptance %.2f (%s)\n",
           number_at(r, "decode_tokens_per_busy_s"), number_at(r, "prefill_tokens_per_busy_s"), number_at(r, "requests"), number_at(r, "prompt_tokens"),
           number_at(r, "output_tokens"), number_at(r, "draft_acceptance"),
           text_at(json_object_get(o, "drafter"), "kind"));
    json_decref(o);
}
