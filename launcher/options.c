/* launcher/options.c - the option table and its three sources. */
#include "launcher/options.h"
#include "model/siglip.h"

#include "shm/error.h"
#include "shm/pipeline.h"
#include "shm/wiring.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum kind { TEXT, PATH, NUMBER, SWITCH };

struct option_row {
    const char *name;
    enum kind kind;
    uint64_t least, most; /* NUMBER */
    const char *otherwise;
    const char *argument, *help;
};

static const struct option_row rows[OPT_COUNT] = {
    [OPT_MODEL] = {"model", PATH, 0, 0, "", "DIR", "checkpoint in the Hugging Face layout; without it: the demo model"},
    [OPT_RANDOM_WEIGHTS] = {"random-weights", TEXT, 0, 0, "", "SHAPE", "no checkpoint: random weights in a built-in shape (gemma-4-12b, gemma-3-12b), for measuring on a GPU"},
    [OPT_DRAFT] = {"draft", TEXT, 0, 0, "ngram", "HOW", "drafter: ngram (lookup in the text so far), none, the folder of a drafter's checkpoint, or mtp, dspark: the folder assistant/, dspark/ beside the model's files"},
    [OPT_DRAFT_DTYPE] = {"draft-dtype", TEXT, 0, 0, "auto", "auto|bf16|fp8", "weights of a drafter's checkpoint; auto: as it has them, on a GPU fp8; fp8: rounded row by row when loaded"},
    [OPT_DRAFT_CONTEXT] = {"draft-context", NUMBER, 64, 1 << 20, "4096", "N", "newest tokens that a DSpark drafter looks back on"},
    [OPT_DEVICE] = {"device", TEXT, 0, 0, "auto", "auto|cpu|cuda", "where the model runs; auto takes the GPU if there is one, else the CPU and says why"},
    [OPT_WEIGHTS_DTYPE] = {"weights-dtype", TEXT, 0, 0, "auto", "FORMAT", "weights on the GPU; auto: as the checkpoint has them, fp8: BF16 rounded row by row when loaded; random weights: bf16, fp8, fp8-block128, nvfp4"},
    [OPT_ACTIVATIONS] = {"activations", TEXT, 0, 0, "auto", "auto|bf16", "auto: FP8 activations where the checkpoint's format has them; bf16: never"},
    [OPT_GPU_SHARING] = {"gpu-sharing", TEXT, 0, 0, "auto", "HOW", "auto, mps: the GPU stages run at once, under a private MPS daemon; time-slice: by turns, strictly apart"},
    [OPT_PREFILL_SHARE] = {"prefill-share", NUMBER, 1, 95, "40", "PERCENT", "of the GPU's time that prompts may take while responses run"},
    [OPT_THREADS] = {"threads", NUMBER, 0, 1024, "0", "N", "threads of each computing stage; 0: one per core"},
    [OPT_HOST] = {"host", TEXT, 0, 0, "127.0.0.1", "H", "address to listen on"},
    [OPT_PORT] = {"port", NUMBER, 0, 65535, "8080", "P", "TCP port; 0: any free one, `sluice status` tells which"},
    [OPT_API_KEY_FILE] = {"api-key-file", PATH, 0, 0, "", "F", "file with one API key a line; without it only this machine may connect"},
    [OPT_ALLOW_UNAUTHENTICATED] = {"allow-unauthenticated", SWITCH, 0, 0, "", NULL, "listen beyond this machine without API keys"},
    [OPT_ORIGINS] = {"origins", TEXT, 0, 0, "", "LIST", "browser origins to accept besides our own, separated by commas; *: any"},
    [OPT_RUN_DIR] = {"run-dir", PATH, 0, 0, "", "D", "directory of the control socket; default: sluice in the user's runtime directory"},
    [OPT_MAX_CONTEXT] = {"max-context", NUMBER, 0, 1 << 20, "0", "N", "tokens of prompt and output together; 0: the model's, at most 8192 on a CPU, or what the GPU's memory holds"},
    [OPT_MAX_SEQUENCES] = {"max-sequences", NUMBER, 1, 1024, "32", "N", "sequences in work at once; more wait in order"},
    [OPT_SLOTS] = {"slots", NUMBER, 0, SLOTS_MAX, "0", "N", "requests remembered, running or over (resume, previous_response_id); 0: four a sequence"},
    [OPT_QUEUE] = {"queue", NUMBER, 0, 100000, "256", "N", "requests that may wait for a slot before new ones are refused with 503"},
    [OPT_KV_CACHE_DTYPE] = {"kv-cache-dtype", TEXT, 0, 0, "auto", "auto|bf16|fp8|f32", "elements of the KV cache; auto: fp8 (E4M3, scale 1) where the checkpoint says so, else bf16; f32: not with the kernels for Gemma 4 12B"},
    [OPT_KV_CACHE_MIB] = {"kv-cache-mib", NUMBER, 0, 1 << 24, "0", "N", "limit of the KV cache; 0: enough for every sequence at full context, or the memory that is free"},
    [OPT_PREFILL_CHUNK] = {"prefill-chunk", NUMBER, 0, 2048, "0", "N", "prompt tokens computed at a time; 0: 128 on a CPU, 2048 on a GPU"},
    [OPT_PREFIX_CACHE] = {"prefix-cache", TEXT, 0, 0, "on", "on|off", "go on where a prompt differs from one that was there before; off: compute every prompt whole"},
    [OPT_PREFIX_CACHE_MIB] = {"prefix-cache-mib", NUMBER, 0, 1 << 24, "0", "N", "KV cache that prompts of the past may hold as long as nobody needs it; 0: on a GPU all of it, on a CPU a quarter, or two windows"},
    [OPT_DRAFT_WHEN] = {"draft-when", TEXT, 0, 0, "paying", "paying|always", "score drafts where they make the output faster, or all that are proposed"},
    [OPT_DRAFT_SIGNALS] = {"draft-signals", TEXT, 0, 0, "auto", "auto|device|host", "how a lone stream's drafts reach the step that scores them on a GPU: on the device, or over the hosts; auto: on the device under MPS"},
    [OPT_DRAFT_VOCAB] = {"draft-vocab", NUMBER, 0, 1 << 20, "0", "N", "a neural drafter proposes the first N tokens of its draft_vocab.json only: on a GPU it reads less; 0: any token"},
    [OPT_DRAFT_TOKENS] = {"draft-tokens", NUMBER, 1, RING_TOKENS_MAX, "7", "N", "tokens the drafter may propose a round"},
    [OPT_SPIN_US] = {"spin-us", NUMBER, 0, 10000, "", "N", "microseconds a stage spins before it sleeps; default: 50, or 0 with fewer than 8 cores"},
    [OPT_MESSAGE_MIB] = {"max-message-mib", NUMBER, 1, 1024, "32", "N", "largest request"},
    [OPT_VISION_WORKERS] = {"vision-workers", NUMBER, 0, 64, "0", "N", "pictures and sounds decoded at once, each in a sandbox of its own; 0: half the cores, at most 2"},
    [OPT_MEDIA_CACHE_MIB] = {"media-cache-mib", NUMBER, 0, 1 << 16, "64", "N", "memory for pictures and sounds that were decoded before; 0: none"},
    [OPT_JPEG_SCALING] = {"jpeg-scaling", TEXT, 0, 0, "on", "on|off", "large JPEGs are decoded at a half, a quarter or an eighth that is still twice what the model sees; off: in full, pixel for pixel the reference's"},
    [OPT_IMAGE_FETCH] = {"allow-image-fetch", SWITCH, 0, 0, "", NULL, "pictures may be http(s) URLs: a process of its own fetches them, from public addresses only"},
    [OPT_IMAGE_FETCH_ALLOW] = {"image-fetch-allow", TEXT, 0, 0, "", "LIST", "addresses that may be fetched from although they are not public, as 10.0.0.7:8080,[fd00::1]:80"},
    [OPT_MEDIA_TOKENS] = {"max-media-tokens", NUMBER, 0, 1 << 20, "0", "N", "soft tokens of all pictures and sounds of a request; 0: 8192, or what the context holds"},
    [OPT_PAN_AND_SCAN] = {"pan-and-scan", NUMBER, 0, SIGLIP_CROPS_MAX, "0", "N", "Gemma 3: long pictures are shown whole and in up to N pieces (its processor's option, there 4 or none); 0: whole only"},
    [OPT_GRACE] = {"grace", NUMBER, 0, 86400, "30", "SECONDS", "how long a response runs on after its connection is lost"},
    [OPT_HANG_TIMEOUT_MS] = {"hang-timeout-ms", NUMBER, 100, 3600000, "10000", "MS", "a stage silent for this long is replaced; what it waits for a processor does not count, up to ten times as long"},
    [OPT_RESTART_BUDGET] = {"restart-budget", NUMBER, 0, 1000000, "100", "N", "deaths of stages within a minute after which the server gives up (exit code 1)"},
    [OPT_DRAIN_TIMEOUT] = {"drain-timeout", NUMBER, 0, 86400, "30", "SECONDS", "how long running responses may take to finish after SIGTERM"},
    [OPT_LOG_LEVEL] = {"log-level", TEXT, 0, 0, "warn", "LEVEL", "error, warn, info or debug"},
    [OPT_CONFIG] = {"config", PATH, 0, 0, "", "FILE", "lines `name = value` with the names above; flags and environment go first"},
};

