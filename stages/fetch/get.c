/* stages/fetch/get.c - one URL by libcurl (contract in get.h). */
#include "stages/fetch/get.h"

#ifdef HAVE_CURL

#include "schemas/media.h"
#include "shm/clock.h"
#include "shm/error.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define REMEDY "send the picture itself as a data: URL"
#define HOST_SHOWN 60 /* characters */

struct hop {
    const struct get_limits *limits;
    CURLU *parsed;
    char *scheme, *host;              /* libcurl's: curl_free() */
    uint16_t port;
    struct sockaddr_storage address[RESOLVE_MAX];
    int addresses;
    int out_fd;
    uint64_t bytes;
    bool too_large, refused;          /* refused: libcurl wanted to connect where it may not */
    char *redirect;                   /* malloc */
    struct get_result *result;
};

__attribute__((format(printf, 3, 4))) static int give_up(struct hop *h, uint32_t status, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(h->result->why, sizeof h->result->why, format, args);
    va_end(args);
    h->result->status = status;
    return -E_FORMAT;
}

int get_prepare(void)
{
    return curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK ? 0 : -E_UNSUPPORTED;
}

/* ---- before anything is sent ---------------------------------------------------------- */

static bool is_plain(const char *host)
{
    for (; *host; host++)
        if ((unsigned char)*host <= ' ' || (unsigned char)*host >= 127) return false;
    return true;
}

static int parse(struct hop *h, const char *url)
{
    char *user = NULL, *zone = NULL, *port = NULL;

    h->parsed = curl_url();
    if (!h->parsed) return give_up(h, MEDIA_FAILED, "there is no memory to fetch it");
    if (curl_url_set(h->parsed, CURLUPART_URL, url, 0) != CURLUE_OK || curl_url_get(h->parsed, CURLUPART_SCHEME, &h->scheme, 0) != CURLUE_OK)
        return give_up(h, MEDIA_BAD, "its URL is not valid");
    if (strcmp(h->scheme, "http") != 0 && strcmp(h->scheme, "https") != 0) return give_up(h, MEDIA_BAD, "its URL leads to \"%.10s:\"; only http and https are fetched", h->scheme);
    if (curl_url_get(h->parsed, CURLUPART_HOST, &h->host, 0) != CURLUE_OK || curl_url_get(h->parsed, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) != CURLUE_OK)
        return give_up(h, MEDIA_BAD, "its URL is not valid");
    h->port = (uint16_t)atoi(port);
    curl_free(port);
    const bool secret = curl_url_get(h->parsed, CURLUPART_USER, &user, 0) == CURLUE_OK || curl_url_get(h->parsed, CURLUPART_PASSWORD, &user, 0) == CURLUE_OK;
    const bool scoped = curl_url_get(h->parsed, CURLUPART_ZONEID, &zone, 0) == CURLUE_OK;
    curl_free(user);
    curl_free(zone);
    if (secret) return give_up(h, MEDIA_BAD, "its URL has a user name or password in it: " REMEDY);
    if (scoped || !is_plain(h->host)) return give_up(h, MEDIA_BAD, "the host in its URL is not valid");
    return 0;
}

/* The host's addresses, all of which may be connected to: one that may not makes the others suspicious. */
static int find_addresses(struct hop *h, struct resolver *resolver)
{
    char literal[INET6_ADDRSTRLEN + 2];
    const size_t n = strlen(h->host);

    snprintf(literal, sizeof literal, "%s", h->host[0] == '[' ? h->host + 1 : h->host);
    if (h->host[0] == '[' && n - 2 < sizeof literal) literal[n - 2] = '\0';
    if (n < sizeof literal && address_parse(literal, h->port, &h->address[0]) == 0) h->addresses = 1;
    else h->addresses = resolver_find(resolver, h->host, h->port, h->address);
    if (h->addresses == -E_TIMEOUT) return give_up(h, MEDIA_BAD, "the address of %.*s could not be found out in time: try again, or " REMEDY, HOST_SHOWN, h->host);
    if (h->addresses <= 0) return give_up(h, MEDIA_BAD, "there is no host %.*s: " REMEDY, HOST_SHOWN, h->host);
    for (int i = 0; i < h->addresses; i++) {
        const struct sockaddr *a = (const struct sockaddr *)&h->address[i];
        if (address_may_connect(h->limits->rules, a)) continue;
        if (address_is_public(a)) return give_up(h, MEDIA_BAD, "port %u of %.*s is not fetched from, only 80 and 443: " REMEDY, h->port, HOST_SHOWN, h->host);
        return give_up(h, MEDIA_BAD, "%.*s has an address that is not public, and this server fetches from none: " REMEDY, HOST_SHOWN, h->host);
    }
    return 0;
}

