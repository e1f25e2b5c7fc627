/* launcher/inspect.h - `sluice inspect DIR`: what a checkpoint is (a model's or a drafter's), how it is stored, and whether it would be served. */
#ifndef SLUICE_LAUNCHER_INSPECT_H
#define SLUICE_LAUNCHER_INSPECT_H

#include "model/engine_draft.h"

/* argv after the command word. Prints to stdout. 0: it would load; 1: it would not; EXIT_CONFIG: wrong use. */
int inspect_command(int argc, char **argv);

/* For a drafter's checkpoint (kind: enum draft_kind): prints what it is. 0, or what its loader says, with the reason. */
int inspect_drafter(const struct model_files *files, uint32_t kind, struct model_error *err);

#endif
