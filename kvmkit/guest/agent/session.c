// SPDX-License-Identifier: GPL-2.0-only
#include "session.h"
#include "console.h"
#include "process.h"
#include "text.h"

#define ORDER_MAX (4 << 20) /* as INSTRUCTIONS_MAX */
#define PIECE (32 << 10)    /* one write to a virtio console's port takes so much */
#define OUTPUTS 2	    /* standard output and error */

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

static void close_fd(int *fd)
{
	if (*fd >= 0)
		sys_close(*fd);
	*fd = -1;
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

static long open_terminal(struct session *session, const struct order *order, int *streams)
{
	int number = 0, unlocked = 0;
	long master = sys_open("/dev/ptmx", O_RDWR | O_NOCTTY), slave;
	struct text path;

	if (master < 0)
		return master;
	sys_ioctl((int)master, TIOCSPTLCK, &unlocked);
	sys_ioctl((int)master, TIOCGPTN, &number);
	text_clear(&path);
	text_add(&path, "/dev/pts/");
	text_add_number(&path, number);
	slave = sys_open(path.data, O_RDWR | O_NOCTTY);
	if (slave < 0) {
		sys_close((int)master);
		return slave;
	}
	terminal_size((int)slave, order->rows, order->columns);
	session->terminal = true;
	session->outputs[0] = (int)master;
	session->input = (int)sys_fcntl((int)master, F_DUPFD_CLOEXEC, 3);
	streams[0] = streams[1] = streams[2] = (int)slave;
	return 0;
}

static long open_pipe(int *read_end, int *write_end)
{
	int ends[2];
	long error = sys3(__NR_pipe2, (long)ends, O_CLOEXEC, 0);

	if (!error) {
		*read_end = ends[0];
		*write_end = ends[1];
	}
	return error;
}

static long open_pipes(struct session *session, const struct order *order, int *streams)
{
	long error = 0;

	if (order->mode == MODE_NULL)
		streams[0] = (int)sys_open("/dev/null", O_RDONLY);
	else
		error = open_pipe(&streams[0], &session->input);
	for (int at = 0; at < OUTPUTS && !error; at++)
		error = open_pipe(&session->outputs[at], &streams[at + 1]);
	return error;
}

static void nonblocking(int fd)
{
	if (fd >= 0)
		sys_fcntl(fd, F_SETFL, sys_fcntl(fd, F_GETFL, 0) | O_NONBLOCK);
}

static long start(struct session *session)
{
	struct order order;
	struct start how = { .streams = { -1, -1, -1 }, .session = true };
	char *at = session->order, *record;
	long result = -ENOMEM;

	if (!order_begin(&order, inherited, session->order, session->order_size))
		return result;
	order.mode = MODE_PIPE;
	while ((record = next_record(&at, session->order + session->order_size)))
		order_take(&order, record);
	result = -EINVAL;
	if (order.arguments && order.argv[0][0]) {
		how.terminal = order.mode == MODE_TTY;
		result = how.terminal ? open_terminal(session, &order, how.streams) :
					open_pipes(session, &order, how.streams);
	}
	if (!result)
		result = process_start(&order, &how);
	for (int stream = 0; stream < (how.terminal ? 1 : 3); stream++)
		close_fd(&how.streams[stream]);
	nonblocking(session->input);
	for (size_t out = 0; out < OUTPUTS; out++)
		nonblocking(session->outputs[out]);
	order_end(&order);
	unmap_memory(session->order, ORDER_MAX);
	session->order = NULL;
	return result;
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
	result = start(session);
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
