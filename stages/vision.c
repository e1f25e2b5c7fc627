/* stages/vision.c - pictures and sound of requests become what the model takes in.
 *
 * Reads    gateway slots: the files, as clients sent them (schemas/media.h); prefill and verify slots: when their data is no longer needed
 * Writes   vision slots: blocks of pixels and frames of sound, or why a file is refused
 * Rings    in: gateway-vision; out: vision-tokenize; and a socket to stages/fetch.c, where pictures may be named by their address
 * Owns     the workers (stages/vision/desk.h): processes that decode one file each, in a sandbox, and the cache of results
 * Fails    a file that kills its worker is refused, with words for its author; another worker stands ready. A worker killed from outside is replaced and
 *          its file done again. Restarted: what is not committed is done again (a pure function), what is committed is announced again.
 *
 * Options  media.picture_budget, media.picture_positions, media.picture_side, media.crops, media.sound_seconds (what the model takes), media.workers, media.cache_mib,
 *          media.jpeg_scaling, media.video and media.video_files (the model takes frames, and there is a library that makes them) */
#include "schemas/counters.h"
#include "schemas/table.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/stage.h"
#include "stages/vision/areas.h"
#include "stages/vision/cache.h"
#include "stages/vision/desk.h"
#include "stages/vision/items.h"
#include "stages/vision/links.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORKERS_MAX 64u
#define DECODE_LIMIT_NS 60000000000ull /* of wall time; SANDBOX_CPU_S is the limit that counts */
#define FILM_LIMIT_NS 120000000000ull  /* of a video: SANDBOX_CPU_VIDEO_S */
#define TRIES_MAX 3u                   /* of a file whose worker was killed from outside */
#define POLL_BUSY_MS 20                /* while files are in work: heartbeat, and requests that are cancelled */
#define POLL_IDLE_MS 50
#define DATA_ALIGN 64u
#define TOKENS_PER_SECOND 25u

enum item_state { ITEM_WAITING = 0, ITEM_RUNNING, ITEM_DONE, ITEM_LINK /* to be asked for */, ITEM_FETCHING, ITEM_FILM /* waits for a worker that takes videos */ };

struct work {                          /* a request that is being looked at; rebuilt from the table at start */
    uint32_t generation;               /* 0: none */
    uint64_t order;
    uint32_t count, done, running, fetching, films; /* fetching: pictures that are not here yet; films: videos that wait */
    uint8_t state[MEDIA_ITEMS_MAX], tries[MEDIA_ITEMS_MAX]; /* enum item_state; */
    uint64_t at[MEDIA_ITEMS_MAX];      /* of each file's header in the record */
    uint8_t *fetched[MEDIA_ITEMS_MAX]; /* of a link, once it is here: mapped, until the request is committed */
    uint64_t fetched_bytes[MEDIA_ITEMS_MAX];
};

struct job {                           /* what a worker is at */
    uint32_t slot, generation, item;
    uint8_t key[SHA256_BYTES];
    uint64_t began_ns;
    bool killed;                       /* by us: it took too long */
};

struct vision {
    struct stage stage;
    struct table table;
    struct desk_limits limits;
    struct desk desk[2 * WORKERS_MAX]; /* those for videos behind the others */
    struct job job[2 * WORKERS_MAX];
    unsigned desk_count, film_desks;   /* desk_count: all of them; of these the last film_desks are for videos, and stand empty until there is one */
    struct work *work;                 /* [slot_count] */
    uint32_t working;                  /* requests in work */
    uint32_t *held;                    /* [slot_count]: generation whose data is in memory; 0: none */
    bool *has_area;                    /* [slot_count]: vision_slot.area is this slot's */
    struct areas areas;
    struct cache cache;
    struct links links;
};

/* What was decoded for a request is not needed any more. */
static void give_back(struct vision *k, uint32_t slot)
{
    if (k->has_area[slot]) areas_give_back(&k->areas, table_vision(&k->table, slot)->area);
    k->has_area[slot] = false;
    k->held[slot] = 0;
}

