/* schemas/request.h - what a client asked for, checked and in the pipeline's own terms.
 *
 * request_read takes the JSON body of POST /v1/responses (or of a response.create
 * frame), /v1/chat/completions or /v1/completions. Everything is checked here, by
 * name; a field that is unknown or not built is refused, never ignored in silence,
 * except those that change nothing about the answer (user, service_tier, ...).
 * Limits that need the model's tokens (context length) are found later by tokenize. */
#ifndef SLUICE_SCHEMAS_REQUEST_H
#define SLUICE_SCHEMAS_REQUEST_H

#include "schemas/field.h"
#include "schemas/media.h"
#include "schemas/table.h"
#include "schemas/view.h"

#include <msgpack.h>

#define REQUEST_CHOICES_MAX 16u
#define REQUEST_MESSAGES_MAX 4096u
#define REQUEST_TOOLS_MAX 256u
#define STREAM_ID_BYTES 128u

struct request_defaults {  /* of the model and the operator */
    const char *model;     /* the name clients may give; borrowed */
    float temperature, top_p, min_p;
    uint32_t top_k;
    uint32_t vocab;        /* token ids are below this */
    uint32_t context_max;
    uint32_t choices_max;  /* choices and prompts of one request together */
    bool fetch;              /* pictures may be named by http(s) URLs */
    uint32_t picture_budget; /* soft tokens of a picture, at most; 0: the model takes none */
    bool sound;            /* the model takes sound */
    bool video;            /* the model takes pictures as the frames of a video, too */
    bool video_files;      /* and there is a library that makes frames of a video file */
};

struct request {
    enum api api;
    struct request_params params;
    json_t *meta;           /* owned: members of "meta" that all choices share */
    json_t *echo;           /* owned: members of a response object that repeat the request */
    json_t *chat[REQUEST_CHOICES_MAX]; /* owned: schemas/chat_request.md, one for each prompt */
    struct media_list media; /* owned: pictures and sounds, of all choices alike */
    uint32_t prompt_count, n; /* prompt_count * n choices */
    uint32_t instructions;  /* messages at the front that are not part of the conversation: 0 or 1 */
    bool stream, include_usage, store;
    bool has_stream_id;
    bool echo_prompt;       /* completions: the prompt's text comes first; prompts given as ids still lack it */
    char stream_id[STREAM_ID_BYTES + 1];
    char previous_id[RESPONSE_ID_BYTES];
};

/* 0: *r is the caller's to free (request_free). -E_FORMAT: f says why. websocket: body is a response.create frame. */
int request_read(struct request *r, enum api api, bool websocket, const json_t *body, const struct request_defaults *d, struct fault *f);
void request_free(struct request *r);
/* Once the record of each choice is written, nobody needs the conversation any more. */
void request_forget_prompts(struct request *r);

/* Puts the conversation of an ended response in front of the messages of r: the caller resolved previous_id to `v`. */
int request_continue(struct request *r, const struct view *v, struct fault *f);

/* The record of one choice (schemas/pack.h) into an initialised, empty out. Returns its request_bytes. */
size_t request_record(const struct request *r, uint32_t choice, msgpack_sbuffer *out);

/* The parameters of one choice: seeds of choices differ by one. */
void request_params_of(const struct request *r, uint32_t choice, struct request_params *out);

/* ---- pieces, each in its own file ---------------------------------------------- */

/* request_sampling.c: the fields all APIs share; names of all that it reads. */
extern const char *const request_sampling_names[];
int request_sampling(struct request *r, const json_t *body, const struct request_defaults *d, struct fault *f);
int request_max_tokens(struct request *r, const json_t *body, const char *name, struct fault *f);

/* request_messages.c: new references, or NULL with a fault. Pictures and sounds go to media->list; media NULL: there cannot be any. */
struct request_media {
    struct media_list *list;
    const struct request_defaults *defaults;
};
json_t *request_chat_messages(const json_t *messages, struct request_media *media, struct fault *f);
json_t *request_input_messages(const json_t *input, struct request_media *media, struct fault *f);
/* Does each message of role tool stand behind the calls that it answers? 0, or -E_FORMAT with a fault about `name`. */
int request_check_results(const json_t *messages, const char *name, struct fault *f);

/* request_media.c: one part of a message; new references, or NULL with a fault. */
enum request_part { REQUEST_PART_OTHER, REQUEST_PART_PICTURE, REQUEST_PART_SOUND, REQUEST_PART_VIDEO };
enum request_part request_part_of(const char *type);
json_t *request_picture(struct request_media *media, const json_t *part, const char *path, struct fault *f);
json_t *request_video(struct request_media *media, const json_t *part, const char *path, struct fault *f);
json_t *request_sound(struct request_media *media, const json_t *part, const char *path, struct fault *f);
/* Puts the files of an ended response in front of those of r. */
int request_media_history(struct request *r, const struct view *v, struct fault *f);
/* Tools in either shape to the shape that chat templates read; obeys tool_choice and parallel_tool_calls. *out is NULL when there are none; *forced: the name of the one that must be called, "" for any of
 * them, NULL: none must; borrowed from the body. */
int request_tools(struct request *r, const json_t *body, json_t **out, const char **forced, struct fault *f);
/* The messages of a response and its output. */
json_t *request_history(const struct view *v, struct fault *f);

#endif
