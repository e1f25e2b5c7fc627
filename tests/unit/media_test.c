/* tests/unit/media_test.c - files of a request: base64, data URLs, the record and back; the requests that bring them; SHA-256. */
#include "schemas/media.h"
#include "schemas/request.h"
#include "schemas/sha256.h"
#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_base64(void **state)
{
    static const struct { const char *text, *bytes; size_t count; } good[] = {
        {"", "", 0}, {"Zg==", "f", 1}, {"Zg", "f", 1}, {"Zm8=", "fo", 2}, {"Zm9v", "foo", 3}, {"Zm9vYmFy", "foobar", 6}, {"Zm9v\r\nYmFy\n", "foobar", 6}, {"AAEC/w==", "\0\1\2\377", 4}, {"AAEC_w", "\0\1\2\377", 4},
    };
    static const char *const bad[] = {"Z", "Zm9vY", "Zm9?", "Zg==Zg==", "\xff\xff\xff\xff"};
    uint8_t *out;
    size_t count;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(media_base64(good[i].text, strlen(good[i].text), &out, &count), 0);
        assert_int_equal(count, good[i].count);
        assert_memory_equal(out, good[i].bytes, count);
        free(out);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_int_equal(media_base64(bad[i], strlen(bad[i]), &out, &count), -E_FORMAT);
}

static void test_data_urls(void **state)
{
    static const struct { const char *url, *text; } cases[] = {
        {"data:image/png;base64,AAAA", "AAAA"}, {"DATA:;base64,BBBB", "BBBB"}, {"data:image/jpeg;name=a;base64,", ""}, {"data:image/png,AAAA", NULL}, {"http://a/b;base64,AAAA", NULL}, {"", NULL}, {"data:", NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t bytes = 99;
        const char *text = media_data_url(cases[i].url, strlen(cases[i].url), &bytes);
        if (!cases[i].text) assert_null(text);
        else {
            assert_non_null(text);
            assert_int_equal(bytes, strlen(cases[i].text));
            assert_memory_equal(text, cases[i].text, bytes);
        }
    }
}

static uint8_t *copy_of(const char *text)
{
    return (uint8_t *)strdup(text);
}

static void test_record_and_back(void **state)
{
    static const char *const text[] = {"first", "the second file", "3"};
    struct media_list list = {0};
    struct media_file_hdr hdr;
    const uint8_t *data;
    msgpack_sbuffer out;

    (void)state;
    for (uint32_t i = 0; i < 3; i++) assert_int_equal(media_list_add(&list, (struct media_file){.kind = 1 + i % 3, .budget = 70 * i, .video = i, .at_ms = 1000 * i, .data = copy_of(text[i]), .bytes = strlen(text[i])}), 0);
    msgpack_sbuffer_init(&out);
    msgpack_sbuffer_write(&out, "abc", 3);
    uint64_t at = media_pack(&list, &out);
    assert_int_equal(at, 8);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(media_next((const uint8_t *)out.data, out.size, &at, &hdr, &data), 0);
        assert_int_equal(hdr.kind, 1 + i % 3);
        assert_int_equal(hdr.video, i);
        assert_int_equal(hdr.at_ms, 1000 * i);
        assert_int_equal(hdr.budget, 70 * i);
        assert_int_equal(hdr.bytes, strlen(text[i]));
        assert_memory_equal(data, text[i], hdr.bytes);
    }
    assert_int_equal(at, out.size);
    assert_int_equal(media_next((const uint8_t *)out.data, out.size, &at, &hdr, &data), -E_FORMAT);
    for (size_t cut = 9; cut < out.size; cut++) { /* a record cut short gives no file that reaches beyond it */
        at = 8;
        for (uint32_t i = 0; i < 3 && media_next((const uint8_t *)out.data, cut, &at, &hdr, &data) == 0; i++) assert_true(data + hdr.bytes <= (const uint8_t *)out.data + cut);
    }
    at = 8;
    out.data[8] = 9; /* no such kind */
    assert_int_equal(media_next((const uint8_t *)out.data, out.size, &at, &hdr, &data), -E_FORMAT);
    at = 4;
    assert_int_equal(media_next((const uint8_t *)out.data, out.size, &at, &hdr, &data), -E_FORMAT);
    at = UINT64_MAX - 7;
    assert_int_equal(media_next((const uint8_t *)out.data, out.size, &at, &hdr, &data), -E_FORMAT);
    msgpack_sbuffer_destroy(&out);
    media_list_free(&list);
}

