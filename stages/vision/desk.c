/* stages/vision/desk.c - workers: hired, given a file, heard, replaced; and the work itself (contract in desk.h). */
#include "stages/vision/desk.h"

#include "model/picture_stream.h"
#include "model/siglip.h"
#include "schemas/image.h"
#include "schemas/sound.h"
#include "shm/atomic.h"
#include "shm/error.h"
#include "shm/must.h"
#include "stages/vision/film.h"
#include "stages/vision/sandbox.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define READY_LIMIT_MS 10000
#define WIPE_BYTES_MAX (24u << 20)     /* more is given back to the system instead. The largest file and its result are less: mapping 19 MB anew takes four times as long as wiping them */
#define PAGE_BYTES 4096u
#define PAN_SIDE_MIN 256u             /* of a piece, in pixels, and the least ratio of a picture's sides: as the reference's processor has them */
#define PAN_RATIO_MIN 1.2
#define SOUND_TOKEN_BYTES (SOUND_FRAME * sizeof(float))

struct desk_page {
    struct media_file_hdr hdr;        /* written by the main process before the worker begins */
    uint8_t pad0[104];
    struct desk_result result;        /* written by the worker */
    uint8_t pad1[3752];
    uint8_t file[MEDIA_FILE_BYTES_MAX];
    uint8_t out[];                    /* desk_out_bytes() */
};
_Static_assert(offsetof(struct desk_page, file) % 64 == 0 && offsetof(struct desk_page, out) % 64 == 0, "frames are read as floats");

static uint64_t square_bytes(const struct desk_limits *l) { return (uint64_t)l->picture_side * l->picture_side * 3; }

uint64_t desk_out_bytes(const struct desk_limits *l)
{
    if (l->frames_max) return film_out_bytes(l);
    const uint64_t picture = l->picture_side ? (1 + (uint64_t)l->crops_max) * square_bytes(l) : (uint64_t)l->picture_budget * PICTURE_PATCH_BYTES, sound = (uint64_t)l->sound_tokens * SOUND_TOKEN_BYTES;

    return picture > sound ? picture : sound;
}

static uint64_t page_bytes(const struct desk_limits *l)
{
    return sizeof(struct desk_page) + desk_out_bytes(l);
}

void desk_touch(const void *at, uint64_t bytes, int advice)
{
    const uintptr_t first = (uintptr_t)at & ~(uintptr_t)(PAGE_BYTES - 1), end = ((uintptr_t)at + bytes + PAGE_BYTES - 1) & ~(uintptr_t)(PAGE_BYTES - 1);

    madvise((void *)first, end - first, advice);
}

/* ---- the work ------------------------------------------------------------------------- */

void desk_give_up(struct desk_result *r, uint32_t status, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(r->why, sizeof r->why, format, args);
    va_end(args);
    r->status = status;
}

uint32_t desk_status(int code)
{
    return code == -E_RANGE || code == -E_LIMIT ? MEDIA_TOO_LARGE : code == -E_NOMEM ? MEDIA_FAILED : MEDIA_BAD;
}

struct fitting {                      /* a picture on its way to patches */
    struct picture_stream stream;
    struct picture_stream_job job;
    bool open;
};

static int begin_fitting(void *context, uint32_t width, uint32_t height)
{
    struct fitting *f = context;

    f->job.width = width;
    f->job.height = height;
    const int rc = picture_stream_open(&f->stream, &f->job);
    f->open = rc == 0;
    return rc;
}

static void fit_rows(void *context, const uint8_t *rgb, uint32_t rows)
{
    struct fitting *f = context;

    picture_stream_rows(&f->stream, rgb, rows);
}

/* The picture, or a piece of it, as a square. */
static int fit_piece(const struct image *image, const struct siglip_crop *c, uint8_t *out, uint32_t side)
{
    if (c->width == image->width && c->height == image->height) return picture_resize(image->rgb, c->width, c->height, out, side, side, PICTURE_BILINEAR);
    uint8_t *piece = malloc((size_t)c->width * c->height * 3);

    if (!piece) return -E_NOMEM;
    for (uint32_t y = 0; y < c->height; y++) memcpy(piece + (size_t)y * c->width * 3, image->rgb + ((size_t)(c->y + y) * image->width + c->x) * 3, (size_t)c->width * 3);
    const int rc = picture_resize(piece, c->width, c->height, out, side, side, PICTURE_BILINEAR);
    free(piece);
    return rc;
}

