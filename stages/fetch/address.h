/* stages/fetch/address.h - which addresses the fetcher may connect to: public ones, and those that an administrator named one by one. */
#ifndef SLUICE_FETCH_ADDRESS_H
#define SLUICE_FETCH_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define ADDRESS_ALLOWED_MAX 16u

struct address_rules {
    unsigned count;
    struct sockaddr_storage allowed[ADDRESS_ALLOWED_MAX]; /* with their ports: taken although they are not public */
};

/* Reads "127.0.0.1:8080,[::1]:8080"; "" is none. 0, -E_FORMAT, -E_FULL. */
int address_rules_read(struct address_rules *rules, const char *list);

/* Is it an address of the public internet? No: loopback, private, link-local, shared (CGNAT), multicast, documentation, benchmarking, unique-local, and every
 * IPv6 address with an IPv4 address inside (mapped, 6to4, NAT64, Teredo), whatever that is. */
bool address_is_public(const struct sockaddr *address);

/* May the fetcher connect there? Public addresses at ports 80 and 443; allowed ones at their port. */
bool address_may_connect(const struct address_rules *rules, const struct sockaddr *address);
bool address_is_allowed(const struct address_rules *rules, const struct sockaddr *address);

bool address_equal(const struct sockaddr *a, const struct sockaddr *b); /* family, address and port */
uint16_t address_port(const struct sockaddr *address);

/* A literal ("10.0.0.1", "::1"; no scope) with a port. 0, -E_FORMAT. */
int address_parse(const char *text, uint16_t port, struct sockaddr_storage *out);

#endif
