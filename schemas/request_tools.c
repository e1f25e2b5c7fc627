/* schemas/request_tools.c - tool declarations, and the history that previous_response_id brings. */
#include "schemas/pack.h"
#include "schemas/request.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>

#define TOOL_NAME_BYTES 128u

/* ---- declarations ---------------------------------------------------------------- */

/* {type: function, function: {name, description, parameters}} from that shape or from the flat one. */
static json_t *declaration(const json_t *tool, const char *path, struct fault *f)
{
    const char *type = json_string_value(json_object_get(tool, "type"));
    const json_t *function = json_object_get(tool, "function");
    const char *name = NULL, *description = NULL;
    json_t *parameters = NULL;

    if (!type || strcmp(type, "function") != 0) {
        fault_set(f, 400, "unsupported_tool", path, "Invalid '%s': tools of type '%.60s' are not supported by this server, only 'function' is.", path,
                  type ? type : "(missing)");
        return NULL;
    }
    if (!json_is_object(function)) function = tool;
    if (field_string(function, "name", TOOL_NAME_BYTES, &name, f) < 0 || field_string(function, "description", 65536, &description, f) < 0 ||
        field_object(function, "parameters", &parameters, f) < 0)
        return NULL;
    if (!name || !*name) {
        fault_set(f, 400, "missing_required_parameter", path, "Missing required parameter: '%s.name'.", path);
        return NULL;
    }
    json_t *out = json_pack("{s:s,s:{s:s,s:s}}", "type", "function", "function", "name", name, "description", description ? description : "");
    if (parameters) json_object_set(json_object_get(out, "function"), "parameters", parameters);
    return out;
}

enum choice { CHOICE_AUTO, CHOICE_NONE, CHOICE_REQUIRED, CHOICE_NAMED };

/* In the shape of either API. *name of CHOICE_NAMED; borrowed. */
static int read_choice(const json_t *body, const char **name, struct fault *f)
{
    static const char *const words[] = {[CHOICE_AUTO] = "auto", [CHOICE_NONE] = "none", [CHOICE_REQUIRED] = "required"};
    const json_t *choice = json_object_get(body, "tool_choice"), *function = json_object_get(choice, "function");
    const char *word = json_string_value(choice), *type = json_string_value(json_object_get(choice, "type"));

    if (!choice || json_is_null(choice)) return CHOICE_AUTO;
    for (int i = CHOICE_AUTO; word && i <= CHOICE_REQUIRED; i++)
        if (strcmp(word, words[i]) == 0) return i;
    *name = json_string_value(json_object_get(function ? function : choice, "name"));
    if (type && strcmp(type, "function") == 0 && *name && **name) return CHOICE_NAMED;
    return fault_set(f, 400, "unsupported_parameter", "tool_choice", "Unsupported 'tool_choice': this server supports 'auto', 'none', 'required', and one function by its name.");
}

/* Who must be called, of tools that were checked. */
static int force(const json_t *tools, int choice, const char *name, const char **forced, struct fault *f)
{
    const json_t *tool;
    size_t i;

    if (choice < CHOICE_REQUIRED) return 0;
    if (!json_array_size(tools)) return fault_set(f, 400, "invalid_value", "tool_choice", "Invalid 'tool_choice': it asks for a call, but there are no 'tools'.");
    *forced = "";
    json_array_foreach(tools, i, tool)
    {
        const json_t *function = json_object_get(tool, "function");
        const char *own = json_string_value(json_object_get(json_is_object(function) ? function : tool, "name"));
        if (choice == CHOICE_REQUIRED && json_array_size(tools) > 1) return 0; /* the model chooses */
        if (choice == CHOICE_REQUIRED || strcmp(own, name) == 0) {
            *forced = own;
            return 0;
        }
    }
    return fault_set(f, 400, "invalid_value", "tool_choice", "Invalid 'tool_choice': there is no '%.60s' among the 'tools'.", name);
}

