/* schemas/keys.c - who may speak to us: API keys, and origins of web pages. */
#include "schemas/front.h"

#include "schemas/sha1.h"
#include "shm/error.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define KEY_FILE_BYTES_MAX (1u << 20)
#define SUBPROTOCOL_KEY "openai-insecure-api-key."

int keys_load(struct front *f, int fd)
{
    char *text = calloc(1, KEY_FILE_BYTES_MAX + 1), *line, *rest = NULL;
    size_t bytes = 0;
    ssize_t n;

    if (!text) return -E_NOMEM;
    int rc = 0;
    while (bytes < KEY_FILE_BYTES_MAX && (n = pread(fd, text + bytes, KEY_FILE_BYTES_MAX - bytes, (off_t)bytes)) > 0) bytes += (size_t)n;
    if (bytes == KEY_FILE_BYTES_MAX) rc = -E_LIMIT;
    for (line = strtok_r(text, "\r\n", &rest); line && rc == 0; line = strtok_r(NULL, "\r\n", &rest)) {
        line += strspn(line, " \t");
        line[strcspn(line, " \t")] = '\0'; /* a comment may stand behind a key */
        if (!*line || *line == '#') continue;
        if (f->key_count == FRONT_KEYS_MAX) rc = -E_LIMIT;
        else if (!(f->key[f->key_count] = strdup(line))) rc = -E_NOMEM;
        else f->key_count++;
    }
    free(text);
    return rc == 0 && f->key_count == 0 ? -E_FORMAT : rc;
}

/* Takes as long for a wrong key as for a right one: how much of it was right cannot be measured. */
static bool equal(const char *key, const char *given)
{
    const size_t key_bytes = strlen(key), given_bytes = strlen(given);
    unsigned char different = key_bytes != given_bytes;

    for (size_t i = 0; i < given_bytes; i++) different |= (unsigned char)(given[i] ^ key[key_bytes ? i % key_bytes : 0]);
    return !different;
}

static bool is_known(const struct front *f, const char *given, uint64_t *hash)
{
    bool found = false;
    uint8_t digest[20];

    for (uint32_t i = 0; i < f->key_count; i++) found |= equal(f->key[i], given);
    sha1(given, strlen(given), digest);
    memcpy(hash, digest, sizeof *hash);
    return found;
}

/* The subprotocols that browsers offer because they cannot set headers; the one that is no secret is selected. */
static const char *offered_key(const struct http_reader *h, const char **protocol, char *key, size_t key_bytes)
{
    const char *at = http_header(h, "sec-websocket-protocol");
    const char *found = NULL;

    *protocol = NULL;
    while (at && *at) {
        at += strspn(at, " \t,");
        const size_t bytes = strcspn(at, " \t,");
        if (bytes == 9 && strncmp(at, "responses", 9) == 0) *protocol = "responses";
        else if (bytes == 8 && strncmp(at, "realtime", 8) == 0 && !*protocol) *protocol = "realtime";
        else if (bytes > strlen(SUBPROTOCOL_KEY) && strncmp(at, SUBPROTOCOL_KEY, strlen(SUBPROTOCOL_KEY)) == 0 && bytes - strlen(SUBPROTOCOL_KEY) < key_bytes) {
            memcpy(key, at + strlen(SUBPROTOCOL_KEY), bytes - strlen(SUBPROTOCOL_KEY));
            key[bytes - strlen(SUBPROTOCOL_KEY)] = '\0';
            found = key;
        }
        at += bytes;
    }
    return found;
}

int keys_check(const struct front *f, const struct http_reader *h, bool websocket, uint64_t *hash, const char **protocol, struct fault *fault)
{
    const char *authorization = http_header(h, "authorization"), *given = NULL;
    char from_protocol[512];

    *hash = 0;
    *protocol = NULL;
    if (websocket) given = offered_key(h, protocol, from_protocol, sizeof from_protocol);
    if (authorization && strncasecmp(authorization, "bearer ", 7) == 0) given = authorization + 7 + strspn(authorization + 7, " ");
    if (f->key_count == 0) return 0;
    if (!given || !*given) return fault_set(fault, 401, "missing_api_key", NULL, "No API key was given. Send it as 'Authorization: Bearer KEY'.");
    if (!is_known(f, given, hash)) return fault_set(fault, 401, "invalid_api_key", NULL, "The API key is not valid.");
    return 0;
}

/* ---- origins ------------------------------------------------------------------------- */

/* host[:port] of an origin; "" when it is not http(s). */
static const char *origin_host(const char *origin)
{
    if (strncasecmp(origin, "http://", 7) == 0) return origin + 7;
    return strncasecmp(origin, "https://", 8) == 0 ? origin + 8 : "";
}

/* A name that no foreign DNS server can point at us: an address, or localhost. */
static bool is_own_name(const char *host)
{
    char name[256];
    uint8_t address[16];
    const bool bracket = host[0] == '[';
    const size_t bytes = bracket ? strcspn(host + 1, "]") : strcspn(host, ":");

    if (bytes == 0 || bytes >= sizeof name) return false;
    memcpy(name, host + bracket, bytes);
    name[bytes] = '\0';
    return strcasecmp(name, "localhost") == 0 || inet_pton(bracket ? AF_INET6 : AF_INET, name, address) == 1;
}

/* Two names of this very machine: a page loaded from localhost may speak to 127.0.0.1, at the same port. */
static bool same_loopback(const char *a, const char *b)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    const char *port[2] = {NULL, NULL};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const size_t n = strlen(names[i]);
        if (strncasecmp(a, names[i], n) == 0 && (a[n] == ':' || !a[n])) port[0] = a + n;
        if (strncasecmp(b, names[i], n) == 0 && (b[n] == ':' || !b[n])) port[1] = b + n;
    }
    return port[0] && port[1] && strcmp(port[0], port[1]) == 0;
}

static bool is_listed(const char *list, const char *origin)
{
    while (*list) {
        list += strspn(list, " ,");
        const size_t bytes = strcspn(list, " ,");
        if ((bytes == 1 && *list == '*') || (bytes == strlen(origin) && bytes > 0 && strncasecmp(list, origin, bytes) == 0)) return true;
        list += bytes;
    }
    return false;
}

int keys_check_origin(const struct front *f, const struct http_reader *h, struct fault *fault)
{
    const char *origin = http_header(h, "origin"), *host = http_header(h, "host");

    if (!origin || is_listed(f->origins, origin)) return 0;
    const char *from = origin_host(origin);
    if (*from && host && same_loopback(from, host)) return 0;
    if (*from && host && strcasecmp(from, host) == 0 && (f->key_count > 0 || is_own_name(host))) return 0;
    return fault_set(fault, 403, "origin_not_allowed", NULL, "Pages from '%.200s' may not use this server. Its operator can allow them with --origins.", origin);
}