/* Gemma 3's pan and scan: the picture whole, and if it is long in pieces. */
static void decode_pieces(const struct desk_limits *l, const struct media_file_hdr *hdr, const struct image_info *info, const uint8_t *file, uint8_t *out, struct desk_result *r)
{
    static const struct image_limits limits = {.side_max = IMAGE_SIDE_MAX, .pixels_max = IMAGE_PIXELS_MAX, .scans_max = IMAGE_SCANS_MAX};
    const struct siglip_pan pan = {.side_min = PAN_SIDE_MIN, .crops_max = l->crops_max, .ratio_min = PAN_RATIO_MIN};
    struct siglip_crop crop[1 + SIGLIP_CROPS_MAX];
    char why[IMAGE_ERROR_BYTES] = "";
    struct image image;
    int rc = image_decode(file, hdr->bytes, &limits, info, 0, 0, &image, why);

    if (rc != 0) {
        desk_give_up(r, desk_status(rc), "%s", why);
        return;
    }
    const uint32_t pieces = 1 + siglip_crops(&pan, image.width, image.height, crop + 1);
    crop[0] = (struct siglip_crop){0, 0, image.width, image.height};
    for (uint32_t i = 0; i < pieces && rc == 0; i++) rc = fit_piece(&image, &crop[i], out + i * square_bytes(l), l->picture_side);
    free(image.rgb);
    if (rc != 0) {
        desk_give_up(r, MEDIA_FAILED, "there is no memory to resize it");
        return;
    }
    r->columns = l->picture_positions;
    r->tokens = pieces * l->picture_budget;
    r->status = MEDIA_READY;
}

static void decode_picture(const struct desk_limits *l, const struct media_file_hdr *hdr, const uint8_t *file, uint8_t *out, struct desk_result *r)
{
    static const struct image_limits limits = {.side_max = IMAGE_SIDE_MAX, .pixels_max = IMAGE_PIXELS_MAX, .scans_max = IMAGE_SCANS_MAX};
    const uint32_t budget = hdr->budget && hdr->budget < l->picture_budget ? hdr->budget : l->picture_budget;
    char why[IMAGE_ERROR_BYTES] = "";
    struct image_info info;
    struct fitting f = {.job = {.filter = PICTURE_BICUBIC, .layout = PICTURE_PATCHES, .out = out}};
    const struct image_sink sink = {.begin = begin_fitting, .rows = fit_rows, .context = &f};
    uint32_t width, height;

    int rc = image_probe(file, hdr->bytes, &limits, &info, why);
    if (rc != 0) {
        desk_give_up(r, desk_status(rc), "%s", why);
        return;
    }
    if (l->picture_side && l->crops_max) {
        decode_pieces(l, hdr, &info, file, out, r);
        return;
    }
    const bool turned = info.orientation >= 5;
    const uint32_t upright_width = turned ? info.height : info.width, upright_height = turned ? info.width : info.height;
    if (l->picture_side) { /* Gemma 3: a square, whatever the proportions were */
        width = height = l->picture_side;
        f.job.filter = PICTURE_BILINEAR;
        f.job.layout = PICTURE_ROWS;
    } else if (picture_target(upright_width, upright_height, budget, &width, &height) != 0 || width / PICTURE_PATCH > l->picture_positions || height / PICTURE_PATCH > l->picture_positions) {
        desk_give_up(r, MEDIA_BAD, "the picture is %u x %u pixels: too long and narrow for this model", upright_width, upright_height);
        return;
    }
    desk_touch(out, (uint64_t)width * height * 3, MADV_POPULATE_WRITE);
    f.job.orientation = info.orientation;
    f.job.out_width = width;
    f.job.out_height = height;
    rc = image_decode_rows(file, hdr->bytes, &limits, &info, l->exact ? 1 : image_shrink(&info, width, height), &sink, why);
    if (rc != 0) desk_give_up(r, desk_status(rc), "%s", why);
    else if (!picture_stream_is_whole(&f.stream)) desk_give_up(r, MEDIA_BAD, "the picture ends too early");
    else {
        r->columns = l->picture_side ? l->picture_positions : width / PICTURE_PATCH;
        r->tokens = l->picture_side ? l->picture_budget : r->columns * (height / PICTURE_PATCH);
        r->status = MEDIA_READY;
    }
    if (f.open) picture_stream_close(&f.stream);
}