/* ---- the end of a request -------------------------------------------------------------- */

static void announce(struct vision *k, uint32_t slot, uint32_t generation)
{
    const struct ring_msg msg = {.slot = slot, .generation = generation};

    ring_publish(&k->stage.ring[RING_VISION_TOKENIZE], &msg);
}

static void forget(struct work *w)
{
    for (uint32_t i = 0; i < w->count && i < MEDIA_ITEMS_MAX; i++)
        if (w->fetched[i]) munmap(w->fetched[i], w->fetched_bytes[i]);
    memset(w, 0, sizeof *w);
}

static void commit(struct vision *k, uint32_t slot, enum media_status status)
{
    struct vision_slot *v = table_vision(&k->table, slot);
    struct work *w = &k->work[slot];
    const uint32_t generation = w->generation;

    v->done_ns = clock_ns();
    shm_store_release(&v->commit, word_pack(generation, status));
    announce(k, slot, generation);
    k->held[slot] = v->bytes ? generation : 0;
    forget(w);
    k->working--;
    stage_count(&k->stage, VISION_REQUESTS, 1);
    stage_count(&k->stage, VISION_REFUSED, status != MEDIA_READY && status != MEDIA_UNWANTED);
    stage_count(&k->stage, VISION_TOKENS, status == MEDIA_READY ? v->tokens : 0);
}

__attribute__((format(printf, 4, 5))) static void refuse(struct vision *k, uint32_t slot, enum media_status status, const char *format, ...)
{
    struct vision_slot *v = table_vision(&k->table, slot);
    va_list args;

    va_start(args, format);
    vsnprintf(v->error_text, sizeof v->error_text, format, args);
    va_end(args);
    stage_log(&k->stage, LOG_INFO, "refused", "slot=%u status=%d reason=\"%s\"", slot, (int)status, v->error_text);
    commit(k, slot, status);
}

/* "picture 2", "sound 1": as their author counts them. */
static const char *name_item(const struct vision *k, uint32_t slot, uint32_t item, char name[32])
{
    const struct work *w = &k->work[slot];
    struct media_file_hdr hdr;
    const uint8_t *data;
    uint32_t kind = 0, number = 0;

    for (uint32_t i = item + 1; i-- > 0;) {
        uint64_t at = w->at[i];
        if (media_next(table_request(&k->table, slot), k->table.limits.request_bytes_max, &at, &hdr, &data) != 0) break;
        if (hdr.kind == MEDIA_LINK) hdr.kind = MEDIA_PICTURE;
        if (i == item) kind = hdr.kind;
        number += hdr.kind == kind;
    }
    snprintf(name, 32, "%s %u", kind == MEDIA_SOUND ? "Sound" : kind == MEDIA_FRAME ? "Frame" : kind == MEDIA_VIDEO ? "Video" : "Picture", number);
    return name;
}

static void refuse_item(struct vision *k, uint32_t slot, uint32_t item, enum media_status status, const char *why)
{
    char name[32];
    size_t bytes = strlen(why);

    while (bytes > 0 && why[bytes - 1] == '.') bytes--; /* some libraries end their sentences */
    refuse(k, slot, status, "%s of the request cannot be taken: %.*s.", name_item(k, slot, item, name), (int)bytes, why);
}

/* ---- results ------------------------------------------------------------------------------ */

