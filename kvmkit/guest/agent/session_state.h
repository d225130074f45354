/* SPDX-License-Identifier: GPL-2.0-only */
/* What the agent knows of a session; for session.c and session_start.c only. */
#ifndef KVMKIT_AGENT_SESSION_STATE_H
#define KVMKIT_AGENT_SESSION_STATE_H

#include "link.h"
#include "order.h"

#define ORDER_MAX (4 << 20) /* as INSTRUCTIONS_MAX */
#define OUTPUTS 2 /* standard output and error */

struct session {
	const struct link *owner; /* NULL: not in use */
	struct link *link;
	uint16_t id;
	char *order; /* its text while it comes in, then NULL */
	size_t order_size;
	int pid; /* 0: not started */
	bool reaped, told; /* it has ended, and the host knows */
	int status;
	bool terminal;
	int input;	     /* where its input is written to; -1: closed */
	int outputs[OUTPUTS]; /* where its output is read from; -1: closed */
	bool drained[OUTPUTS]; /* nothing more to read when it was tried last */
	uint32_t credit[OUTPUTS];
	bool input_ends; /* after what is pending */
	size_t pending_at, pending;
	unsigned char buffer[WINDOW_SIZE];
};

/*
 * Start the program of session->order, with these variables besides its own; the order's
 * memory is let go of. The process ID, or a negative errno.
 */
long session_start(struct session *session, char **environment);

void close_fd(int *fd);

#endif