/* "host:port:address,address": libcurl asks nobody else. */
static struct curl_slist *pin(const struct hop *h)
{
    char line[FETCH_URL_BYTES_MAX + RESOLVE_MAX * (INET6_ADDRSTRLEN + 4)], text[INET6_ADDRSTRLEN];
    int n = snprintf(line, sizeof line, "%s:%u:", h->host, h->port);

    for (int i = 0; i < h->addresses; i++) {
        const bool six = h->address[i].ss_family == AF_INET6;
        const void *raw = six ? (const void *)&((const struct sockaddr_in6 *)&h->address[i])->sin6_addr : (const void *)&((const struct sockaddr_in *)&h->address[i])->sin_addr;
        inet_ntop(h->address[i].ss_family, raw, text, sizeof text);
        if (n > 0 && (size_t)n < sizeof line) n += snprintf(line + n, sizeof line - (size_t)n, "%s%s%s%s", i ? "," : "", six ? "[" : "", text, six ? "]" : "");
    }
    return n > 0 && (size_t)n < sizeof line ? curl_slist_append(NULL, line) : NULL;
}

/* ---- libcurl asks ---------------------------------------------------------------------- */

/* The last word before a connection: it goes to an address that was checked, whatever has happened in between. */
static curl_socket_t open_socket(void *context, curlsocktype purpose, struct curl_sockaddr *to)
{
    struct hop *h = context;

    for (int i = 0; purpose == CURLSOCKTYPE_IPCXN && i < h->addresses; i++)
        if (address_equal(&to->addr, (const struct sockaddr *)&h->address[i])) return socket(to->family, to->socktype | SOCK_CLOEXEC, to->protocol);
    h->refused = true;
    return CURL_SOCKET_BAD;
}

static size_t take_bytes(char *data, size_t one, size_t bytes, void *context)
{
    struct hop *h = context;

    (void)one;
    if (bytes > h->limits->bytes_max - h->bytes) {
        h->too_large = true;
        return 0;
    }
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = write(h->out_fd, data + done, bytes - done);
        if (n <= 0) return 0;
        done += (size_t)n;
    }
    h->bytes += bytes;
    return bytes;
}

static void set_options(CURL *c, struct hop *h, struct curl_slist *pinned, long left_ms)
{
    curl_easy_setopt(c, CURLOPT_CURLU, h->parsed);
    curl_easy_setopt(c, CURLOPT_RESOLVE, pinned);
    curl_easy_setopt(c, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(c, CURLOPT_OPENSOCKETDATA, h);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_bytes);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, h);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(c, CURLOPT_PROXY, ""); /* nor one from the environment */
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "sluice");
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)GET_CONNECT_MS);
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, left_ms);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, (long)GET_SLOW_BYTES);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)GET_SLOW_S);
    curl_easy_setopt(c, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)h->limits->bytes_max);
    curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 1L);
    curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 2L);
    curl_easy_setopt(c, CURLOPT_CAPATH, NULL);
    if (h->limits->certificates) {
        struct curl_blob blob = {.data = (void *)(uintptr_t)h->limits->certificates, .len = h->limits->certificates_bytes, .flags = CURL_BLOB_NOCOPY};
        curl_easy_setopt(c, CURLOPT_CAINFO_BLOB, &blob);
    }
}

/* ---- after ------------------------------------------------------------------------------ */

static int judge_failure(struct hop *h, CURLcode code)
{
    const char *host = h->host;

    if (h->too_large || code == CURLE_FILESIZE_EXCEEDED)
        return give_up(h, MEDIA_TOO_LARGE, "%.*s sends more than the %llu MiB that are taken", HOST_SHOWN, host, (unsigned long long)(h->limits->bytes_max >> 20));
    if (h->refused) return give_up(h, MEDIA_BAD, "%.*s leads to an address that was not checked: " REMEDY, HOST_SHOWN, host);
    switch (code) {
    case CURLE_OPERATION_TIMEDOUT: return give_up(h, MEDIA_BAD, "%.*s did not send it in time: try again, or " REMEDY, HOST_SHOWN, host);
    case CURLE_COULDNT_CONNECT: return give_up(h, MEDIA_BAD, "%.*s cannot be connected to: " REMEDY, HOST_SHOWN, host);
    case CURLE_PEER_FAILED_VERIFICATION: return give_up(h, MEDIA_BAD, "the certificate of %.*s is not trusted: " REMEDY, HOST_SHOWN, host);
    case CURLE_WRITE_ERROR: return give_up(h, MEDIA_FAILED, "there is no memory to fetch it");
    default: return give_up(h, MEDIA_BAD, "%.*s cannot be fetched from (%.60s): " REMEDY, HOST_SHOWN, host, curl_easy_strerror(code));
    }
}

