/* schemas/media.h - pictures and sound on their way through the pipeline (schemas/media.md is the prose).
 *
 * The gateway puts the files that a client sent behind the request in its own record, as they came; the vision stage turns each into what the model
 * takes in: blocks of pixels or frames of samples, one to a soft token. Nobody but a worker of the vision stage looks inside a file.
 *
 *   in the gateway's record, at gateway_slot.media_offset (from the start of the request), media_count times, each at a multiple of 8:
 *     struct media_file_hdr, then `bytes` bytes of the file
 *
 * Nothing here allocates but media_list_add and media_list_read; both sides check what they read. */
#ifndef SLUICE_SCHEMAS_MEDIA_H
#define SLUICE_SCHEMAS_MEDIA_H

#include <msgpack.h>
#include <stddef.h>
#include <stdint.h>

#define MEDIA_FILE_BYTES_MAX (20u << 20)
#define MEDIA_ITEMS_MAX 64u           /* pictures, sounds and frames of one request */
#define MEDIA_FRAMES_MAX 32u          /* of one video: as many as the reference takes */
#define MEDIA_FRAME_BUDGET 70u        /* soft tokens of a frame */
#define MEDIA_TOKEN_BYTES 9408u       /* of one soft token in the vision record, at most: Gemma 3's 56 x 56 pixels of three bytes; Gemma 4's blocks and frames of sound take less */
#define MEDIA_TOKENS_DEFAULT 8192u    /* soft tokens of one request, unless the context is shorter */

enum media_kind { MEDIA_PICTURE = 1, MEDIA_SOUND = 2, MEDIA_FRAME = 3 /* a picture that is a frame of a video */,
                  MEDIA_LINK = 4 /* only in the gateway's record: a picture by its address, the file is its URL */,
                  MEDIA_VIDEO = 5 /* only in the gateway's record: a video file, whose frames become items of kind MEDIA_FRAME */ };

struct media_file_hdr {
    uint32_t kind;                    /* enum media_kind */
    uint32_t budget;                  /* picture, frame, each frame of a video file: most soft tokens, 0: the model's default */
    uint64_t bytes;
    uint32_t video;                   /* frame, video file: which video of the request, from 1 on; its frames stand together */
    uint32_t at_ms;                   /* frame: when it is shown */
};

struct media_file {
    uint32_t kind, budget, video, at_ms;
    uint8_t *data;                    /* owned by the list */
    size_t bytes;
};

struct media_list {                   /* the files of one request, in the order of their places in the conversation */
    uint32_t count;
    struct media_file file[MEDIA_ITEMS_MAX];
};

/* What became of the files of a request: the value of vision_slot.commit. */
enum media_status {
    MEDIA_NONE = 0,
    MEDIA_READY = 1,
    MEDIA_BAD = 2,                    /* a file is broken or of no known format: the client's 400 */
    MEDIA_TOO_LARGE = 3,              /* more pixels, seconds or soft tokens than are taken: the client's 413 */
    MEDIA_FAILED = 4,                 /* no fault of the file that we know of: 500 */
    MEDIA_UNWANTED = 5                /* cancelled or set aside before it was looked at */
};

struct media_item {
    uint32_t kind;                    /* enum media_kind */
    uint32_t tokens;                  /* soft tokens */
    uint32_t columns;                 /* picture: blocks in a row */
    uint32_t file;                    /* of the request, from 0 on: a picture that is shown in pieces, too, and a video file have several items */
    uint32_t frames;                  /* inside the vision stage, of a video file: in how many items its tokens will be; else 0 */
    uint32_t at_ms;                   /* frame: when it is shown */
    uint8_t content[32];              /* hash of all that `tokens` and the data follow from; zeros: not known, then prompts with it share no KV cache */
    uint64_t offset;                  /* in the data of the slot: u8 [tokens][6912] (Gemma 3: [896][896][3]) or f32 [tokens][640], at a multiple of 64 */
};

/* Takes over file.data (malloc) on success. 0, -E_FULL: MEDIA_ITEMS_MAX are in it. */
int media_list_add(struct media_list *list, struct media_file file);
void media_list_free(struct media_list *list);

/* Appends all files to out, behind zeros up to a multiple of 8; returns where the first begins. */
size_t media_pack(const struct media_list *list, msgpack_sbuffer *out);

/* The file at *offset of a record of area_bytes, which may be another process's memory: `hdr` is a checked copy, *data is borrowed. Moves
 * *offset behind it. 0, or -E_FORMAT. */
int media_next(const uint8_t *area, uint64_t area_bytes, uint64_t *offset, struct media_file_hdr *hdr, const uint8_t **data);

/* Text of base64 (the usual alphabet or the URL one, padding optional, white space ignored) to bytes; *out is the caller's to free.
 * 0, -E_FORMAT (another character, or no whole bytes), -E_NOMEM. */
int media_base64(const char *text, size_t text_bytes, uint8_t **out, size_t *out_bytes);

/* The base64 part of a "data:...;base64," URL, borrowed; NULL when it is none. */
const char *media_data_url(const char *url, size_t url_bytes, size_t *text_bytes);

#endif
