/* schemas/request_messages.c - conversations: what clients send to what chat templates read.
 *
 * A template reads messages of the shape that transformers documents: role, content
 * (text, or a list of {type: text, text}), reasoning_content, tool_calls with arguments
 * as an object, tool_call_id. Clients send arguments as JSON text, and the Responses
 * API sends items instead of messages: an assistant turn is put together from its
 * reasoning, function_call and message items, in their order. */
#include "schemas/request.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>

#define NAME_BYTES 128u
#define PATH_BYTES 96u
#define ARGUMENTS_BYTES_MAX (2u << 20) /* of all calls of a request: JSON inside of JSON, whose values nobody has counted yet */

/* ---- content ------------------------------------------------------------------ */

static int not_built(const char *type, const char *path, struct fault *f)
{
    return fault_set(f, 400, "unsupported_content", path, "Content of type '%.60s' is not supported by this server: text, pictures (image_url, input_image), sound (input_audio) and video (video_url, input_video, or a list of frames) are.", type);
}

/* One part to {type: text, text}, {type: image}, {type: audio} or {type: video}. A new reference, or NULL with a fault. */
static json_t *content_part(const json_t *part, struct request_media *media, const char *path, struct fault *f)
{
    const json_t *text = json_object_get(part, "text");
    const char *type = json_string_value(json_object_get(part, "type"));

    if (!type) {
        fault_set(f, 400, "invalid_type", path, "Invalid '%s': each content part must be an object with a string 'type'.", path);
        return NULL;
    }
    switch (request_part_of(type)) {
    case REQUEST_PART_PICTURE: return request_picture(media, part, path, f);
    case REQUEST_PART_SOUND: return request_sound(media, part, path, f);
    case REQUEST_PART_VIDEO: return request_video(media, part, path, f);
    case REQUEST_PART_OTHER: break;
    }
    if (strcmp(type, "refusal") == 0) text = json_object_get(part, "refusal");
    else if (strcmp(type, "text") != 0 && strcmp(type, "input_text") != 0 && strcmp(type, "output_text") != 0) {
        not_built(type, path, f);
        return NULL;
    }
    if (!json_is_string(text)) {
        fault_set(f, 400, "invalid_type", path, "Invalid '%s': a part of type '%.60s' must have its text as a string.", path, type);
        return NULL;
    }
    return json_pack("{s:s,s:O}", "type", "text", "text", text);
}

/* Content as a template reads it: text, or a list of parts. */
static json_t *content(const json_t *value, struct request_media *media, const char *path, struct fault *f)
{
    const json_t *part;
    size_t i;

    if (json_is_string(value)) return json_incref((json_t *)value);
    if (!json_is_array(value)) {
        fault_set(f, 400, value ? "invalid_type" : "missing_required_parameter", path, "Invalid '%s': expected a string or an array of content parts.", path);
        return NULL;
    }
    json_t *list = json_array();
    json_array_foreach(value, i, part)
    {
        char part_path[PATH_BYTES + 32];
        snprintf(part_path, sizeof part_path, "%s[%zu]", path, i);
        json_t *one = content_part(part, media, request_part_of(json_string_value(json_object_get(part, "type")) ?: "") ? part_path : path, f);
        if (!one) {
            json_decref(list);
            return NULL;
        }
        json_array_append_new(list, one);
    }
    if (json_array_size(list) != 1 || !json_object_get(json_array_get(list, 0), "text")) return list;
    json_t *only = json_incref(json_object_get(json_array_get(list, 0), "text")); /* one part is plain text */
    json_decref(list);
    return only;
}

/* ---- tool calls ---------------------------------------------------------------- */