static void decode_sound(const struct desk_limits *l, const struct media_file_hdr *hdr, const uint8_t *file, uint8_t *out, struct desk_result *r)
{
    char why[SOUND_ERROR_BYTES] = "";
    struct sound sound;
    const int rc = sound_decode(file, hdr->bytes, (double)l->sound_tokens * SOUND_FRAME / SOUND_RATE, &sound, why);

    if (rc != 0) {
        desk_give_up(r, desk_status(rc), "%s", why);
        return;
    }
    if (sound.frame_count > l->sound_tokens) sound.frame_count = l->sound_tokens; /* what resampling rounds up to */
    memcpy(out, sound.samples, sound.frame_count * SOUND_TOKEN_BYTES);
    r->tokens = sound.frame_count;
    r->status = MEDIA_READY;
    free(sound.samples);
}

void desk_decode(const struct desk_limits *l, const struct media_file_hdr *hdr, const uint8_t *file, uint8_t *out, struct desk_result *r)
{
    memset(r, 0, sizeof *r);
    if (l->frames_max) film_decode(l, hdr, file, out, r);
    else if (hdr->kind != MEDIA_SOUND && l->picture_budget) decode_picture(l, hdr, file, out, r);
    else if (hdr->kind == MEDIA_SOUND && l->sound_tokens) decode_sound(l, hdr, file, out, r);
    else desk_give_up(r, MEDIA_BAD, "this model does not take it");
}

/* ---- the worker's process ------------------------------------------------------------------ */

__attribute__((noreturn)) static void serve(const struct desk *d, int socket_fd)
{
    struct media_file_hdr hdr;
    struct desk_result result;
    char byte;

    if (write(socket_fd, "r", 1) != 1 || read(socket_fd, &byte, 1) != 1) _exit(0); /* the stage ends */
    hdr = d->page->hdr;
    desk_touch(d->page->file, hdr.bytes, MADV_POPULATE_READ);
    desk_decode(&d->limits, &hdr, d->page->file, d->page->out, &result);
    d->page->result = result;
    if (write(socket_fd, &byte, 1) != 1) _exit(1);
    _exit(0);
}

int desk_hire(struct desk *d)
{
    const pid_t parent = getpid();
    int pair[2];

    must(d->pid == 0);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return -E_IO;
    madvise(d->page, page_bytes(&d->limits), MADV_DOFORK); /* of all desks it inherits its own alone */
    const pid_t pid = fork();
    if (pid == 0) {
        if (d->limits.frames_max) film_load(); /* files are there for the last time */
        sandbox_enter(pair[1], parent, d->limits.frames_max ? SANDBOX_CPU_VIDEO_S : SANDBOX_CPU_S);
        serve(d, pair[1]);
    }
    madvise(d->page, page_bytes(&d->limits), MADV_DONTFORK);
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return -E_IO;
    }
    d->pid = pid;
    d->socket = pair[0];
    d->busy = d->ready = false;
    return 0;
}

/* ---- the main process's side ------------------------------------------------------------------ */

