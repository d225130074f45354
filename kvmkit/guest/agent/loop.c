// SPDX-License-Identifier: GPL-2.0-only
#include "loop.h"
#include "console.h"
#include "report.h"
#include "session.h"
#include "text.h"

#define SIGNALS_SIZE 8 /* bytes of the kernel's sigset_t */
#define SIG_BIT(number) (1ull << ((number) - 1))
#define SA_RESTORER 0x04000000 /* asm/signal.h has it for 32 bit only */
#define AWAY_PERIOD 20	       /* ms between looks whether a port's other end has come */
#define SEARCH_PERIOD 1	       /* ms between looks for the port */

/* The host tells a terminal's size on the third serial port: lines "ROWS COLUMNS". */
#define SIZE_PORT "/dev/ttyS2"

/* Entries for poll(2): the links, those that listen, the sessions' streams. */
enum { POLL_LINKS, POLL_LISTENER = LINKS_MAX, POLL_SIZES, POLL_SESSIONS };

static struct pollfd fds[POLL_SESSIONS + SESSIONS_MAX * SESSION_FDS];
static int listener = -1, sizes = -1, console = -1;
static bool has_links;

/* SIGCHLD only ends ppoll(2): waiting for it there, and nowhere else, loses none. */
static void on_child(int number)
{
	(void)number;
}

/* The way back from a handler, which a C library would bring: rt_sigreturn(2). */
void restore_from_signal(void);
__asm__("restore_from_signal:\n"
	"	mov $15, %eax\n"
	"	syscall\n");

void loop_begin(void)
{
	struct sigaction action = {
		.sa_handler = on_child,
		.sa_flags = SA_RESTORER | SA_NOCLDSTOP,
		.sa_restorer = restore_from_signal,
	};
	/* SIGTTOU: a child may put itself into the foreground, see process.c. */
	uint64_t blocked = SIG_BIT(SIGCHLD) | SIG_BIT(SIGTTOU);

	sys6(__NR_rt_sigaction, SIGCHLD, (long)&action, 0, SIGNALS_SIZE, 0, 0);
	sys6(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, (long)&blocked, 0, SIGNALS_SIZE, 0, 0);
}

bool loop_open_links(const struct setup *setup)
{
	uint64_t limit = milliseconds() + LINK_PATIENCE;

	has_links = true;
	links_begin();
	if (setup->vsock) {
		listener = link_listen(setup->vsock);
		if (listener < 0)
			report_trouble("vsock", "listen", listener);
	}
	/* Ports come to light a while after the driver: the device has to name them. */
	while (!link_open_port(setup->link)) {
		if (listener >= 0)
			return true;
		if (milliseconds() > limit)
			return false;
		sleep_milliseconds(SEARCH_PERIOD);
	}
	return true;
}

static void take_sizes(void)
{
	static char line[32];
	static size_t length;
	char byte;

	while (sys_read(sizes, &byte, 1) == 1) {
		if (byte != '\n') {
			if (length < sizeof(line) - 1)
				line[length++] = byte;
			continue;
		}
		char *rest = line, *rows;

		line[length] = '\0';
		length = 0;
		rows = next_field(&rest, ' ');
		if (rest)
			terminal_size(console, (unsigned int)number_or(rows, 0xffff, 0),
				      (unsigned int)number_or(rest, 0xffff, 0));
	}
}

/* True if the process that is waited for has ended. */
static bool reap(int wanted, int *status)
{
	bool found = false;
	int number, ended;

	while ((ended = (int)sys6(__NR_wait4, -1, (long)&number, WNOHANG, 0, 0, 0)) > 0) {
		if (ended == wanted) {
			*status = number;
			found = true;
		}
		if (has_links)
			session_reaped(ended, number & 0x7f ? 128 + (number & 0x7f) :
							      (number >> 8) & 0xff);
	}
	return found;
}

static long wait_for(struct pollfd *entries, size_t count, int limit)
{
	struct {
		int64_t seconds, nanoseconds;
	} length = { limit / 1000, (int64_t)(limit % 1000) * 1000000 };
	uint64_t none = 0; /* of all signals */

	for (size_t at = 0; at < count; at++)
		entries[at].revents = 0;
	return sys6(__NR_ppoll, (long)entries, (long)count, limit < 0 ? 0 : (long)&length,
		    (long)&none, SIGNALS_SIZE, 0);
}

/* A port without another end would end every poll at once, so it is looked at now and then. */
static int poll_links(void)
{
	int limit = -1;

	for (size_t at = 0; at < LINKS_MAX; at++) {
		struct pollfd *entry = &fds[POLL_LINKS + at];

		entry->fd = links[at].fd;
		if (links[at].fd < 0)
			continue;
		entry->events = link_events(&links[at]);
		if (links[at].away) {
			entry->fd = -1;
			limit = AWAY_PERIOD;
		}
	}
	return limit;
}

static void move_links(void)
{
	for (size_t at = 0; at < LINKS_MAX; at++) {
		struct pollfd look = fds[POLL_LINKS + at];

		if (links[at].fd < 0)
			continue;
		if (links[at].away) {
			look = (struct pollfd){ .fd = links[at].fd, .events = POLLIN };
			if (wait_for(&look, 1, 0) < 0 || (look.revents & POLLHUP))
				continue;
		}
		if (!link_move(&links[at], look.revents))
			link_close(&links[at]);
	}
}

static void turn(void)
{
	size_t count = POLL_SESSIONS;
	int limit = -1;

	fds[POLL_LISTENER] = (struct pollfd){ .fd = listener, .events = POLLIN };
	fds[POLL_SIZES] = (struct pollfd){ .fd = sizes, .events = POLLIN };
	if (has_links) {
		limit = poll_links();
		count += sessions_poll(fds + POLL_SESSIONS);
	} else {
		for (size_t at = 0; at < LINKS_MAX; at++)
			fds[POLL_LINKS + at].fd = -1;
	}
	if (wait_for(fds, count, limit) < 0)
		for (size_t at = 0; at < count; at++)
			fds[at].revents = 0;
	if (fds[POLL_SIZES].revents)
		take_sizes();
	if (fds[POLL_LISTENER].revents)
		link_accept(listener);
	if (has_links)
		move_links();
}

int loop_until_exit(int pid, int terminal)
{
	int status = 0;

	if (terminal >= 0) {
		console = terminal;
		sizes = (int)sys_open(SIZE_PORT, O_RDONLY | O_NOCTTY | O_NONBLOCK);
		terminal_raw(sizes);
	}
	while (!reap(pid, &status))
		turn();
	return status;
}

unsigned int loop_until_power(void)
{
	int status;

	while (!sessions_power()) {
		reap(0, &status);
		sessions_move(fds + POLL_SESSIONS);
		turn();
	}
	return sessions_power();
}

void loop_end_processes(unsigned int patience)
{
	uint64_t limit = milliseconds() + patience;
	int status;

	if (patience && !sys_kill(-1, SIGTERM)) {
		sys_kill(-1, SIGCONT);
		while (milliseconds() < limit) {
			reap(0, &status);
			if (sys_kill(-1, 0) == -ESRCH)
				return;
			sleep_milliseconds(2);
		}
	}
	sys_kill(-1, SIGKILL);
	reap(0, &status);
}
