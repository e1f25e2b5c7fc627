/* launcher/inspect_drafter.c - `sluice inspect` for the checkpoint of a drafter (see inspect.h): what it is, what it was made for, and whether it would load.
 * Asks the code that loads it for the draft stage. Owns nothing. */
#include "launcher/inspect.h"
#include "model/assistant.h"
#include "model/dspark.h"

#include <stdio.h>
#include <string.h>

static double megabytes(uint64_t bytes) { return (double)bytes * 1e-6; }

static void show_layers(const struct model_config *c)
{
    printf("               %u layers, hidden %u, MLP %u, vocabulary %u, %u query heads\n", c->layer_count, c->hidden, c->intermediate, c->vocab, c->q_heads);
}

static int inspect_assistant(const struct model_files *files, struct model_error *err)
{
    static struct assistant_weights w;
    const int rc = assistant_load(&w, files, err);

    if (rc != 0) return rc;
    printf("drafter        MTP assistant, for a model of hidden size %u\n", w.backbone_hidden);
    show_layers(&w.config);
    printf("               reads the model's keys, values and last hidden state; %.1f MB for each draft\n", megabytes(w.step_bytes));
    assistant_weights_free(&w);
    return 0;
}

static int inspect_dspark(const struct model_files *files, struct model_error *err)
{
    static struct dspark_weights w;
    const int rc = dspark_load(&w, files, NULL, err);

    if (rc != 0) return rc;
    printf("drafter        DSpark head, for a model of hidden size %u and %u layers\n", w.config.layers.hidden, w.config.target_layer_count);
    show_layers(&w.config.layers);
    printf("               blocks of %u; reads the outputs of layers", w.config.block);
    for (uint32_t i = 0; i < w.config.source_count; i++) printf(" %u", w.config.source[i]);
    printf(" (from 0)\n               Markov head of rank %u, confidence head: %s\n", w.config.markov_rank, w.config.confidence ? "yes" : "no");
    printf("               %.1f MB; a block reads %.1f MB, embeddings and output matrix not held twice where they are the model's\n", megabytes(w.own_bytes), megabytes(w.block_bytes));
    dspark_weights_free(&w);
    return 0;
}

int inspect_drafter(const struct model_files *files, uint32_t kind, struct model_error *err)
{
    return kind == DRAFT_KIND_DSPARK ? inspect_dspark(files, err) : inspect_assistant(files, err);
}
