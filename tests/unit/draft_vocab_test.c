/* tests/unit/draft_vocab_test.c - the list of tokens that a drafter may propose: the first so many of it, everything else left out; lists that are none are refused. */
#include "model/draft_vocab.h"
#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define VOCAB 200u

static const uint32_t suppress[] = {7, 150};

static void add(struct model_files *files, const char *name, const char *text)
{
    const int fd = memfd_create(name, MFD_CLOEXEC);
    struct model_error err;

    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    if (model_files_add(files, name, fd, &err) != 0) fail_msg("%s", err.text);
}

/* Opens with a folder whose list is `text`; NULL: it has none. */
static int open_with(struct draft_vocab *v, const char *text, uint32_t wanted, struct model_error *err)
{
    struct model_files files;

    model_files_init(&files);
    add(&files, "config.json", "{}");
    if (text) add(&files, DRAFT_VOCAB_FILE, text);
    const int rc = draft_vocab_open(v, &files, wanted, VOCAB, suppress, 2, err);
    model_files_close(&files);
    return rc;
}

/* [199, 198, ..] of `count` tokens, the last one replaced unless `last` is NULL. */
static char *list_of(uint32_t count, const char *last)
{
    char *text = malloc(16 * count + 16), *at = text + sprintf(text, "[");

    for (uint32_t i = 0; i < count; i++) {
        if (i + 1 == count && last) at += sprintf(at, "%s", last);
        else at += sprintf(at, "%u", VOCAB - 1 - i);
        at += sprintf(at, "%s", i + 1 == count ? "]" : ",");
    }
    return text;
}

static void test_every_token_without_a_number(void **state)
{
    struct draft_vocab v;
    struct model_error err;

    (void)state;
    assert_int_equal(open_with(&v, NULL, 0, &err), 0);
    assert_int_equal(v.count, 0);
    assert_int_equal(v.left_out_count, 2);
    assert_memory_equal(v.left_out, suppress, sizeof suppress);
    draft_vocab_close(&v);
}

static void test_the_first_of_the_list(void **state)
{
    char *text = list_of(VOCAB, NULL);
    struct draft_vocab v;
    struct model_error err;

    (void)state;
    assert_int_equal(open_with(&v, text, 130, &err), 0); /* 199 .. 72: whole steps */
    assert_int_equal(v.count, 2 * DRAFT_VOCAB_STEP);
    for (uint32_t i = 0; i < v.count; i++) assert_int_equal(v.token[i], VOCAB - 1 - i);
    assert_int_equal(v.left_out_count, VOCAB - v.count + 1); /* 0 .. 71, and 150 */
    for (uint32_t i = 0; i < 72; i++) assert_int_equal(v.left_out[i], i);
    assert_int_equal(v.left_out[72], 150);
    draft_vocab_close(&v);
    assert_null(v.token);
    free(text);
}

static void expect_refused(const char *text, uint32_t wanted, int code, const char *words)
{
    struct draft_vocab v;
    struct model_error err = {""};

    assert_int_equal(open_with(&v, text, wanted, &err), code);
    if (!strstr(err.text, words)) fail_msg("\"%s\" is not in \"%s\"", words, err.text);
    assert_null(v.token);
    assert_null(v.left_out);
}

static void test_refusals(void **state)
{
    char *whole = list_of(VOCAB, NULL), *foreign = list_of(64, "200"), *negative = list_of(64, "-1"), *word = list_of(64, "\"a\""), *twice = list_of(64, "199"), *broken = list_of(64, "{");

    (void)state;
    expect_refused(NULL, 64, -E_NOT_FOUND, "has no draft_vocab.json");
    expect_refused(whole, 63, -E_RANGE, "at least 64");
    expect_refused(whole, VOCAB + 1, -E_RANGE, "has 200 tokens");
    expect_refused("{}", 64, -E_FORMAT, "no array");
    expect_refused("[1,2", 64, -E_FORMAT, "line 1");
    expect_refused(broken, 64, -E_FORMAT, "line 1");
    expect_refused(foreign, 64, -E_FORMAT, "entry 63");
    expect_refused(negative, 64, -E_FORMAT, "entry 63");
    expect_refused(word, 64, -E_FORMAT, "entry 63");
    expect_refused(twice, 64, -E_FORMAT, "199 stands there twice");
    free(whole), free(foreign), free(negative), free(word), free(twice), free(broken);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_token_without_a_number), cmocka_unit_test(test_the_first_of_the_list), cmocka_unit_test(test_refusals)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