static int judge_answer(CURL *c, struct hop *h)
{
    char *next = NULL, *type = NULL;
    long status = 0;

    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(c, CURLINFO_REDIRECT_URL, &next);
    curl_easy_getinfo(c, CURLINFO_CONTENT_TYPE, &type);
    if (status >= 300 && status < 400 && next) {
        if (strcmp(h->scheme, "https") == 0 && strncasecmp(next, "https:", 6) != 0)
            return give_up(h, MEDIA_BAD, "%.*s redirects from https to something else: " REMEDY, HOST_SHOWN, h->host);
        h->redirect = strdup(next);
        return h->redirect ? 1 : give_up(h, MEDIA_FAILED, "there is no memory to fetch it");
    }
    if (status != 200) return give_up(h, MEDIA_BAD, "%.*s answered with status %ld: check the URL, or " REMEDY, HOST_SHOWN, h->host, status);
    if (type && (strncasecmp(type, "text/", 5) == 0 || strncasecmp(type, "application/json", 16) == 0))
        return give_up(h, MEDIA_BAD, "%.*s answered with %.40s, which is no picture", HOST_SHOWN, h->host, type);
    if (h->bytes == 0) return give_up(h, MEDIA_BAD, "%.*s sent an empty file", HOST_SHOWN, h->host);
    h->result->status = MEDIA_READY;
    h->result->bytes = h->bytes;
    return 0;
}

/* One request. 0: the file is there; 1: h->redirect says where to go on; else given up. */
static int hop(struct hop *h, struct resolver *resolver, const char *url, uint64_t until_ns)
{
    int rc = parse(h, url);

    if (rc == 0) rc = find_addresses(h, resolver);
    if (rc == 0 && strcmp(h->scheme, "https") == 0 && !h->limits->certificates) rc = give_up(h, MEDIA_FAILED, "this server has no certificates of authorities, so it fetches nothing by https");
    const uint64_t now = clock_ns();
    if (rc == 0 && now >= until_ns) rc = give_up(h, MEDIA_BAD, "%.*s did not send it in time: try again, or " REMEDY, HOST_SHOWN, h->host);
    if (rc != 0) return rc;
    CURL *c = curl_easy_init();
    struct curl_slist *pinned = pin(h);
    if (!c || !pinned) rc = give_up(h, MEDIA_FAILED, "there is no memory to fetch it");
    else {
        set_options(c, h, pinned, (long)((until_ns - now) / 1000000) + 1);
        const CURLcode code = curl_easy_perform(c);
        rc = code == CURLE_OK ? judge_answer(c, h) : judge_failure(h, code);
    }
    curl_easy_cleanup(c);
    curl_slist_free_all(pinned);
    return rc;
}

void get_url(const struct get_limits *limits, struct resolver *resolver, const char *url, int out_fd, struct get_result *result)
{
    const uint64_t until_ns = clock_ns() + limits->total_ms * 1000000;
    char *next = strdup(url);

    memset(result, 0, sizeof *result);
    for (unsigned i = 0; next; i++) {
        struct hop h = {.limits = limits, .out_fd = out_fd, .result = result};
        int rc = hop(&h, resolver, next, until_ns);
        if (rc == 1 && i == GET_REDIRECTS_MAX) rc = give_up(&h, MEDIA_BAD, "%.*s redirects more than %u times: " REMEDY, HOST_SHOWN, h.host, GET_REDIRECTS_MAX);
        if (rc == 1 && (ftruncate(out_fd, 0) != 0 || lseek(out_fd, 0, SEEK_SET) != 0)) rc = give_up(&h, MEDIA_FAILED, "there is no memory to fetch it"); /* the page that said so */
        free(next);
        next = rc == 1 ? h.redirect : NULL;
        if (rc != 1) free(h.redirect);
        curl_free(h.scheme);
        curl_free(h.host);
        curl_url_cleanup(h.parsed);
        if (rc != 1) return;
    }
    result->status = MEDIA_FAILED;
    snprintf(result->why, sizeof result->why, "there is no memory to fetch it");
}

#endif