static void test_a_list_is_full(void **state)
{
    struct media_list list = {0};

    (void)state;
    for (uint32_t i = 0; i < MEDIA_ITEMS_MAX; i++) assert_int_equal(media_list_add(&list, (struct media_file){.kind = MEDIA_PICTURE, .data = copy_of("x"), .bytes = 1}), 0);
    assert_int_equal(media_list_add(&list, (struct media_file){.kind = MEDIA_PICTURE}), -E_FULL);
    media_list_free(&list);
    assert_int_equal(list.count, 0);
}

static const struct request_defaults seeing = {.model = "m", .temperature = 1, .top_p = 1, .vocab = 1000, .context_max = 512, .choices_max = 8, .picture_budget = 280, .sound = true};

static int read_body(struct request *r, enum api api, const char *text, const struct request_defaults *d, struct fault *f)
{
    json_t *body = json_loads(text, 0, NULL);

    assert_non_null(body);
    memset(f, 0, sizeof *f);
    const int rc = request_read(r, api, false, body, d, f);
    json_decref(body);
    return rc;
}

static void test_requests_bring_files(void **state)
{
    static const char chat[] = "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,Zm9v\",\"detail\":\"low\"}},"
                               "{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"YmFy\",\"format\":\"wav\"}}]}]}";
    static const char responses[] = "{\"input\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_image\",\"image_url\":\"data:;base64,Zm9v\"}]}]}";
    struct request r;
    struct fault f;

    (void)state;
    assert_int_equal(read_body(&r, API_CHAT, chat, &seeing, &f), 0);
    assert_int_equal(r.media.count, 2);
    assert_int_equal(r.media.file[0].kind, MEDIA_PICTURE);
    assert_int_equal(r.media.file[0].budget, 70);
    assert_memory_equal(r.media.file[0].data, "foo", 3);
    assert_int_equal(r.media.file[1].kind, MEDIA_SOUND);
    assert_memory_equal(r.media.file[1].data, "bar", 3);
    char *messages = json_dumps(json_object_get(r.chat[0], "messages"), JSON_COMPACT);
    assert_string_equal(messages, "[{\"role\":\"user\",\"content\":[{\"type\":\"image\"},{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"audio\"}]}]");
    free(messages);
    request_free(&r);
    assert_int_equal(read_body(&r, API_RESPONSES, responses, &seeing, &f), 0);
    assert_int_equal(r.media.count, 1);
    assert_int_equal(r.media.file[0].budget, 0);
    request_free(&r);
}

static void test_links(void **state)
{
    static const char link[] = "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"%s\",\"detail\":\"low\"}}]}]}";
    static const char *const bad[] = {"https://a/b c", "https://a/\\u00e9", "https://a/\\n"};
    struct request_defaults fetching = seeing;
    char text[4096], url[2600] = "http://a/";
    struct request r;
    struct fault f;

    (void)state;
    fetching.fetch = true;
    snprintf(text, sizeof text, link, "HTTPS://example.org/a.png?b#c");
    assert_int_equal(read_body(&r, API_CHAT, text, &fetching, &f), 0);
    assert_int_equal(r.media.count, 1);
    assert_int_equal(r.media.file[0].kind, MEDIA_LINK);
    assert_int_equal(r.media.file[0].budget, 70);
    assert_int_equal(r.media.file[0].bytes, strlen("HTTPS://example.org/a.png?b#c"));
    assert_memory_equal(r.media.file[0].data, "HTTPS://example.org/a.png?b#c", r.media.file[0].bytes);
    request_free(&r);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, link, bad[i]);
        assert_int_equal(read_body(&r, API_CHAT, text, &fetching, &f), -E_FORMAT);
        assert_string_equal(f.code, "invalid_value");
    }
    memset(url + 9, 'x', 2500);
    snprintf(text, sizeof text, link, url);
    assert_int_equal(read_body(&r, API_CHAT, text, &fetching, &f), -E_FORMAT);
    assert_string_equal(f.code, "invalid_value");
}

