/* launcher/server.h - the state of one running server, as the launcher sees it.
 *
 * The launcher creates everything that must outlive a stage (segments, sockets,
 * descriptors), starts the stages and replaces those that die. It reads no byte
 * that came from a client and never touches the model. One thread, one poll loop
 * (serve.c); the other files are its parts. */
#ifndef SLUICE_LAUNCHER_SERVER_H
#define SLUICE_LAUNCHER_SERVER_H

#include "launcher/options.h"
#include "launcher/starve.h"
#include "model/files.h"
#include "schemas/table.h"
#include "shm/wiring.h"

#include <limits.h>
#include <stdarg.h>
#include <sys/types.h>

#define CHILD_LOG_BYTES 4096u
#define CLIENTS_MAX 32u
#define CLIENT_LINE_BYTES 8192u

enum kill_reason { KILL_NONE = 0, KILL_HANG, KILL_STOPPED_BY_SIGNAL, KILL_STOP, KILL_SWAP, KILL_START, KILL_GPU /* its context went with another's */ };

struct child {
    int role;
    bool enabled;             /* this configuration has the role at all */
    pid_t pid;                /* 0: not running */
    int pidfd, control_fd, log_fd; /* -1 when not running */
    char exe[PATH_MAX];       /* what runs now, or next */
    char default_exe[PATH_MAX];
    bool swapped;             /* exe is not the default */
    bool ready;
    bool under_mps;           /* was started as a client of the MPS daemon */
    uint64_t started_ns;
    uint64_t up_since_ns;     /* ready since; 0: it is not */
    uint64_t heartbeat, heartbeat_ns; /* last value seen and when it moved, by server.watched_ns */
    struct starve starve;     /* of its silence: what it waited for a processor */
    bool starved_told;        /* and that was said */
    uint64_t restart_ns;      /* when to start again; 0: not waiting */
    uint64_t sigkill_ns;      /* asked to stop: kill then; 0: none */
    enum kill_reason kill_reason;
    unsigned quick_deaths;    /* in a row, within a second of the start */
    unsigned unready_deaths;  /* in a row, before it was ready */
    uint64_t deaths;
    uint64_t died_ns;         /* of the last death, until ready again: for the recovery time */
    uint64_t recovery_ns;     /* last time from death to ready */
    int swap_client;          /* control client waiting for the outcome; -1: none */
    char log[CHILD_LOG_BYTES];
    unsigned log_bytes;
    char last_words[512];     /* why it exited, as it said */
};

enum gpu_sharing_state { GPU_NONE = 0, GPU_TIME_SLICE, GPU_MPS_STARTING, GPU_MPS, GPU_APART /* by turns after a fault; the daemon waits */ };
enum gpu_blame { GPU_BLAME_THIS, GPU_BLAME_OTHER, GPU_BLAME_UNKNOWN };

struct gpu_sharing { /* gpu.c */
    enum gpu_sharing_state state;
    pid_t pid;                /* of the MPS daemon; 0: none */
    int log_fd;               /* its output; -1: none */
    char dir[1100];           /* its pipes */
    char log[1024];
    unsigned log_bytes;
    bool faulted;             /* the stages that are being killed lost their contexts by a fault */
    uint64_t started_ns, apart_ns;
    uint64_t lost_ns;         /* when contexts were last lost, as counted */
    unsigned deaths;          /* of the daemon, in a row */
};

struct client { /* of the control socket */
    int fd; /* -1: free */
    char line[CLIENT_LINE_BYTES];
    unsigned bytes;
};

struct drafter_choice {     /* drafter.c */
    const char *kind;         /* "ngram", "none" or "checkpoint" */
    char dir[PATH_MAX];       /* of the checkpoint */
    struct model_files files; /* of it; owned */
};

struct server {
    struct options options;
    struct child child[ROLE_COUNT];
    int segment_fd[ROLE_COUNT];      /* read-write memfd; -1: not yet created */
    int segment_ro_fd[ROLE_COUNT];   /* the same, opened read-only */
    uint8_t *segment[ROLE_COUNT];    /* mapped: ours writable, the others read-only */
    struct table table;
    struct wiring base;              /* options and descriptors that stages get; grows when the keeper has read the model */
    bool model_told;                 /* the keeper has sent the message "model" */
    bool model_known;                /* and the table was made of it */
    pid_t trial_pid;                 /* trial.c; 0: over */
    int trial_fd;
    uint64_t trial_ns;
    bool load_shown, load_done;      /* a line of progress stands on the terminal; the last one was said */
    struct gpu_sharing gpu;
    struct drafter_choice *drafter, *drafter_first; /* what serves, and what the server began with; owned */
    int listen_fd, gateway_event_fd, vision_event_fd, control_fd, signal_fd;
    char address[256], run_dir[1024], control_path[1100];
    bool made_run_dir;
    struct client client[CLIENTS_MAX];
    enum pipeline_phase phase;
    uint64_t started_ns, drain_until_ns;
    uint64_t looked_ns, watched_ns;  /* when children were last looked at; how long that has been going on, without the time in which we stood still ourselves */
    uint64_t death_ns[1024];         /* ring of the newest deaths, for the restart budget */
    unsigned death_count;
    int exit_code;                   /* what serve returns; -1: still running */
    bool announced;
    enum { SERVER_LOG_ERROR, SERVER_LOG_WARN, SERVER_LOG_INFO, SERVER_LOG_DEBUG } log_level;
};

