/* tests/unit/vision_test.c - the vision stage's parts: workers give what the same work gives outside of a sandbox, die alone, and can do nothing else; the cache. */
#include "schemas/image.h"
#include "model/picture.h"
#include "schemas/sound.h"
#include "shm/error.h"
#include "stages/vision/cache.h"
#include "stages/vision/desk.h"
#include "stages/vision/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/desk_await.h"

static const struct desk_limits limits = {.picture_budget = 70, .picture_positions = 80, .sound_tokens = 750};

static uint8_t *load(const char *path, struct media_file_hdr *hdr)
{
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = malloc(1 << 20);

    assert_non_null(f);
    hdr->bytes = fread(bytes, 1, 1 << 20, f);
    fclose(f);
    return bytes;
}

static void test_workers_give_what_the_work_gives(void **state)
{
    static const struct { const char *path; uint32_t kind; } files[] = {
        {"tests/golden/image/rgb.jpg", MEDIA_PICTURE}, {"tests/golden/image/cmyk_progressive.jpg", MEDIA_PICTURE}, {"tests/golden/image/turned_6.png", MEDIA_PICTURE},
        {"tests/golden/image/rgba_lossless.webp", MEDIA_PICTURE}, {"tests/golden/image/animated.webp", MEDIA_PICTURE}, {"tests/golden/sound/pcm_16_22050_2.flac", MEDIA_SOUND},
        {"tests/golden/sound/vorbis_22050_2.ogg", MEDIA_SOUND}, {"tests/golden/sound/opus_24000_2.ogg", MEDIA_SOUND}, {"tests/golden/sound/mpeg_layer_iii_22050_2.mp3", MEDIA_SOUND},
        {"tests/golden/sound/float_22050_2.wav", MEDIA_SOUND}, {"tests/golden/image/manifest.txt", MEDIA_PICTURE}, {"tests/golden/image/rgb.png", MEDIA_SOUND},
    };
    uint8_t *out = malloc(desk_out_bytes(&limits));
    struct desk d;

    (void)state;
    assert_int_equal(desk_open(&d, &limits), 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct media_file_hdr hdr = {.kind = files[i].kind};
        uint8_t *file = load(files[i].path, &hdr);
        struct desk_result want, got;
        const uint8_t *data;
        uint64_t bytes;
        int status = 0;

        desk_decode(&limits, &hdr, file, out, &want);
        assert_int_equal(desk_begin(&d, &hdr, file), 0);
        if (desk_await(&d, &status) != 1) fail_msg("%s killed its worker: signal %d", files[i].path, WTERMSIG(status));
        desk_result(&d, &got, &data, &bytes);
        assert_int_equal(got.status, want.status);
        assert_string_equal(got.why, want.why);
        assert_int_equal(got.tokens, want.tokens);
        assert_int_equal(got.columns, want.columns);
        assert_int_equal(want.status == MEDIA_READY, i < 10);
        if (want.status == MEDIA_READY) assert_memory_equal(data, out, bytes);
        desk_clear(&d);
        assert_int_equal(desk_hire(&d), 0);
        free(file);
    }
    desk_stop(&d);
    free(out);
}

/* Gemma 3: every picture a square, whatever its proportions; what a worker that was taken over may not leave. */
static void test_squares(void **state)
{
    const struct desk_limits square = {.picture_budget = 16, .picture_positions = 4, .picture_side = 56, .crops_max = 0}, pieces = {.picture_budget = 16, .picture_positions = 4, .picture_side = 56, .crops_max = 4};
    static const char *const files[] = {"tests/golden/image/rgb.png", "tests/golden/image/turned_6.png", "tests/golden/image/rgba_lossless.webp"};
    uint8_t *out = malloc(desk_out_bytes(&pieces)), *again = malloc(desk_out_bytes(&pieces)), *want = malloc(56 * 56 * 3);

    (void)state;
    assert_int_equal(desk_out_bytes(&square), 56 * 56 * 3);
    assert_int_equal(desk_out_bytes(&pieces), 5 * 56 * 56 * 3);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        static const struct image_limits all = {.side_max = 4096, .pixels_max = 1 << 22, .scans_max = 100};
        struct media_file_hdr hdr = {.kind = MEDIA_PICTURE, .budget = 70};
        uint8_t *file = load(files[i], &hdr);
        char why[IMAGE_ERROR_BYTES];
        struct desk_result r;
        struct image_info info;
        struct image image;

        assert_int_equal(image_probe(file, hdr.bytes, &all, &info, why), 0);
        assert_int_equal(image_decode(file, hdr.bytes, &all, &info, 0, 0, &image, why), 0);
        assert_int_equal(picture_resize(image.rgb, image.width, image.height, want, 56, 56, PICTURE_BILINEAR), 0);
        desk_decode(&square, &hdr, file, out, &r);
        assert_true(r.status == MEDIA_READY && r.tokens == 16 && r.columns == 4);
        assert_memory_equal(out, want, 56 * 56 * 3);
        desk_decode(&pieces, &hdr, file, again, &r);     /* too small to be shown in pieces */
        assert_true(r.status == MEDIA_READY && r.tokens == 16 && r.columns == 4);
        assert_memory_equal(again, want, 56 * 56 * 3);
        free(image.rgb);
        free(file);
    }
    free(out), free(again), free(want);
}

