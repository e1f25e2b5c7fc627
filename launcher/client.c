/* launcher/client.c - the commands that talk to a running server over its control socket. */
#include "launcher/server.h"

#include "shm/error.h"
#include "shm/stage.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_S 5

static int connect_to(const char *run_dir)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (snprintf(address.sun_path, sizeof address.sun_path, "%s/control.sock", run_dir) >= (int)sizeof address.sun_path) errno = ENAMETOOLONG;
    else if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    fprintf(stderr, "sluice: no server answers in %s (%s); is one running? another run directory: --run-dir D\n", run_dir, strerror(errno));
    if (fd >= 0) close(fd);
    return -E_PEER;
}

/* One line out, one line back; the answer is the caller's to free. NULL: the server went away, or (errno EAGAIN) says nothing for ANSWER_S. */
static char *ask(int fd, json_t *request)
{
    char *line = json_dumps(request, JSON_COMPACT);
    size_t bytes = 0, capacity = 1 << 16;
    char *answer = malloc(capacity);

    if (!line || !answer || dprintf(fd, "%s\n", line) < 0) goto failed;
    free(line);
    line = NULL;
    for (;;) {
        if (bytes + 1 >= capacity) {
            char *more = realloc(answer, capacity *= 2);
            if (!more) goto failed;
            answer = more;
        }
        const ssize_t got = read(fd, answer + bytes, capacity - 1 - bytes);
        if (got == 0) errno = 0;
        if (got <= 0) break;
        bytes += (size_t)got;
        answer[bytes] = '\0';
        if (memchr(answer, '\n', bytes)) return answer;
    }
failed:
    free(line); /* glibc's free leaves errno as it is from 2.33 on, every one we run on */
    free(answer);
    return NULL;
}

/* The server closes the connection as the last thing it does: afterwards its port and run directory are free. */
static void wait_for_end(int fd)
{
    const struct timeval forever = {.tv_sec = 0};
    char byte;

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &forever, sizeof forever);
    while (read(fd, &byte, 1) > 0) continue;
}

static int print_outcome(const char *answer)
{
    json_t *o = json_loads(answer, 0, NULL);
    const char *error = json_string_value(json_object_get(o, "error"));

    if (error) fprintf(stderr, "sluice: %s\n", error);
    const int code = error ? EXIT_CONFIG : 0;
    json_decref(o);
    return code;
}

static const struct usage { const char *command, *text; } usages[] = {
    {"status", "usage: sluice status [--json]\n\nWhat a running server does: stages, rings, sequences, rates. --json: the same for programs.\n"},
    {"swap", "usage: sluice swap STAGE EXE         replace a stage of the running server by another executable\n"
             "       sluice swap STAGE --default   put our own back\n"
             "       sluice swap draft HOW         draft in another way: ngram, none, mtp, dspark, or the folder of a drafter\n\nStreams go on meanwhile.\n"},
    {"drain", "usage: sluice drain\n\nFinishes what runs, refuses what is new, stops the server; returns when it has stopped.\n"},
    {"stop", "usage: sluice stop\n\nStops the server now; returns when it has stopped.\n"},
};

static void print_usage(const char *command, FILE *out)
{
    for (size_t i = 0; i < sizeof usages / sizeof *usages; i++)
        if (strcmp(usages[i].command, command) == 0) fputs(usages[i].text, out);
    fputs("--run-dir D: the run directory of the server that is meant.\n", out);
}

static json_t *request_of(const char *command, int argc, char **argv, bool *as_json)
{
    char path[PATH_MAX];

    *as_json = argc == 1 && strcmp(command, "status") == 0 && strcmp(argv[0], "--json") == 0;
    if (strcmp(command, "swap") == 0) {
        if (argc != 2) {
            print_usage(command, stderr);
            return NULL;
        }
        const bool is_word = strcmp(argv[1], "--default") == 0 || (strcmp(argv[0], "draft") == 0 && drafter_is_word(argv[1]));
        if (!is_word && !realpath(argv[1], path)) {
            fprintf(stderr, "sluice: %s: %s\n", argv[1], strerror(errno));
            return NULL;
        }
        return json_pack("{s:s, s:s, s:s}", "command", "swap", "stage", argv[0], "exe", is_word ? argv[1] : path);
    }
    if (argc > 0 && !*as_json) {
        fprintf(stderr, "sluice: %s does not take \"%s\"; see `sluice %s --help`\n", command, argv[0], command);
        return NULL;
    }
    return json_pack("{s:s}", "command", command);
}

int client_command(const char *command, int argc, char **argv)
{
    char run_dir[1024], err[256], *rest[64];
    int rest_count = 0;
    bool as_json;

    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_usage(command, stdout);
            return 0;
        }
    if (argc > 60 || options_read_run_dir(argc, argv, run_dir, sizeof run_dir, rest, &rest_count, err, sizeof err) != 0) {
        fprintf(stderr, "sluice: %s\n", argc > 60 ? "too many words" : err);
        return EXIT_CONFIG;
    }
    json_t *request = request_of(command, rest_count, rest, &as_json);
    if (!request) return EXIT_CONFIG;
    const int fd = connect_to(run_dir);
    if (fd < 0) {
        json_decref(request);
        return EXIT_MISSING;
    }
    const struct timeval patience = {.tv_sec = strcmp(command, "swap") == 0 ? 0 : ANSWER_S}; /* a new stage may take its time */
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    char *answer = ask(fd, request);
    const bool is_silent = !answer && errno == EAGAIN;
    json_decref(request);
    if (answer && (strcmp(command, "stop") == 0 || strcmp(command, "drain") == 0)) wait_for_end(fd);
    close(fd);
    if (!answer) {
        if (is_silent) fprintf(stderr, "sluice: the server in %s has said nothing for %d s; was its launcher stopped (SIGSTOP, a debugger)?\n", run_dir, ANSWER_S);
        else fprintf(stderr, "sluice: the server closed the connection without an answer\n");
        return EXIT_MISSING;
    }
    int code = 0;
    if (as_json) fputs(answer, stdout);
    else if (strcmp(command, "status") == 0) status_print(answer);
    else code = print_outcome(answer);
    free(answer);
    return code;
}
