/* stages/tokenize.c - turns a request's messages into prompt token ids.
 *
 * Reads    gateway slots: the request (msgpack, schemas/chat_request.md) and its parameters; vision slots: what its pictures and sounds became
 * Writes   tokenize slots: prompt ids, how many tokens may follow, or why the request is refused
 * Rings    in: gateway-tokenize, vision-tokenize; out: tokenize-prefill (ready), tokenize-gateway (refused)
 * Owns     the tokenizer and the parsed chat template; nothing per sequence
 * Fails    a request it cannot use is refused with words for its author. Restarted: what is not committed is done
 *          again (a pure function), what is committed is announced again. */
#include "model/chat.h"
#include "model/engine.h"
#include "model/media.h"
#include "model/output.h"
#include "model/tokenizer.h"
#include "schemas/counters.h"
#include "schemas/table.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/stage.h"

#include <jansson.h>
#include <msgpack.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEMPLATE_TOKENS_MAX 16u
#define VIDEO_TOKEN_BYTES 64u        /* of a token's text between two frames */
#define VIDEO_FRAME_BYTES (32u + 3u * VIDEO_TOKEN_BYTES)
#define PIECES_BYTES 96u             /* of the words between a picture and its pieces */

struct tokenize {
    struct stage stage;
    struct table table;
    struct engine engine;
    struct tokenizer *tokenizer;
    struct chat_template *template; /* NULL: the checkpoint has none; only raw prompts are possible */
    struct chat_token token[TEMPLATE_TOKENS_MAX]; /* bos_token and the like; text owned by token_config */
    size_t token_count;
    json_t *token_config;
    struct output_grammar grammar;  /* how a forced call begins */
    struct model_media media;       /* the tokens that stand for pictures and sound */
};

/* ---- attach -------------------------------------------------------------------- */

/* tokenizer_config.json gives the template its special tokens: a text, or an object with "content". */
static void open_template_tokens(struct tokenize *k)
{
    static const char *const names[] = {"bos_token", "eos_token", "pad_token", "unk_token", "mask_token"};
    const uint8_t *bytes;
    uint64_t byte_count;

    if (model_files_find(&k->engine.files, "tokenizer_config.json", &bytes, &byte_count) != 0) return;
    k->token_config = json_loadb((const char *)bytes, byte_count, 0, NULL);
    if (!k->token_config) stage_exit(&k->stage, EXIT_CONFIG, "tokenizer_config.json is not JSON");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const json_t *value = json_object_get(k->token_config, names[i]);
        const char *text = json_is_object(value) ? json_string_value(json_object_get(value, "content")) : json_string_value(value);
        if (text) k->token[k->token_count++] = (struct chat_token){names[i], text};
    }
}

static void open_template(struct tokenize *k)
{
    const uint8_t *bytes = NULL;
    uint64_t byte_count = 0;
    char err[512] = "";
    json_t *own = NULL; /* where older checkpoints keep it: in a file of its own, or in the tokenizer's configuration */

    if (model_files_find(&k->engine.files, "chat_template.jinja", &bytes, &byte_count) != 0) {
        if (model_files_find(&k->engine.files, "chat_template.json", &bytes, &byte_count) == 0) own = json_loadb((const char *)bytes, byte_count, 0, NULL);
        const char *inside = json_string_value(json_object_get(own ? own : k->token_config, "chat_template"));
        bytes = (const uint8_t *)inside;
        byte_count = inside ? strlen(inside) : 0;
    }
    if (!bytes) {
        stage_log(&k->stage, LOG_WARN, "no-chat-template", "effect=\"only /v1/completions can be served\"");
        return;
    }
    if (chat_template_open(&k->template, (const char *)bytes, byte_count, err, sizeof err) != 0)
        stage_exit(&k->stage, EXIT_CONFIG, "the chat template cannot be used: %s", err);
    json_decref(own);
}