void options_help(void)
{
    printf("usage: sluice serve [options]\n\nServes a Gemma checkpoint over WebSocket and HTTP.\n\n");
    for (int i = 0; i < OPT_COUNT; i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s %s", rows[i].name, rows[i].argument ? rows[i].argument : "");
        printf("  %-28s %s%s%s%s\n", left, rows[i].help, rows[i].otherwise[0] ? " [" : "", rows[i].otherwise, rows[i].otherwise[0] ? "]" : "");
    }
    printf("\nEach can also be set as SLUICE_NAME (--max-context is SLUICE_MAX_CONTEXT), or in the file of --config.\n"
           "Exit codes: 0 stopped as asked, 100 bad configuration, 111 a resource is missing, 1 given up after the restart budget.\n");
}

static int find(const char *name, size_t bytes)
{
    for (int i = 0; i < OPT_COUNT; i++)
        if (strlen(rows[i].name) == bytes && strncmp(rows[i].name, name, bytes) == 0) return i;
    return -E_NOT_FOUND;
}

static int set(struct options *o, int id, const char *value, const char *source, char *err, size_t err_bytes)
{
    const struct option_row *row = &rows[id];
    const size_t bytes_max = row->kind == PATH ? sizeof o->value[id] : WIRING_VALUE_BYTES; /* stages are told of all but the paths */

    if (strlen(value) >= bytes_max) {
        snprintf(err, err_bytes, "%s: the value of %s is longer than %zu characters", source, row->name, bytes_max - 1);
        return -E_CONFIG;
    }
    if (row->kind == NUMBER) {
        char *end;
        errno = 0;
        const unsigned long long n = strtoull(value, &end, 10);
        if (!isdigit((unsigned char)value[0]) || *end || errno || n < row->least || n > row->most) {
            snprintf(err, err_bytes, "%s: %s takes a whole number from %llu to %llu, not \"%s\"", source, row->name, (unsigned long long)row->least,
                     (unsigned long long)row->most, value);
            return -E_CONFIG;
        }
    }
    if (row->kind == SWITCH && strcmp(value, "1") != 0 && strcmp(value, "true") != 0 && strcmp(value, "0") != 0 && strcmp(value, "false") != 0) {
        snprintf(err, err_bytes, "%s: %s is true or false, not \"%s\"", source, row->name, value);
        return -E_CONFIG;
    }
    snprintf(o->value[id], sizeof o->value[id], "%s", value);
    o->given[id] = true;
    return 0;
}

