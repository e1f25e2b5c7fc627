/* stages/keeper/leave.c - the keeper's end, also in the middle of loading: it is the last that can tidy up behind a launcher that was killed. */
#include "stages/keeper/keeper.h"

#include "shm/remove.h"

#include <unistd.h>

/* The launcher is gone without a goodbye: nothing of the server may stay behind. */
static void sweep(const struct keeper *k)
{
    const char *socket = wiring_text(&k->stage.wiring, "run.control_path", NULL), *dir = wiring_text(&k->stage.wiring, "run.made_dir", NULL);
    const char *mps = wiring_text(&k->stage.wiring, "run.mps_dir", NULL);

    if (mps) remove_flat_dir(mps); /* its processes died with the launcher */
    if (socket) unlink(socket);
    if (dir) rmdir(dir);
}

void keeper_leave(struct keeper *k)
{
    if (stage_launcher_gone(&k->stage)) sweep(k);
    stage_exit(&k->stage, EXIT_ASKED, "asked to stop");
}