/* ---- work ------------------------------------------------------------------------ */

struct outcome {
    enum prompt_status status;
    uint32_t prompt_count;
    uint32_t media_count;
    uint32_t media_first[MEDIA_ITEMS_MAX];
    char error[ERROR_TEXT_BYTES];
};

__attribute__((format(printf, 3, 4))) static void refuse(struct outcome *o, enum prompt_status status, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(o->error, sizeof o->error, format, args);
    va_end(args);
    o->status = status;
}

static void encode(struct tokenize *k, struct outcome *o, const char *text, size_t bytes, const struct tokenizer_span *trusted, size_t trusted_count,
                   uint32_t *ids, uint32_t ids_max, uint32_t have)
{
    const int count = tokenizer_encode(k->tokenizer, text, bytes, trusted, trusted_count, ids + have, ids_max - have);

    if (count == -E_FULL) refuse(o, PROMPT_TOO_LONG, "the prompt has more than %u tokens: this server's context holds %u, prompt and output together", ids_max, ids_max + 1);
    else if (count < 0) refuse(o, PROMPT_MALFORMED, "the prompt cannot be tokenized: %s", error_text(count));
    else o->prompt_count = have + (uint32_t)count;
}

/* ---- video: a place for each frame, with its time in front ---------------------------- */

struct text_out { char *at; size_t bytes; };

static void put(struct text_out *out, const char *text, size_t bytes)
{
    memcpy(out->at + out->bytes, text, bytes);
    out->bytes += bytes;
}

static void put_token(const struct tokenize *k, struct text_out *out, uint32_t id)
{
    size_t bytes;
    const char *text = tokenizer_token_text(k->tokenizer, id, &bytes);

    if (text && bytes < VIDEO_TOKEN_BYTES) put(out, text, bytes);
}

static void put_frame(const struct tokenize *k, struct text_out *out, bool first, uint32_t at_ms)
{
    char time[32];

    put(out, time, (size_t)snprintf(time, sizeof time, "%s%02u:%02u ", first ? "" : " ", at_ms / 60000, at_ms / 1000 % 60));
    put_token(k, out, k->media.video.begin);
    put_token(k, out, k->media.video.place);
    put_token(k, out, k->media.video.end);
}

/* "00:00 <begin><place><end> 00:01 ..." of video `number`: the items of its files, or of its file. */
static void put_frames(const struct tokenize *k, uint32_t slot, uint32_t number, struct text_out *out)
{
    const struct gateway_slot *g = table_gateway(&k->table, slot);
    const struct vision_slot *v = table_vision(&k->table, slot);
    uint64_t at = g->media_offset;
    struct media_file_hdr hdr;
    const uint8_t *data;
    uint32_t item = 0;
    bool any = false;

    for (uint32_t i = 0; i < g->media_count && i < MEDIA_ITEMS_MAX; i++) {
        if (media_next(table_request(&k->table, slot), k->table.limits.request_bytes_max, &at, &hdr, &data) != 0) return;
        for (; item < v->count && item < MEDIA_ITEMS_MAX && v->item[item].file == i; item++) {
            if (v->item[item].kind != MEDIA_FRAME || hdr.video != number) continue;
            put_frame(k, out, !any, v->item[item].at_ms);
            any = true;
        }
    }
}

/* Gemma 3: the template writes where a picture begins, and the reference puts the rest, pieces included, there before it makes tokens: newlines join those beside them. */
static void put_picture(const struct tokenize *k, uint32_t slot, uint32_t number, struct text_out *out)
{
    static const char before[] = "Here is the original image ", behind[] = " and here are some crops to help you see better";
    const struct vision_slot *v = table_vision(&k->table, slot);
    uint32_t pieces = 0;

    for (uint32_t i = 0; i < v->count && i < MEDIA_ITEMS_MAX; i++) pieces += v->item[i].file == number - 1;
    if (pieces > 1) put(out, before, sizeof before - 1);
    for (uint32_t i = 0; i < pieces || i == 0; i++) {
        if (i == 1) put(out, behind, sizeof behind - 1);
        if (i > 0) put(out, " ", 1);
        put(out, "\n\n", 2);
        put_token(k, out, k->media.picture.begin);
        put_token(k, out, k->media.picture.place);
        put_token(k, out, k->media.picture.end);
        put(out, "\n\n", 2);
    }
}

