/* bench/vision_bench.c - what a picture costs a worker of the vision stage that is kept busy, in processor time and by the clock.
 *
 *     build/bench/vision_bench [--exact] FILE...     or - for a list of files in the input, one a line
 *
 * A line of numbers for every file, in milliseconds: everything (hash, the file onto the desk, the worker's process from its birth to its end, decoding, resizing, cutting, the result into
 * the record, wiping), the same by the clock, the same work in this process alone, and of it the decoding library alone. The steps are those of stages/vision.c, on its own functions
 * (stages/vision/desk.h); what is not here is the stage's loop: waiting for messages and the heartbeat. For figures beside the reference: bench/media.py.
 * Exit code 1: a file is refused, or the worker's result is not the one of this process. */
#include "schemas/image.h"
#include "shm/clock.h"
#include "stages/vision/areas.h"
#include "stages/vision/cache.h"
#include "stages/vision/desk.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define BUDGET 280u
#define POSITIONS 300u
#define SLOTS 4u
#define WAIT_MS 60000

struct bench {
    struct desk_limits limits;
    struct desk desk;
    uint8_t *out;                     /* of this process's own work */
    struct table table;               /* of vision slots alone, in a segment that nobody else has */
    struct areas areas;
    double aside_ms;                  /* went into comparing results */
};

struct costs { double all, clock, work, library; };

static void die(const char *what)
{
    fprintf(stderr, "vision_bench: %s\n", what);
    exit(1);
}

/* Of this process and of the workers it has buried. */
static double processor_ms(void)
{
    struct timespec own;
    struct rusage r;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
    getrusage(RUSAGE_CHILDREN, &r);
    return (double)own.tv_sec * 1e3 + (double)own.tv_nsec / 1e6 + (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1e3 + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e3;
}

static int begin_nothing(void *context, uint32_t width, uint32_t height)
{
    (void)context, (void)width, (void)height;
    return 0;
}

static void drop_rows(void *context, const uint8_t *rgb, uint32_t rows)
{
    (void)context, (void)rgb, (void)rows;
}

static void run_library(const struct bench *b, const struct media_file_hdr *hdr, const uint8_t *file, const struct desk_result *r)
{
    static const struct image_limits limits = {.side_max = IMAGE_SIDE_MAX, .pixels_max = IMAGE_PIXELS_MAX, .scans_max = IMAGE_SCANS_MAX};
    static const struct image_sink nowhere = {.begin = begin_nothing, .rows = drop_rows};
    char why[IMAGE_ERROR_BYTES];
    struct image_info info;
    const uint32_t width = r->columns * 48, height = r->tokens / r->columns * 48;

    if (image_probe(file, hdr->bytes, &limits, &info, why) != 0 ||
        image_decode_rows(file, hdr->bytes, &limits, &info, b->limits.exact ? 1 : image_shrink(&info, width, height), &nowhere, why) != 0)
        die(why);
}

/* As stages/vision.c does it for one file, and a replacement for the worker. */
static void run_worker(struct bench *b, const struct media_file_hdr *hdr, const uint8_t *file, struct desk_result *r)
{
    uint8_t key[SHA256_BYTES];
    const uint8_t *data;
    uint64_t bytes;
    int status = 0, rc;

    cache_key(hdr, file, key);
    if (desk_begin(&b->desk, hdr, file) != 0) die("the worker is gone");
    do {
        struct pollfd p = {.fd = b->desk.socket, .events = POLLIN};
        if (poll(&p, 1, WAIT_MS) != 1) die("the worker takes too long");
        rc = desk_poll(&b->desk, &status);
    } while (rc == 0);
    if (rc != 1) die("the worker died");
    desk_result(&b->desk, r, &data, &bytes);
    if (r->status != MEDIA_READY) die(r->why);
    const uint32_t area = areas_take(&b->areas);
    if (areas_write(&b->areas, area, 0, data, bytes) != 0) die("no memory for a result");
    const double began = processor_ms();
    if (memcmp(data, b->out, bytes) != 0) die("the worker's result is another one");
    b->aside_ms = processor_ms() - began;
    areas_give_back(&b->areas, area);
    desk_clear(&b->desk);
    if (desk_hire(&b->desk) != 0) die("no worker can be made");
}

static struct costs measure(struct bench *b, const struct media_file_hdr *hdr, const uint8_t *file)
{
    struct desk_result r;
    struct costs c;
    double began = processor_ms();

    desk_decode(&b->limits, hdr, file, b->out, &r);
    c.work = processor_ms() - began;
    if (r.status != MEDIA_READY) die(r.why);
    began = processor_ms();
    run_library(b, hdr, file, &r);
    c.library = processor_ms() - began;
    began = processor_ms();
    const uint64_t began_ns = clock_ns();
    run_worker(b, hdr, file, &r);
    c.clock = (double)(clock_ns() - began_ns) / 1e6 - b->aside_ms;
    c.all = processor_ms() - began - b->aside_ms;
    return c;
}

/* A segment with the places of a few requests. */
static void open_areas(struct bench *b)
{
    const struct table_limits limits = {.slot_count = SLOTS, .context_max = 1, .request_bytes_max = 1, .full_pages_max = 1, .sliding_pages_max = 1, .log_bytes_max = 1, .media_tokens_max = BUDGET};
    const int fd = memfd_create("segment", MFD_CLOEXEC);

    table_init(&b->table, &limits);
    const uint64_t bytes = SLOTS * b->table.stride[ROLE_VISION];
    uint8_t *segment = fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (segment == MAP_FAILED || madvise(segment, bytes, MADV_DONTFORK) != 0) die("no memory");
    b->table.base[ROLE_VISION] = segment;
    if (areas_open(&b->areas, &b->table, segment, fd) != 0) die("no memory");
}

/* Not the workers', as the stage's segments are not; else each fork would make every page of it be copied at the next write. */
static uint8_t *own_memory(uint64_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED || madvise(at, bytes, MADV_DONTFORK) != 0) die("no memory");
    return at;
}

static void run(struct bench *b, const char *path, uint8_t *file)
{
    struct media_file_hdr hdr = {.kind = MEDIA_PICTURE};
    FILE *f = fopen(path, "rb");

    if (!f) die("a file cannot be read");
    hdr.bytes = fread(file, 1, MEDIA_FILE_BYTES_MAX, f);
    fclose(f);
    const struct costs c = measure(b, &hdr, file);
    printf("%.3f %.3f %.3f %.3f\n", c.all, c.clock, c.work, c.library);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const bool exact = argc > 1 && strcmp(argv[1], "--exact") == 0;
    static struct bench b;
    uint8_t *file = own_memory(MEDIA_FILE_BYTES_MAX);
    char path[4096];

    b.limits = (struct desk_limits){.picture_budget = BUDGET, .picture_positions = POSITIONS, .exact = exact};
    b.out = own_memory(desk_out_bytes(&b.limits));
    open_areas(&b);
    if (desk_open(&b.desk, &b.limits) != 0) die("no worker can be made here");
    if (argc < 2 + exact) puts("vision_bench: say which pictures, or - for a list in the input; bench/media.py draws some and compares with the reference");
    for (int i = 1 + exact; i < argc; i++) {
        if (strcmp(argv[i], "-") != 0) run(&b, argv[i], file);
        else
            while (fgets(path, sizeof path, stdin)) {
                path[strcspn(path, "\n")] = '\0';
                run(&b, path, file);
            }
    }
    desk_stop(&b.desk);
    return 0;
}
