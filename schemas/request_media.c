/* schemas/request_media.c - parts of a message that are pictures or sound, in the shapes of both APIs.
 *
 *   chat        {type: image_url, image_url: {url, detail}}     {type: input_audio, input_audio: {data, format}}
 *   responses   {type: input_image, image_url: "data:...", detail}   {type: input_audio, input_audio: {data, format}}
 *
 *   chat        {type: video_url, video_url: {url}}             responses   {type: input_video, video_url: "data:..."}       (a file)
 *   both        {type: video, frames: ["data:...", ...], fps: 2}       (ours: a list of pictures, `fps` of them a second; default 1)
 *
 * The file goes to the list of the request; what stands in the conversation is {type: image}, {type: audio} or {type: video}, where the template
 * writes a place for it. Nothing here looks inside a file: a format that is named is not believed. */
#include "schemas/request.h"

#include "model/picture.h"
#include "schemas/fetch.h"
#include "schemas/video.h"
#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUDGET_LOW 70u

static json_t *refuse(struct fault *f, int status, const char *code, const char *path, const char *message)
{
    fault_set(f, status, code, path, "Invalid '%s': %s", path, message);
    return NULL;
}

enum request_part request_part_of(const char *type)
{
    static const char *const pictures[] = {"image_url", "input_image", "image"}, *const sounds[] = {"input_audio", "audio_url", "audio"};

    if (strcmp(type, "video") == 0 || strcmp(type, "input_video") == 0 || strcmp(type, "video_url") == 0) return REQUEST_PART_VIDEO;
    for (size_t i = 0; i < 3; i++) {
        if (strcmp(type, pictures[i]) == 0) return REQUEST_PART_PICTURE;
        if (strcmp(type, sounds[i]) == 0) return REQUEST_PART_SOUND;
    }
    return REQUEST_PART_OTHER;
}

/* Base64 text becomes a file of the request. 0, or -E_FORMAT with a fault. */
static int take(struct request_media *m, struct media_file file, const char *text, size_t text_bytes, const char *path, struct fault *f)
{
    uint8_t *data = NULL;
    size_t bytes = 0;

    if (text_bytes / 4 * 3 > MEDIA_FILE_BYTES_MAX + 4096u)
        return fault_set(f, 413, "file_too_large", path, "Invalid '%s': the file is larger than the %u MiB that are taken.", path, MEDIA_FILE_BYTES_MAX >> 20);
    const int rc = media_base64(text, text_bytes, &data, &bytes);
    if (rc == -E_NOMEM) return fault_set(f, 503, "overloaded", path, "There is no memory for the file now. Try again in a moment.");
    if (rc != 0) return fault_set(f, 400, "invalid_base64", path, "Invalid '%s': the file is not valid base64.", path);
    if (bytes > MEDIA_FILE_BYTES_MAX) {
        free(data);
        return fault_set(f, 413, "file_too_large", path, "Invalid '%s': the file is larger than the %u MiB that are taken.", path, MEDIA_FILE_BYTES_MAX >> 20);
    }
    file.data = data;
    file.bytes = bytes;
    if (bytes == 0 || media_list_add(m->list, file) != 0) {
        free(data);
        if (bytes == 0) return fault_set(f, 400, "invalid_value", path, "Invalid '%s': the file is empty.", path);
        return fault_set(f, 400, "too_many_files", path, "Invalid '%s': a request may have at most %u pictures and sounds.", path, MEDIA_ITEMS_MAX);
    }
    return 0;
}

/* "detail" in tokens: low is the model's smallest budget, everything else its usual one. */
static int read_detail(const json_t *holder, uint32_t *budget, const char *path, struct fault *f)
{
    static const char *const known[] = {"auto", "low", "high", "original"};
    const json_t *detail = json_object_get(holder, "detail");
    const char *word = json_string_value(detail);

    *budget = 0;
    if (!detail || json_is_null(detail)) return 0;
    for (size_t i = 0; word && i < sizeof known / sizeof *known; i++)
        if (strcmp(word, known[i]) == 0) {
            if (i == 1) *budget = BUDGET_LOW;
            return 0;
        }
    return fault_set(f, 400, "invalid_value", path, "Invalid '%s': 'detail' is one of auto, low and high.", path);
}