/* Replaces each `token` that the template wrote (a user who types one has typed text) by what put_one writes for it. False: no memory. */
static bool expand_places(const struct tokenize *k, uint32_t slot, struct chat_text *text, uint32_t token, void (*put_one)(const struct tokenize *, uint32_t, uint32_t, struct text_out *))
{
    size_t place_bytes, from = 0;
    const char *place = tokenizer_token_text(k->tokenizer, token, &place_bytes);
    struct text_out out = {malloc(text->bytes + MEDIA_ITEMS_MAX * (size_t)(VIDEO_FRAME_BYTES + PIECES_BYTES) + 1), 0};
    uint32_t number = 0;

    if (!out.at) return false;
    for (size_t i = 0; place && i < text->trusted_count; i++) {
        struct tokenizer_span *span = &text->trusted[i];
        const size_t end = span->end_bytes;
        put(&out, text->text + from, span->begin_bytes - from);
        from = span->begin_bytes;
        span->begin_bytes = (uint32_t)out.bytes;
        for (const char *next; number < MEDIA_ITEMS_MAX && (next = memmem(text->text + from, end - from, place, place_bytes)) != NULL;) {
            put(&out, text->text + from, (size_t)(next - text->text) - from);
            put_one(k, slot, ++number, &out);
            from = (size_t)(next - text->text) + place_bytes;
        }
        put(&out, text->text + from, end - from);
        from = end;
        span->end_bytes = (uint32_t)out.bytes;
    }
    put(&out, text->text + from, text->bytes - from);
    out.at[out.bytes] = '\0';
    free(text->text);
    text->text = out.at;
    text->bytes = out.bytes;
    return true;
}

static bool expand(const struct tokenize *k, uint32_t slot, struct chat_text *text)
{
    if (k->media.picture_side) return expand_places(k, slot, text, k->media.picture.begin, put_picture);
    return !k->media.has_video || expand_places(k, slot, text, k->media.video.place, put_frames);
}

/* The answer begins with a call: its opening is the prompt's end, and the output parser goes on from there. */
static void open_call(struct tokenize *k, struct outcome *o, const char *name, uint32_t *ids, uint32_t ids_max)
{
    char text[OUTPUT_NAME_BYTES_MAX + 16];
    const int bytes = output_call_opening(name, text, sizeof text);

    if (k->grammar.tool_begin == TOKENIZER_NO_ID) refuse(o, PROMPT_TEMPLATE_ERROR, "this model knows no calls of tools: 'tool_choice' must be auto or none");
    else if (bytes < 0) refuse(o, PROMPT_TEMPLATE_ERROR, "no call of '%.60s' can be forced: a name of letters, digits, '_', '.' and '-' is needed", name);
    if (o->status != PROMPT_READY) return;
    if (o->prompt_count < ids_max) ids[o->prompt_count++] = k->grammar.tool_begin;
    encode(k, o, text, (size_t)bytes, NULL, 0, ids, ids_max, o->prompt_count);
}