static int read_flags(struct options *o, int argc, char **argv, char *err, size_t err_bytes)
{
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            options_help();
            return 1;
        }
        if (strncmp(word, "--", 2) != 0) {
            snprintf(err, err_bytes, "\"%s\" is not an option; `sluice serve --help` lists them", word);
            return -E_CONFIG;
        }
        const char *equals = strchr(word, '=');
        const size_t bytes = equals ? (size_t)(equals - word - 2) : strlen(word) - 2;
        const int id = find(word + 2, bytes);
        if (id < 0) {
            snprintf(err, err_bytes, "unknown option %.*s; `sluice serve --help` lists them", (int)bytes + 2, word);
            return -E_CONFIG;
        }
        const char *value = equals ? equals + 1 : rows[id].kind == SWITCH ? "1" : i + 1 < argc ? argv[++i] : NULL;
        if (!value) {
            snprintf(err, err_bytes, "--%s needs a value: --%s %s", rows[id].name, rows[id].name, rows[id].argument);
            return -E_CONFIG;
        }
        const int rc = set(o, id, value, "command line", err, err_bytes);
        if (rc) return rc;
    }
    return 0;
}

static void environment_name(const char *name, char *out, size_t bytes)
{
    size_t n = (size_t)snprintf(out, bytes, "SLUICE_");

    for (; *name && n + 1 < bytes; name++) out[n++] = *name == '-' ? '_' : (char)toupper((unsigned char)*name);
    out[n] = '\0';
}

