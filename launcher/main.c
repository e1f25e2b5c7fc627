/* launcher/main.c - the command `sluice`. */
#include "launcher/inspect.h"
#include "launcher/quantize.h"
#include "launcher/server.h"

#include "shm/stage.h"
#include "shm/version.h"

#include <stdio.h>
#include <string.h>

static void help(FILE *out)
{
    fprintf(out, "usage: sluice COMMAND [options]\n\n"
                 "  serve               serve a model; `sluice serve --help` lists the options\n"
                 "  status [--json]     what a running server does\n"
                 "  swap STAGE EXE      replace a stage of the running server by another executable\n"
                 "  swap STAGE --default   and put our own back\n"
                 "  swap draft HOW      draft in another way: ngram, none, mtp, dspark, or the folder of a drafter\n"
                 "  drain               finish what runs, refuse what is new, stop; returns when it has stopped\n"
                 "  stop                stop now; returns when it has stopped\n"
                 "  inspect DIR         what the checkpoint in DIR is, how it is stored, and whether it would load\n"
                 "  quantize IN OUT     write a BF16 checkpoint in FP8 or FP4; `sluice quantize --help` lists the formats\n\n"
                 "status, swap, drain and stop take --run-dir D, the run directory of the server they talk to.\n");
}

int main(int argc, char **argv)
{
    static const char *const remote[] = {"status", "swap", "drain", "stop", NULL};
    const char *command = argc > 1 ? argv[1] : "--help";

    if (strcmp(command, "serve") == 0) return serve(argc - 2, argv + 2);
    if (strcmp(command, "inspect") == 0) return inspect_command(argc - 2, argv + 2);
    if (strcmp(command, "quantize") == 0) return quantize_command(argc - 2, argv + 2);
    for (int i = 0; remote[i]; i++)
        if (strcmp(command, remote[i]) == 0) return client_command(command, argc - 2, argv + 2);
    if (strcmp(command, "--version") == 0) {
        printf("sluice %s, layout %u, wiring %u\n", SLUICE_VERSION, LAYOUT_VERSION, WIRING_VERSION);
        return 0;
    }
    if (strcmp(command, "--help") == 0 || strcmp(command, "-h") == 0 || strcmp(command, "help") == 0) {
        help(argc > 1 ? stdout : stderr);
        return argc > 1 ? 0 : EXIT_CONFIG;
    }
    fprintf(stderr, "sluice: unknown command \"%s\"\n\n", command);
    help(stderr);
    return EXIT_CONFIG;
}