static void encode_chat(struct tokenize *k, struct outcome *o, uint32_t slot, const uint8_t *request, size_t bytes, uint32_t *ids, uint32_t ids_max)
{
    const struct chat_options options = {.tokens = k->token, .token_count = k->token_count};
    struct chat_text text;
    char err[ERROR_TEXT_BYTES - 64] = "";

    if (!k->template) {
        refuse(o, PROMPT_TEMPLATE_ERROR, "this checkpoint has no chat template: use /v1/completions");
        return;
    }
    const int rc = chat_render(k->template, request, bytes, &options, &text, err, sizeof err);
    if (rc != 0) {
        refuse(o, PROMPT_TEMPLATE_ERROR, "the chat template refused the messages: %s", err[0] ? err : error_text(rc));
        return;
    }
    if (table_gateway(&k->table, slot)->media_count && !expand(k, slot, &text)) refuse(o, PROMPT_MEDIA_FAILED, "there is no memory for the text around the pictures");
    else encode(k, o, text.text, text.bytes, text.trusted, text.trusted_count, ids, ids_max, 0);
    if (o->status == PROMPT_READY && text.forced_call) open_call(k, o, text.forced_call, ids, ids_max);
    chat_text_free(&text);
}

static const msgpack_object *find_key(const msgpack_object *map, const char *name)
{
    for (uint32_t i = 0; map->type == MSGPACK_OBJECT_MAP && i < map->via.map.size; i++) {
        const msgpack_object *key = &map->via.map.ptr[i].key;
        if (key->type == MSGPACK_OBJECT_STR && key->via.str.size == strlen(name) && memcmp(key->via.str.ptr, name, key->via.str.size) == 0)
            return &map->via.map.ptr[i].val;
    }
    return NULL;
}

static void take_ids(struct tokenize *k, struct outcome *o, const msgpack_object *array, uint32_t *ids, uint32_t ids_max)
{
    if (array->via.array.size > ids_max) {
        refuse(o, PROMPT_TOO_LONG, "the prompt has %u tokens: this server's context holds %u, prompt and output together", array->via.array.size, ids_max + 1);
        return;
    }
    for (uint32_t i = 0; i < array->via.array.size; i++) {
        const msgpack_object *id = &array->via.array.ptr[i];
        if (id->type != MSGPACK_OBJECT_POSITIVE_INTEGER || id->via.u64 >= k->engine.config.vocab) {
            refuse(o, PROMPT_BAD_TOKEN, "prompt[%u] is not a token id: ids are whole numbers below %u", i, k->engine.config.vocab);
            return;
        }
        ids[i] = (uint32_t)id->via.u64;
    }
    o->prompt_count = array->via.array.size;
}

/* "prompt" as text (special tokens are recognised, as the raw interface promises) or as ids. */
static void encode_raw(struct tokenize *k, struct outcome *o, bool with_bos, const uint8_t *request, size_t bytes, uint32_t *ids, uint32_t ids_max)
{
    msgpack_unpacked result;
    size_t offset = 0;
    const msgpack_object *prompt = NULL;

    msgpack_unpacked_init(&result);
    if (msgpack_unpack_next(&result, (const char *)request, bytes, &offset) == MSGPACK_UNPACK_SUCCESS) prompt = find_key(&result.data, "prompt");
    if (prompt && prompt->type == MSGPACK_OBJECT_STR) {
        encode(k, o, prompt->via.str.ptr, prompt->via.str.size, NULL, TOKENIZER_ALL_TRUSTED, ids, ids_max, 0);
        if (o->status == PROMPT_READY && with_bos && k->engine.config.bos_token != MODEL_TOKEN_NONE && (o->prompt_count == 0 || ids[0] != k->engine.config.bos_token)) {
            ids[0] = k->engine.config.bos_token; /* Gemma is lost without it */
            encode(k, o, prompt->via.str.ptr, prompt->via.str.size, NULL, TOKENIZER_ALL_TRUSTED, ids, ids_max, 1);
        }
    } else if (prompt && prompt->type == MSGPACK_OBJECT_ARRAY) {
        take_ids(k, o, prompt, ids, ids_max);
    } else {
        refuse(o, PROMPT_MALFORMED, "the request has no prompt");
    }
    msgpack_unpacked_destroy(&result);
}

/* ---- pictures and sound ------------------------------------------------------------- */

