/* tests/unit/areas_test.c - stages/vision/areas: no two requests share an area, what was written is there, what is free is bounded. */
#include "stages/vision/areas.h"

#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SLOTS 8u
#define TOKENS 600u                   /* of a request: 4 MB */
#define MIB (1u << 20)

static struct table table;
static uint8_t *segment;
static int fd;

static uint64_t bytes_in_memory(void)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static int set_up(void **state)
{
    const struct table_limits limits = {.slot_count = SLOTS, .context_max = 1, .request_bytes_max = 1, .full_pages_max = 1, .sliding_pages_max = 1, .log_bytes_max = 1, .media_tokens_max = TOKENS};
    const uint64_t lead = 3 * 4096;   /* a segment does not begin with its slots */

    (void)state;
    table_init(&table, &limits);
    fd = memfd_create("segment", MFD_CLOEXEC);
    const uint64_t bytes = lead + SLOTS * table.stride[ROLE_VISION];
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    segment = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(segment != MAP_FAILED);
    table.base[ROLE_VISION] = segment + lead;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    munmap(segment, 3 * 4096 + SLOTS * table.stride[ROLE_VISION]);
    close(fd);
    return 0;
}

static void fill(uint8_t *data, uint64_t bytes, unsigned seed)
{
    for (uint64_t i = 0; i < bytes; i++) data[i] = (uint8_t)(i * 7 + i / 251 + seed);
}

static void test_what_is_written_is_there(void **state)
{
    static uint8_t data[3 * MIB];
    struct areas a;
    uint32_t mine[SLOTS];

    (void)state;
    assert_int_equal(areas_open(&a, &table, segment, fd), 0);
    for (unsigned round = 0; round < 3; round++) { /* into new pages, and into those of others before */
        for (unsigned i = 0; i < SLOTS; i++) {
            mine[i] = areas_take(&a);
            for (unsigned k = 0; k < i; k++) assert_int_not_equal(mine[i], mine[k]);
            const uint64_t first = 6912 * (1 + (i + round) % 5), rest = i % 2 ? MIB : 3 * MIB - first;
            fill(data, sizeof data, i + round);
            assert_int_equal(areas_write(&a, mine[i], 0, data, first), 0);
            assert_int_equal(areas_write(&a, mine[i], first, data + first, rest), 0);
        }
        for (unsigned i = 0; i < SLOTS; i++) {
            const uint64_t first = 6912 * (1 + (i + round) % 5), bytes = i % 2 ? first + MIB : 3 * MIB;
            fill(data, sizeof data, i + round);
            assert_memory_equal(table_media_area(&table, mine[i]), data, bytes);
            areas_give_back(&a, mine[i]);
        }
    }
    free(a.area);
}

static void test_what_is_free_is_bounded_and_taken_first(void **state)
{
    static uint8_t data[3 * MIB];
    struct areas a;
    uint32_t mine[SLOTS];

    (void)state;
    assert_int_equal(areas_open(&a, &table, segment, fd), 0);
    areas_clear(&a);
    assert_int_equal(bytes_in_memory(), 0);
    for (unsigned i = 0; i < SLOTS; i++) assert_int_equal(areas_write(&a, mine[i] = areas_take(&a), 0, data, sizeof data), 0);
    assert_true(bytes_in_memory() >= SLOTS * sizeof data);
    for (unsigned i = 0; i < SLOTS; i++) areas_give_back(&a, mine[i]);
    assert_true(bytes_in_memory() <= 8 * MIB + SLOTS * 4096);
    const uint64_t kept = bytes_in_memory();
    assert_true(kept >= 2 * sizeof data);
    for (unsigned i = 0; i < 20; i++) { /* one at a time: no page is made or taken away */
        const uint32_t one = areas_take(&a);
        assert_int_equal(areas_write(&a, one, 0, data, sizeof data), 0);
        assert_int_equal(bytes_in_memory(), kept);
        areas_give_back(&a, one);
    }
    free(a.area);
}

static void test_a_predecessors_data_stays(void **state)
{
    static uint8_t data[MIB];
    struct areas before, after;

    (void)state;
    assert_int_equal(areas_open(&before, &table, segment, fd), 0);
    areas_clear(&before);
    const uint32_t kept = areas_take(&before), lost = areas_take(&before);
    fill(data, sizeof data, 5);
    assert_int_equal(areas_write(&before, kept, 0, data, sizeof data), 0);
    assert_int_equal(areas_write(&before, lost, 0, data, sizeof data), 0);
    free(before.area);
    assert_int_equal(areas_open(&after, &table, segment, fd), 0);
    assert_true(areas_adopt(&after, kept, sizeof data));
    assert_false(areas_adopt(&after, kept, sizeof data)); /* not twice */
    assert_false(areas_adopt(&after, SLOTS, 1));
    assert_false(areas_adopt(&after, kept + 1, UINT64_MAX));
    areas_clear(&after);
    assert_memory_equal(table_media_area(&table, kept), data, sizeof data);
    assert_int_equal(table_media_area(&table, lost)[1], 0);
    for (unsigned i = 1; i < SLOTS; i++) assert_int_not_equal(areas_take(&after), kept);
    free(after.area);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_written_is_there),
        cmocka_unit_test(test_what_is_free_is_bounded_and_taken_first),
        cmocka_unit_test(test_a_predecessors_data_stays),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