static int read_environment(struct options *o, char *err, size_t err_bytes)
{
    for (int i = 0; i < OPT_COUNT; i++) {
        char name[64];
        environment_name(rows[i].name, name, sizeof name);
        const char *value = getenv(name);
        if (!value || o->given[i]) continue;
        const int rc = set(o, i, value, name, err, err_bytes);
        if (rc) return rc;
    }
    return 0;
}

static char *trim(char *text)
{
    while (isspace((unsigned char)*text)) text++;
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1])) *--end = '\0';
    return text;
}

static int read_file(struct options *o, const char *path, char *err, size_t err_bytes)
{
    char line[2048], source[1100];
    bool named[OPT_COUNT] = {false};
    FILE *f = fopen(path, "r");
    int rc = 0;

    if (!f) {
        snprintf(err, err_bytes, "configuration file %s cannot be read: %s", path, strerror(errno));
        return -E_CONFIG;
    }
    for (int number = 1; rc == 0 && fgets(line, sizeof line, f); number++) {
        char *text = trim(line), *equals = strchr(text, '=');
        snprintf(source, sizeof source, "%s:%d", path, number);
        if (!*text || *text == '#') continue;
        if (!equals) {
            snprintf(err, err_bytes, "%s: expected `name = value`, not \"%.100s\"", source, text);
            rc = -E_CONFIG;
            break;
        }
        *equals = '\0';
        char *name = trim(text);
        const int id = find(name, strlen(name));
        if (id < 0) {
            snprintf(err, err_bytes, "%s: unknown option %s; `sluice serve --help` lists them", source, name);
            rc = -E_CONFIG;
        } else if (id == OPT_CONFIG) {
            snprintf(err, err_bytes, "%s: a configuration file cannot name another one; give it with --config", source);
            rc = -E_CONFIG;
        } else if (named[id]) {
            snprintf(err, err_bytes, "%s: %s stands in this file twice; which of the two is meant?", source, name);
            rc = -E_CONFIG;
        } else if (!o->given[id]) {
            rc = set(o, id, trim(equals + 1), source, err, err_bytes);
        }
        if (id >= 0) named[id] = true;
    }
    if (rc == 0 && ferror(f)) { /* a directory can be opened, too */
        snprintf(err, err_bytes, "configuration file %s cannot be read: %s", path, strerror(errno));
        rc = -E_CONFIG;
    }
    fclose(f);
    return rc;
}

static void default_run_dir(char *out, size_t bytes)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");

    if (runtime && *runtime) snprintf(out, bytes, "%s/sluice", runtime);
    else snprintf(out, bytes, "/tmp/sluice-%u", (unsigned)getuid());
}

bool options_on(const struct options *o, enum option_id id)
{
    return strcmp(o->value[id], "1") == 0 || strcmp(o->value[id], "true") == 0;
}

static int one_of(const struct options *o, enum option_id id, const char *const *words, char *err, size_t err_bytes)
{
    char list[128] = "";

    for (int i = 0; words[i]; i++) {
        if (strcmp(o->value[id], words[i]) == 0) return 0;
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", words[i]);
    }
    snprintf(err, err_bytes, "%s is one of %s, not \"%s\"", rows[id].name, list, o->value[id]);
    return -E_CONFIG;
}

