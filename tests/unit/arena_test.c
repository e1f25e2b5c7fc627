/* tests/unit/arena_test.c - which checkpoints the kernels for Gemma 4 12B's shapes take as they are stored, activation rules included; no GPU. */
#include "kernels/cuda/arena.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

uint64_t plain_weights_bytes(const struct cuda_model_spec *spec) { return spec->layers; } /* of shapes that are none of ours */

static struct cuda_model_spec gemma_12b(void)
{
    struct cuda_model_spec s = {.hidden = 3840, .intermediate = 15360, .vocab = 262144, .layers = 6, .q_heads = 16, .kv_heads = {8, 1}, .head_dim = {256, 512}, .window = 1024,
                                .format = WEIGHT_FP8, .has_v_norm = 1, .rope_divisor = {1, 1}, .rope_turned = {128, 64}, .page_bytes = {1 << 20, 1 << 16}};

    for (uint32_t i = 0; i < s.layers; i++) s.layer[i].type = i == 5 ? CUDA_FULL : CUDA_SLIDING, s.layer[i].has_v = i != 5, s.layer[i].v_offset = i == 5 ? 32 * 512 * 2 : 32 * 8 * 256 * 2; /* a page of bf16 keys */
    return s;
}

static void set_rule(struct cuda_model_spec *s, uint32_t rule, float scale)
{
    for (uint32_t i = 0; i < s->layers; i++)
        for (int t = CUDA_Q; t <= CUDA_DOWN; t++) s->layer[i].stored.activation[t] = (uint8_t)rule, s->layer[i].stored.input_scale[t] = scale;
}

static int plan(const struct cuda_model_spec *s)
{
    struct arena a;

    return arena_plan(&a, s);
}

static void rules_reach_the_matrices(void **state)
{
    struct cuda_model_spec s = gemma_12b();
    struct arena a;

    (void)state;
    assert_int_equal(arena_plan(&a, &s), 0);
    assert_int_equal(a.layer[0].qkv.activation, STORED_AS_IS);
    const uint64_t bytes = a.bytes;

    set_rule(&s, STORED_STATIC, 0.5f);
    s.layer[3].stored.input_scale[CUDA_DOWN] = 0.25f;
    s.layer[4].stored.activation[CUDA_O] = STORED_TOKEN;
    assert_int_equal(arena_plan(&a, &s), 0);
    assert_int_equal(a.bytes, bytes); /* a rule is no weight */
    assert_int_equal(a.layer[0].qkv.activation, STORED_STATIC);
    assert_true(a.layer[0].gate_up.input_scale == 0.5f && a.layer[3].down.input_scale == 0.25f && a.layer[3].o.input_scale == 0.5f);
    assert_int_equal(a.layer[4].o.activation, STORED_TOKEN);
    assert_true(a.layer[4].o.input_scale == 0.0f); /* by token: nothing fixed */
    assert_int_equal(a.head.activation, STORED_AS_IS);
}

/* What shares a packed matrix shares its activations; a v that is not there has no say. */
static void rules_that_do_not_fit(void **state)
{
    struct cuda_model_spec s = gemma_12b();

    (void)state;
    set_rule(&s, STORED_STATIC, 0.5f);
    s.layer[0].stored.input_scale[CUDA_K] = 0.25f;
    assert_int_equal(plan(&s), -E_UNSUPPORTED);
    s.layer[0].stored.input_scale[CUDA_K] = 0.5f;
    s.layer[5].stored.input_scale[CUDA_V] = 0.25f;
    s.layer[5].stored.activation[CUDA_V] = 77;
    assert_int_equal(plan(&s), 0);
    s.layer[1].stored.activation[CUDA_UP] = STORED_AS_IS;
    assert_int_equal(plan(&s), -E_UNSUPPORTED);
    s.layer[1].stored.activation[CUDA_UP] = STORED_STATIC;
    for (uint32_t bad = 0; bad < 3; bad++) {
        s.layer[2].stored.input_scale[CUDA_O] = bad == 0 ? 0.0f : bad == 1 ? NAN : INFINITY;
        assert_int_equal(plan(&s), -E_UNSUPPORTED);
    }
    s.layer[2].stored.input_scale[CUDA_O] = 0.5f;
    assert_int_equal(plan(&s), 0);
    s.layer[2].stored.activation[CUDA_DOWN] = 3;
    assert_int_equal(plan(&s), -E_UNSUPPORTED);
}

/* Rules are for FP8 with a scale for each row; BF16 weights have none whatever is said. */
static void rules_of_other_formats(void **state)
{
    struct cuda_model_spec s = gemma_12b();
    struct arena a;

    (void)state;
    set_rule(&s, STORED_TOKEN, 0);
    for (int t = CUDA_Q; t <= CUDA_O; t++) s.layer[0].stored.format[t] = WEIGHT_BF16;
    assert_int_equal(arena_plan(&a, &s), 0);
    assert_int_equal(a.layer[0].qkv.activation, STORED_AS_IS);
    assert_int_equal(a.layer[0].down.activation, STORED_TOKEN);
    s.layer[1].stored.format[CUDA_DOWN] = WEIGHT_FP4;
    assert_int_equal(plan(&s), -E_UNSUPPORTED);
    s.layer[1].stored.format[CUDA_DOWN] = WEIGHT_FP8_BLOCK;
    assert_int_equal(plan(&s), -E_UNSUPPORTED);
    s.layer[1].stored.activation[CUDA_DOWN] = STORED_AS_IS;
    assert_int_equal(plan(&s), 0);
}

static void shapes_that_are_none_of_ours(void **state)
{
    struct cuda_model_spec s = gemma_12b();

    (void)state;
    s.layer[0].stored.format[CUDA_K] = WEIGHT_BF16;
    assert_int_equal(plan(&s), -E_UNSUPPORTED);
    assert_int_equal(cuda_weights_bytes(&s), 6); /* the kernels for any shape take them */
    s = gemma_12b();
    assert_true(cuda_weights_bytes(&s) > 1ull << 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rules_reach_the_matrices), cmocka_unit_test(rules_that_do_not_fit), cmocka_unit_test(rules_of_other_formats),
                                       cmocka_unit_test(shapes_that_are_none_of_ours)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