/* Into the record, at the next place: the order in which items come in does not matter, their descriptions say where they lie. */
static void store(struct vision *k, uint32_t slot, uint32_t item, const uint8_t key[SHA256_BYTES], const struct media_item *result, const uint8_t *data, uint64_t bytes)
{
    struct vision_slot *v = table_vision(&k->table, slot);
    struct work *w = &k->work[slot];
    const uint64_t at = (v->bytes + DATA_ALIGN - 1) & ~(uint64_t)(DATA_ALIGN - 1), room = (uint64_t)k->table.limits.media_tokens_max * MEDIA_TOKEN_BYTES;

    if (result->tokens > k->table.limits.media_tokens_max - v->tokens || at > room || bytes > room - at) {
        refuse(k, slot, MEDIA_TOO_LARGE, "The pictures and sounds of the request are more than %u soft tokens together: send fewer or shorter ones.", k->table.limits.media_tokens_max);
        return;
    }
    if (v->bytes == 0) {
        v->area = areas_take(&k->areas);
        k->has_area[slot] = true;
    }
    if (areas_write(&k->areas, v->area, at, data, bytes) != 0) {
        refuse(k, slot, MEDIA_FAILED, "There is no memory for the pictures and sounds of the request.");
        return;
    }
    v->item[item] = *result;
    v->item[item].offset = at;
    memcpy(v->item[item].content, key, sizeof v->item[item].content);
    v->bytes = at + bytes;
    v->tokens += result->tokens;
    w->state[item] = ITEM_DONE;
    if (++w->done < w->count) return;
    if (items_spread(&k->table, slot, &k->limits, w->at, w->count)) commit(k, slot, MEDIA_READY);
    else refuse(k, slot, MEDIA_TOO_LARGE, "The pictures of the request are more than %u together with the pieces in which they are shown and the frames of videos: send fewer.", MEDIA_ITEMS_MAX);
}

/* Does the request that this job is for still wait for it? */
static bool is_wanted(const struct vision *k, const struct job *j)
{
    return k->work[j->slot].generation == j->generation;
}

static void finish(struct vision *k, unsigned i)
{
    struct desk_result r;
    const struct job *j = &k->job[i];
    const uint8_t *data;
    uint64_t bytes;

    desk_result(&k->desk[i], &r, &data, &bytes);
    const struct media_item item = {.kind = k->desk[i].kind, .tokens = r.tokens, .columns = r.columns, .frames = r.frames};
    stage_count(&k->stage, VISION_WORK_NS, clock_ns() - j->began_ns);
    if (r.status == MEDIA_READY) cache_put(&k->cache, j->key, &item, data, bytes);
    if (!is_wanted(k, j)) return;
    stage_busy(&k->stage, &j->slot, &j->generation, 1);
    k->work[j->slot].running--;
    if (r.status == MEDIA_READY) store(k, j->slot, j->item, j->key, &item, data, bytes);
    else refuse_item(k, j->slot, j->item, r.status, r.why);
    stage_idle(&k->stage);
}

static const char *describe_death(int status, bool too_long)
{
    if (too_long || (WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU)) return "decoding it takes too long";
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) return "its decoder was stopped at something that no decoder should do";
    return "its decoder failed on it";
}

/* A worker died. Killed by a stranger, its file is tried again; else the file is to blame. */
static void bury(struct vision *k, unsigned i, int status)
{
    const struct job *j = &k->job[i];
    struct work *w = &k->work[j->slot];
    const bool broken = WIFEXITED(status); /* it could not even begin */
    const bool by_stranger = !j->killed && WIFSIGNALED(status) && (WTERMSIG(status) == SIGKILL || WTERMSIG(status) == SIGTERM);

    stage_count(&k->stage, VISION_WORKER_DEATHS, 1);
    stage_log(&k->stage, LOG_WARN, "worker-death", "slot=%u signal=%d code=%d", j->slot, WIFSIGNALED(status) ? WTERMSIG(status) : 0, WIFEXITED(status) ? WEXITSTATUS(status) : 0);
    if (!is_wanted(k, j)) return;
    w->running--;
    w->state[j->item] = i < k->desk_count - k->film_desks ? ITEM_WAITING : ITEM_FILM;
    w->films += w->state[j->item] == ITEM_FILM;
    if ((by_stranger || broken) && ++w->tries[j->item] < TRIES_MAX) return;
    if (by_stranger || broken) refuse_item(k, j->slot, j->item, MEDIA_FAILED, broken ? "its decoder cannot be started" : "its decoder was killed, again and again");
    else refuse_item(k, j->slot, j->item, MEDIA_BAD, describe_death(status, j->killed));
}

