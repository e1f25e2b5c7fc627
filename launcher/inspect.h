/* launcher/inspect.h - `sluice inspect DIR`: what a checkpoint is, how it is stored, and whether it would be served. */
#ifndef SLUICE_LAUNCHER_INSPECT_H
#define SLUICE_LAUNCHER_INSPECT_H

/* argv after the command word. Prints to stdout. 0: it would load; 1: it would not; EXIT_CONFIG: wrong use. */
int inspect_command(int argc, char **argv);

#endif
