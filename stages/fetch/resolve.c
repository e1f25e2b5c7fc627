/* stages/fetch/resolve.c - A and AAAA records by the C library's own resolver, with a state of our own: it reads no file once that is set up. */
#include "stages/fetch/resolve.h"

#include "shm/error.h"

#include <arpa/nameser.h>
#include <netdb.h>
#include <string.h>

#define ANSWER_BYTES 4096
#define TRIES 2
#define TRY_S 2

int resolver_open(struct resolver *r, const struct sockaddr_in *server)
{
    memset(r, 0, sizeof *r);
    if (res_ninit(&r->state) != 0) return -E_IO;
    r->state.retrans = TRY_S;
    r->state.retry = TRIES;
    if (server) {
        r->state.nscount = 1;
        r->state.nsaddr_list[0] = *server;
    }
    return 0;
}

void resolver_close(struct resolver *r)
{
    res_nclose(&r->state);
}

/* Appends what an answer has of the type; returns how many there are now. */
static unsigned take(const uint8_t *answer, int bytes, uint16_t type, uint16_t port, struct sockaddr_storage *out, unsigned count)
{
    ns_msg message;
    ns_rr record;

    if (ns_initparse(answer, bytes, &message) != 0) return count;
    for (int i = 0; i < ns_msg_count(message, ns_s_an) && count < RESOLVE_MAX; i++) {
        if (ns_parserr(&message, ns_s_an, i, &record) != 0) return count;
        if (ns_rr_type(record) != type || ns_rr_class(record) != ns_c_in || ns_rr_rdlen(record) != (type == ns_t_a ? 4 : 16)) continue;
        memset(&out[count], 0, sizeof out[count]);
        if (type == ns_t_a) {
            struct sockaddr_in *v4 = (struct sockaddr_in *)&out[count];
            v4->sin_family = AF_INET;
            v4->sin_port = htons(port);
            memcpy(&v4->sin_addr, ns_rr_rdata(record), 4);
        } else {
            struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&out[count];
            v6->sin6_family = AF_INET6;
            v6->sin6_port = htons(port);
            memcpy(&v6->sin6_addr, ns_rr_rdata(record), 16);
        }
        count++;
    }
    return count;
}

int resolver_find(struct resolver *r, const char *host, uint16_t port, struct sockaddr_storage out[RESOLVE_MAX])
{
    static const uint16_t types[] = {ns_t_a, ns_t_aaaa};
    uint8_t answer[ANSWER_BYTES];
    unsigned count = 0, silent = 0;

    for (unsigned i = 0; i < 2; i++) {
        const int bytes = res_nquery(&r->state, host, ns_c_in, types[i], answer, sizeof answer);
        if (bytes > 0) count = take(answer, bytes > ANSWER_BYTES ? ANSWER_BYTES : bytes, types[i], port, out, count);
        else silent += r->state.res_h_errno == TRY_AGAIN;
        if (silent && count == 0) return -E_TIMEOUT; /* asking again takes as long again */
    }
    return count ? (int)count : -E_NOT_FOUND;
}
