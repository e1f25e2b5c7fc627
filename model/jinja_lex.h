/* model/jinja_lex.h - template source to tokens, whitespace control already applied.
 *
 * Rules are those of jinja2 with trim_blocks and lstrip_blocks on: a newline right after a block or
 * comment tag goes, blanks before a tag that begins a line go, '-' takes all white space, '+' keeps it.
 * Fails by the run: "unexpected char", unterminated comment or raw block. */
#ifndef SLUICE_MODEL_JINJA_LEX_H
#define SLUICE_MODEL_JINJA_LEX_H

#include "model/jinja_value.h"

enum jinja_token_type {
    TOKEN_EOF, TOKEN_DATA, TOKEN_VARIABLE_BEGIN, TOKEN_VARIABLE_END, TOKEN_BLOCK_BEGIN, TOKEN_BLOCK_END,
    TOKEN_NAME, TOKEN_STRING, TOKEN_INTEGER, TOKEN_FLOAT, TOKEN_OPERATOR,
};

/* Two-character operators by their two characters. */
#define JINJA_OP2(a, b) ((a) << 8 | (b))
enum {
    OP_POW = JINJA_OP2('*', '*'), OP_FLOORDIV = JINJA_OP2('/', '/'), OP_EQ = JINJA_OP2('=', '='), OP_NE = JINJA_OP2('!', '='),
    OP_GE = JINJA_OP2('>', '='), OP_LE = JINJA_OP2('<', '='),
};

struct jinja_token {
    uint8_t type;              /* enum jinja_token_type */
    uint16_t op;               /* OPERATOR: its character or JINJA_OP2 */
    uint32_t line;
    struct jinja_value value;  /* DATA, NAME, STRING: the text; INTEGER, FLOAT: the number */
};

struct jinja_tokens { struct jinja_token *tokens; uint32_t count; };   /* the last one is EOF */

struct jinja_tokens jinja_lex(struct jinja_run *r, const char *source, size_t bytes);

#endif
