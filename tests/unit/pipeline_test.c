/* tests/unit/pipeline_test.c - shm/pipeline: names, topology, and that no two things lie in the same place. */
#include "shm/error.h"
#include "shm/pipeline.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

struct part {
    uint64_t begin, end;
};

/* Header, status, and both kinds of ring sides of one role. */
static unsigned parts_of(int role, struct part *part)
{
    unsigned count = 0;

    part[count++] = (struct part){0, sizeof(struct segment_hdr)};
    part[count++] = (struct part){SEGMENT_STATUS_OFFSET, SEGMENT_STATUS_OFFSET + sizeof(struct stage_status)};
    for (int ring = 0; ring < RING_COUNT; ring++) {
        const uint64_t p = ring_producer_offset(ring), c = ring_consumer_offset(ring);
        if ((int)ring_edge(ring)->producer == role) part[count++] = (struct part){p, p + sizeof(struct ring_producer)};
        if ((int)ring_edge(ring)->consumer == role) part[count++] = (struct part){c, c + sizeof(struct ring_consumer)};
    }
    return count;
}

static void test_nothing_overlaps(void **state)
{
    (void)state;
    struct part part[2 + 2 * RING_COUNT];

    for (int role = 0; role < ROLE_COUNT; role++) {
        const unsigned count = parts_of(role, part);
        for (unsigned i = 0; i < count; i++) {
            assert_true(part[i].end <= segment_slots_offset(role));
            for (unsigned j = 0; j < i; j++) assert_true(part[i].begin >= part[j].end || part[j].begin >= part[i].end);
        }
        assert_int_equal(segment_slots_offset(role) % 4096, 0);
    }
}

/* A word that changes while serving has 128 bytes to itself: its neighbours' writers never fight over its line. */
static void test_words_are_far_apart(void **state)
{
    (void)state;
    for (int ring = 0; ring < RING_COUNT; ring++) {
        assert_int_equal(ring_producer_offset(ring) % 128, 0);
        assert_int_equal(ring_consumer_offset(ring) % 128, 0);
    }
    assert_int_equal(offsetof(struct ring_producer, lost), 128);
    assert_int_equal(offsetof(struct ring_producer, slots), 256);
    assert_int_equal(offsetof(struct ring_consumer, sleeping), 128);
    assert_int_equal(offsetof(struct stage_status, pid), 128);
    assert_int_equal(offsetof(struct stage_status, busy_count), 256);
}

/* Offsets that schemas/wiring.md states and that stages in other languages have written down. */
static void test_documented_offsets(void **state)
{
    (void)state;
    assert_int_equal(ring_consumer_offset(RING_VERIFY_DRAFT), 8192);
    assert_int_equal(ring_producer_offset(RING_DRAFT_VERIFY), 8448);
    assert_int_equal(segment_slots_offset(ROLE_DRAFT), 77824);
    assert_int_equal(ring_consumer_offset(RING_GATEWAY_VERIFY), 8192);
    assert_int_equal(ring_consumer_offset(RING_PREFILL_VERIFY), 8448);
    assert_int_equal(ring_producer_offset(RING_VERIFY_PREFILL), 8704);
    assert_int_equal(ring_producer_offset(RING_VERIFY_DRAFT), 74496);
    assert_int_equal(ring_consumer_offset(RING_DRAFT_VERIFY), 140288);
    assert_int_equal(offsetof(struct segment_hdr, version), 8);
    assert_int_equal(offsetof(struct segment_hdr, role), 12);
    assert_int_equal(offsetof(struct segment_hdr, bytes), 16);
    assert_int_equal(offsetof(struct segment_hdr, slots_offset), 24);
    assert_int_equal(offsetof(struct segment_hdr, slot_stride), 32);
    assert_int_equal(offsetof(struct segment_hdr, slot_count), 40);
    assert_int_equal(offsetof(struct stage_status, state), 136);
    assert_int_equal(offsetof(struct stage_status, started_ns), 144);
    assert_int_equal(offsetof(struct stage_status, attached), 152);
    assert_int_equal(offsetof(struct stage_status, busy_slot), 264);
    assert_int_equal(offsetof(struct stage_status, busy_generation), 776);
    assert_int_equal(offsetof(struct stage_status, panic), 1288);
    assert_int_equal(offsetof(struct stage_status, counters), 1544);
    assert_memory_equal(&(uint64_t){SEGMENT_MAGIC}, "SLUICE1", 8);
}

static void test_names_and_back(void **state)
{
    (void)state;
    for (int role = 0; role < ROLE_COUNT; role++) {
        assert_non_null(role_name(role));
        assert_int_equal(role_from_name(role_name(role)), role);
    }
    assert_null(role_name(-1));
    assert_null(role_name(ROLE_COUNT));
    assert_int_equal(role_from_name("none"), -E_NOT_FOUND);
    assert_int_equal(role_from_name(""), -E_NOT_FOUND);
}

static void test_rings_are_named_after_their_ends(void **state)
{
    (void)state;
    for (int ring = 0; ring < RING_COUNT; ring++) {
        const struct ring_edge *e = ring_edge(ring);
        char name[64];
        strcpy(name, role_name(e->producer));
        strcat(strcat(name, "-"), role_name(e->consumer));
        assert_string_equal(e->name, name);
        assert_int_not_equal(e->producer, e->consumer);
        for (int other = 0; other < ring; other++) assert_string_not_equal(e->name, ring_edge(other)->name);
    }
    assert_int_equal(RING_SLOTS & (RING_SLOTS - 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_overlaps),   cmocka_unit_test(test_words_are_far_apart),
        cmocka_unit_test(test_documented_offsets), cmocka_unit_test(test_names_and_back),
        cmocka_unit_test(test_rings_are_named_after_their_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
