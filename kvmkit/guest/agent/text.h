/* SPDX-License-Identifier: GPL-2.0-only */
/* Text in buffers of a fixed size: what does not fit is cut off, never written behind the end. */
#ifndef KVMKIT_AGENT_TEXT_H
#define KVMKIT_AGENT_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Longest text of one line or path that the agent makes itself. */
#define TEXT_SIZE 4352

struct text {
	char data[TEXT_SIZE]; /* always ended by a NUL */
	size_t length;
};

size_t length_of(const char *string);
bool same(const char *left, const char *right);

bool begins(const char *string, const char *prefix);

/* What follows the prefix in string, or NULL if it does not begin so. */
char *after(char *string, const char *prefix);

/* The number that string is, in decimal; fallback if it is none or above limit. */
uint64_t number_or(const char *string, uint64_t limit, uint64_t fallback);

void text_clear(struct text *text);
void text_add_letter(struct text *text, char letter);
void text_add(struct text *text, const char *string);
void text_add_number(struct text *text, long number);

/* Cuts *rest at the next separator: what stood before it, or NULL when nothing is left. */
char *next_field(char **rest, char separator);

#endif