/* serve.c */
int serve(int argc, char **argv);
void server_stop(struct server *v, int exit_code, const char *why); /* begins to stop everything; serve returns exit_code */
void server_set_phase(struct server *v, enum pipeline_phase phase);
bool server_is_ready(const struct server *v);
uint32_t server_live_slots(const struct server *v);
__attribute__((format(printf, 1, 2))) void server_say(const char *format, ...); /* one line to stderr, dropped when nobody reads */
__attribute__((format(printf, 4, 5))) void server_log(const struct server *v, int level, const char *event, const char *format, ...);

/* segments.c: 0, or -E_IO / -E_NOMEM with *err filled */
int segment_create(struct server *v, int role, uint64_t slot_stride, uint32_t slot_count, uint64_t board_bytes, char *err, size_t err_bytes);

/* children.c */
void children_init(struct server *v, const char *exe_dir);
int child_start(struct server *v, struct child *c);
void child_message(struct server *v, struct child *c);
void child_log(struct child *c);
void child_reap(struct server *v, struct child *c);
void children_tick(struct server *v, uint64_t now_ns);
void children_to_board(struct server *v); /* all that is known of them, when the board has been made */
void child_ask_stop(struct child *c, enum kill_reason reason, uint64_t grace_ms);
int child_swap(struct server *v, struct child *c, const char *exe, int client, char *err, size_t err_bytes);

int child_swap_drafter(struct server *v, const char *word, int client, char *err, size_t err_bytes);

/* drafter.c. drafter_choose: `word` is ngram, none, mtp, dspark or a directory; 0, or -E_CONFIG, -E_NOMEM with *err filled. drafter_serve: from the next
 * start of the draft stage on (takes over *d). drafter_wire: what stages are told of it. */
bool drafter_is_word(const char *word);
int drafter_choose(const struct server *v, struct drafter_choice **out, const char *word, char *err, size_t err_bytes);
void drafter_forget(struct drafter_choice *d);
void drafter_serve(struct server *v, struct drafter_choice *d);
void drafter_wire(const struct drafter_choice *d, struct wiring *w);
bool drafter_is_none(const struct server *v);
bool drafter_is_neural(const struct server *v); /* a checkpoint: computes on the server's device */

/* verdict.c: a stage died by its own fault; suspects get strikes, a lone repeat offender is convicted. certain: it is known that this
 * stage's work did it; else other stages' requests may be to blame as well, and nobody is convicted while any of them is in hand. */
void verdict_on_death(struct server *v, const struct child *c, bool certain);

/* gpu.c. gpu_environment is called in the new process. gpu_blame: who made the fault that took this stage's context? */
bool gpu_is_used(const struct server *v);
bool gpu_is_stage(const struct server *v, int role);
void gpu_begin(struct server *v);
void gpu_environment(const struct server *v, int role);
bool gpu_is_shared(const struct server *v, int role); /* a stage that starts now will be a client of the daemon */
bool gpu_may_start(const struct server *v, int role);
enum gpu_blame gpu_blame(const struct server *v, const struct child *c, bool by_itself);
void gpu_lost(struct server *v); /* a stage lost its context: so did the others under MPS */
bool gpu_counts(struct server *v, const struct child *c, bool by_itself, uint64_t now_ns); /* does this lost context count for the restart budget? */
void gpu_read_log(struct server *v);
int gpu_fault_pid(const char *line); /* the client that this line of the daemon's log names as having made a fatal fault, or 0 */
void gpu_tick(struct server *v, uint64_t now_ns);
void gpu_end(struct server *v);
const char *gpu_sharing_name(const struct server *v);

/* trial.c: does the decoder of video files load? Until trial_is_over option media.video_files is 0; call it when the model is known, until it says so. */
void trial_begin(struct server *v);
bool trial_is_over(struct server *v);

/* load.c: how far the keeper is with the weights, on the terminal and for status */
void load_show(struct server *v);
struct load_state { bool loaded; uint64_t bytes_total, bytes_done, ns; };
struct load_state load_state(const struct server *v);

/* control.c */
int control_open(struct server *v, char *err, size_t err_bytes);
void control_accept(struct server *v);
void control_read(struct server *v, struct client *c);
void control_reply(struct server *v, int client, const char *json_line);
void control_close(struct server *v);

/* status.c: one JSON object, newline-terminated; owned by the caller (free). */
char *status_json(const struct server *v);
void status_print(const char *json); /* for people */

/* client.c: the commands that talk to a running server */
int client_command(const char *command, int argc, char **argv);

#endif
