/* tests/fuzz/chat_fuzz.c - any bytes as a chat request for a template that touches all of it: an error or a
 * text, never a crash. Request bytes hold no trusted character, whatever they are.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I. -D_GNU_SOURCE tests/fuzz/chat_fuzz.c model/jinja*.c model/chat*.c shm/error.c shm/must.c -lm */
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "shm/must.h"

static const char source[] =
    "{% macro show(x) %}{% if x is mapping %}{% for k, v in x|dictsort %}{{ k|upper|trim }}{{ show(v) }}{% endfor %}"
    "{% elif x is string %}{{ x.split('a')|join(x[::-1]) }}{{ x[1:-1]|title }}{{ x|replace('b', x)|length }}{{ x|int }}{{ x|float }}"
    "{% elif x is sequence %}{% for y in x %}{{ show(y) }}{% endfor %}{{ x|string }}{% else %}{{ x }}{{ x is number and x * 2 }}{% endif %}{% endmacro %}"
    "{{ show(messages) }}{{ show(tools) }}{{ show(documents) }}{{ messages|tojson(indent=1) }}{{ messages|map(attribute='role')|list|unique|list }}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct chat_template *t;
    const struct chat_options options = {.steps_max = 200000, .output_bytes_max = 1 << 20, .memory_bytes_max = 16 << 20};
    struct chat_text out;
    char err[256];

    if (!t) must(chat_template_open(&t, source, strlen(source), err, sizeof err) == 0);
    chat_render(t, data, bytes, &options, &out, err, sizeof err);
    must(!out.text || strlen(err) < sizeof err);
    chat_text_free(&out);
    return 0;
}
