/* SPDX-License-Identifier: GPL-2.0-only */
/* Terminals: the console that the program or shell sits at, and serial lines as plain pipes. */
#ifndef KVMKIT_AGENT_CONSOLE_H
#define KVMKIT_AGENT_CONSOLE_H

#include "order.h"

struct console {
	int fd;
	bool is_kernels; /* the kernel's messages come here too */
};

/* Open the terminal of that name, or the kernel's console; it becomes fd 0, 1 and 2. */
void console_open(struct console *console, const char *name, enum mode mode);

/* Set it for the order's mode. */
void console_set(const struct console *console, const struct order *order);

/* Wait until everything is out, and set it as found. */
void console_finish(const struct console *console);

void terminal_raw(int fd);
void terminal_drain(int fd);
void terminal_size(int fd, unsigned int rows, unsigned int columns);

#endif