/* ---- looking at requests ------------------------------------------------------------------------ */

/* The place of every file in the record. */
static bool find_files(struct vision *k, uint32_t slot)
{
    const struct gateway_slot *g = table_gateway(&k->table, slot);
    struct work *w = &k->work[slot];
    uint64_t at = g->media_offset;
    struct media_file_hdr hdr;
    const uint8_t *data;

    w->count = g->media_count;
    if (w->count > MEDIA_ITEMS_MAX) return false;
    for (uint32_t i = 0; i < w->count; i++) {
        w->at[i] = at;
        if (media_next(table_request(&k->table, slot), k->table.limits.request_bytes_max, &at, &hdr, &data) != 0) return false;
        if (hdr.kind == MEDIA_LINK) w->state[i] = ITEM_LINK;
        if (hdr.kind == MEDIA_VIDEO) w->state[i] = ITEM_FILM;
        w->fetching += hdr.kind == MEDIA_LINK;
        w->films += hdr.kind == MEDIA_VIDEO;
    }
    return (w->fetching == 0 || k->links.socket >= 0) && (w->films == 0 || k->film_desks > 0);
}

static void look(struct vision *k, uint32_t slot)
{
    const uint32_t generation = slot_live(&k->table, slot);
    struct vision_slot *v = table_vision(&k->table, slot);
    struct work *w = &k->work[slot];

    if (!generation || generation == w->generation || table_gateway(&k->table, slot)->media_count == 0) return;
    if (word_for(&v->commit, generation)) {
        announce(k, slot, generation);
        return;
    }
    k->working += w->generation == 0;
    forget(w);
    give_back(k, slot); /* of the slot's last request, which is over */
    w->generation = generation;
    w->order = table_gateway(&k->table, slot)->order;
    v->bytes = v->tokens = v->count = 0;
    v->error_text[0] = '\0';
    if (slot_is_unwanted(&k->table, slot, generation)) commit(k, slot, MEDIA_UNWANTED);
    else if (!find_files(k, slot)) refuse(k, slot, MEDIA_FAILED, "The request record is damaged.");
    else v->count = w->count;
}

static void scan(struct vision *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count; s++) {
        look(k, s);
        stage_beat(&k->stage);
    }
}

/* Of the requests that have a video, or anything else, that waits: the one that has the fewest workers, of those the one that came first; slot_count: nobody waits. */
static uint32_t next_request(const struct vision *k, bool film)
{
    uint32_t best = k->table.limits.slot_count;

    for (uint32_t s = 0; s < k->table.limits.slot_count && k->working; s++) {
        const struct work *w = &k->work[s];
        if (!w->generation || (film ? w->films == 0 : w->done + w->running + w->fetching + w->films >= w->count)) continue;
        if (best == k->table.limits.slot_count || w->running < k->work[best].running || (w->running == k->work[best].running && w->order < k->work[best].order)) best = s;
    }
    return best;
}

static int free_desk(const struct vision *k, bool film)
{
    const unsigned films = k->desk_count - k->film_desks;

    for (unsigned i = film ? films : 0; i < (film ? k->desk_count : films); i++)
        if (k->desk[i].pid && !k->desk[i].busy) return (int)i;
    return -1;
}

