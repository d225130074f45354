// SPDX-License-Identifier: GPL-2.0-only
#include "session_state.h"
#include "console.h"
#include "process.h"
#include "text.h"

void close_fd(int *fd)
{
	if (*fd >= 0)
		sys_close(*fd);
	*fd = -1;
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

long session_start(struct session *session, char **environment)
{
	struct order order;
	struct start how = { .streams = { -1, -1, -1 }, .session = true };
	char *at = session->order, *record;
	long result = -ENOMEM;

	if (!order_begin(&order, environment, session->order, session->order_size))
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