static void test_a_dead_worker_is_known(void **state)
{
    struct media_file_hdr hdr = {.kind = MEDIA_PICTURE};
    uint8_t *file = load("tests/golden/image/rgb.png", &hdr);
    struct desk_result r;
    const uint8_t *data;
    uint64_t bytes;
    struct desk d;
    int status = 0;

    (void)state;
    assert_int_equal(desk_open(&d, &limits), 0);
    kill(d.pid, SIGKILL);
    desk_begin(&d, &hdr, file); /* may still succeed: the byte waits in the socket */
    assert_int_equal(desk_await(&d, &status), -E_PEER);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    desk_result(&d, &r, &data, &bytes); /* whoever died has left no result */
    assert_int_equal(r.status, MEDIA_FAILED);
    assert_int_equal(bytes, 0);
    desk_clear(&d);
    assert_int_equal(desk_hire(&d), 0);
    assert_int_equal(desk_begin(&d, &hdr, file), 0);
    assert_int_equal(desk_await(&d, &status), 1);
    desk_result(&d, &r, &data, &bytes);
    assert_int_equal(r.status, MEDIA_READY);
    free(file);
}

/* ---- what a worker cannot do ------------------------------------------------------------- */

static void do_nothing(void) {}
static void do_socket(void) { socket(AF_INET, SOCK_STREAM, 0); }
static void do_fork(void) { fork(); }
static void do_kill(void) { kill(getppid(), SIGTERM); }
static void do_exec(void) { execl("/bin/true", "true", (char *)NULL); }
static void do_code(void) { mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
static void do_map_file(void) { mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 0, 0); }
static void do_open(void) { if (open("/etc/passwd", O_RDONLY) >= 0 || errno != ENOENT) _exit(9); }
static void do_descriptors(void) { for (int fd = 0; fd < 64; fd++) if (write(fd, "x", 1) == 1) _exit(9); }
static void do_spin(void) { for (volatile unsigned i = 0;; i++) continue; }

static int run_inside(void (*what)(void))
{
    const pid_t parent = getpid();
    int pair[2], status;

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        close(pair[0]);
        dup2(pair[1], 100);
        sandbox_enter(100, parent, SANDBOX_CPU_S);
        what();
        _exit(0);
    }
    close(pair[0]);
    close(pair[1]);
    if (what == do_spin) { /* its limit is too long for a test: it can be killed like anybody */
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
        kill(pid, SIGXCPU);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void test_a_worker_can_do_nothing_else(void **state)
{
    static const struct { const char *name; void (*what)(void); int signal; } cases[] = {
        {"nothing", do_nothing, 0}, {"open", do_open, 0}, {"descriptors", do_descriptors, 0}, {"socket", do_socket, SIGSYS}, {"fork", do_fork, SIGSYS}, {"kill", do_kill, SIGSYS},
        {"exec", do_exec, SIGSYS}, {"executable memory", do_code, SIGSYS}, {"a file's memory", do_map_file, SIGSYS}, {"too long", do_spin, SIGXCPU},
    };

    (void)state;
    assert_int_equal(sandbox_prepare(), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int status = run_inside(cases[i].what);
        if (cases[i].signal ? !WIFSIGNALED(status) || WTERMSIG(status) != cases[i].signal : !WIFEXITED(status) || WEXITSTATUS(status) != 0)
            fail_msg("%s: status %x", cases[i].name, (unsigned)status);
    }
}

static void test_a_server_may_have_less_than_a_worker_is_allowed(void **state)
{
    const struct rlimit less = {SANDBOX_CPU_S / 2, SANDBOX_CPU_S / 2};
    const pid_t pid = fork();
    int status;

    (void)state;
    if (pid == 0) {
        if (setrlimit(RLIMIT_CPU, &less) != 0) _exit(2);
        status = run_inside(do_nothing);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- the cache -------------------------------------------------------------------------------- */

static void test_the_cache_keeps_the_newest(void **state)
{
    struct cache c = {.bytes_max = 3 * 8192};
    uint8_t key[5][SHA256_BYTES], data[8192];
    const struct media_item item = {.kind = MEDIA_PICTURE, .tokens = 4, .columns = 2};

    (void)state;
    for (uint32_t i = 0; i < 5; i++) {
        const struct media_file_hdr hdr = {.kind = MEDIA_PICTURE, .budget = i, .bytes = 3};
        cache_key(&hdr, (const uint8_t *)"abc", key[i]);
        for (uint32_t k = 0; k < i; k++) assert_memory_not_equal(key[i], key[k], SHA256_BYTES);
        assert_null(cache_find(&c, key[i]));
        memset(data, (int)i, sizeof data);
        cache_put(&c, key[i], &item, data, sizeof data);
        assert_true(c.bytes <= c.bytes_max);
        if (i == 2) assert_non_null(cache_find(&c, key[0])); /* used: it stays, the next oldest goes */
    }
    assert_non_null(cache_find(&c, key[0]));
    assert_null(cache_find(&c, key[1]));
    assert_null(cache_find(&c, key[2]));
    const struct cache_entry *e = cache_find(&c, key[4]);
    assert_non_null(e);
    assert_int_equal(e->item.columns, 2);
    assert_int_equal(e->data[8191], 4);
    cache_put(&c, key[1], &item, data, 1 << 20); /* larger than all of it */
    assert_null(cache_find(&c, key[1]));
    cache_clear(&c);
    assert_int_equal(c.bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_workers_give_what_the_work_gives), cmocka_unit_test(test_squares),
        cmocka_unit_test(test_a_dead_worker_is_known), cmocka_unit_test(test_a_worker_can_do_nothing_else), cmocka_unit_test(test_a_server_may_have_less_than_a_worker_is_allowed),
        cmocka_unit_test(test_the_cache_keeps_the_newest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