/* One file: from the cache, or onto a desk. */
static void begin_item(struct vision *k, uint32_t slot, unsigned desk, enum item_state waiting)
{
    struct work *w = &k->work[slot];
    struct job job = {.slot = slot, .generation = w->generation};
    struct media_file_hdr hdr;
    const uint8_t *data;

    while (w->state[job.item] != waiting) job.item++;
    uint64_t at = w->at[job.item];
    stage_busy(&k->stage, &slot, &w->generation, 1);
    if (media_next(table_request(&k->table, slot), k->table.limits.request_bytes_max, &at, &hdr, &data) != 0) {
        refuse(k, slot, MEDIA_FAILED, "The request record is damaged.");
        stage_idle(&k->stage);
        return;
    }
    if (hdr.kind == MEDIA_LINK) {
        hdr.kind = MEDIA_PICTURE;
        hdr.bytes = w->fetched_bytes[job.item];
        data = w->fetched[job.item];
    }
    cache_key(&hdr, data, job.key);
    stage_count(&k->stage, VISION_FILES, 1);
    w->films -= waiting == ITEM_FILM;
    const struct cache_entry *known = cache_find(&k->cache, job.key);
    if (known) {
        stage_count(&k->stage, VISION_CACHED, 1);
        store(k, slot, job.item, job.key, &known->item, known->data, known->bytes);
    } else {
        job.began_ns = clock_ns();
        k->job[desk] = job;
        w->state[job.item] = ITEM_RUNNING;
        w->running++;
        if (desk_begin(&k->desk[desk], &hdr, data) != 0) stage_log(&k->stage, LOG_DEBUG, "worker-gone", "desk=%u", desk); /* its socket says so, too */
    }
    stage_idle(&k->stage);
}

static void begin_all(struct vision *k, bool film)
{
    int desk;

    while ((desk = free_desk(k, film)) >= 0) {
        const uint32_t slot = next_request(k, film);
        if (slot == k->table.limits.slot_count) return;
        begin_item(k, slot, (unsigned)desk, film ? ITEM_FILM : ITEM_WAITING);
        stage_beat(&k->stage);
    }
}

static void hire(struct vision *k, struct desk *d)
{
    if (desk_hire(d) != 0) stage_log(&k->stage, LOG_WARN, "no-worker", "reason=\"%s\"", strerror(errno));
}

/* The first video finds its desk empty: what a worker for videos maps is for those who send some. From then on one stands ready, as at every desk. */
static void hire_for_films(struct vision *k)
{
    if (next_request(k, true) == k->table.limits.slot_count || free_desk(k, true) >= 0) return;
    for (unsigned i = k->desk_count - k->film_desks; i < k->desk_count; i++)
        if (!k->desk[i].pid) {
            hire(k, &k->desk[i]);
            return;
        }
}

static void settle_unwanted(struct vision *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count && k->working; s++)
        if (k->work[s].generation && slot_is_unwanted(&k->table, s, k->work[s].generation)) commit(k, s, MEDIA_UNWANTED);
}

/* ---- pictures by their address ------------------------------------------------------------------ */

static void ask_for(struct vision *k, uint32_t slot)
{
    struct work *w = &k->work[slot];
    struct media_file_hdr hdr;
    const uint8_t *url;

    for (uint32_t i = 0; i < w->count && w->fetching; i++) {
        uint64_t at = w->at[i];
        if (w->state[i] != ITEM_LINK) continue;
        if (media_next(table_request(&k->table, slot), k->table.limits.request_bytes_max, &at, &hdr, &url) != 0) {
            refuse(k, slot, MEDIA_FAILED, "The request record is damaged.");
            return;
        }
        if (links_ask(&k->links, slot, w->generation, i, url, hdr.bytes) != 0) return;
        w->state[i] = ITEM_FETCHING;
        stage_count(&k->stage, VISION_FETCHED, 1);
    }
}

static void take_link(struct vision *k, const struct link_event *e)
{
    struct work *w = &k->work[e->slot];

    if (w->generation != e->generation || w->state[e->item] != ITEM_FETCHING) {
        if (e->data) munmap(e->data, e->bytes);
    } else if (e->status == MEDIA_READY) {
        w->fetched[e->item] = e->data;
        w->fetched_bytes[e->item] = e->bytes;
        w->state[e->item] = ITEM_WAITING;
        w->fetching--;
    } else if (e->status == MEDIA_NONE && ++w->tries[e->item] < TRIES_MAX) w->state[e->item] = ITEM_LINK;
    else refuse_item(k, e->slot, e->item, e->status == MEDIA_NONE ? MEDIA_FAILED : e->status, e->status == MEDIA_NONE ? "the stage that fetches it died again and again" : e->why);
}

