/* stages/fetch/resolve.h - names to addresses by DNS alone: no files, no other services, so that it works where no file can be opened. */
#ifndef SLUICE_FETCH_RESOLVE_H
#define SLUICE_FETCH_RESOLVE_H

#include <netinet/in.h>
#include <resolv.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define RESOLVE_MAX 8u

struct resolver {
    struct __res_state state;         /* of the C library: which name servers to ask */
};

/* Reads the system's configuration (/etc/resolv.conf): before the sandbox. server: ask this name server instead (tests), or NULL. 0, -E_IO. */
int resolver_open(struct resolver *r, const struct sockaddr_in *server);
void resolver_close(struct resolver *r);

/* Up to RESOLVE_MAX addresses of a host, with the port. A count above 0; -E_NOT_FOUND: there is no such host; -E_TIMEOUT: no name server answers. */
int resolver_find(struct resolver *r, const char *host, uint16_t port, struct sockaddr_storage out[RESOLVE_MAX]);

#endif
