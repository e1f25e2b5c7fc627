/* tests/unit/options_test.c - launcher/options: flags go before environment before file, and each refusal names option and remedy. */
#include "launcher/options.h"
#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct options o;
static char err[1536];
static char path[64];

extern char **environ;

/* Nothing of the tester's own environment takes part. */
static int set_up(void **state)
{
    (void)state;
    for (char **e = environ; *e;) {
        char name[128];
        if (strncmp(*e, "SLUICE_", 7) != 0) {
            e++;
            continue;
        }
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
        unsetenv(name);
        e = environ;
    }
    memset(&o, 0, sizeof o);
    err[0] = '\0';
    snprintf(path, sizeof path, "/tmp/sluice-options-XXXXXX");
    const int fd = mkstemp(path);
    close(fd);
    return fd < 0;
}

static int tear_down(void **state)
{
    (void)state;
    return unlink(path);
}

/* Reads a command line given as words separated by spaces. */
static int read_line(const char *words)
{
    static char copy[4096];
    char *argv[64], *rest = copy, *word;
    int argc = 0;

    snprintf(copy, sizeof copy, "%s", words);
    while ((word = strsep(&rest, " ")) != NULL)
        if (*word) argv[argc++] = word;
    return options_read(&o, argc, argv, err, sizeof err);
}

static void write_file(const char *text)
{
    FILE *f = fopen(path, "w");

    fputs(text, f);
    fclose(f);
}

static int read_with_file(const char *words, const char *file)
{
    char line[1024];

    write_file(file);
    snprintf(line, sizeof line, "%s --config %s", words, path);
    return read_line(line);
}

static void test_defaults(void **state)
{
    (void)state;
    assert_int_equal(read_line(""), 0);
    assert_int_equal(options_u64(&o, OPT_PORT), 8080);
    assert_string_equal(o.value[OPT_HOST], "127.0.0.1");
    assert_string_equal(o.value[OPT_DRAFT], "ngram");
    assert_string_equal(o.value[OPT_MODEL], "");
    assert_int_equal(options_u64(&o, OPT_SLOTS), 4 * options_u64(&o, OPT_MAX_SEQUENCES));
    assert_true(isdigit((unsigned char)o.value[OPT_SPIN_US][0]));
    assert_true(o.value[OPT_RUN_DIR][0] == '/');
    for (int i = 0; i < OPT_COUNT; i++) assert_false(o.given[i]);
}

static void test_flags_before_environment_before_file(void **state)
{
    (void)state;
    setenv("SLUICE_PORT", "2", 1);
    setenv("SLUICE_HOST", "host-of-environment", 1);
    assert_int_equal(read_with_file("--port 1", "port = 3\nhost = host-of-file\nmax-context = 333\n"), 0);
    assert_int_equal(options_u64(&o, OPT_PORT), 1);
    assert_string_equal(o.value[OPT_HOST], "host-of-environment");
    assert_int_equal(options_u64(&o, OPT_MAX_CONTEXT), 333);
    assert_int_equal(options_u64(&o, OPT_QUEUE), 256); /* the default, when nobody says anything */
    assert_true(o.given[OPT_PORT] && o.given[OPT_HOST] && o.given[OPT_MAX_CONTEXT] && !o.given[OPT_QUEUE]);
}

static void test_each_option_has_its_environment_name(void **state)
{
    (void)state;
    setenv("SLUICE_API_KEY_FILE", "/keys", 1);
    setenv("SLUICE_MAX_MESSAGE_MIB", "7", 1);
    setenv("SLUICE_ALLOW_UNAUTHENTICATED", "true", 1);
    assert_int_equal(read_line(""), 0);
    assert_string_equal(o.value[OPT_API_KEY_FILE], "/keys");
    assert_int_equal(options_u64(&o, OPT_MESSAGE_MIB), 7);
    assert_string_equal(o.value[OPT_ALLOW_UNAUTHENTICATED], "true");
    write_file("port = 11\n");
    setenv("SLUICE_CONFIG", path, 1);
    assert_int_equal(read_line(""), 0);
    assert_int_equal(options_u64(&o, OPT_PORT), 11);
}

