/* launcher/options.h - what an operator can set: flags, then SLUICE_* environment, then the configuration file.
 *
 * One table (options.c) names every option once; --help, the environment and the
 * file are derived from it. */
#ifndef SLUICE_LAUNCHER_OPTIONS_H
#define SLUICE_LAUNCHER_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_id {
    OPT_MODEL, OPT_RANDOM_WEIGHTS, OPT_DRAFT, OPT_DRAFT_DTYPE, OPT_DRAFT_CONTEXT, OPT_DEVICE, OPT_WEIGHTS_DTYPE, OPT_ACTIVATIONS, OPT_GPU_SHARING, OPT_PREFILL_SHARE, OPT_THREADS, OPT_HOST, OPT_PORT, OPT_API_KEY_FILE, OPT_ALLOW_UNAUTHENTICATED, OPT_ORIGINS, OPT_RUN_DIR,
    OPT_MAX_CONTEXT, OPT_MAX_SEQUENCES, OPT_SLOTS, OPT_QUEUE, OPT_KV_CACHE_DTYPE, OPT_KV_CACHE_MIB, OPT_PREFILL_CHUNK, OPT_PREFIX_CACHE, OPT_PREFIX_CACHE_MIB, OPT_DRAFT_TOKENS, OPT_DRAFT_WHEN, OPT_DRAFT_SIGNALS, OPT_DRAFT_VOCAB, OPT_SPIN_US,
    OPT_MESSAGE_MIB, OPT_VISION_WORKERS, OPT_MEDIA_CACHE_MIB, OPT_MEDIA_TOKENS, OPT_PAN_AND_SCAN, OPT_JPEG_SCALING, OPT_IMAGE_FETCH, OPT_IMAGE_FETCH_ALLOW, OPT_GRACE, OPT_HANG_TIMEOUT_MS, OPT_RESTART_BUDGET, OPT_DRAIN_TIMEOUT, OPT_LOG_LEVEL, OPT_CONFIG, OPT_COUNT
};

struct options {
    char value[OPT_COUNT][1024]; /* text as given; "" when neither given nor defaulted */
    bool given[OPT_COUNT];       /* set by flag, environment or file */
};

/* Reads argv (after the command word), environment and file. 0; 1 when --help was printed;
 * -E_CONFIG with a message that names option and remedy. */
int options_read(struct options *o, int argc, char **argv, char *err, size_t err_bytes);

/* Only --run-dir and what the control commands need; other words are left in rest[] (borrowed from argv). */
int options_read_run_dir(int argc, char **argv, char *run_dir, size_t bytes, char **rest, int *rest_count, char *err, size_t err_bytes);

uint64_t options_u64(const struct options *o, enum option_id id);
bool options_on(const struct options *o, enum option_id id); /* of a switch */
void options_help(void);

#endif
