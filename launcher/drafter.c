/* launcher/drafter.c - which drafter serves: what --draft and `sluice swap draft` name, and the files of its checkpoint.
 *
 * A drafter is "ngram", "none", or a checkpoint: a directory with config.json and safetensors, opened here once, so that a restarted
 * draft stage reads the very files that were chosen. What kind of drafter a checkpoint is, and whether it fits the model, finds the
 * stage. "mtp" and "dspark" are short for the folders assistant/ and dspark/ beside the model's files.
 * Fails   a word that names nothing: -E_CONFIG with a sentence; what served before goes on. */
#include "launcher/server.h"

#include "shm/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const struct { const char *word, *folder; } beside[] = {{"mtp", "assistant"}, {"dspark", "dspark"}};

bool drafter_is_word(const char *word)
{
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++)
        if (strcmp(word, beside[i].word) == 0) return true;
    return strcmp(word, "ngram") == 0 || strcmp(word, "none") == 0;
}

static int find_dir(const struct server *v, const char *word, char *path, size_t bytes, char *err, size_t err_bytes)
{
    char resolved[PATH_MAX];
    const char *model = wiring_text(&v->base, "model.dir", "");
    struct stat st;

    snprintf(path, bytes, "%s", word);
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++)
        if (strcmp(word, beside[i].word) == 0) snprintf(path, bytes, "%s/%s", model, beside[i].folder);
    if (!realpath(path, resolved) || stat(resolved, &st) != 0) {
        if (drafter_is_word(word)) snprintf(err, err_bytes, "draft %s: there is no drafter at %s; name the folder of one", word, path);
        else snprintf(err, err_bytes, "draft %s: %s; it takes ngram, none, mtp, dspark or the folder of a drafter's checkpoint", word, strerror(errno));
        return -E_CONFIG;
    }
    if (!S_ISDIR(st.st_mode)) {
        snprintf(err, err_bytes, "draft %s: it is not a folder; a drafter's checkpoint is one with config.json and safetensors", word);
        return -E_CONFIG;
    }
    snprintf(path, bytes, "%s", resolved);
    return 0;
}

int drafter_choose(const struct server *v, struct drafter_choice **out, const char *word, char *err, size_t err_bytes)
{
    struct drafter_choice *d = calloc(1, sizeof *d);
    struct model_error model_err = {""};

    if (!d) {
        snprintf(err, err_bytes, "draft %s: out of memory", word);
        return -E_NOMEM;
    }
    model_files_init(&d->files);
    d->kind = strcmp(word, "ngram") == 0 ? "ngram" : strcmp(word, "none") == 0 ? "none" : "checkpoint";
    int rc = strcmp(d->kind, "checkpoint") == 0 ? find_dir(v, word, d->dir, sizeof d->dir, err, err_bytes) : 0;
    if (rc == 0 && d->dir[0] && model_files_open_dir(&d->files, d->dir, &model_err) != 0) {
        snprintf(err, err_bytes, "draft %s: %s", word, model_err.text);
        rc = -E_CONFIG;
    }
    if (rc != 0) {
        drafter_forget(d);
        return rc;
    }
    *out = d;
    return 0;
}

void drafter_forget(struct drafter_choice *d)
{
    if (!d) return;
    model_files_close(&d->files);
    free(d);
}

void drafter_wire(const struct drafter_choice *d, struct wiring *w)
{
    char name[WIRING_NAME_BYTES];

    wiring_set(w, "draft.kind", d->kind);
    for (uint32_t i = 0; i < d->files.count; i++) {
        if (snprintf(name, sizeof name, "draft.%s", d->files.file[i].name) >= (int)sizeof name) continue; /* the stage misses it and says so */
        wiring_add_fd(w, name, d->files.file[i].fd);
    }
}

void drafter_serve(struct server *v, struct drafter_choice *d)
{
    if (v->drafter != v->drafter_first && v->drafter != d) drafter_forget(v->drafter);
    v->drafter = d;
}

bool drafter_is_none(const struct server *v)
{
    return strcmp(v->drafter->kind, "none") == 0;
}

bool drafter_is_neural(const struct server *v)
{
    return v->drafter && v->drafter->dir[0];
}