static void test_videos(void **state)
{
    static const char body[] = "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"video_url\",\"video_url\":{\"url\":\"data:video/mp4;base64,Zm9v\"}},"
                               "{\"type\":\"video\",\"frames\":[\"data:;base64,YQ==\",\"data:;base64,Yg==\"],\"fps\":2},{\"type\":\"input_video\",\"video_url\":\"data:;base64,YmFy\"}]}]}";
    static const char *const bad[] = {"{\"type\":\"video\"}", "{\"type\":\"video_url\",\"video_url\":\"https://a/b.mp4\"}", "{\"type\":\"video_url\",\"video_url\":\"data:;base64,YQ==\",\"fps\":1}",
                                      "{\"type\":\"video\",\"video_url\":\"data:;base64,YQ==\",\"frames\":[\"data:;base64,YQ==\"]}"};
    static const struct { uint32_t kind, video, at_ms; } wanted[] = {{MEDIA_VIDEO, 1, 0}, {MEDIA_FRAME, 2, 0}, {MEDIA_FRAME, 2, 500}, {MEDIA_VIDEO, 3, 0}};
    struct request_defaults filming = seeing;
    struct request r;
    struct fault f;
    char text[512];

    (void)state;
    filming.video = true;
    assert_int_equal(read_body(&r, API_CHAT, body, &filming, &f), -E_FORMAT); /* no library: advice */
    assert_string_equal(f.code, "unsupported_content");
    assert_non_null(strstr(f.message, "'frames'"));
    filming.video_files = true;
    assert_int_equal(read_body(&r, API_CHAT, body, &filming, &f), 0);
    assert_int_equal(r.media.count, 4);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(r.media.file[i].kind, wanted[i].kind);
        assert_int_equal(r.media.file[i].video, wanted[i].video);
        assert_int_equal(r.media.file[i].at_ms, wanted[i].at_ms);
        assert_int_equal(r.media.file[i].budget, MEDIA_FRAME_BUDGET);
    }
    request_free(&r);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, "{\"messages\":[{\"role\":\"user\",\"content\":[%s]}]}", bad[i]);
        assert_int_equal(read_body(&r, API_CHAT, text, &filming, &f), -E_FORMAT);
    }
}

static void test_refusals_name_the_part(void **state)
{
    static const struct { const char *part, *code; int status; } cases[] = {
        {"{\"type\":\"image_url\",\"image_url\":{\"url\":\"https://a/b.png\"}}", "unsupported_content", 400},
        {"{\"type\":\"image_url\",\"image_url\":{\"url\":7}}", "invalid_type", 400},
        {"{\"type\":\"image_url\"}", "invalid_type", 400},
        {"{\"type\":\"input_image\",\"file_id\":\"f\"}", "unsupported_content", 400},
        {"{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png,abc\"}}", "invalid_value", 400},
        {"{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:;base64,@\"}}", "invalid_base64", 400},
        {"{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:;base64,\"}}", "invalid_value", 400},
        {"{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:;base64,AAAA\",\"detail\":3}}", "invalid_value", 400},
        {"{\"type\":\"input_audio\",\"input_audio\":\"x\"}", "invalid_type", 400},
        {"{\"type\":\"video\"}", "unsupported_content", 400},
        {"{\"type\":\"video\",\"video_url\":{\"url\":\"data:video/mp4;base64,AAAA\"}}", "unsupported_content", 400},
        {"{\"type\":\"hologram\"}", "unsupported_content", 400},
    };
    const struct request_defaults blind = {.model = "m", .temperature = 1, .top_p = 1, .vocab = 1000, .context_max = 512, .choices_max = 8};
    struct request r;
    struct fault f;
    char text[512];

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(text, sizeof text, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},%s]}]}", cases[i].part);
        assert_int_equal(read_body(&r, API_CHAT, text, &seeing, &f), -E_FORMAT);
        assert_string_equal(f.code, cases[i].code);
        assert_int_equal(f.status, cases[i].status);
        assert_non_null(strstr(f.param, "messages[0].content"));
    }
    assert_int_equal(read_body(&r, API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:;base64,AAAA\"}}]}]}", &blind, &f), -E_FORMAT);
    assert_string_equal(f.code, "unsupported_content");
    assert_string_equal(f.param, "messages[0].content[0]");
}

static void test_sha256(void **state)
{
    static const struct { const char *text, *hex; } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    uint8_t out[SHA256_BYTES], again[SHA256_BYTES], million[1000];
    struct sha256 s;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char hex[65];
        sha256_begin(&s);
        sha256_add(&s, cases[i].text, strlen(cases[i].text));
        sha256_end(&s, out);
        for (unsigned k = 0; k < SHA256_BYTES; k++) snprintf(hex + 2 * k, 3, "%02x", out[k]);
        assert_string_equal(hex, cases[i].hex);
    }
    memset(million, 'a', sizeof million);
    for (size_t piece = 1; piece < 200; piece += 13) { /* in pieces of any size */
        sha256_begin(&s);
        if (piece % 2 == 0) s.fast = 0; /* in plain C */
        for (size_t at = 0; at < sizeof million; at += piece) sha256_add(&s, million + at, sizeof million - at < piece ? sizeof million - at : piece);
        sha256_end(&s, piece == 1 ? out : again);
        if (piece > 1) assert_memory_equal(out, again, SHA256_BYTES);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_base64), cmocka_unit_test(test_data_urls), cmocka_unit_test(test_record_and_back), cmocka_unit_test(test_a_list_is_full), cmocka_unit_test(test_requests_bring_files),
        cmocka_unit_test(test_links),
        cmocka_unit_test(test_videos),
        cmocka_unit_test(test_refusals_name_the_part), cmocka_unit_test(test_sha256),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
