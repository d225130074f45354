// SPDX-License-Identifier: GPL-2.0-only
#include "console.h"
#include "text.h"

/* A character that no key sends: POSIX.1-2017, General Terminal Interface, 11.1.9. */
#define NONE '\0'
#define CTRL_D 4
#define CTRL_V 22

static struct termios as_found;

static bool is_terminal(int fd)
{
	struct termios settings;

	return sys_ioctl(fd, TCGETS, &settings) == 0;
}

/* The name of the kernel's console: the last of those that get its messages. */
static bool find_console(struct text *path, const char *name, bool *is_kernels)
{
	static char active[256];
	char *rest = active, *last = active, *word;
	size_t length = read_file("/sys/class/tty/console/active", active, sizeof(active));

	if (length && active[length - 1] == '\n')
		active[length - 1] = '\0';
	for (char *at = active; *at; at++)
		if (*at == ' ')
			last = at + 1;
	if (!name || !*name)
		name = last;
	else if (begins(name, "/dev/"))
		name += 5;
	text_clear(path);
	text_add(path, "/dev/");
	text_add(path, name);
	*is_kernels = false;
	while ((word = next_field(&rest, ' ')))
		*is_kernels |= same(word, path->data + 5);
	return *name;
}

void console_open(struct console *console, const char *name, enum mode mode)
{
	struct text path;
	long fd = -1;

	console->fd = 0;
	/*
	 * The kernel has opened its console as our fd 0, 1 and 2. That will do, except for
	 * a person: programs look for their terminal's name.
	 */
	if (!name && mode != MODE_TTY && is_terminal(0)) {
		console->is_kernels = true;
	} else {
		if (find_console(&path, name, &console->is_kernels))
			fd = sys_open(path.data, O_RDWR | O_NOCTTY);
		if (fd < 0 || !is_terminal((int)fd))
			fd = sys_open("/dev/console", O_RDWR | O_NOCTTY);
		if (fd < 0)
			fd = sys_open("/dev/null", O_RDWR);
		for (int target = 0; target < 3; target++)
			sys_dup2((int)fd, target);
		if (fd > 2)
			sys_close((int)fd);
	}
	sys_ioctl(0, TCGETS, &as_found);
}

void terminal_size(int fd, unsigned int rows, unsigned int columns)
{
	struct winsize size = { .ws_row = (unsigned short)rows,
				.ws_col = (unsigned short)columns };

	if (rows && columns)
		sys_ioctl(fd, TIOCSWINSZ, &size);
}

void terminal_raw(int fd)
{
	struct termios settings;

	if (sys_ioctl(fd, TCGETS, &settings))
		return;
	settings.c_iflag = 0;
	settings.c_oflag = 0;
	settings.c_lflag = 0;
	settings.c_cflag |= CLOCAL | CREAD;
	settings.c_cc[VMIN] = 1;
	settings.c_cc[VTIME] = 0;
	sys_ioctl(fd, TCSETS, &settings);
}

void terminal_drain(int fd)
{
	sys_ioctl(fd, TCSBRK, (void *)1);
}

/* Input in lines with two special characters only: kvmkit/guest/console_input.py says why. */
static void set_pipe(struct termios *settings)
{
	memset(settings->c_cc, NONE, sizeof(settings->c_cc));
	settings->c_cc[VEOF] = CTRL_D;
	settings->c_cc[VLNEXT] = CTRL_V;
	settings->c_iflag = 0;
	settings->c_lflag = ICANON | IEXTEN;
}

void console_set(const struct console *console, const struct order *order)
{
	struct termios settings = as_found;

	if (order->mode == MODE_TTY) {
		terminal_size(console->fd, order->rows, order->columns);
		return;
	}
	settings.c_oflag &= ~(tcflag_t)OPOST;
	settings.c_lflag &= ~(tcflag_t)ECHO;
	if (order->mode == MODE_PIPE)
		set_pipe(&settings);
	sys_ioctl(console->fd, TCSETS, &settings);
}

void console_finish(const struct console *console)
{
	sys_ioctl(console->fd, TCSETSW, &as_found); /* once the output has gone out */
}