/* A picture by its address: the fetch stage gets it. Here only what no URL is. */
static int take_link(struct request_media *m, uint32_t budget, const char *url, size_t bytes, const char *path, struct fault *f)
{
    struct media_file file = {.kind = MEDIA_LINK, .budget = budget, .bytes = bytes};

    if (!m->defaults->fetch)
        return fault_set(f, 400, "unsupported_content", path, "Invalid '%s': this server does not fetch pictures from the network: send the picture itself as a data: URL.", path);
    if (bytes > FETCH_URL_BYTES_MAX) return fault_set(f, 400, "invalid_value", path, "Invalid '%s': the URL is longer than %u characters.", path, FETCH_URL_BYTES_MAX);
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)url[i] <= ' ' || (unsigned char)url[i] >= 127) return fault_set(f, 400, "invalid_value", path, "Invalid '%s': a character of the URL must be written as %%XX.", path);
    file.data = malloc(bytes);
    if (!file.data) return fault_set(f, 503, "overloaded", path, "There is no memory for the request now. Try again in a moment.");
    memcpy(file.data, url, bytes);
    if (media_list_add(m->list, file) == 0) return 0;
    free(file.data);
    return fault_set(f, 400, "too_many_files", path, "Invalid '%s': a request may have at most %u pictures and sounds.", path, MEDIA_ITEMS_MAX);
}

json_t *request_picture(struct request_media *m, const json_t *part, const char *path, struct fault *f)
{
    const json_t *url = json_object_get(part, "image_url"), *holder = json_is_object(url) ? url : part;
    const char *text;
    uint32_t budget;
    size_t bytes;

    if (!m || m->defaults->picture_budget == 0) return refuse(f, 400, "unsupported_content", path, "this model takes no pictures.");
    if (json_is_object(url)) url = json_object_get(url, "url");
    if (!url && json_object_get(part, "file_id")) return refuse(f, 400, "unsupported_content", path, "this server keeps no files: send the picture as a data: URL in 'image_url'.");
    if (!json_is_string(url)) return refuse(f, 400, "invalid_type", path, "a picture must have its data: URL in 'image_url'.");
    if (read_detail(holder, &budget, path, f) < 0) return NULL;
    budget = budget < m->defaults->picture_budget ? budget : 0;
    if (strncasecmp(json_string_value(url), "http:", 5) == 0 || strncasecmp(json_string_value(url), "https:", 6) == 0)
        return take_link(m, budget, json_string_value(url), json_string_length(url), path, f) < 0 ? NULL : json_pack("{s:s}", "type", "image");
    text = media_data_url(json_string_value(url), json_string_length(url), &bytes);
    if (!text) return refuse(f, 400, "invalid_value", path, "'image_url' must be a URL of the form data:image/png;base64,...");
    if (take(m, (struct media_file){.kind = MEDIA_PICTURE, .budget = budget}, text, bytes, path, f) < 0) return NULL;
    return json_pack("{s:s}", "type", "image");
}

/* Number of the newest video of the list; 0: it has none. */
static uint32_t last_video(const struct media_list *list)
{
    uint32_t last = 0;

    for (uint32_t i = 0; i < list->count; i++)
        if (list->file[i].video > last) last = list->file[i].video;
    return last;
}

/* A video as a file: its frames are picked by the vision stage. */
static json_t *take_video_file(struct request_media *m, const json_t *part, const char *path, struct fault *f)
{
    const json_t *url = json_object_get(part, "video_url");
    size_t bytes;

    if (json_is_object(url)) url = json_object_get(url, "url");
    if (!url && json_object_get(part, "file_id")) return refuse(f, 400, "unsupported_content", path, "this server keeps no files: send the video as a data: URL in 'video_url'.");
    if (!m->defaults->video_files)
        return refuse(f, 400, "unsupported_content", path, "this server cannot decode video files (it has no " VIDEO_LIBRARY_NAME "): send some of the frames as pictures, in 'frames', and how many a second they are, in 'fps'.");
    if (!json_is_string(url)) return refuse(f, 400, "invalid_type", path, "a video must have its data: URL in 'video_url', or pictures in 'frames'.");
    if (json_object_get(part, "fps")) return refuse(f, 400, "invalid_value", path, "'fps' goes with 'frames': a video file tells its own times.");
    const char *text = media_data_url(json_string_value(url), json_string_length(url), &bytes);
    if (!text) return refuse(f, 400, "invalid_value", path, "'video_url' must be a URL of the form data:video/mp4;base64,...: videos are not fetched from the network.");
    if (take(m, (struct media_file){.kind = MEDIA_VIDEO, .budget = MEDIA_FRAME_BUDGET, .video = last_video(m->list) + 1}, text, bytes, path, f) < 0) return NULL;
    return json_pack("{s:s}", "type", "video");
}

