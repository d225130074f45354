// SPDX-License-Identifier: GPL-2.0-only
#include "session.h"
#include "console.h"
#include "session_state.h"

#define PIECE (32 << 10) /* one write to a virtio console's port takes so much */

static struct session sessions[SESSIONS_MAX];
static char **inherited;
static unsigned int power;

void sessions_begin(char **environment)
{
	inherited = environment;
	small_pages(sessions, sizeof(sessions));
}

unsigned int sessions_power(void)
{
	return power;
}

static struct session *find(const struct link *link, uint16_t id)
{
	for (size_t at = 0; at < SESSIONS_MAX; at++)
		if (sessions[at].owner == link && sessions[at].id == id)
			return &sessions[at];
	return NULL;
}

static void forget(struct session *session)
{
	close_fd(&session->input);
	for (size_t at = 0; at < OUTPUTS; at++)
		close_fd(&session->outputs[at]);
	if (session->order)
		unmap_memory(session->order, ORDER_MAX);
	session->order = NULL;
	session->owner = NULL;
}

/* To a group of processes; to its leader-to-be while it does not lead yet. */
static void signal_group(int group, int number)
{
	if (group > 1 && sys_kill(-group, number) == -ESRCH)
		sys_kill(group, number);
}

static void hang_up(struct session *session)
{
	if (session->pid > 0 && !session->reaped) {
		signal_group(session->pid, SIGHUP);
		signal_group(session->pid, SIGCONT);
	}
	forget(session);
}

void sessions_close(const struct link *link)
{
	for (size_t at = 0; at < SESSIONS_MAX; at++)
		if (sessions[at].owner == link)
			hang_up(&sessions[at]);
}

/* Starting */

static struct session *begin(struct link *link, uint16_t id)
{
	for (size_t at = 0; at < SESSIONS_MAX; at++) {
		struct session *session = &sessions[at];

		if (session->owner)
			continue;
		session->order = map_memory(ORDER_MAX);
		if (!session->order)
			return NULL;
		session->owner = session->link = link;
		session->id = id;
		session->order_size = session->pending = session->pending_at = 0;
		session->pid = session->status = 0;
		session->reaped = session->told = session->terminal = false;
		session->input_ends = false;
		session->input = -1;
		for (size_t out = 0; out < OUTPUTS; out++) {
			session->outputs[out] = -1;
			session->drained[out] = false;
			session->credit[out] = link->window;
		}
		return session;
	}
	return NULL;
}

static void take_order(struct link *link, struct session *session, const struct frame *frame)
{
	long result;

	if (!frame->session || (session && !session->order)) {
		link_put_failed(link, frame->session, -EEXIST, "the session has started already");
		return;
	}
	if (!session)
		session = begin(link, frame->session);
	if (!session) {
		link_put_failed(link, frame->session, -EMFILE, "too many sessions");
		return;
	}
	/* A NUL behind the end is there: the memory was zeroed. */
	if (frame->size >= ORDER_MAX - session->order_size) {
		link_put_failed(link, frame->session, -E2BIG, "the order is too long");
		forget(session);
		return;
	}
	memcpy(session->order + session->order_size, frame->data, frame->size);
	session->order_size += frame->size;
	if (frame->type != FRAME_START)
		return;
	result = session_start(session, inherited);
	if (result < 0) {
		link_put_failed(link, session->id, result, "cannot start a process");
		forget(session);
		return;
	}
	session->pid = (int)result;
	link_put_number(link, session->id, FRAME_STARTED, 0, (uint32_t)session->pid);
}

/* Frames for a session that runs */

/* Write what waits, and let the host send as much again. */
static void feed(struct session *session)
{
	struct link *link = session->link;
	uint32_t done = 0;

	while (session->pending && session->input >= 0) {
		long sent = sys_write(session->input, session->buffer + session->pending_at,
				      session->pending);

		if (sent == -EAGAIN || sent == -EINTR)
			break;
		if (sent <= 0) { /* nobody reads any more */
			close_fd(&session->input);
			break;
		}
		session->pending_at += (size_t)sent;
		session->pending -= (size_t)sent;
		done += (uint32_t)sent;
	}
	if (session->input < 0) {
		done += (uint32_t)session->pending;
		session->pending = 0;
	}
	if (!session->pending) {
		session->pending_at = 0;
		if (session->input_ends)
			close_fd(&session->input);
	}
	if (done)
		link_put_number(link, session->id, FRAME_WINDOW, STREAM_INPUT, done);
}

static void take_data(struct session *session, const struct frame *frame)
{
	struct link *link = session->link;

	if (session->input_ends)
		return;
	if (frame->size > WINDOW_SIZE - session->pending) {
		link_put_failed(link, session->id, -EMSGSIZE, "more input than the window allows");
		hang_up(session);
		return;
	}
	if (session->pending_at) {
		memmove(session->buffer, session->buffer + session->pending_at, session->pending);
		session->pending_at = 0;
	}
	memcpy(session->buffer + session->pending, frame->data, frame->size);
	session->pending += frame->size;
	feed(session);
}

static void take_signal(const struct session *session, uint32_t number)
{
	int group = session->pid;

	if (session->reaped || !number || number > 64)
		return;
	/* On a terminal, whoever is in the foreground. */
	if (session->terminal && session->outputs[0] >= 0)
		sys_ioctl(session->outputs[0], TIOCGPGRP, &group);
	signal_group(group, (int)number);
}

