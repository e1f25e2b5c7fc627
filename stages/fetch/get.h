/* stages/fetch/get.h - gets one URL with libcurl, hop by hop: every address is checked before anything is sent to it, and connected to as it was checked.
 *
 * libcurl parses the URL (once: the same parse decides and is fetched), speaks HTTP/1.1 and TLS; names are resolved here (resolve.h) and handed to it, so that
 * a second answer of a name server cannot lead elsewhere. Redirects are followed here, by the same rules, at most GET_REDIRECTS_MAX of them.
 * No cookies, no credentials, no proxies, no other protocols. */
#ifndef SLUICE_FETCH_GET_H
#define SLUICE_FETCH_GET_H

#include "schemas/fetch.h"
#include "stages/fetch/address.h"
#include "stages/fetch/resolve.h"

#include <stddef.h>
#include <stdint.h>

#define GET_REDIRECTS_MAX 3u
#define GET_CONNECT_MS 4000
#define GET_SLOW_BYTES 1024           /* fewer a second, GET_SLOW_S seconds long: it has stopped */
#define GET_SLOW_S 4

struct get_limits {
    uint64_t bytes_max;
    uint64_t total_ms;                /* of all hops together */
    const struct address_rules *rules;
    const void *certificates;         /* PEM, of the authorities that are trusted; NULL: https is refused */
    size_t certificates_bytes;
};

struct get_result {
    uint32_t status;                  /* enum media_status */
    uint64_t bytes;
    char why[FETCH_WHY_BYTES];        /* for the client: a part of a sentence, with the host's name and what to do */
};

/* Once a process, before the sandbox. 0, -E_UNSUPPORTED. */
int get_prepare(void);

/* Writes what `url` holds to out_fd. All is told in *result. */
void get_url(const struct get_limits *limits, struct resolver *resolver, const char *url, int out_fd, struct get_result *result);

#endif