static void fetch_all(struct vision *k)
{
    struct link_event e;

    if (k->links.socket < 0) return;
    while (links_poll(&k->links, &e) == 1) take_link(k, &e);
    for (uint32_t s = 0; s < k->table.limits.slot_count && k->working; s++)
        if (k->work[s].generation && k->work[s].fetching) ask_for(k, s);
}

/* ---- memory --------------------------------------------------------------------------------------- */

/* Prefill has read it all, or nobody ever will. */
static void release(struct vision *k)
{
    uint64_t bytes = 0;

    for (uint32_t s = 0; s < k->table.limits.slot_count; s++) {
        const uint32_t g = k->held[s];
        if (!g) continue;
        if (slot_occupied(&k->table, s) != g || word_for(&table_prefill(&k->table, s)->ready, g) || slot_is_over(&k->table, s, g)) give_back(k, s);
        else bytes += table_vision(&k->table, s)->bytes;
    }
    shm_store_relaxed(&k->stage.status->counters[VISION_HELD_BYTES], bytes);
}

/* What a predecessor left. */
static void take_over(struct vision *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count; s++) {
        const uint32_t g = slot_live(&k->table, s);
        const struct vision_slot *v = table_vision(&k->table, s);
        if (g && word_for(&v->commit, g) == MEDIA_READY && !word_for(&table_prefill(&k->table, s)->ready, g) && areas_adopt(&k->areas, v->area, v->bytes)) {
            k->held[s] = g;
            k->has_area[s] = true;
        }
        stage_beat(&k->stage);
    }
    areas_clear(&k->areas);
}

/* ---- the loop ---------------------------------------------------------------------------------------- */

static void watch_desks(struct vision *k)
{
    int status = 0;

    for (unsigned i = 0; i < k->desk_count; i++) {
        struct desk *d = &k->desk[i];
        if (d->pid && d->busy && clock_ns() - k->job[i].began_ns > (i < k->desk_count - k->film_desks ? DECODE_LIMIT_NS : FILM_LIMIT_NS)) {
            k->job[i].killed = true;
            kill(d->pid, SIGKILL);
        }
        const bool was_busy = d->busy;
        const int rc = d->pid ? desk_poll(d, &status) : 0;
        if (rc == 1) finish(k, i);
        else if (rc < 0 && was_busy) bury(k, i, status);
        if (rc != 0) desk_clear(d);
        if (!d->pid && (was_busy || i < k->desk_count - k->film_desks)) hire(k, d); /* one for videos that died waiting is missed when there is a video */
    }
}

static void take_messages(struct vision *k)
{
    struct ring *in = &k->stage.ring[RING_GATEWAY_VISION];
    struct ring_msg msg;

    if (ring_overran(in)) scan(k);
    while (ring_take(in, &msg) == 1)
        if (msg.slot < k->table.limits.slot_count) look(k, msg.slot);
}

static void sleep_until_something(struct vision *k)
{
    struct ring *const in[] = {&k->stage.ring[RING_GATEWAY_VISION]};
    struct pollfd p[2 * WORKERS_MAX + 2];
    uint64_t ignored;

    p[0] = (struct pollfd){.fd = in[0]->event_fd, .events = POLLIN};
    for (unsigned i = 0; i < k->desk_count; i++) p[i + 1] = (struct pollfd){.fd = k->desk[i].socket, .events = POLLIN};
    p[k->desk_count + 1] = (struct pollfd){.fd = k->links.socket, .events = POLLIN};
    if (!ring_arm(in, 1)) poll(p, k->desk_count + 2, k->working ? POLL_BUSY_MS : POLL_IDLE_MS);
    ring_disarm(in, 1);
    if (read(p[0].fd, &ignored, sizeof ignored) < 0 && errno != EAGAIN) stage_exit(&k->stage, EXIT_CONFIG, "event.vision cannot be read: %s", strerror(errno));
}