static void test_ways_to_write_a_flag(void **state)
{
    (void)state;
    assert_int_equal(read_line("--port=5 --host ::1 --allow-unauthenticated --model=/a=b --queue 9"), 0);
    assert_int_equal(options_u64(&o, OPT_PORT), 5);
    assert_string_equal(o.value[OPT_HOST], "::1");
    assert_string_equal(o.value[OPT_ALLOW_UNAUTHENTICATED], "1");
    assert_string_equal(o.value[OPT_MODEL], "/a=b");
    assert_int_equal(read_line("--port 5 --port 6"), 0); /* the last one counts */
    assert_int_equal(options_u64(&o, OPT_PORT), 6);
    assert_int_equal(read_line("--allow-unauthenticated=false"), 0);
    assert_string_equal(o.value[OPT_ALLOW_UNAUTHENTICATED], "false");
}

static void test_the_file_may_be_untidy(void **state)
{
    (void)state;
    assert_int_equal(read_with_file("", "# comment\n\n  port=12  \n\thost =  ::1\nmodel = /a b = c\nqueue = 3"), 0);
    assert_int_equal(options_u64(&o, OPT_PORT), 12);
    assert_string_equal(o.value[OPT_HOST], "::1");
    assert_string_equal(o.value[OPT_MODEL], "/a b = c");
    assert_int_equal(options_u64(&o, OPT_QUEUE), 3);
}

static void test_limits_are_inclusive(void **state)
{
    (void)state;
    assert_int_equal(read_line("--port 65535 --draft-tokens 12 --max-sequences 1 --slots 1"), 0);
    assert_int_equal(read_line("--port 65536"), -E_CONFIG);
    assert_int_equal(read_line("--draft-tokens 13"), -E_CONFIG);
    assert_int_equal(read_line("--draft-tokens 0"), -E_CONFIG);
    assert_int_equal(read_line("--max-sequences 0"), -E_CONFIG);
}

struct refusal {
    const char *words, *option, *remedy; /* what the message must hold: which option, and what would be right */
};

static const struct refusal refusals[] = {
    {"--port eighty", "port", "0 to 65535"},
    {"--port -1", "port", "0 to 65535"},
    {"--port 80x", "port", "0 to 65535"},
    {"--port=", "port", "0 to 65535"},
    {"--port 99999999999999999999", "port", "0 to 65535"},
    {"--port", "--port", "--port P"},
    {"--model", "--model", "--model DIR"},
    {"--colour blue", "--colour", "sluice serve --help"},
    {"--por 80", "--por", "sluice serve --help"},
    {"demo", "demo", "sluice serve --help"},
    {"-p 80", "-p", "sluice serve --help"},
    {"--draft-dtype int4", "draft-dtype", "auto, bf16, fp8"},
    {"--draft-dtype nvfp4", "draft-dtype", "auto, bf16, fp8, not"},
    {"--config /", "/", "cannot be read"},
    {"--device tpu", "device", "auto, cpu"},
    {"--kv-cache-dtype fp4", "kv-cache-dtype", "bf16, fp8, f32"},
    {"--log-level loud", "log-level", "error, warn, info, debug"},
    {"--allow-unauthenticated=maybe", "allow-unauthenticated", "true or false"},
    {"--slots 3 --max-sequences 4", "slots", "at least max-sequences (4)"},
    {"--max-message-mib 0", "max-message-mib", "1 to 1024"},
    {"--config /nonexistent/file", "/nonexistent/file", "cannot be read"},
};

static void refused(const struct refusal *r, int rc, const char *source)
{
    if (rc != -E_CONFIG) fail_msg("%s \"%s\" was not refused", source, r->words);
    if (!strstr(err, r->option)) fail_msg("%s \"%s\": the message does not name %s: %s", source, r->words, r->option, err);
    if (!strstr(err, r->remedy)) fail_msg("%s \"%s\": the message does not say \"%s\": %s", source, r->words, r->remedy, err);
}

static void test_refusals_name_option_and_remedy(void **state)
{
    (void)state;
    for (unsigned i = 0; i < sizeof refusals / sizeof refusals[0]; i++) refused(&refusals[i], read_line(refusals[i].words), "flag");
}

