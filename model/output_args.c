/* model/output_args.c - the arguments of a tool call: Gemma's notation in, strict JSON out.
 *
 * One pass, one character at a time, a few hundred bytes of state: a megabyte of argument
 * streams through. Strings go out as they come; a name or a bare value is held until its end
 * is seen, because only then is it known what it is (12 may become 123 or 12th). A bare value
 * too long to hold can only be a string and is streamed as one.
 *
 * Follows the reference's reading of well-formed calls. Where the notation is broken the
 * JSON stays valid: containers are closed, and the first fault is kept for whoever asks. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "model/output_private.h"
#include "shm/must.h"

enum state {
    IN_ITEM,       /* between items: a name, a value of an array, or the closing bracket may come */
    IN_NAME,       /* a bare name; held */
    IN_NAME_QUOTE, /* a quoted name; held */
    IN_NAME_END,   /* behind a quoted name: only the colon may come; held */
    IN_VALUE,      /* behind the colon */
    IN_BARE,       /* a bare value; held */
    IN_BARE_LONG,  /* a bare string that is streamed; held: the white space it ends with so far */
    IN_STRING,     /* between quote tokens */
};

enum fault {
    FAULT_NONE,
    FAULT_MISSING_BRACE,
    FAULT_OPEN_STRING,
    FAULT_NO_VALUE,
    FAULT_NO_COLON,
    FAULT_LONG_NAME,
    FAULT_BRACKET,
    FAULT_QUOTE,
    FAULT_DEPTH,
};

const char *output_args_fault(const struct output_parser *p)
{
    static const char *const text[] = {
        [FAULT_NONE] = "",
        [FAULT_MISSING_BRACE] = "the arguments end without a closing brace",
        [FAULT_OPEN_STRING] = "a string argument does not end",
        [FAULT_NO_VALUE] = "an argument has no value",
        [FAULT_NO_COLON] = "an argument name is not followed by a colon",
        [FAULT_LONG_NAME] = "an argument name is too long",
        [FAULT_BRACKET] = "a bracket does not match",
        [FAULT_QUOTE] = "a quote stands where none can be",
        [FAULT_DEPTH] = "the arguments are nested too deeply",
    };

    return text[p->args.fault];
}

static void note(struct output_parser *p, enum fault fault)
{
    if (p->args.fault == FAULT_NONE) p->args.fault = fault;
}

static void put(struct output_parser *p, const char *text, size_t bytes)
{
    output_put(p, OUTPUT_TOOL_ARGS_DELTA, text, bytes);
}

/* ---- JSON text ---- */

