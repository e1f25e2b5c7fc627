/* stages/prefill/prompt.h - what a page of a prompt is: its tokens, and what they do not tell. Reads the records of gateway, vision and tokenize; owns nothing. */
#ifndef SLUICE_PREFILL_PROMPT_H
#define SLUICE_PREFILL_PROMPT_H

#include "schemas/table.h"
#include "stages/prefill/prefix.h"

/* Does a picture lie across this position of the prompt? Its rows see each other: a prompt never goes on in the middle of one. */
bool prompt_cuts_picture(const struct table *table, uint32_t slot, uint32_t position);

/* Whole pages of the first `tokens` of the prompt whose content is known: up to the first picture or sound that vision gave no hash of. */
uint32_t prompt_known_pages(const struct table *table, uint32_t slot, uint32_t tokens);

/* Page `index` of the prompt: its tokens, and a mark that follows from the salt (in the first page) and from pictures and sounds that lie in it. */
void prompt_page(const struct table *table, uint32_t slot, uint32_t index, struct prefix_page *page);

#endif
