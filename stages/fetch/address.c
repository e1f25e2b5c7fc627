/* stages/fetch/address.c - see address.h. The ranges are those of the IANA registries of special-purpose addresses. */
#include "stages/fetch/address.h"

#include "shm/error.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PORT_HTTP 80u
#define PORT_HTTPS 443u

static bool in4(uint32_t address, uint32_t a, uint32_t b, uint32_t c, unsigned bits)
{
    const uint32_t net = a << 24 | b << 16 | c << 8;

    return (address ^ net) >> (32 - bits) == 0;
}

static bool is_public4(uint32_t a)
{
    return !(in4(a, 0, 0, 0, 8) || in4(a, 10, 0, 0, 8) || in4(a, 100, 64, 0, 10) || in4(a, 127, 0, 0, 8) || in4(a, 169, 254, 0, 16) || in4(a, 172, 16, 0, 12) ||
             in4(a, 192, 0, 0, 24) || in4(a, 192, 0, 2, 24) || in4(a, 192, 88, 99, 24) || in4(a, 192, 168, 0, 16) || in4(a, 198, 18, 0, 15) || in4(a, 198, 51, 100, 24) ||
             in4(a, 203, 0, 113, 24) || a >> 28 >= 14 /* multicast, reserved, broadcast */);
}

/* Of all of IPv6 2000::/3 is given out; in it lie ranges that are not what they seem. */
static bool is_public6(const uint8_t a[16])
{
    const uint32_t first = (uint32_t)a[0] << 24 | (uint32_t)a[1] << 16 | (uint32_t)a[2] << 8 | a[3];

    if (first >> 29 != 1) return false;
    if (first >> 9 == 0x20010000u >> 9) return false;                       /* 2001::/23: Teredo, ORCHID, benchmarking */
    if (first == 0x20010db8u) return false;                                 /* documentation */
    if (first >> 16 == 0x2002u) return false;                               /* 6to4 */
    return first >> 12 != 0x3fff0000u >> 12;                                /* documentation */
}

bool address_is_public(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) return is_public4(ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr));
    return address->sa_family == AF_INET6 && is_public6(((const struct sockaddr_in6 *)address)->sin6_addr.s6_addr);
}

uint16_t address_port(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) return ntohs(((const struct sockaddr_in *)address)->sin_port);
    return address->sa_family == AF_INET6 ? ntohs(((const struct sockaddr_in6 *)address)->sin6_port) : 0;
}

bool address_equal(const struct sockaddr *a, const struct sockaddr *b)
{
    if (a->sa_family != b->sa_family || address_port(a) != address_port(b)) return false;
    if (a->sa_family == AF_INET) return ((const struct sockaddr_in *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->sa_family == AF_INET6 && memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr, &((const struct sockaddr_in6 *)b)->sin6_addr, 16) == 0;
}

bool address_is_allowed(const struct address_rules *rules, const struct sockaddr *address)
{
    for (unsigned i = 0; i < rules->count; i++)
        if (address_equal((const struct sockaddr *)&rules->allowed[i], address)) return true;
    return false;
}

bool address_may_connect(const struct address_rules *rules, const struct sockaddr *address)
{
    const uint16_t port = address_port(address);

    return address_is_allowed(rules, address) || (address_is_public(address) && (port == PORT_HTTP || port == PORT_HTTPS));
}

int address_parse(const char *text, uint16_t port, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;

    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        return 0;
    }
    if (inet_pton(AF_INET6, text, &v6->sin6_addr) != 1) return -E_FORMAT;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    return 0;
}

/* One "ADDRESS:PORT" or "[ADDRESS]:PORT". */
static int read_one(char *word, struct sockaddr_storage *out)
{
    char *colon = strrchr(word, ':'), *end;

    if (!colon) return -E_FORMAT;
    *colon = '\0';
    const unsigned long port = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end || port == 0 || port > 65535) return -E_FORMAT;
    if (word[0] == '[') {
        if (colon[-1] != ']') return -E_FORMAT;
        colon[-1] = '\0';
        word++;
    }
    return address_parse(word, (uint16_t)port, out);
}

int address_rules_read(struct address_rules *rules, const char *list)
{
    char copy[1024], *rest = copy, *word;

    memset(rules, 0, sizeof *rules);
    if (strlen(list) >= sizeof copy) return -E_FULL;
    snprintf(copy, sizeof copy, "%s", list);
    while ((word = strsep(&rest, ",")) != NULL) {
        if (!*word) continue;
        if (rules->count == ADDRESS_ALLOWED_MAX) return -E_FULL;
        if (read_one(word, &rules->allowed[rules->count]) != 0) return -E_FORMAT;
        rules->count++;
    }
    return 0;
}
