/* launcher/control.c - the control socket of the run directory: one JSON object a line, one answer a line.
 *
 * {"command":"status"} | {"command":"swap","stage":"draft","exe":"/path"|"--default"|a drafter} | {"command":"drain"} | {"command":"stop"}
 * Answers: the status object, {"ok":true}, or {"error":"..."}. Only this user can connect (socket mode 0600). */
#include "launcher/server.h"

#include "shm/clock.h"
#include "shm/error.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static int bind_socket(int fd, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    return bind(fd, (struct sockaddr *)&address, sizeof address);
}

static bool somebody_answers(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    const bool answers = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (fd >= 0) close(fd);
    return answers;
}

int control_open(struct server *v, char *err, size_t err_bytes)
{
    snprintf(v->control_path, sizeof v->control_path, "%s/control.sock", v->run_dir);
    if (strlen(v->control_path) >= sizeof((struct sockaddr_un *)0)->sun_path) {
        snprintf(err, err_bytes, "run directory %s is too long for a socket's name; give a shorter one with --run-dir", v->run_dir);
        return -E_CONFIG;
    }
    if (somebody_answers(v->control_path)) {
        snprintf(err, err_bytes, "a server already runs with run directory %s; stop it (sluice stop) or give another with --run-dir", v->run_dir);
        return -E_BUSY;
    }
    unlink(v->control_path); /* left by one that was killed together with its keeper */
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || fchmod(fd, 0600) != 0 || bind_socket(fd, v->control_path) != 0 || listen(fd, 16) != 0) {
        snprintf(err, err_bytes, "control socket %s cannot be made: %s", v->control_path, strerror(errno));
        if (fd >= 0) close(fd);
        return -E_CONFIG;
    }
    v->control_fd = fd;
    return 0;
}

void control_close(struct server *v)
{
    if (v->listen_fd >= 0) close(v->listen_fd);
    close(v->control_fd);
    v->control_fd = -1;
    unlink(v->control_path);
    if (v->made_run_dir) rmdir(v->run_dir);
    for (unsigned i = 0; i < CLIENTS_MAX; i++) /* last: `sluice stop` takes it as the sign that port and directory are free */
        if (v->client[i].fd >= 0) close(v->client[i].fd);
}

void control_accept(struct server *v)
{
    const struct timeval patience = {.tv_usec = 500000}; /* an operator who does not read his answer holds up nobody */
    const int fd = accept4(v->control_fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0) return;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        if (v->client[i].fd >= 0) continue;
        v->client[i].fd = fd;
        v->client[i].bytes = 0;
        return;
    }
    close(fd);
}

static void drop(struct server *v, struct client *c)
{
    for (int role = 0; role < ROLE_COUNT; role++)
        if (v->child[role].swap_client == c - v->client) v->child[role].swap_client = -1; /* nobody waits any more, and the next client in this place asked for nothing */
    close(c->fd);
    c->fd = -1;
}

void control_reply(struct server *v, int client, const char *json_line)
{
    struct client *c = &v->client[client];
    size_t done = 0;
    const size_t bytes = strlen(json_line);

    while (c->fd >= 0 && done < bytes) {
        const ssize_t sent = send(c->fd, json_line + done, bytes - done, MSG_NOSIGNAL);
        if (sent <= 0) drop(v, c);
        else done += (size_t)sent;
    }
}

static void reply_error(struct server *v, int client, const char *text)
{
    json_t *object = json_pack("{s:s}", "error", text);
    char *line = object ? json_dumps(object, JSON_COMPACT) : NULL;

    if (line) {
        control_reply(v, client, line);
        control_reply(v, client, "\n");
    }
    free(line);
    json_decref(object);
}

static void swap(struct server *v, int client, const char *stage, const char *exe)
{
    char err[512];
    const int role = stage ? role_from_name(stage) : -E_NOT_FOUND;

    if (role < 0 || role == ROLE_LAUNCHER || role == ROLE_KEEPER) {
        reply_error(v, client, "swap takes one of: gateway, vision, fetch, tokenize, prefill, draft, verify, detokenize");
        return;
    }
    struct stat st;
    if (exe && role == ROLE_DRAFT && (drafter_is_word(exe) || (stat(exe, &st) == 0 && S_ISDIR(st.st_mode)))) {
        if (child_swap_drafter(v, exe, client, err, sizeof err) != 0) reply_error(v, client, err);
        return;
    }
    if (!exe || (exe[0] != '/' && strcmp(exe, "--default") != 0)) {
        reply_error(v, client, "swap takes the full path of an executable, or --default");
        return;
    }
    if (child_swap(v, &v->child[role], exe, client, err, sizeof err) != 0) reply_error(v, client, err);
}

static void handle(struct server *v, int client, const char *line)
{
    json_t *request = json_loads(line, 0, NULL);
    const char *command = json_string_value(json_object_get(request, "command"));

    if (command && strcmp(command, "status") == 0) {
        char *text = status_json(v);
        if (text) control_reply(v, client, text);
        free(text);
    } else if (command && strcmp(command, "swap") == 0) {
        swap(v, client, json_string_value(json_object_get(request, "stage")), json_string_value(json_object_get(request, "exe")));
    } else if (command && strcmp(command, "drain") == 0) {
        if (v->phase != PIPELINE_STOPPING) server_set_phase(v, PIPELINE_DRAINING);
        v->drain_until_ns = clock_ns() + options_u64(&v->options, OPT_DRAIN_TIMEOUT) * 1000000000ull;
        control_reply(v, client, "{\"ok\":true}\n");
    } else if (command && strcmp(command, "stop") == 0) {
        control_reply(v, client, "{\"ok\":true}\n");
        server_stop(v, 0, "sluice stop");
    } else {
        reply_error(v, client, "unknown command; known are status, swap, drain, stop");
    }
    json_decref(request);
}

void control_read(struct server *v, struct client *c)
{
    const int index = (int)(c - v->client);
    const ssize_t got = recv(c->fd, c->line + c->bytes, sizeof c->line - 1 - c->bytes, MSG_DONTWAIT);

    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR)) drop(v, c);
        return;
    }
    c->bytes += (unsigned)got;
    c->line[c->bytes] = '\0';
    char *end = strchr(c->line, '\n');
    if (end) {
        *end = '\0';
        handle(v, index, c->line);
        c->bytes = 0;
    } else if (c->bytes >= sizeof c->line - 1) {
        reply_error(v, index, "the line is too long");
        if (c->fd >= 0) drop(v, c);
    }
}