static int check(struct options *o, char *err, size_t err_bytes)
{
    static const char *const when[] = {"paying", "always", NULL}, *const signals[] = {"auto", "device", "host", NULL};
    static const char *const drafter_weights[] = {"auto", "bf16", "fp8", NULL};
    static const char *const devices[] = {"auto", "cpu", "cuda", NULL};
    static const char *const weights[] = {"auto", "bf16", "fp8", "fp8-block128", "nvfp4", NULL}, *const sharings[] = {"auto", "mps", "time-slice", NULL};
    static const char *const activations[] = {"auto", "bf16", NULL};
    static const char *const dtypes[] = {"auto", "bf16", "fp8", "f32", NULL}, *const levels[] = {"error", "warn", "info", "debug", NULL};
    static const char *const switches[] = {"on", "off", NULL};

    if (o->value[OPT_RANDOM_WEIGHTS][0] && o->value[OPT_MODEL][0]) {
        snprintf(err, err_bytes, "random-weights takes no checkpoint: leave model out");
        return -E_CONFIG;
    }
    if (o->value[OPT_IMAGE_FETCH_ALLOW][0] && !options_on(o, OPT_IMAGE_FETCH)) {
        snprintf(err, err_bytes, "image-fetch-allow needs allow-image-fetch");
        return -E_CONFIG;
    }
    if (!o->value[OPT_RUN_DIR][0]) default_run_dir(o->value[OPT_RUN_DIR], sizeof o->value[OPT_RUN_DIR]);
    if (!o->value[OPT_SPIN_US][0]) snprintf(o->value[OPT_SPIN_US], 8, "%s", sysconf(_SC_NPROCESSORS_ONLN) >= 8 ? "50" : "0");
    if (options_u64(o, OPT_SLOTS) == 0) snprintf(o->value[OPT_SLOTS], 16, "%llu", 4 * (unsigned long long)options_u64(o, OPT_MAX_SEQUENCES));
    if (options_u64(o, OPT_SLOTS) < options_u64(o, OPT_MAX_SEQUENCES)) {
        snprintf(err, err_bytes, "slots (%s) must be at least max-sequences (%s)", o->value[OPT_SLOTS], o->value[OPT_MAX_SEQUENCES]);
        return -E_CONFIG;
    }
    if (one_of(o, OPT_DRAFT_DTYPE, drafter_weights, err, err_bytes) || one_of(o, OPT_DRAFT_WHEN, when, err, err_bytes) || one_of(o, OPT_DRAFT_SIGNALS, signals, err, err_bytes) || one_of(o, OPT_DEVICE, devices, err, err_bytes) ||
        one_of(o, OPT_WEIGHTS_DTYPE, weights, err, err_bytes) || one_of(o, OPT_ACTIVATIONS, activations, err, err_bytes) || one_of(o, OPT_GPU_SHARING, sharings, err, err_bytes) ||
        one_of(o, OPT_KV_CACHE_DTYPE, dtypes, err, err_bytes) || one_of(o, OPT_JPEG_SCALING, switches, err, err_bytes) || one_of(o, OPT_LOG_LEVEL, levels, err, err_bytes) ||
        one_of(o, OPT_PREFIX_CACHE, switches, err, err_bytes))
        return -E_CONFIG;
    return 0;
}

int options_read(struct options *o, int argc, char **argv, char *err, size_t err_bytes)
{
    int rc;

    memset(o, 0, sizeof *o);
    if ((rc = read_flags(o, argc, argv, err, err_bytes)) != 0) return rc;
    if ((rc = read_environment(o, err, err_bytes)) != 0) return rc;
    if (o->value[OPT_CONFIG][0] && (rc = read_file(o, o->value[OPT_CONFIG], err, err_bytes)) != 0) return rc;
    for (int i = 0; i < OPT_COUNT; i++)
        if (!o->given[i]) snprintf(o->value[i], sizeof o->value[i], "%s", rows[i].otherwise);
    return check(o, err, err_bytes);
}

int options_read_run_dir(int argc, char **argv, char *run_dir, size_t bytes, char **rest, int *rest_count, char *err, size_t err_bytes)
{
    const char *given = getenv("SLUICE_RUN_DIR");

    *rest_count = 0;
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--run-dir") == 0) {
            if (i + 1 >= argc) {
                snprintf(err, err_bytes, "--run-dir needs a directory");
                return -E_CONFIG;
            }
            given = argv[++i];
        } else if (strncmp(argv[i], "--run-dir=", 10) == 0) {
            given = argv[i] + 10;
        } else {
            rest[(*rest_count)++] = argv[i];
        }
    }
    if (given) snprintf(run_dir, bytes, "%s", given);
    else default_run_dir(run_dir, bytes);
    return 0;
}

uint64_t options_u64(const struct options *o, enum option_id id)
{
    return strtoull(o->value[id], NULL, 10);
}