/* What vision's verdict means here. False: it has not come yet. */
static bool take_verdict(struct tokenize *k, uint32_t slot, uint32_t generation, struct outcome *o)
{
    const struct vision_slot *v = table_vision(&k->table, slot);
    const uint32_t status = word_for(&v->commit, generation);

    if (status == MEDIA_NONE) return false;
    if (status == MEDIA_READY) return true;
    refuse(o, status == MEDIA_BAD ? PROMPT_MEDIA_BAD : status == MEDIA_TOO_LARGE ? PROMPT_MEDIA_LARGE : PROMPT_MEDIA_FAILED, "%.*s", (int)ERROR_TEXT_BYTES - 1,
           v->error_text[0] ? v->error_text : "the pictures and sounds of the request were not looked at");
    return true;
}

static const struct media_tokens *tokens_of(const struct tokenize *k, uint32_t kind)
{
    return kind == MEDIA_SOUND ? &k->media.sound : kind == MEDIA_FRAME ? &k->media.video : &k->media.picture;
}

/* Begin and end stand in the text already. */
static bool is_written_out(const struct tokenize *k, uint32_t kind) { return kind == MEDIA_FRAME || k->media.picture_side; }

/* The places that the template wrote, in order, against vision's items. */
static bool places_match(struct tokenize *k, struct outcome *o, const struct vision_slot *v, uint32_t item_count, const uint32_t *ids)
{
    uint32_t places = 0;

    for (uint32_t i = 0; i < o->prompt_count; i++) {
        const bool picture = k->media.picture_budget && ids[i] == k->media.picture.place, frame = k->media.has_video && ids[i] == k->media.video.place;
        const bool sound = k->media.sound_seconds && ids[i] == k->media.sound.place;
        if (!picture && !sound && !frame) continue;
        if (places < item_count && v->item[places].kind != (uint32_t)(picture ? MEDIA_PICTURE : frame ? MEDIA_FRAME : MEDIA_SOUND)) {
            refuse(o, PROMPT_TEMPLATE_ERROR, "the chat template of this model put picture and sound in another order than the request");
            return false;
        }
        places++;
    }
    if (places != item_count) refuse(o, PROMPT_TEMPLATE_ERROR, "the chat template of this model made %u places for the %u pictures and sounds of the request", places, item_count);
    return places == item_count;
}

/* Each place becomes begin, one token for each soft token, end: as the reference's processor does. From the back, so that nothing is overwritten. */
static void place_media(struct tokenize *k, struct outcome *o, uint32_t slot, uint32_t *ids, uint32_t ids_max)
{
    const struct vision_slot *v = table_vision(&k->table, slot);
    const uint32_t item_count = v->count <= MEDIA_ITEMS_MAX ? v->count : MEDIA_ITEMS_MAX;
    uint64_t grown = o->prompt_count;

    if (!places_match(k, o, v, item_count, ids)) return;
    for (uint32_t i = 0; i < item_count; i++) grown += (uint64_t)v->item[i].tokens + (is_written_out(k, v->item[i].kind) ? -1 : 1);
    if (grown > ids_max) {
        refuse(o, PROMPT_TOO_LONG, "the prompt has %llu tokens, %u of them for pictures and sound: this server's context holds %u, prompt and output together", (unsigned long long)grown, v->tokens, ids_max + 1);
        return;
    }
    uint32_t to = (uint32_t)grown, item = item_count;
    for (uint32_t from = o->prompt_count; from-- > 0 && item > 0;) {
        const struct media_tokens *t = tokens_of(k, v->item[item - 1].kind);
        if (ids[from] != t->place) {
            ids[--to] = ids[from];
            continue;
        }
        const bool written = is_written_out(k, v->item[item - 1].kind);
        if (!written) ids[--to] = t->end;
        for (uint32_t n = v->item[--item].tokens; n > 0; n--) ids[--to] = t->place;
        o->media_first[item] = to;
        if (!written) ids[--to] = t->begin;
    }
    o->prompt_count = (uint32_t)grown;
    o->media_count = item_count;
}