/* {id, type: function, function: {name, arguments: object}}. *room: bytes that arguments may still have. */
static json_t *tool_call(const char *id, const json_t *name, const json_t *arguments, size_t *room, const char *path, struct fault *f)
{
    json_t *object;

    if (!json_is_string(name) || json_string_length(name) == 0 || json_string_length(name) > NAME_BYTES) {
        fault_set(f, 400, "invalid_type", path, "Invalid '%s': a function call must have a name of 1 to %u bytes.", path, NAME_BYTES);
        return NULL;
    }
    if (json_is_object(arguments)) object = json_incref((json_t *)arguments);
    else if (json_is_string(arguments) && json_string_length(arguments) == 0) object = json_object();
    else if (json_string_length(arguments) > *room) {
        fault_set(f, 400, "string_too_long", path, "Invalid '%s': the arguments of all function calls together have more than %u bytes.", path, ARGUMENTS_BYTES_MAX);
        return NULL;
    } else if (json_is_string(arguments)) {
        struct fault inner;
        *room -= json_string_length(arguments);
        object = field_parse(json_string_value(arguments), json_string_length(arguments), &inner);
        if (!object) {
            fault_set(f, 400, "invalid_value", path, "Invalid '%s': the arguments of '%.60s' are not the text of a JSON object: %.200s", path,
                      json_string_value(name), inner.message);
            return NULL;
        }
    } else {
        fault_set(f, 400, "invalid_type", path, "Invalid '%s': the arguments of a function call must be a string.", path);
        return NULL;
    }
    return json_pack("{s:s,s:s,s:{s:O,s:o}}", "id", id ? id : "", "type", "function", "function", "name", name, "arguments", object);
}

static int chat_tool_calls(const json_t *message, json_t *out, size_t *room, const char *path, struct fault *f)
{
    json_t *calls = NULL, *call;
    json_t *list;
    size_t i;

    if (field_array(message, "tool_calls", REQUEST_TOOLS_MAX, &calls, f) < 0) return -E_FORMAT;
    if (!json_array_size(calls)) return 0;
    list = json_array();
    json_object_set_new(out, "tool_calls", list);
    json_array_foreach(calls, i, call)
    {
        const json_t *function = json_object_get(call, "function");
        json_t *one = tool_call(json_string_value(json_object_get(call, "id")), json_object_get(function, "name"), json_object_get(function, "arguments"), room, path, f);
        if (!one) return -E_FORMAT;
        json_array_append_new(list, one);
    }
    return 0;
}

/* ---- chat messages -------------------------------------------------------------- */

static const char *template_role(const char *role)
{
    static const char *const known[] = {"system", "user", "assistant", "tool"};

    if (role && strcmp(role, "developer") == 0) return "system";
    for (size_t i = 0; role && i < sizeof known / sizeof *known; i++)
        if (strcmp(role, known[i]) == 0) return known[i];
    return NULL;
}

static int copy_texts(const json_t *from, json_t *to, struct fault *f)
{
    static const char *const names[][2] = {{"name", "name"}, {"tool_call_id", "tool_call_id"}, {"reasoning_content", "reasoning_content"}, {"reasoning", "reasoning_content"}};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *text = NULL;
        const int rc = field_string(from, names[i][0], SIZE_MAX, &text, f);
        if (rc < 0) return rc;
        if (rc == 1) json_object_set_new(to, names[i][1], json_string(text));
    }
    return 0;
}

static json_t *chat_message(const json_t *message, struct request_media *media, size_t *room, const char *path, struct fault *f)
{
    const char *role = template_role(json_string_value(json_object_get(message, "role")));
    const json_t *text = json_object_get(message, "content");
    char content_path[PATH_BYTES + 16];

    if (!json_is_object(message) || !role) {
        fault_set(f, 400, "invalid_value", path, "Invalid '%s': expected an object whose role is system, developer, user, assistant or tool.", path);
        return NULL;
    }
    json_t *out = json_pack("{s:s}", "role", role);
    snprintf(content_path, sizeof content_path, "%s.content", path);
    const bool is_assistant = strcmp(role, "assistant") == 0;
    int rc = copy_texts(message, out, f);
    if (rc == 0 && is_assistant) rc = chat_tool_calls(message, out, room, path, f);
    if (rc == 0 && is_assistant && (!text || json_is_null(text)) && (json_object_get(out, "tool_calls") || json_object_get(out, "reasoning_content"))) {
        json_object_set_new(out, "content", json_string(""));
        return out;
    }
    json_t *value = rc == 0 ? content(text, media, content_path, f) : NULL;
    if (!value) {
        json_decref(out);
        return NULL;
    }
    json_object_set_new(out, "content", value);
    return out;
}

