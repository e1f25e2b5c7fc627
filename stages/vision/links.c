/* stages/vision/links.c - see links.h. */
#include "stages/vision/links.h"

#include "schemas/media.h"
#include "shm/clock.h"
#include "shm/error.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define ANSWER_LIMIT_NS 60000000000ull /* the fetch stage gives up long before; it may have died with the question, and never come back */

void links_open(struct links *l, int socket)
{
    memset(l, 0, sizeof *l);
    l->socket = socket;
    l->last_id = clock_ns(); /* answers to a predecessor's questions are none of ours */
}

int links_ask(struct links *l, uint32_t slot, uint32_t generation, uint32_t item, const uint8_t *url, uint64_t url_bytes)
{
    static struct fetch_ask ask;
    struct link *free_link = NULL;

    for (unsigned i = 0; i < LINKS_MAX && !free_link; i++)
        if (l->link[i].id == 0) free_link = &l->link[i];
    if (!free_link || url_bytes > FETCH_URL_BYTES_MAX) return -E_FULL;
    memset(&ask, 0, sizeof ask);
    ask.id = l->last_id + 1;
    ask.url_bytes = (uint32_t)url_bytes;
    memcpy(ask.url, url, url_bytes);
    if (fetch_send(l->socket, &ask, sizeof ask, -1) != 0) return -E_FULL;
    l->last_id++;
    *free_link = (struct link){.id = ask.id, .slot = slot, .generation = generation, .item = item, .asked_ns = clock_ns()};
    return 0;
}

static void give_up(struct link_event *e, const char *why)
{
    e->status = MEDIA_FAILED;
    snprintf(e->why, sizeof e->why, "%s", why);
}

/* Maps what came, if nobody can change it any more. */
static void map(struct link_event *e, const struct fetch_answer *a, int fd)
{
    const int wanted = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat st;

    if (fd < 0 || (fcntl(fd, F_GET_SEALS) & wanted) != wanted || fstat(fd, &st) != 0 || st.st_size <= 0 || (uint64_t)st.st_size > MEDIA_FILE_BYTES_MAX ||
        (uint64_t)st.st_size != a->bytes) {
        give_up(e, "what was fetched cannot be taken over");
        return;
    }
    void *at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED || madvise(at, (size_t)st.st_size, MADV_DONTFORK) != 0) {
        if (at != MAP_FAILED) munmap(at, (size_t)st.st_size);
        give_up(e, "there is no memory for what was fetched");
        return;
    }
    e->data = at;
    e->bytes = (uint64_t)st.st_size;
}

static void end(struct link *k, struct link_event *e, uint32_t status)
{
    memset(e, 0, sizeof *e);
    e->slot = k->slot;
    e->generation = k->generation;
    e->item = k->item;
    e->status = status;
    memset(k, 0, sizeof *k);
}

/* The fetch stage is new: whatever was asked is asked again, one event for each. */
static void forget_all(struct links *l)
{
    for (unsigned i = 0; i < LINKS_MAX; i++) l->link[i].asked_ns = 0;
}

static int overdue(struct links *l, struct link_event *e)
{
    for (unsigned i = 0; i < LINKS_MAX; i++) {
        struct link *k = &l->link[i];
        if (!k->id) continue;
        if (k->asked_ns == 0) {
            end(k, e, MEDIA_NONE);
            return 1;
        }
        if (clock_ns() - k->asked_ns < ANSWER_LIMIT_NS) continue;
        end(k, e, MEDIA_FAILED);
        give_up(e, "nobody fetches it");
        return 1;
    }
    return 0;
}

int links_poll(struct links *l, struct link_event *e)
{
    struct fetch_answer a;
    int fd, rc;

    if (l->socket < 0) return 0;
    while ((rc = fetch_receive(l->socket, &a, sizeof a, &fd)) != 0 && rc != -E_IO) {
        struct link *k = NULL;
        if (rc == 1 && a.what == FETCH_HELLO) forget_all(l);
        for (unsigned i = 0; rc == 1 && a.what == FETCH_DONE && i < LINKS_MAX && !k; i++)
            if (l->link[i].id == a.id && a.id != 0) k = &l->link[i];
        if (k) {
            const bool known = a.status == MEDIA_READY || a.status == MEDIA_BAD || a.status == MEDIA_TOO_LARGE || a.status == MEDIA_FAILED;
            end(k, e, known ? a.status : MEDIA_FAILED);
            a.why[sizeof a.why - 1] = '\0';
            memcpy(e->why, a.why, sizeof e->why);
            if (e->status == MEDIA_READY) map(e, &a, fd);
        }
        if (fd >= 0) close(fd);
        if (k) return 1;
    }
    return overdue(l, e);
}
