/* bench/webp_bench.c - what libwebp takes for a lossy picture, and which part of it could be spared: where schemas/image_webp.c cannot be faster.
 *
 *     build/bench/webp_bench FILE [ROUNDS]
 *
 * The least processor time of some rounds, in turns: RGB into memory that is fresh (as a worker has it) and into memory that is there; the planes alone (YUV, so that upsampling and
 * colours would be ours); those without the loop filter, which is another picture; RGB with the simple upsampling, another picture, too; and a piece of the file at a time. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <webp/decode.h>

#define FILE_BYTES_MAX (64u << 20)
#define PIECE_BYTES (16u << 10)
#define HUGE_BYTES (2u << 20)
#define ROUNDS 10

struct way { const char *name; bool fresh, yuv, unfiltered, simple, pieces; };

static const struct way ways[] = {
    {.name = "RGB, fresh memory", .fresh = true},
    {.name = "RGB"},
    {.name = "RGB, the file in pieces of 16 KiB", .pieces = true},
    {.name = "RGB, simple upsampling (another picture)", .simple = true},
    {.name = "planes", .yuv = true},
    {.name = "planes, the file in pieces", .yuv = true, .pieces = true},
    {.name = "planes, no loop filter (another picture)", .yuv = true, .unfiltered = true},
};
#define WAYS (sizeof ways / sizeof *ways)

static void die(const char *what)
{
    fprintf(stderr, "webp_bench: %s\n", what);
    exit(1);
}

static double processor_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static uint8_t *huge(size_t bytes)
{
    uint8_t *at = aligned_alloc(HUGE_BYTES, (bytes + HUGE_BYTES - 1) & ~(size_t)(HUGE_BYTES - 1));

    if (!at) die("no memory");
    madvise(at, bytes & ~(size_t)(HUGE_BYTES - 1), MADV_HUGEPAGE);
    return at;
}

static void aim(WebPDecBuffer *out, bool yuv, uint8_t *to, int width, int height)
{
    const int half = (width + 1) / 2;
    const size_t luma = (size_t)width * (size_t)height, chroma = (size_t)half * (size_t)((height + 1) / 2);

    out->is_external_memory = 1;
    out->colorspace = yuv ? MODE_YUV : MODE_RGB;
    if (yuv)
        out->u.YUVA = (WebPYUVABuffer){.y = to, .u = to + luma, .v = to + luma + chroma, .y_stride = width, .u_stride = half, .v_stride = half, .y_size = luma, .u_size = chroma, .v_size = chroma};
    else out->u.RGBA = (WebPRGBABuffer){.rgba = to, .stride = width * 3, .size = luma * 3};
}

static bool decode_pieces(WebPDecoderConfig *config, const uint8_t *file, size_t bytes)
{
    WebPIDecoder *d = WebPINewDecoder(&config->output);
    VP8StatusCode status = VP8_STATUS_SUSPENDED;

    for (size_t at = 0; at < bytes && status == VP8_STATUS_SUSPENDED;) {
        at = bytes - at < PIECE_BYTES ? bytes : at + PIECE_BYTES;
        status = WebPIUpdate(d, file, at);
    }
    WebPIDelete(d);
    return status == VP8_STATUS_OK;
}

static double measure(const struct way *w, const uint8_t *file, size_t bytes, uint8_t *kept)
{
    WebPDecoderConfig config;
    int width, height;

    if (!WebPInitDecoderConfig(&config) || !WebPGetInfo(file, bytes, &width, &height)) die("no WebP file");
    const double began = processor_ms();
    uint8_t *to = w->fresh ? huge((size_t)width * (size_t)height * 3) : kept;
    aim(&config.output, w->yuv, to, width, height);
    config.options.bypass_filtering = w->unfiltered;
    config.options.no_fancy_upsampling = w->simple;
    if (!(w->pieces ? decode_pieces(&config, file, bytes) : WebPDecode(file, bytes, &config) == VP8_STATUS_OK)) die("it cannot be decoded");
    if (w->fresh) free(to);
    return processor_ms() - began;
}

int main(int argc, char **argv)
{
    const int rounds = argc > 2 ? atoi(argv[2]) : ROUNDS;
    double least[WAYS];
    int width, height;

    if (argc < 2) {
        puts("webp_bench: say which file, and how many rounds");
        return 0;
    }
    uint8_t *file = malloc(FILE_BYTES_MAX);
    FILE *f = fopen(argv[1], "rb");
    if (!f || !file) die("the file cannot be read");
    const size_t bytes = fread(file, 1, FILE_BYTES_MAX, f);
    fclose(f);
    if (!WebPGetInfo(file, bytes, &width, &height)) die("no WebP file");
    uint8_t *kept = huge((size_t)width * (size_t)height * 3);
    memset(kept, 1, (size_t)width * (size_t)height * 3);
    for (size_t i = 0; i < WAYS; i++) least[i] = 1e9;
    for (int r = 0; r < rounds; r++)
        for (size_t i = 0; i < WAYS; i++) {
            const double ms = measure(&ways[i], file, bytes, kept);
            if (ms < least[i]) least[i] = ms;
        }
    for (size_t i = 0; i < WAYS; i++) printf("%-42s %6.2f ms\n", ways[i].name, least[i]);
    free(kept), free(file);
    return 0;
}
