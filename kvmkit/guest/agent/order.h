/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An order: which program to run, and how.
 *
 * It is text made of records, each "KEY=VALUE" ended by a NUL, so that a value may
 * hold every byte that an argument can. Keys, in any order; those marked * may
 * be repeated:
 *
 *   arg=TEXT *         the program, then its arguments
 *   env=NAME=TEXT *    a variable of its environment, replacing one of that name
 *   cwd=DIRECTORY      where it starts (default: the user's home)
 *   user=NAME|UID[:GID] *  whom it runs as; a name is looked up in /etc/passwd
 *                      (default: root)
 *   groups=GID,GID...  its supplementary groups (default: those of /etc/group
 *                      for a name, none for a number)
 *   mode=tty|pipe|null|agent   what its standard streams are, see enum mode
 *   rows=N columns=N   the terminal's size
 *
 * Unknown keys are passed over: an older agent does what it knows. A record
 * that the text's end cuts off counts as if it were ended.
 */
#ifndef KVMKIT_AGENT_ORDER_H
#define KVMKIT_AGENT_ORDER_H

#include "sys.h"

enum mode {
	MODE_TTY,   /* a terminal for a person */
	MODE_PIPE,  /* the console carrying bytes both ways, see guest/console_input.py */
	MODE_NULL,  /* output to the console byte for byte, no input */
	MODE_AGENT, /* no program yet: orders come over a link, see wire.h */
};

struct order {
	char **argv; /* argv[0] is NULL when there is no program */
	char **envp;
	const char *cwd, *user, *groups; /* NULL where the order has none */
	enum mode mode;
	unsigned int rows, columns; /* 0 where unknown */

	size_t arguments, variables; /* in argv and envp */
	void *memory; /* that both live in */
	size_t memory_size;
};

/*
 * Begin an order with an environment and room for all records of a text. False
 * when there is no memory.
 */
bool order_begin(struct order *order, char **environment, const char *text, size_t size);

/* Take one record; false if its key is none of the above. The order points into it. */
bool order_take(struct order *order, char *record);

/* Set "NAME=VALUE", or only if there is no such variable yet. */
void order_setenv(struct order *order, char *assignment, bool replace);

/* The value of a variable, or NULL. */
char *order_getenv(const struct order *order, const char *name);

/* Take a variable away: what is told to us only is none of the program's business. */
void order_unsetenv(struct order *order, const char *name);

void order_end(struct order *order);

/* The records of a text one after the other; text[size] must be there, and a NUL. */
char *next_record(char **at, const char *end);

#endif
