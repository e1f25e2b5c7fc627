/* model/jinja_unicode.h - code points as Python's str sees them: UTF-8, case, classes.
 *
 * The tables (model/jinja_unicode_data.c) are made from Python itself. All functions are pure. */
#ifndef SLUICE_MODEL_JINJA_UNICODE_H
#define SLUICE_MODEL_JINJA_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct jinja_case_range { uint32_t first, last; int32_t stride, delta; };
struct jinja_case_special { uint32_t code; uint32_t to[3]; };
struct jinja_code_range { uint32_t first, last; };

enum { JINJA_CASE_CODES_MAX = 3 };

/* Decodes one code point of valid UTF-8 at text[*at] and moves *at behind it. */
uint32_t jinja_utf8_next(const char *text, size_t *at);

/* Writes `code` as UTF-8; returns 1..4. */
unsigned jinja_utf8_put(char out[4], uint32_t code);

/* Bytes of the valid sequence at text (of `bytes` left), or 0; *bad is then how many bytes one U+FFFD replaces. */
unsigned jinja_utf8_check(const char *text, size_t bytes, unsigned *bad);

/* Where the code point that ends before byte `at` begins. */
size_t jinja_utf8_back(const char *text, size_t at);

/* Code points in valid UTF-8. */
size_t jinja_utf8_count(const char *text, size_t bytes);

/* The full mapping of one code point: 1..3 codes in to. */
unsigned jinja_code_lower(uint32_t code, uint32_t to[3]);
unsigned jinja_code_upper(uint32_t code, uint32_t to[3]);
unsigned jinja_code_title(uint32_t code, uint32_t to[3]);

bool jinja_code_is_space(uint32_t code);       /* str.isspace */
bool jinja_code_is_line_end(uint32_t code);    /* str.splitlines */
bool jinja_code_is_alpha(uint32_t code);
bool jinja_code_is_digit(uint32_t code);
bool jinja_code_is_decimal(uint32_t code);
bool jinja_code_is_numeric(uint32_t code);
bool jinja_code_is_lower(uint32_t code);
bool jinja_code_is_upper(uint32_t code);
bool jinja_code_is_title(uint32_t code);
bool jinja_code_is_printable(uint32_t code);   /* repr() shows it as it is */

#endif
