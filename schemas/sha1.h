/* schemas/sha1.h - SHA-1, for the WebSocket handshake (RFC 6455 asks for it) and nothing that needs secrecy. */
#ifndef SLUICE_SCHEMAS_SHA1_H
#define SLUICE_SCHEMAS_SHA1_H

#include <stddef.h>
#include <stdint.h>

void sha1(const void *data, size_t bytes, uint8_t digest[20]);

#endif