/* The same values from the environment and from a file: then the message also says from where. */
static void test_refusals_name_their_source(void **state)
{
    (void)state;
    const struct refusal number = {"eighty", "port", "0 to 65535"};

    setenv("SLUICE_PORT", "eighty", 1);
    refused(&number, read_line(""), "environment");
    assert_non_null(strstr(err, "SLUICE_PORT"));
    unsetenv("SLUICE_PORT");
    refused(&number, read_with_file("", "# first\n\nport = eighty\n"), "file");
    assert_non_null(strstr(err, path));
    assert_non_null(strstr(err, ":3"));
    const struct refusal unknown = {"colour", "colour", "sluice serve --help"};
    refused(&unknown, read_with_file("", "colour = blue\n"), "file");
    assert_non_null(strstr(err, ":1"));
    const struct refusal twice = {"port", "port", "twice"};
    refused(&twice, read_with_file("", "port = 1\nhost = ::1\nport = 2\n"), "file");
    assert_non_null(strstr(err, ":3"));
    const struct refusal no_value = {"port", "port", "name = value"};
    refused(&no_value, read_with_file("", "port\n"), "file");
}

static void test_values_that_are_too_long_are_refused(void **state)
{
    (void)state;
    char line[3000] = "--model ";

    memset(line + 8, 'm', 2000);
    assert_int_equal(read_line(line), -E_CONFIG);
    assert_non_null(strstr(err, "model"));
    assert_non_null(strstr(err, "1023"));
    char origins[600] = "--origins ";
    memset(origins + 10, 'o', sizeof origins - 11);
    assert_int_equal(read_line(origins), -E_CONFIG);
    assert_non_null(strstr(err, "origins"));
    assert_non_null(strstr(err, "511"));
}

static int quiet_help(const char *words)
{
    fflush(stdout);
    const int out = dup(1), null = open("/dev/null", O_WRONLY);
    dup2(null, 1);
    const int rc = read_line(words);
    fflush(stdout);
    dup2(out, 1);
    close(out);
    close(null);
    return rc;
}

static void test_help_is_no_error(void **state)
{
    (void)state;
    assert_int_equal(quiet_help("--help"), 1);
    assert_int_equal(quiet_help("--port 1 -h"), 1);
}

static void test_run_dir_of_the_other_commands(void **state)
{
    (void)state;
    char a[] = "swap", b[] = "--run-dir", c[] = "/r1", d[] = "draft", e[] = "--run-dir=/r2", *argv[] = {a, b, c, d, e}, *rest[8], dir[64];
    int rest_count = 0;

    assert_int_equal(options_read_run_dir(5, argv, dir, sizeof dir, rest, &rest_count, err, sizeof err), 0);
    assert_string_equal(dir, "/r2");
    assert_int_equal(rest_count, 2);
    assert_string_equal(rest[0], "swap");
    assert_string_equal(rest[1], "draft");
    assert_int_equal(options_read_run_dir(2, argv, dir, sizeof dir, rest, &rest_count, err, sizeof err), -E_CONFIG);
    assert_non_null(strstr(err, "--run-dir needs a directory"));
    setenv("SLUICE_RUN_DIR", "/r3", 1);
    assert_int_equal(options_read_run_dir(0, argv, dir, sizeof dir, rest, &rest_count, err, sizeof err), 0);
    assert_string_equal(dir, "/r3");
    unsetenv("SLUICE_RUN_DIR");
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    assert_int_equal(options_read_run_dir(0, argv, dir, sizeof dir, rest, &rest_count, err, sizeof err), 0);
    assert_string_equal(dir, "/run/user/7/sluice");
    assert_int_equal(read_line(""), 0);
    assert_string_equal(o.value[OPT_RUN_DIR], dir); /* serve and the others agree */
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_defaults), TEST(test_flags_before_environment_before_file), TEST(test_each_option_has_its_environment_name),
        TEST(test_ways_to_write_a_flag), TEST(test_the_file_may_be_untidy), TEST(test_limits_are_inclusive),
        TEST(test_refusals_name_option_and_remedy), TEST(test_refusals_name_their_source), TEST(test_values_that_are_too_long_are_refused),
        TEST(test_help_is_no_error), TEST(test_run_dir_of_the_other_commands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
