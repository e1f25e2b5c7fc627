/* launcher/verdict.c - which request killed the stage?
 *
 * A stage notes the slots in hand before it works on them. When it dies by its own
 * fault (a signal it raised, an exit code, a hang) these are suspects: one strike
 * each. Stages run a suspect alone, the longer the more strikes it has, so that one
 * that kills only some steps later is found as well. A suspect that was alone in hand
 * when the stage died again is convicted: every stage leaves it, its client gets an
 * error, the others go on. A kill from outside (SIGKILL, SIGSTOP) accuses nobody.
 *
 * GPU stages under MPS lose their contexts together, and nobody can tell by whose fault: the requests of all of them get their
 * strikes, and a conviction needs one suspect in all of them together. After that the stages run apart (gpu.c), where a fault is its maker's. */
#include "launcher/server.h"

#define STRIKES_MAX 16u

static void strike(struct server *v, uint32_t slot, uint32_t generation, const struct child *c, bool alone)
{
    struct launcher_slot *l = table_launcher(&v->table, slot);
    const uint32_t strikes = word_for(&l->strikes, generation);

    if (alone && strikes >= 1) {
        shm_store_release(&l->verdict, word_pack(generation, 1 + (uint32_t)c->role));
        server_log(v, SERVER_LOG_ERROR, "quarantine", "slot=%u generation=%u stage=%s", slot, generation, role_name(c->role));
        return;
    }
    if (strikes < STRIKES_MAX) shm_store_release(&l->strikes, word_pack(generation, strikes + 1));
}

/* Requests in hand of all GPU stages. The words of one that has died stand until its successor starts. */
static uint64_t busy_on_gpu(const struct server *v)
{
    uint64_t busy = 0;

    for (int role = 0; role < ROLE_COUNT; role++)
        if (gpu_is_stage(v, role) && v->segment[role]) busy += shm_load_acquire(&((const struct stage_status *)(v->segment[role] + SEGMENT_STATUS_OFFSET))->busy_count);
    return busy;
}

void verdict_on_death(struct server *v, const struct child *c, bool certain)
{
    if (!v->model_known || !v->segment[c->role]) return;
    const struct stage_status *status = (const struct stage_status *)(v->segment[c->role] + SEGMENT_STATUS_OFFSET);
    const uint64_t count = shm_load_acquire(&status->busy_count);

    if (count == 0 || count > STATUS_BUSY_MAX) return;
    for (uint64_t i = 0; i < count; i++) {
        const uint32_t slot = status->busy_slot[i], generation = status->busy_generation[i];
        if (slot >= v->table.limits.slot_count || slot_live(&v->table, slot) != generation) continue;
        strike(v, slot, generation, c, certain ? count == 1 : busy_on_gpu(v) == 1);
    }
}