int request_tools(struct request *r, const json_t *body, json_t **out, const char **forced, struct fault *f)
{
    const char *name = NULL;
    json_t *tools = NULL, *tool;
    bool parallel = true;
    size_t i;

    *out = NULL;
    *forced = NULL;
    if (field_bool(body, "parallel_tool_calls", &parallel, f) < 0) return -E_FORMAT;
    if (!parallel) r->params.flags |= REQUEST_ONE_CALL;
    const int choice = read_choice(body, &name, f);
    if (choice < 0 || field_array(body, "tools", REQUEST_TOOLS_MAX, &tools, f) < 0) return -E_FORMAT;
    json_t *list = json_array();
    json_array_foreach(tools, i, tool)
    {
        char path[64];
        snprintf(path, sizeof path, "tools[%zu]", i);
        json_t *one = declaration(tool, path, f);
        if (!one) {
            json_decref(list);
            return -E_FORMAT;
        }
        json_array_append_new(list, one);
    }
    if (force(tools, choice, name, forced, f) < 0) {
        json_decref(list);
        return -E_FORMAT;
    }
    if (choice == CHOICE_NONE || !json_array_size(list)) json_decref(list); /* checked, but not shown to the model */
    else *out = list;
    return 0;
}

/* ---- history ----------------------------------------------------------------------- */

/* The items of a log, as a Responses client would send them back. */
static json_t *log_items(const struct view *v)
{
    json_t *items = json_array(), *item = NULL;
    struct wire text = {0};
    struct log_record r;
    const char *payload;
    uint64_t at = 0, next;
    uint32_t open = 0, index = 0;

    for (;; at = next) {
        const bool more = view_record(v, at, &r, &payload, &next) == 1 && r.type != LOG_END;
        const bool goes_on = more && (r.type == open || (open == LOG_TOOL_BEGIN && r.type == LOG_TOOL_ARGS));
        if (open && (!goes_on || (open == LOG_TOOL_BEGIN && r.type == LOG_TOOL_BEGIN))) {
            json_t *whole = json_stringn(text.data ? text.data : "", text.bytes);
            if (!whole) whole = json_string(""); /* not UTF-8: cannot be, and does not matter then */
            if (open == LOG_REASONING) json_object_set_new(item, "content", json_pack("[{s:s,s:o}]", "type", "reasoning_text", "text", whole));
            else json_object_set_new(item, open == LOG_TEXT ? "content" : "arguments", whole);
            if (open != LOG_TOOL_BEGIN || (more && r.type == LOG_TOOL_END)) json_array_append(items, item); /* a call cut off is no call */
            json_decref(item);
            wire_clear(&text);
            open = 0;
            index++;
        }
        if (!more) break;
        if (r.type == LOG_TOOL_END) continue;
        if (!open) {
            open = r.type;
            if (open == LOG_TOOL_BEGIN) {
                char id[80];
                snprintf(id, sizeof id, "call_%s%02x", v->key, index);
                item = json_pack("{s:s,s:s,s:o}", "type", "function_call", "call_id", id, "name", json_stringn(payload, r.bytes));
                continue;
            }
            item = open == LOG_TEXT ? json_pack("{s:s,s:s}", "type", "message", "role", "assistant") : json_pack("{s:s}", "type", "reasoning");
        }
        wire_add(&text, payload, r.bytes);
    }
    wire_free(&text);
    return items;
}

/* Arguments that are not a JSON object (the model wrote nonsense) must not make the conversation unusable. */
static void repair_calls(json_t *items)
{
    struct fault ignored;
    json_t *item;
    size_t i;

    json_array_foreach(items, i, item)
    {
        const json_t *arguments = json_object_get(item, "arguments");
        if (!arguments) continue;
        json_t *parsed = field_parse(json_string_value(arguments), json_string_length(arguments), &ignored);
        json_object_set_new(item, "arguments", parsed ? parsed : json_object());
    }
}

json_t *request_history(const struct view *v, struct fault *f)
{
    const struct gateway_slot *g = table_gateway(v->table, v->slot);
    json_t *messages = pack_member(table_request(v->table, v->slot), g->request_bytes, "messages");
    json_t *items, *answer;

    if (!json_is_array(messages)) {
        json_decref(messages);
        fault_set(f, 400, "previous_response_not_found", "previous_response_id", "The conversation of response '%s' is no longer stored.", v->id);
        return NULL;
    }
    for (uint32_t i = 0; i < v->instructions; i++) json_array_remove(messages, 0);
    items = log_items(v);
    repair_calls(items);
    answer = request_input_messages(items, NULL, f);
    json_decref(items);
    if (!answer) {
        json_decref(messages);
        return NULL;
    }
    json_array_extend(messages, answer);
    json_decref(answer);
    return messages;
}
