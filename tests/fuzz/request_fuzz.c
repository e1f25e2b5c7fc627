/* tests/fuzz/request_fuzz.c - request bodies of all three APIs: refused with a fault that is filled, or a record that reads back. */
#include "schemas/pack.h"
#include "schemas/request.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const struct request_defaults defaults = {.model = "m", .temperature = 1, .top_p = 1, .vocab = 1000, .context_max = 64, .choices_max = 16, .picture_budget = 280, .sound = true};

static void check_record(struct request *r)
{
    msgpack_sbuffer record;
    const char *meta;
    size_t meta_bytes;

    for (uint32_t i = 0; i < r->prompt_count * r->n; i++) {
        msgpack_sbuffer_init(&record);
        const size_t request_bytes = request_record(r, i, &record);
        uint64_t at = media_pack(&r->media, &record);
        struct media_file_hdr hdr;
        const uint8_t *file;
        for (uint32_t k = 0; k < r->media.count; k++)
            if (media_next((const uint8_t *)record.data, record.size, &at, &hdr, &file) != 0 || hdr.bytes != r->media.file[k].bytes || memcmp(file, r->media.file[k].data, hdr.bytes) != 0) abort();
        if (pack_meta((const uint8_t *)record.data, record.size, request_bytes, &meta, &meta_bytes) != 0) abort();
        json_t *notes = json_loadb(meta, meta_bytes, 0, NULL);
        if (!json_is_object(notes)) abort();
        json_decref(notes);
        json_decref(pack_member((const uint8_t *)record.data, request_bytes, "messages"));
        msgpack_sbuffer_destroy(&record);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct request r;
    struct fault f;

    if (bytes == 0) return 0;
    memset(&f, 0, sizeof f);
    json_t *body = field_parse((const char *)data + 1, bytes - 1, &f);
    if (!body) {
        if (!f.status || !f.message[0]) abort();
        return 0;
    }
    if (request_read(&r, (enum api)(data[0] % 3), data[0] & 4, body, &defaults, &f) == 0) {
        check_record(&r);
        request_free(&r);
    } else if (f.status < 400 || !f.message[0]) abort();
    json_decref(body);
    return 0;
}
