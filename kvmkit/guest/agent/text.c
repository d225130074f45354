// SPDX-License-Identifier: GPL-2.0-only
#include "text.h"

size_t length_of(const char *string)
{
	size_t length = 0;

	while (string[length])
		length++;
	return length;
}

bool same(const char *left, const char *right)
{
	while (*left && *left == *right)
		left++, right++;
	return *left == *right;
}

bool begins(const char *string, const char *prefix)
{
	while (*prefix)
		if (*string++ != *prefix++)
			return false;
	return true;
}

char *after(char *string, const char *prefix)
{
	return begins(string, prefix) ? string + length_of(prefix) : NULL;
}

uint64_t number_or(const char *string, uint64_t limit, uint64_t fallback)
{
	uint64_t number = 0;
	int digits = 0;

	for (; *string >= '0' && *string <= '9' && digits < 18; digits++)
		number = number * 10 + (uint64_t)(*string++ - '0');
	return *string || !digits || number > limit ? fallback : number;
}

void text_clear(struct text *text)
{
	text->length = 0;
	text->data[0] = '\0';
}

void text_add_letter(struct text *text, char letter)
{
	if (text->length < TEXT_SIZE - 1)
		text->data[text->length++] = letter;
	text->data[text->length] = '\0';
}

void text_add(struct text *text, const char *string)
{
	while (*string)
		text_add_letter(text, *string++);
}

void text_add_number(struct text *text, long number)
{
	char digits[24];
	size_t at = sizeof(digits);
	unsigned long rest = number < 0 ? -(unsigned long)number : (unsigned long)number;

	digits[--at] = '\0';
	do
		digits[--at] = (char)('0' + rest % 10);
	while (rest /= 10);
	if (number < 0)
		digits[--at] = '-';
	text_add(text, digits + at);
}

char *next_field(char **rest, char separator)
{
	char *field = *rest, *end = field;

	if (!field)
		return NULL;
	while (*end && *end != separator)
		end++;
	*rest = *end ? end + 1 : NULL;
	*end = '\0';
	return field;
}