static void take_power(uint32_t how)
{
	power = how == POWER_REBOOT ? LINUX_REBOOT_CMD_RESTART :
		how == POWER_HALT   ? LINUX_REBOOT_CMD_HALT :
				      LINUX_REBOOT_CMD_POWER_OFF;
}

void session_take(struct link *link, const struct frame *frame)
{
	struct session *session = find(link, frame->session);
	uint32_t number = frame_number(frame);

	if (frame->type == FRAME_ORDER || frame->type == FRAME_START) {
		take_order(link, session, frame);
		return;
	}
	if (frame->type == FRAME_POWER) {
		take_power(number);
		return;
	}
	if (!session) /* it ended while the host did not know yet */
		return;
	switch (frame->type) {
	case FRAME_CLOSE:
		hang_up(session);
		break;
	case FRAME_DATA:
		if (frame->stream == STREAM_INPUT && session->pid)
			take_data(session, frame);
		break;
	case FRAME_END:
		/* A terminal has no end: the host sends the terminal's own character for it. */
		if (frame->stream == STREAM_INPUT && !session->terminal) {
			session->input_ends = true;
			feed(session);
		}
		break;
	case FRAME_WINDOW:
		if (frame->stream == STREAM_OUTPUT || frame->stream == STREAM_ERROR) {
			uint32_t *credit = &session->credit[frame->stream - 1];

			*credit = number > UINT32_MAX - *credit ? UINT32_MAX : *credit + number;
		}
		break;
	case FRAME_SIGNAL:
		if (session->pid)
			take_signal(session, number);
		break;
	case FRAME_RESIZE:
		if (session->terminal && session->outputs[0] >= 0)
			terminal_size(session->outputs[0], number & 0xffff, number >> 16);
		break;
	}
}

/* Output */

static bool has_room(const struct session *session)
{
	return link_room(session->link) >= PIECE + ANSWER_MAX;
}

static void read_output(struct session *session, int at)
{
	struct link *link = session->link;
	size_t size = session->credit[at] < PIECE - HEADER_SIZE ? session->credit[at] :
								   PIECE - HEADER_SIZE;
	unsigned char *payload = link_payload(link);
	long got = sys_read(session->outputs[at], payload, size);

	if (got == -EINTR)
		return;
	session->drained[at] = got <= 0;
	if (got == -EAGAIN)
		return;
	if (got > 0) {
		session->credit[at] -= (uint32_t)got;
		link_put(link, session->id, FRAME_DATA, (uint8_t)(at + 1), payload, (size_t)got);
		return;
	}
	/* The end of a pipe, or EIO: nobody has the terminal open any more. */
	close_fd(&session->outputs[at]);
	link_put(link, session->id, FRAME_END, (uint8_t)(at + 1), NULL, 0);
}

/* The host hears of a program's end behind all that it had written. */
static void tell_end(struct session *session)
{
	bool ended = true;

	for (int at = 0; at < OUTPUTS; at++) {
		while (session->outputs[at] >= 0 && !session->drained[at]) {
			if (!session->credit[at] || !has_room(session))
				return; /* go on when there is */
			read_output(session, at);
		}
		ended = ended && session->outputs[at] < 0;
	}
	if (!has_room(session))
		return;
	if (!session->told)
		link_put_number(session->link, session->id, FRAME_EXITED, 0,
				(uint32_t)session->status);
	session->told = true;
	if (ended)
		forget(session);
}

bool session_reaped(int pid, int status)
{
	for (size_t at = 0; at < SESSIONS_MAX; at++) {
		struct session *session = &sessions[at];

		if (!session->owner || session->pid != pid || session->reaped)
			continue;
		session->reaped = true;
		session->status = status;
		session->drained[0] = session->drained[1] = false;
		return true;
	}
	return false;
}

size_t sessions_poll(struct pollfd *fds)
{
	for (size_t at = 0; at < SESSIONS_MAX; at++) {
		const struct session *session = &sessions[at];
		struct pollfd *entry = fds + at * SESSION_FDS;
		bool room = session->owner && has_room(session);

		for (size_t which = 0; which < SESSION_FDS; which++)
			entry[which].fd = -1;
		if (!session->owner)
			continue;
		if (session->pending && room)
			entry[0] = (struct pollfd){ .fd = session->input, .events = POLLOUT };
		for (size_t out = 0; out < OUTPUTS; out++)
			if (room && session->credit[out])
				entry[1 + out] = (struct pollfd){ .fd = session->outputs[out],
								  .events = POLLIN };
	}
	return SESSIONS_MAX * SESSION_FDS;
}

void sessions_move(const struct pollfd *fds)
{
	for (size_t at = 0; at < SESSIONS_MAX; at++) {
		struct session *session = &sessions[at];
		const struct pollfd *entry = fds + at * SESSION_FDS;

		if (!session->owner)
			continue;
		if (entry[0].fd >= 0 && entry[0].fd == session->input && entry[0].revents)
			feed(session);
		for (int out = 0; out < OUTPUTS; out++)
			if (entry[1 + out].fd >= 0 && entry[1 + out].revents &&
			    entry[1 + out].fd == session->outputs[out] && session->credit[out] &&
			    has_room(session))
				read_output(session, out);
		if (session->reaped)
			tell_end(session);
	}
}
