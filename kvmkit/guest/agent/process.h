/* SPDX-License-Identifier: GPL-2.0-only */
/* Starting the program of an order. */
#ifndef KVMKIT_AGENT_PROCESS_H
#define KVMKIT_AGENT_PROCESS_H

#include "order.h"

/* The statuses that a POSIX shell gives (XCU 2.8.2). */
#define STATUS_CANNOT_EXECUTE 126
#define STATUS_NOT_FOUND 127
#define STATUS_SIGNAL 128

/* How a child is to be set up before its program starts. */
struct start {
	int streams[3];  /* become fd 0, 1, 2 */
	bool share;      /* spare a copy of our memory, but wait until the program runs */
	bool session;    /* lead a session of its own */
	bool terminal;   /* fd 0 becomes the controlling terminal, the child its foreground */
};

/* The child's process ID, or a negative errno. */
int process_start(struct order *order, const struct start *start);

/* A shell's status of what wait(2) tells. */
int process_status(int wait_status);

#endif
