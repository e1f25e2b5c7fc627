/* tests/unit/jinja_test.c - the template interpreter against Python's jinja2: some 900 small templates
 * whose results, or errors, were recorded by tests/oracle/make_jinja_golden.py. */
#include "tests/unit/jinja_golden.h"

static void test_snippets_render_as_jinja2(void **state)
{
    json_t *all = golden_load("tests/golden/jinja/snippets.json"), *one;
    const struct chat_options options = golden_options();
    size_t i, wrong = 0;

    (void)state;
    assert_true(json_array_size(all) > 800);
    json_array_foreach(all, i, one) {
        const char *source = json_string_value(json_object_get(one, "template"));
        json_t *request = json_pack("{s:[], s:b, s:O}", "messages", "add_generation_prompt", 0, "template_kwargs", json_object_get(one, "variables"));
        struct chat_text out;
        char err[1024] = "";
        const int rc = golden_render(source, request, &options, &out, err, sizeof err);
        wrong += (size_t)golden_check(source, one, rc, &out, err);
        chat_text_free(&out);
        json_decref(request);
    }
    json_decref(all);
    assert_int_equal(wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_snippets_render_as_jinja2)};

    setenv("TZ", "UTC", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