/* Nobody wants it: a convicted request is refused here, a cancelled one goes its way and verify ends it. */
static bool settle_unwanted(struct tokenize *k, uint32_t slot, uint32_t generation, struct outcome *o)
{
    if (!slot_is_unwanted(&k->table, slot, generation)) return false;
    o->status = PROMPT_READY;
    o->prompt_count = 1;
    table_prompt(&k->table, slot)[0] = 0;
    if (word_for(&table_launcher(&k->table, slot)->verdict, generation))
        refuse(o, PROMPT_FAILED, "this request stopped a stage of the server twice and was set aside");
    return true;
}

static void work(struct tokenize *k, uint32_t slot, struct outcome *o)
{
    const struct gateway_slot *g = table_gateway(&k->table, slot);
    const uint32_t ids_max = k->table.limits.context_max - 1; /* one place at least for the output */
    uint32_t *ids = table_prompt(&k->table, slot);
    const uint64_t bytes = g->request_bytes;

    o->status = PROMPT_READY;
    if (bytes > k->table.limits.request_bytes_max) refuse(o, PROMPT_MALFORMED, "the request record is damaged");
    else if (g->params.flags & REQUEST_RAW_PROMPT) encode_raw(k, o, !(g->params.flags & REQUEST_NO_BOS), table_request(&k->table, slot), bytes, ids, ids_max);
    else encode_chat(k, o, slot, table_request(&k->table, slot), bytes, ids, ids_max);
    if (o->status == PROMPT_READY && g->media_count) place_media(k, o, slot, ids, ids_max);
    if (o->status == PROMPT_READY && o->prompt_count == 0) refuse(o, PROMPT_EMPTY, "the prompt is empty");
}

/* ---- emit ------------------------------------------------------------------------- */

static void announce(struct tokenize *k, uint32_t slot, uint32_t generation, enum prompt_status status)
{
    const struct ring_msg msg = {.slot = slot, .generation = generation};

    ring_publish(&k->stage.ring[status == PROMPT_READY ? RING_TOKENIZE_PREFILL : RING_TOKENIZE_GATEWAY], &msg);
}

static void commit(struct tokenize *k, uint32_t slot, uint32_t generation, const struct outcome *o)
{
    struct tokenize_slot *t = table_tokenize(&k->table, slot);
    const uint32_t room = k->table.limits.context_max - o->prompt_count, asked = table_gateway(&k->table, slot)->params.max_tokens;

    t->prompt_count = o->prompt_count;
    t->max_output = asked && asked < room ? asked : room;
    t->done_ns = clock_ns();
    t->media_count = o->media_count;
    memcpy(t->media_first, o->media_first, sizeof t->media_first);
    memcpy(t->error_text, o->error, sizeof t->error_text);
    shm_store_release(&t->commit, word_pack(generation, o->status));
}

static void handle(struct tokenize *k, uint32_t slot)
{
    struct outcome o = {.status = PROMPT_NONE};
    bool media;
    const uint32_t generation = slot_live(&k->table, slot);
    const uint64_t begin = clock_ns();

    if (!generation) return;
    o.status = (enum prompt_status)word_for(&table_tokenize(&k->table, slot)->commit, generation);
    media = table_gateway(&k->table, slot)->media_count > 0;
    if (o.status == PROMPT_NONE) {
        if (!settle_unwanted(k, slot, generation, &o)) {
            if (media && !take_verdict(k, slot, generation, &o)) return; /* vision will tell us */
            stage_busy(&k->stage, &slot, &generation, 1);
            if (o.status == PROMPT_NONE) work(k, slot, &o);
        }
        commit(k, slot, generation, &o);
        stage_idle(&k->stage);
        stage_count(&k->stage, TOKENIZE_REQUESTS, 1);
        stage_count(&k->stage, TOKENIZE_REFUSED, o.status != PROMPT_READY);
        stage_count(&k->stage, TOKENIZE_TOKENS, o.prompt_count);
        stage_count(&k->stage, TOKENIZE_WORK_NS, clock_ns() - begin);
        if (o.status != PROMPT_READY) stage_log(&k->stage, LOG_INFO, "refused", "slot=%u status=%d reason=\"%s\"", slot, (int)o.status, o.error);
    }
    announce(k, slot, generation, o.status);
}