static void put_escaped_char(struct output_parser *p, const char *text, size_t bytes)
{
    static const char letter[0x20] = { ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r' };
    const uint8_t c = (uint8_t)text[0];
    char escaped[8];

    if (c == '"' || c == '\\') {
        put(p, (char[]){ '\\', (char)c }, 2);
    } else if (c < 0x20 && letter[c]) {
        put(p, (char[]){ '\\', letter[c] }, 2);
    } else if (c < 0x20) {
        put(p, escaped, (size_t)snprintf(escaped, sizeof escaped, "\\u%04x", c));
    } else {
        put(p, text, bytes);
    }
}

static void put_escaped(struct output_parser *p, const char *text, size_t bytes)
{
    for (size_t at = 0, used; at < bytes; at += used) {
        used = 1;
        while (at + used < bytes && ((uint8_t)text[at + used] & 0xC0) == 0x80) used++;
        put_escaped_char(p, text + at, used);
    }
}

static void put_string(struct output_parser *p, const char *text, size_t bytes)
{
    put(p, "\"", 1);
    put_escaped(p, text, bytes);
    put(p, "\"", 1);
}

static uint64_t here(const struct output_args *a)
{
    must(a->depth >= 1 && a->depth <= OUTPUT_DEPTH_MAX);
    return 1ull << (a->depth - 1);
}

static bool in_array(const struct output_args *a)
{
    return a->is_array & here(a);
}

/* The comma before an item, unless it is the first. */
static void begin_item(struct output_parser *p)
{
    struct output_args *a = &p->args;

    if (a->has_items & here(a)) put(p, ",", 1);
    a->has_items |= here(a);
}

/* A value is about to be written; in an object the comma went out with the name. */
static void begin_value(struct output_parser *p)
{
    if (in_array(&p->args)) begin_item(p);
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* ---- bare values ---- */

/* Digits at text[*at], moved past; returns how many. */
static size_t digits(const char *text, size_t bytes, size_t *at)
{
    const size_t begin = *at;

    while (*at < bytes && text[*at] >= '0' && text[*at] <= '9') ++*at;
    return *at - begin;
}

/* Writes text as a JSON number if the reference would read it as one: an integer, or a
 * decimal number with a point. Its digits stay as the model wrote them; what JSON does not
 * allow is mended ("+5" 5, "007" 7, "5." 5.0, ".5" 0.5). false: not a number. */
static bool put_number(struct output_parser *p, const char *text, size_t bytes)
{
    size_t at = 0, whole, fraction = 0;
    const bool negative = bytes > 0 && text[0] == '-';
    bool point = false;

    if (bytes > 0 && (text[0] == '-' || text[0] == '+')) at++;
    size_t whole_at = at;
    whole = digits(text, bytes, &at);
    if (at < bytes && text[at] == '.') {
        point = true;
        at++;
        fraction = digits(text, bytes, &at);
    }
    if (whole + fraction == 0) return false;
    const size_t fraction_end = at;
    if (point && at < bytes && (text[at] == 'e' || text[at] == 'E')) {
        at++;
        if (at < bytes && (text[at] == '-' || text[at] == '+')) at++;
        if (digits(text, bytes, &at) == 0) return false;
    }
    if (at != bytes) return false;

    for (; whole > 1 && text[whole_at] == '0'; whole--) whole_at++;
    if (negative) put(p, "-", 1);
    if (whole > 0) put(p, text + whole_at, whole);
    else           put(p, "0", 1);
    if (point) {
        put(p, ".", 1);
        if (fraction > 0) put(p, text + fraction_end - fraction, fraction);
        else              put(p, "0", 1);
        put(p, text + fraction_end, bytes - fraction_end);
    }
    return true;
}

static bool is_word(const char *text, size_t bytes, const char *word)
{
    return bytes == strlen(word) && strncasecmp(text, word, bytes) == 0;
}

static void end_bare(struct output_parser *p)
{
    struct output_args *a = &p->args;
    const char *text = a->held;
    size_t bytes = a->held_count;

    a->held_count = 0;
    if (a->state == IN_BARE_LONG) { /* the held white space is dropped */
        put(p, "\"", 1);
        return;
    }
    while (bytes > 0 && is_space(text[bytes - 1])) bytes--;
    begin_value(p);
    if (bytes == 4 && memcmp(text, "true", 4) == 0)       put(p, text, bytes);
    else if (bytes == 5 && memcmp(text, "false", 5) == 0) put(p, text, bytes);
    else if (is_word(text, bytes, "null") || is_word(text, bytes, "none") || is_word(text, bytes, "nil")) put(p, "null", 4);
    else if (!put_number(p, text, bytes)) put_string(p, text, bytes);
}

static void bare_char(struct output_parser *p, const char *text, size_t bytes)
{
    struct output_args *a = &p->args;

    if (a->state == IN_BARE && bytes <= sizeof a->held - a->held_count) {
        memcpy(a->held + a->held_count, text, bytes);
        a->held_count += (uint32_t)bytes;
        return;
    }
    if (a->state == IN_BARE) { /* too long for anything but a string */
        size_t solid = a->held_count;
        while (solid > 0 && is_space(a->held[solid - 1])) solid--;
        begin_value(p);
        put(p, "\"", 1);
        put_escaped(p, a->held, solid);
        a->held_count -= (uint32_t)solid;
        memmove(a->held, a->held + solid, a->held_count);
        a->state = IN_BARE_LONG;
    }
    if (is_space(text[0]) && a->held_count < sizeof a->held) {
        a->held[a->held_count++] = text[0];
        return;
    }
    put_escaped(p, a->held, a->held_count);
    a->held_count = 0;
    put_escaped(p, text, bytes);
}

/* ---- structure ---- */

static void end_name(struct output_parser *p)
{
    struct output_args *a = &p->args;
    size_t bytes = a->held_count;

    while (a->state == IN_NAME && bytes > 0 && is_space(a->held[bytes - 1])) bytes--;
    begin_item(p);
    put_string(p, a->held, bytes);
    put(p, ":", 1);
    a->held_count = 0;
    a->state = IN_VALUE;
}

static void close_one(struct output_parser *p)
{
    struct output_args *a = &p->args;

    put(p, in_array(a) ? "]" : "}", 1);
    a->depth--;
    a->state = IN_ITEM;
}

void output_args_end(struct output_parser *p)
{
    struct output_args *a = &p->args;

    switch ((enum state)a->state) {
    case IN_STRING:
        put(p, "\"", 1);
        note(p, FAULT_OPEN_STRING);
        break;
    case IN_BARE:
    case IN_BARE_LONG:
        end_bare(p);
        break;
    case IN_VALUE:
        put(p, "\"\"", 2);
        note(p, FAULT_NO_VALUE);
        break;
    case IN_NAME:
    case IN_NAME_QUOTE:
    case IN_NAME_END: /* a name without a value is dropped, as in the reference */
        note(p, FAULT_NO_VALUE);
        break;
    case IN_ITEM:
        break;
    }
    note(p, FAULT_MISSING_BRACE);
    while (a->depth > 0) close_one(p);
}

static enum output_args_result give_up(struct output_parser *p, enum fault fault)
{
    note(p, fault);
    output_args_end(p);
    return ARGS_BROKEN;
}

static enum output_args_result open_container(struct output_parser *p, bool array)
{
    struct output_args *a = &p->args;

    if (a->depth == OUTPUT_DEPTH_MAX) return give_up(p, FAULT_DEPTH);
    if (a->depth > 0) begin_value(p);
    a->depth++;
    a->has_items &= ~here(a);
    if (array) a->is_array |= here(a);
    else       a->is_array &= ~here(a);
    put(p, array ? "[" : "{", 1);
    a->state = IN_ITEM;
    return ARGS_GO_ON;
}

void output_args_begin(struct output_parser *p)
{
    memset(&p->args, 0, sizeof p->args);
    open_container(p, false);
}

/* A closing bracket, everything before it already written. */
static enum output_args_result close_container(struct output_parser *p, char c)
{
    if ((c == ']') != in_array(&p->args)) return give_up(p, FAULT_BRACKET);
    close_one(p);
    return p->args.depth == 0 ? ARGS_CLOSED : ARGS_GO_ON;
}

static enum output_args_result begin_something(struct output_parser *p, const char *text, size_t bytes, enum state state)
{
    p->args.state = state;
    p->args.held_count = (uint32_t)bytes;
    memcpy(p->args.held, text, bytes);
    return ARGS_GO_ON;
}

static enum output_args_result value_char(struct output_parser *p, const char *text, size_t bytes)
{
    const char c = text[0];

    if (is_space(c)) return ARGS_GO_ON;
    if (c == '{' || c == '[') return open_container(p, c == '[');
    if (c != ',' && c != '}' && c != ']') return begin_something(p, text, bytes, IN_BARE);
    put(p, "\"\"", 2); /* "a:," gives an empty string, as "a:" at the end does in the reference */
    note(p, FAULT_NO_VALUE);
    p->args.state = IN_ITEM;
    return c == ',' ? ARGS_GO_ON : close_container(p, c);
}

static enum output_args_result item_char(struct output_parser *p, const char *text, size_t bytes)
{
    const char c = text[0];

    if (is_space(c) || c == ',') return ARGS_GO_ON;
    if (c == '}' || c == ']') return close_container(p, c);
    if (in_array(&p->args)) return value_char(p, text, bytes);
    if (c == '{' || c == '[') return give_up(p, FAULT_BRACKET);
    if (c != ':') return begin_something(p, text, bytes, IN_NAME);
    end_name(p); /* an empty name */
    return ARGS_GO_ON;
}

static enum output_args_result name_char(struct output_parser *p, const char *text, size_t bytes)
{
    struct output_args *a = &p->args;
    const char c = text[0];

    if (a->state == IN_NAME_END && !is_space(c) && c != ':') return give_up(p, FAULT_NO_COLON);
    if (a->state != IN_NAME_QUOTE && c == ':') {
        end_name(p);
        return ARGS_GO_ON;
    }
    if (a->state == IN_NAME_END) return ARGS_GO_ON;
    if (a->state == IN_NAME && (c == '}' || c == ']')) {
        note(p, FAULT_NO_VALUE);
        a->state = IN_ITEM;
        a->held_count = 0;
        return close_container(p, c);
    }
    if (bytes > sizeof a->held - a->held_count) return give_up(p, FAULT_LONG_NAME);
    memcpy(a->held + a->held_count, text, bytes);
    a->held_count += (uint32_t)bytes;
    return ARGS_GO_ON;
}

enum output_args_result output_args_char(struct output_parser *p, const char *text, size_t bytes)
{
    struct output_args *a = &p->args;
    const char c = text[0];

    switch ((enum state)a->state) {
    case IN_ITEM:
        return item_char(p, text, bytes);
    case IN_NAME:
    case IN_NAME_QUOTE:
    case IN_NAME_END:
        return name_char(p, text, bytes);
    case IN_VALUE:
        return value_char(p, text, bytes);
    case IN_STRING:
        put_escaped_char(p, text, bytes);
        return ARGS_GO_ON;
    case IN_BARE:
    case IN_BARE_LONG:
        break;
    }
    if (c != ',' && c != '}' && c != ']') {
        bare_char(p, text, bytes);
        return ARGS_GO_ON;
    }
    end_bare(p);
    a->state = IN_ITEM;
    return c == ',' ? ARGS_GO_ON : close_container(p, c);
}

enum output_args_result output_args_quote(struct output_parser *p)
{
    struct output_args *a = &p->args;

    switch ((enum state)a->state) {
    case IN_STRING:
        put(p, "\"", 1);
        a->state = IN_ITEM;
        return ARGS_GO_ON;
    case IN_ITEM:
        if (!in_array(a)) return begin_something(p, "", 0, IN_NAME_QUOTE);
        break;
    case IN_VALUE:
        break;
    case IN_NAME_QUOTE:
        a->state = IN_NAME_END;
        return ARGS_GO_ON;
    default:
        return give_up(p, FAULT_QUOTE);
    }
    begin_value(p);
    put(p, "\"", 1);
    a->state = IN_STRING;
    return ARGS_GO_ON;
}
