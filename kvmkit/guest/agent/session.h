/* SPDX-License-Identifier: GPL-2.0-only */
/* Sessions: programs that run because of orders over a link, and their streams. */
#ifndef KVMKIT_AGENT_SESSION_H
#define KVMKIT_AGENT_SESSION_H

#include "link.h"
#include "order.h"

#define SESSIONS_MAX 64
#define SESSION_FDS 3

/* What programs of sessions inherit; before the first session. */
void sessions_begin(char **environment);

/* Do what a frame says; one that makes no sense is answered by FAILED. */
void session_take(struct link *link, const struct frame *frame);

/* Fill in what to wait for: SESSION_FDS entries for each of SESSIONS_MAX; and take the answer. */
size_t sessions_poll(struct pollfd *fds);
void sessions_move(const struct pollfd *fds);

/* A process has ended; true if it was a session's. */
bool session_reaped(int pid, int status);

/* Hang up and forget all sessions of a link. */
void sessions_close(const struct link *link);

/* The host has asked for the machine's end: an argument for switch_off(), or 0. */
unsigned int sessions_power(void);

#endif
