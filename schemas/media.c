/* schemas/media.c - files of a request: base64 to bytes, into the gateway's record and out of it. */
#include "schemas/media.h"

#include "shm/error.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HDR_BYTES sizeof(struct media_file_hdr)
#define NO_DIGIT 0xff
#define BLANK 0xfe
#define NOT_A_DIGIT 0xc0 /* bits that both of these have, and no digit */

static_assert(sizeof(struct media_file_hdr) == 24, "what lies in the record");

static uint64_t round_up_8(uint64_t n)
{
    return (n + 7) & ~(uint64_t)7;
}

int media_list_add(struct media_list *list, struct media_file file)
{
    if (list->count == MEDIA_ITEMS_MAX) return -E_FULL;
    list->file[list->count++] = file;
    return 0;
}

void media_list_free(struct media_list *list)
{
    for (uint32_t i = 0; i < list->count; i++) free(list->file[i].data);
    list->count = 0;
}

static void pad(msgpack_sbuffer *out)
{
    static const char zeros[8];

    msgpack_sbuffer_write(out, zeros, round_up_8(out->size) - out->size);
}

size_t media_pack(const struct media_list *list, msgpack_sbuffer *out)
{
    pad(out);
    const size_t begin = out->size;
    for (uint32_t i = 0; i < list->count; i++) {
        const struct media_file *f = &list->file[i];
        const struct media_file_hdr hdr = {.kind = f->kind, .budget = f->budget, .bytes = f->bytes, .video = f->video, .at_ms = f->at_ms};
        msgpack_sbuffer_write(out, (const char *)&hdr, sizeof hdr);
        msgpack_sbuffer_write(out, (const char *)f->data, f->bytes);
        pad(out);
    }
    return begin;
}

int media_next(const uint8_t *area, uint64_t area_bytes, uint64_t *offset, struct media_file_hdr *hdr, const uint8_t **data)
{
    const uint64_t at = *offset;

    if (at % 8 || at > area_bytes || area_bytes - at < HDR_BYTES) return -E_FORMAT;
    memcpy(hdr, area + at, sizeof *hdr);
    if (hdr->kind < MEDIA_PICTURE || hdr->kind > MEDIA_VIDEO) return -E_FORMAT;
    if (hdr->bytes > MEDIA_FILE_BYTES_MAX || hdr->bytes > area_bytes - at - HDR_BYTES) return -E_FORMAT;
    *data = area + at + HDR_BYTES;
    *offset = round_up_8(at + HDR_BYTES + hdr->bytes);
    return 0;
}

/* ---- base64 ------------------------------------------------------------------------ */

static void fill_digits(uint8_t digit[256])
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    memset(digit, NO_DIGIT, 256);
    for (uint8_t i = 0; i < 64; i++) digit[(uint8_t)alphabet[i]] = i;
    digit['-'] = 62;
    digit['_'] = 63;
    digit[' '] = digit['\n'] = digit['\r'] = digit['\t'] = BLANK;
}

int media_base64(const char *text, size_t text_bytes, uint8_t **out, size_t *out_bytes)
{
    uint8_t digit[256], *to;
    uint32_t bits = 0, have = 0;

    fill_digits(digit);
    while (text_bytes && (text[text_bytes - 1] == '=' || digit[(uint8_t)text[text_bytes - 1]] == BLANK)) text_bytes--;
    uint8_t *bytes = to = malloc(text_bytes / 4 * 3 + 4);
    if (!bytes) return -E_NOMEM;
    for (size_t i = 0; i < text_bytes; i++) {
        if (have == 0 && text_bytes - i >= 4) { /* four digits together, as nearly all are */
            const uint8_t *t = (const uint8_t *)text + i, a = digit[t[0]], b = digit[t[1]], c = digit[t[2]], e = digit[t[3]];
            if (((a | b | c | e) & NOT_A_DIGIT) == 0) {
                *to++ = (uint8_t)(a << 2 | b >> 4);
                *to++ = (uint8_t)(b << 4 | c >> 2);
                *to++ = (uint8_t)(c << 6 | e);
                i += 3;
                continue;
            }
        }
        const uint8_t d = digit[(uint8_t)text[i]];
        if (d == BLANK) continue;
        if (d == NO_DIGIT) {
            free(bytes);
            return -E_FORMAT;
        }
        bits = bits << 6 | d;
        if (++have < 4) continue;
        *to++ = (uint8_t)(bits >> 16);
        *to++ = (uint8_t)(bits >> 8);
        *to++ = (uint8_t)bits;
        have = bits = 0;
    }
    if (have == 1) { /* six bits are no byte */
        free(bytes);
        return -E_FORMAT;
    }
    if (have >= 2) *to++ = (uint8_t)(bits >> (have == 2 ? 4 : 10));
    if (have == 3) *to++ = (uint8_t)(bits >> 2);
    *out = bytes;
    *out_bytes = (size_t)(to - bytes);
    return 0;
}

const char *media_data_url(const char *url, size_t url_bytes, size_t *text_bytes)
{
    static const char mark[] = ";base64,";
    const size_t head_max = url_bytes < 256 ? url_bytes : 256; /* a media type and its parameters */

    if (url_bytes < 5 || strncasecmp(url, "data:", 5) != 0) return NULL;
    const char *at = memmem(url, head_max, mark, sizeof mark - 1);
    if (!at) return NULL;
    at += sizeof mark - 1;
    *text_bytes = url_bytes - (size_t)(at - url);
    return at;
}