json_t *request_chat_messages(const json_t *messages, struct request_media *media, struct fault *f)
{
    json_t *list = json_array();
    const json_t *message;
    size_t i, room = ARGUMENTS_BYTES_MAX;

    json_array_foreach(messages, i, message)
    {
        char path[PATH_BYTES];
        snprintf(path, sizeof path, "messages[%zu]", i);
        json_t *one = chat_message(message, media, &room, path, f);
        if (!one) {
            json_decref(list);
            return NULL;
        }
        json_array_append_new(list, one);
    }
    return list;
}

/* ---- Responses items ------------------------------------------------------------ */

/* The assistant message that items are being added to: the last of the list, if it is one that still lacks `field`. */
static json_t *open_turn(json_t *list, const char *field)
{
    json_t *last = json_array_size(list) ? json_array_get(list, json_array_size(list) - 1) : NULL;

    if (last && json_is_true(json_object_get(last, "open")) && !json_object_get(last, field)) return last;
    last = json_pack("{s:s,s:b}", "role", "assistant", "open", 1);
    json_array_append_new(list, last);
    return last;
}

static int reasoning_item(const json_t *item, json_t *list, struct fault *f)
{
    const json_t *parts = json_object_get(item, "content"), *part;
    struct wire text = {0};
    size_t i;

    (void)f;
    json_array_foreach(parts, i, part)
    {
        const char *piece = json_string_value(json_object_get(part, "text"));
        if (piece) wire_text(&text, piece);
    }
    if (text.bytes) { /* nothing: only a summary or an encrypted copy came back, which says nothing to the model */
        json_t *turn = json_pack("{s:s,s:b}", "role", "assistant", "open", 1); /* reasoning begins a turn's part */
        json_object_set_new(turn, "reasoning_content", json_stringn(text.data, text.bytes));
        json_array_append_new(list, turn);
    }
    wire_free(&text);
    return 0;
}

static int call_item(const json_t *item, json_t *list, size_t *room, const char *path, struct fault *f)
{
    json_t *call = tool_call(json_string_value(json_object_get(item, "call_id")), json_object_get(item, "name"), json_object_get(item, "arguments"), room, path, f);
    json_t *turn, *calls;

    if (!call) return -E_FORMAT;
    turn = open_turn(list, "content"); /* a call after text begins a new message, or the template would print it first */
    calls = json_object_get(turn, "tool_calls");
    if (!calls) {
        calls = json_array();
        json_object_set_new(turn, "tool_calls", calls);
    }
    json_array_append_new(calls, call);
    return 0;
}

static int result_item(const json_t *item, json_t *list, struct request_media *media, const char *path, struct fault *f)
{
    const char *call_id = json_string_value(json_object_get(item, "call_id"));
    char output_path[PATH_BYTES + 16];

    snprintf(output_path, sizeof output_path, "%s.output", path);
    if (!call_id) return fault_set(f, 400, "missing_required_parameter", path, "Missing required parameter: '%s.call_id'.", path);
    json_t *value = content(json_object_get(item, "output"), media, output_path, f);
    if (!value) return -E_FORMAT;
    json_array_append_new(list, json_pack("{s:s,s:s,s:o}", "role", "tool", "tool_call_id", call_id, "content", value));
    return 0;
}