int desk_open(struct desk *d, const struct desk_limits *limits)
{
    memset(d, 0, sizeof *d);
    d->socket = -1;
    d->limits = *limits;
    void *at = mmap(NULL, page_bytes(limits), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return -E_NOMEM;
    d->page = at;
    madvise(at, page_bytes(limits), MADV_DONTFORK);
    int rc = sandbox_prepare(), status;
    if (rc == 0 && !limits->frames_max) rc = desk_hire(d);
    if (rc != 0 || limits->frames_max) return rc;
    struct pollfd p = {.fd = d->socket, .events = POLLIN};
    if (poll(&p, 1, READY_LIMIT_MS) != 1 || desk_poll(d, &status) != 0) return -E_UNSUPPORTED; /* it could not give up its powers */
    return 0;
}

int desk_begin(struct desk *d, const struct media_file_hdr *hdr, const uint8_t *data)
{
    const char byte = 'g';

    must(d->pid && !d->busy && hdr->bytes <= MEDIA_FILE_BYTES_MAX);
    d->page->hdr = *hdr;
    d->kind = hdr->kind;
    d->file_bytes = hdr->bytes;
    d->out_bytes = 0;
    d->good = false;
    if (hdr->bytes > d->mapped_bytes) { /* what is mapped stays so: looking at each page again takes longer than copying it */
        desk_touch(d->page->file + d->mapped_bytes, hdr->bytes - d->mapped_bytes, MADV_POPULATE_WRITE);
        d->mapped_bytes = hdr->bytes;
    }
    memcpy(d->page->file, data, hdr->bytes);
    memset(&d->page->result, 0, sizeof d->page->result);
    d->busy = true;
    return send(d->socket, &byte, 1, MSG_NOSIGNAL) == 1 ? 0 : -E_PEER;
}

int desk_poll(struct desk *d, int *status)
{
    char byte;
    const ssize_t got = recv(d->socket, &byte, 1, MSG_DONTWAIT);

    if (got == 1 && !d->ready) {
        d->ready = true;
        return 0;
    }
    if (got == 1) {
        desk_stop(d);
        return 1;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    *status = desk_stop(d);
    return -E_PEER;
}

static bool samples_are_sane(const uint8_t *data, uint32_t tokens)
{
    const float *sample = (const float *)data;

    for (size_t i = 0; i < (size_t)tokens * SOUND_FRAME; i++)
        if (!(fabsf(sample[i]) <= 4 * SOUND_SAMPLE_MAX)) return false; /* resampling may overshoot */
    return true;
}

/* A worker that was taken over could write anything: only what can do no harm behind us passes. */
static bool is_possible(const struct desk *d, const struct desk_result *r)
{
    if (r->status != MEDIA_READY) return r->status == MEDIA_BAD || r->status == MEDIA_TOO_LARGE || r->status == MEDIA_FAILED;
    if (d->kind == MEDIA_SOUND) return r->tokens >= 1 && r->tokens <= d->limits.sound_tokens;
    if (d->limits.frames_max)
        return r->frames >= 1 && r->frames <= d->limits.frames_max && r->tokens % r->frames == 0 && r->tokens / r->frames >= 1 && r->tokens / r->frames <= d->limits.frame_budget && r->columns >= 1 &&
               r->columns <= d->limits.picture_positions && r->tokens / r->frames % r->columns == 0 && r->tokens / r->frames / r->columns <= d->limits.picture_positions;
    if (d->limits.picture_side) return r->columns == d->limits.picture_positions && r->tokens >= 1 && r->tokens % d->limits.picture_budget == 0 && r->tokens / d->limits.picture_budget <= 1 + d->limits.crops_max;
    return r->tokens >= 1 && r->tokens <= d->limits.picture_budget && r->columns >= 1 && r->columns <= d->limits.picture_positions && r->tokens % r->columns == 0 &&
           r->tokens / r->columns <= d->limits.picture_positions;
}

void desk_result(struct desk *d, struct desk_result *r, const uint8_t **data, uint64_t *data_bytes)
{
    must(d->pid == 0); /* whoever wrote this is gone: it cannot change behind the checks */
    *r = d->page->result;
    r->why[sizeof r->why - 1] = '\0';
    *data = d->page->out;
    *data_bytes = 0;
    if (!is_possible(d, r)) {
        desk_give_up(r, MEDIA_FAILED, "the decoder left nonsense");
        return;
    }
    if (r->status != MEDIA_READY) return;
    d->good = true;
    if (!d->limits.frames_max) r->frames = 0;
    d->out_bytes = *data_bytes = (uint64_t)r->tokens * (d->kind == MEDIA_SOUND ? SOUND_TOKEN_BYTES : d->limits.picture_side ? square_bytes(&d->limits) / d->limits.picture_budget : PICTURE_PATCH_BYTES);
    d->out_bytes = *data_bytes += r->frames * sizeof(uint32_t);
    if (d->kind == MEDIA_SOUND && !samples_are_sane(*data, r->tokens)) {
        desk_give_up(r, MEDIA_BAD, "the sound has samples that are no numbers");
        *data_bytes = 0;
    }
}

int desk_stop(struct desk *d)
{
    int status = 0;

    if (d->pid) {
        kill(d->pid, SIGKILL); /* does nothing to one that has ended: its status stays what it was */
        while (waitpid(d->pid, &status, 0) < 0 && errno == EINTR) continue;
        close(d->socket);
    }
    d->pid = 0;
    d->socket = -1;
    d->busy = false;
    return status;
}

/* Pages that are kept cost nothing the next time; a worker that failed may have written anywhere. */
void desk_clear(struct desk *d)
{
    if (d->good && d->file_bytes + d->out_bytes <= WIPE_BYTES_MAX) {
        memset(d->page->file, 0, d->file_bytes);
        memset(d->page->out, 0, d->out_bytes);
    } else {
        madvise(d->page, page_bytes(&d->limits), MADV_REMOVE);
        d->mapped_bytes = 0;
    }
    d->good = false;
}
