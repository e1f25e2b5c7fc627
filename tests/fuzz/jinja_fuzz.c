/* tests/fuzz/jinja_fuzz.c - any bytes as a template, rendered over a fixed conversation: an error or a text,
 * never a crash, never long. Also checks that the trusted spans are in order and inside the text.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I. -D_GNU_SOURCE tests/fuzz/jinja_fuzz.c model/jinja*.c model/chat*.c shm/error.c shm/must.c -lm */
#include <stdlib.h>

#include "model/chat.h"
#include "shm/must.h"

static const char request[] =
    "\x84\xa8messages\x93\x82\xa4role\xa6system\xa7" "content\xa5 S\xc3\xa9 "
    "\x82\xa4role\xa4user\xa7" "content\x92\x82\xa4type\xa4text\xa4text\xa4<hi>\x81\xa4type\xa5image"
    "\x83\xa4role\xa9" "assistant\xa7" "content\xc0\xaatool_calls\x91\x82\xa2id\xa1" "1\xa8" "function\x82\xa4name\xa1" "f\xa9" "arguments\x82\xa1" "b\x01\xa1" "A\x93\xc2\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\xc0"
    "\xa5tools\x91\x82\xa4type\xa8" "function\xa8" "function\x81\xa4name\xa1" "f"
    "\xb5" "add_generation_prompt\xc3\xaftemplate_kwargs\x83\xa1x\x05\xa1s\xa6 a-b c\xa1l\x93\x03\x01\x02";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const struct chat_token tokens[] = {{"bos_token", "<bos>"}};
    const struct chat_options options = {.tokens = tokens, .token_count = 1, .now_seconds = 1, .steps_max = 200000,
                                         .output_bytes_max = 1 << 20, .memory_bytes_max = 16 << 20};
    struct chat_template *t;
    struct chat_text out;
    char err[256];

    if (chat_template_open(&t, (const char *)data, bytes, err, sizeof err) != 0) return 0;
    if (chat_render(t, request, sizeof request - 1, &options, &out, err, sizeof err) == 0) {
        uint32_t at = 0;
        for (size_t i = 0; i < out.trusted_count; i++) {
            must(out.trusted[i].begin_bytes >= at + (i > 0) && out.trusted[i].end_bytes > out.trusted[i].begin_bytes);
            at = out.trusted[i].end_bytes;
        }
        must(at <= out.bytes && out.text[out.bytes] == 0);
    }
    chat_text_free(&out);
    chat_template_close(t);
    return 0;
}
