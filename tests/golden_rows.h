/* tests/golden_rows.h - rows of numbers against a golden text file, whose lines are "KIND ROW value value ...". Fails the test by cmocka. */
#ifndef SLUICE_TESTS_GOLDEN_ROWS_H
#define SLUICE_TESTS_GOLDEN_ROWS_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* Each of `rows` rows [columns] of `got` is in the file once; it may be off by `tolerance`, relative to the size of the row. */
static inline void golden_rows_check(const char *path, const char *kind, const float *got, uint32_t rows, uint32_t columns, double tolerance)
{
    char line[4096], name[32];
    unsigned row, seen = 0;
    int at, more;
    FILE *f = fopen(path, "r");

    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        assert_int_equal(sscanf(line, "%31s %u%n", name, &row, &at), 2);
        if (strcmp(name, kind) != 0) continue;
        double error = 0, size = 0, wanted;
        assert_true(row < rows);
        for (uint32_t i = 0; i < columns; i++, at += more) {
            assert_int_equal(sscanf(line + at, "%lf%n", &wanted, &more), 1);
            error += (got[row * columns + i] - wanted) * (got[row * columns + i] - wanted);
            size += wanted * wanted;
        }
        if (!(sqrt(error) <= tolerance * sqrt(size))) fail_msg("%s row %u: relative error %.3g", kind, row, sqrt(error / size));
        seen++;
    }
    fclose(f);
    assert_int_equal(seen, rows);
}

#endif
