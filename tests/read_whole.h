/* tests/read_whole.h - a whole file in memory, for tests that read golden data. Fails the test by cmocka. */
#ifndef SLUICE_TESTS_READ_WHOLE_H
#define SLUICE_TESTS_READ_WHOLE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* The caller frees it; a NUL stands behind the last byte. */
static inline void *read_whole(const char *name, uint64_t *byte_count)
{
    FILE *file = fopen(name, "rb");
    long size;
    char *data;

    if (!file) fail_msg("cannot open %s: run the tests from the top of the repository", name);
    fseek(file, 0, SEEK_END);
    size = ftell(file);
    rewind(file);
    data = malloc((size_t)size + 1);
    assert_int_equal(fread(data, 1, (size_t)size, file), size);
    data[size] = '\0';
    fclose(file);
    *byte_count = (uint64_t)size;
    return data;
}

#endif
