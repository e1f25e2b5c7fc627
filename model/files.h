/* model/files.h - a checkpoint as a set of named, read-only mapped files.
 *
 * A directory is opened by one process (the launcher, a test, a bench); the others
 * receive descriptors and names and call model_files_add, so that a stage never
 * needs the file system. Bytes are the page cache's own: nothing is copied, and a
 * second process that maps the same checkpoint costs no memory.
 *
 * Fails: every error leaves a sentence in struct model_error that names the file.
 * A file that is cut short while it is mapped raises SIGBUS on access: checkpoints
 * are replaced by renaming, never by writing into them. */
#ifndef SLUICE_MODEL_FILES_H
#define SLUICE_MODEL_FILES_H

#include <stdint.h>

#define MODEL_FILES_MAX 80            /* 70 shards and the small files */
#define MODEL_FILE_NAME_BYTES 128     /* with the final NUL */

/* What went wrong with a checkpoint, for a person; "" when nothing did. */
struct model_error {
    char text[512];
};

/* Sets the text (printf-like) and returns `code` unchanged; err may be NULL. */
int model_error_set(struct model_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

struct model_file {
    char name[MODEL_FILE_NAME_BYTES]; /* without a directory */
    int fd;                           /* owned, close-on-exec; closed by model_files_close */
    const uint8_t *bytes;             /* mapped PROT_READ, MAP_SHARED; NULL when byte_count is 0 */
    uint64_t byte_count;
};

struct model_files {
    uint32_t count;
    struct model_file file[MODEL_FILES_MAX];
};

/* Empties the set; to be called first when model_files_open_dir is not used. */
void model_files_init(struct model_files *files);

/* Maps every file of `dir` that a checkpoint consists of: config.json (required), generation_config.json,
 * hf_quant_config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja, chat_template.json (older exports), processor_config.json,
 * preprocessor_config.json, draft_vocab.json (a drafter's), and model.safetensors or the shards that model.safetensors.index.json names.
 * 0, or -E_NOT_FOUND, -E_IO, -E_FORMAT, -E_LIMIT with nothing left open. */
int model_files_open_dir(struct model_files *files, const char *dir, struct model_error *err);

/* Adds one file by descriptor; `fd` is duplicated and stays the caller's.
 * 0, or -E_LIMIT (too many files, name too long), -E_FORMAT (name twice, or with '/'), -E_IO. */
int model_files_add(struct model_files *files, const char *name, int fd, struct model_error *err);

/* The bytes of a file: 0, or -E_NOT_FOUND. They live until model_files_close. */
int model_files_find(const struct model_files *files, const char *name, const uint8_t **bytes, uint64_t *byte_count);

/* Unmaps and closes everything. */
void model_files_close(struct model_files *files);

#endif