static void scan(struct tokenize *k)
{
    for (uint32_t slot = 0; slot < k->table.limits.slot_count; slot++) {
        const uint32_t generation = slot_live(&k->table, slot);
        if (generation && !word_for(&table_verify(&k->table, slot)->finish, generation)) handle(k, slot); /* refusals are told again too */
        stage_beat(&k->stage);
    }
}

/* The id that the tokenizer's configuration gives a special token; left as it is when there is none. */
static void own_token(const struct tokenize *k, const char *name, uint32_t *id)
{
    const char *text = json_string_value(json_object_get(k->token_config, name));
    const uint32_t own = text ? tokenizer_id(k->tokenizer, text) : TOKENIZER_NO_ID;

    if (own != TOKENIZER_NO_ID) *id = own;
}

/* A built-in shape with the demo's tokenizer: the shape's ids are those of another vocabulary. */
static void use_own_tokens(struct tokenize *k)
{
    own_token(k, "boi_token", &k->media.picture.begin);
    own_token(k, "image_token", &k->media.picture.place);
    own_token(k, "eoi_token", &k->media.picture.end);
    k->media.video.begin = k->media.picture.begin;
    k->media.video.end = k->media.picture.end;
    k->media.has_video = false; /* no name says which token it is */
    own_token(k, "boa_token", &k->media.sound.begin);
    own_token(k, "audio_token", &k->media.sound.place);
    own_token(k, "eoa_token", &k->media.sound.end);
}

/* The tokens that stand for media, where the server takes any. */
static void open_media(struct tokenize *k)
{
    struct model_error err = {""};

    if (k->table.limits.media_tokens_max == 0) return;
    if (model_media_load(&k->media, &k->engine.config, &k->engine.files, &err) != 0) stage_exit(&k->stage, EXIT_CONFIG, "pictures and sound of the model cannot be used: %s", err.text);
    if (wiring_text(&k->stage.wiring, "model.random", "")[0]) use_own_tokens(k);
}

/* One message of either ring; false: there is none. */
static bool take_message(struct tokenize *k)
{
    static const int rings[] = {RING_GATEWAY_TOKENIZE, RING_VISION_TOKENIZE};
    struct ring_msg msg;
    bool any = false;

    for (size_t i = 0; i < sizeof rings / sizeof *rings; i++) {
        struct ring *in = &k->stage.ring[rings[i]];
        if (ring_overran(in)) scan(k);
        if (ring_take(in, &msg) != 1) continue;
        any = true;
        if (msg.slot < k->table.limits.slot_count) handle(k, msg.slot);
    }
    return any;
}

int main(int argc, char **argv)
{
    static struct tokenize k;

    stage_attach(&k.stage, ROLE_TOKENIZE, "turns chat messages into prompt tokens", argc, argv);
    table_attach(&k.table, &k.stage);
    engine_open_config(&k.engine, &k.stage);
    k.tokenizer = engine_open_tokenizer(&k.engine, &k.stage);
    output_grammar_init(&k.grammar, k.tokenizer);
    open_template_tokens(&k);
    open_template(&k);
    open_media(&k);
    stage_ready(&k.stage);
    scan(&k);
    while (stage_running(&k.stage))
        if (!take_message(&k)) stage_wait(&k.stage, 1000);
    return 0;
}