static int message_item(const json_t *item, json_t *list, struct request_media *media, const char *path, struct fault *f)
{
    const char *role = template_role(json_string_value(json_object_get(item, "role")));
    char content_path[PATH_BYTES + 16];

    if (!role || strcmp(role, "tool") == 0)
        return fault_set(f, 400, "invalid_value", path, "Invalid '%s': the role of a message must be system, developer, user or assistant.", path);
    snprintf(content_path, sizeof content_path, "%s.content", path);
    json_t *value = content(json_object_get(item, "content"), media, content_path, f);
    if (!value) return -E_FORMAT;
    if (strcmp(role, "assistant") == 0) json_object_set_new(open_turn(list, "content"), "content", value);
    else json_array_append_new(list, json_pack("{s:s,s:o}", "role", role, "content", value));
    return 0;
}

static int input_item(const json_t *item, json_t *list, struct request_media *media, size_t *room, const char *path, struct fault *f)
{
    const char *type = json_string_value(json_object_get(item, "type"));

    if (!json_is_object(item)) return fault_set(f, 400, "invalid_type", path, "Invalid '%s': expected an object.", path);
    if (!type || strcmp(type, "message") == 0) return message_item(item, list, media, path, f);
    if (strcmp(type, "function_call") == 0) return call_item(item, list, room, path, f);
    if (strcmp(type, "function_call_output") == 0) return result_item(item, list, media, path, f);
    if (strcmp(type, "reasoning") == 0) return reasoning_item(item, list, f);
    return fault_set(f, 400, "unsupported_content", path,
                     "Input items of type '%.60s' are not supported by this server: message, function_call, function_call_output and reasoning are.", type);
}

/* The marks of turns being put together go; an assistant message always has content. */
static void close_turns(json_t *list)
{
    json_t *message;
    size_t i;

    json_array_foreach(list, i, message)
    {
        json_object_del(message, "open");
        if (!json_object_get(message, "content")) json_object_set_new(message, "content", json_string(""));
    }
}

json_t *request_input_messages(const json_t *input, struct request_media *media, struct fault *f)
{
    json_t *list = json_array();
    const json_t *item;
    size_t i, room = ARGUMENTS_BYTES_MAX;

    if (json_is_string(input)) {
        json_array_append_new(list, json_pack("{s:s,s:O}", "role", "user", "content", input));
        return list;
    }
    json_array_foreach(input, i, item)
    {
        char path[PATH_BYTES];
        snprintf(path, sizeof path, "input[%zu]", i);
        if (input_item(item, list, media, &room, path, f) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    close_turns(list);
    return list;
}

/* ---- results ---------------------------------------------------------------------- */

static bool has_role(const json_t *message, const char *role)
{
    const char *own = json_string_value(json_object_get(message, "role"));

    return own && strcmp(own, role) == 0;
}

/* Templates print a result behind the calls before it, and leave out one that stands elsewhere without a word: it is refused here. */
int request_check_results(const json_t *messages, const char *name, struct fault *f)
{
    const json_t *message, *calls = NULL, *call;
    size_t i, k;

    json_array_foreach(messages, i, message)
    {
        const char *id = json_string_value(json_object_get(message, "tool_call_id"));
        bool found = id == NULL;
        if (!has_role(message, "tool")) {
            calls = json_object_get(message, "tool_calls");
            continue;
        }
        json_array_foreach(calls, k, call)
        {
            const char *own = json_string_value(json_object_get(call, "id"));
            found |= !own || (id && strcmp(own, id) == 0);
        }
        if (json_array_size(calls) == 0)
            return fault_set(f, 400, "invalid_value", name, "Invalid '%s': the result of a tool (%.80s) does not stand behind a call.", name, id ? id : "without an id");
        if (!found) return fault_set(f, 400, "invalid_value", name, "Invalid '%s': none of the calls before the result '%.80s' has this id.", name, id);
    }
    return 0;
}