json_t *request_video(struct request_media *m, const json_t *part, const char *path, struct fault *f)
{
    const json_t *frames = json_object_get(part, "frames"), *frame;
    double fps = 1;
    size_t i, bytes;

    if (!m || !m->defaults->video) return refuse(f, 400, "unsupported_content", path, "this model takes no video.");
    if (!frames) return take_video_file(m, part, path, f);
    if (json_object_get(part, "video_url")) return refuse(f, 400, "invalid_value", path, "a video is a file ('video_url') or pictures ('frames'), not both.");
    if (!json_is_array(frames) || json_array_size(frames) == 0 || json_array_size(frames) > MEDIA_FRAMES_MAX) {
        fault_set(f, 400, "invalid_value", path, "Invalid '%s': a video is an array 'frames' of 1 to %u pictures, as data: URLs.", path, MEDIA_FRAMES_MAX);
        return NULL;
    }
    if (field_number(part, "fps", 0.001, 1000, &fps, f) < 0) return NULL;
    const uint32_t video = last_video(m->list) + 1;
    json_array_foreach(frames, i, frame)
    {
        const char *text = json_is_string(frame) ? media_data_url(json_string_value(frame), json_string_length(frame), &bytes) : NULL;
        if (!text) return refuse(f, 400, "invalid_value", path, "each of 'frames' must be a URL of the form data:image/png;base64,...");
        const double at_ms = (double)i * 1000 / fps;
        const struct media_file file = {.kind = MEDIA_FRAME, .budget = MEDIA_FRAME_BUDGET, .video = video, .at_ms = at_ms < UINT32_MAX ? (uint32_t)at_ms : UINT32_MAX};
        if (take(m, file, text, bytes, path, f) < 0) return NULL;
    }
    return json_pack("{s:s}", "type", "video");
}

json_t *request_sound(struct request_media *m, const json_t *part, const char *path, struct fault *f)
{
    const json_t *holder = json_object_get(part, "input_audio"), *data;
    const char *text;
    size_t bytes;

    if (!m || !m->defaults->sound) return refuse(f, 400, "unsupported_content", path, "this model takes no sound.");
    if (!json_is_object(holder)) holder = part;
    data = json_object_get(holder, "data");
    if (!json_is_string(data)) return refuse(f, 400, "invalid_type", path, "a sound must have its file as base64 in 'input_audio.data'.");
    text = media_data_url(json_string_value(data), json_string_length(data), &bytes);
    if (!text) {
        text = json_string_value(data);
        bytes = json_string_length(data);
    }
    if (take(m, (struct media_file){.kind = MEDIA_SOUND}, text, bytes, path, f) < 0) return NULL;
    return json_pack("{s:s}", "type", "audio");
}

/* What stands in the record of a response that is continued goes before what came now. */
int request_media_history(struct request *r, const struct view *v, struct fault *f)
{
    const struct gateway_slot *g = table_gateway(v->table, v->slot);
    struct media_list all = {0};
    uint64_t at = g->media_offset;

    if (g->media_count == 0) return 0;
    if (r->media.count > MEDIA_ITEMS_MAX - g->media_count)
        return fault_set(f, 400, "too_many_files", "input", "The conversation has more than %u pictures and sounds.", MEDIA_ITEMS_MAX);
    for (uint32_t i = 0; i < g->media_count; i++) {
        struct media_file_hdr hdr;
        const uint8_t *data;
        uint8_t *copy = NULL;
        if (media_next(table_request(v->table, v->slot), g->record_bytes, &at, &hdr, &data) == 0) copy = malloc(hdr.bytes ? hdr.bytes : 1);
        if (!copy) {
            media_list_free(&all);
            return fault_set(f, 400, "previous_response_not_found", "previous_response_id", "The pictures of response '%s' are no longer stored.", v->id);
        }
        memcpy(copy, data, hdr.bytes);
        media_list_add(&all, (struct media_file){.kind = hdr.kind, .budget = hdr.budget, .video = hdr.video, .at_ms = hdr.at_ms, .data = copy, .bytes = hdr.bytes});
    }
    const uint32_t videos = last_video(&all);
    for (uint32_t i = 0; i < r->media.count; i++) {
        if (r->media.file[i].video) r->media.file[i].video += videos;
        all.file[all.count++] = r->media.file[i];
    }
    r->media = all;
    return 0;
}