static void attach(struct vision *k, int argc, char **argv)
{
    const struct wiring *w = &k->stage.wiring;

    stage_attach(&k->stage, ROLE_VISION, "turns pictures and sound into soft tokens", argc, argv);
    table_attach(&k->table, &k->stage);
    k->limits = (struct desk_limits){.picture_budget = (uint32_t)wiring_u64(w, "media.picture_budget", 0), .picture_positions = (uint32_t)wiring_u64(w, "media.picture_positions", 0), .picture_side = (uint32_t)wiring_u64(w, "media.picture_side", 0), .crops_max = (uint32_t)wiring_u64(w, "media.crops", 0),
                                     .sound_tokens = TOKENS_PER_SECOND * (uint32_t)wiring_u64(w, "media.sound_seconds", 0)};
    k->limits.exact = strcmp(wiring_text(w, "media.jpeg_scaling", "on"), "off") == 0;
    k->desk_count = (unsigned)wiring_u64(w, "media.workers", 1);
    links_open(&k->links, stage_fd(&k->stage, "fetch.vision"));
    k->cache.bytes_max = wiring_u64(w, "media.cache_mib", 0) << 20;
    if (k->table.stride[ROLE_VISION] == 0) stage_exit(&k->stage, EXIT_CONFIG, "the model takes text alone: there is nothing for this stage to do");
    if (k->desk_count < 1 || k->desk_count > WORKERS_MAX) stage_exit(&k->stage, EXIT_CONFIG, "media.workers is %u; 1 to %u are possible", k->desk_count, WORKERS_MAX);
    if (k->stage.ring[RING_GATEWAY_VISION].event_fd < 0) stage_exit(&k->stage, EXIT_CONFIG, "no event.vision was given");
    k->work = calloc(k->table.limits.slot_count, sizeof *k->work);
    k->held = calloc(k->table.limits.slot_count, sizeof *k->held);
    k->has_area = calloc(k->table.limits.slot_count, sizeof *k->has_area);
    if (!k->work || !k->held || !k->has_area || areas_open(&k->areas, &k->table, k->stage.segment[ROLE_VISION], stage_fd(&k->stage, "segment.vision")) != 0) stage_exit(&k->stage, EXIT_MISSING, "out of memory");
    for (int role = 0; role < ROLE_COUNT; role++) { /* no worker sees a byte of the server's shared memory */
        const struct segment_hdr *h = (const struct segment_hdr *)k->stage.segment[role];
        if (h && madvise(k->stage.segment[role], h->bytes, MADV_DONTFORK) != 0) stage_exit(&k->stage, EXIT_MISSING, "shared memory cannot be kept from the workers: %s", strerror(errno));
    }
    k->film_desks = wiring_u64(w, "media.video_files", 0) && wiring_u64(w, "media.video", 0) ? k->desk_count : 0;
    k->desk_count += k->film_desks;
    for (unsigned i = 0; i < k->desk_count; i++) {
        struct desk_limits limits = k->limits;
        if (i >= k->desk_count - k->film_desks) {
            limits.frames_max = MEDIA_FRAMES_MAX;
            limits.frame_budget = MEDIA_FRAME_BUDGET;
        }
        const int rc = desk_open(&k->desk[i], &limits);
        if (rc != 0) stage_exit(&k->stage, EXIT_MISSING, "no worker can be made: %s", rc == -E_UNSUPPORTED ? "this system has no seccomp" : error_text(rc));
        stage_beat(&k->stage);
    }
}

int main(int argc, char **argv)
{
    static struct vision k;

    attach(&k, argc, argv);
    take_over(&k);
    stage_ready(&k.stage);
    scan(&k);
    while (stage_running(&k.stage)) {
        take_messages(&k);
        watch_desks(&k);
        fetch_all(&k);
        settle_unwanted(&k);
        begin_all(&k, false);
        hire_for_films(&k);
        begin_all(&k, true);
        release(&k);
        sleep_until_something(&k);
    }
    for (unsigned i = 0; i < k.desk_count; i++) desk_stop(&k.desk[i]);
    return 0;
}
