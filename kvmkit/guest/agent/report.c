// SPDX-License-Identifier: GPL-2.0-only
#include "report.h"
#include "console.h"
#include "sys.h"
#include "text.h"

#define PORT "/dev/ttyS3"
#define LINE_MAX 200 /* the host takes 256 bytes a line */

static int port = -1;

/* The port is opened with the first report: that costs time, and a shell makes none. */
static void send(struct text *line)
{
	if (port == -1) {
		long fd = sys_open(PORT, O_RDWR | O_NOCTTY);

		port = fd < 0 ? -2 : (int)fd;
		if (port >= 0)
			terminal_raw(port);
	}
	if (port < 0)
		return;
	if (line->length > LINE_MAX)
		line->length = LINE_MAX;
	for (size_t at = 0; at < line->length; at++)
		if (line->data[at] == '\n')
			line->data[at] = ' ';
	line->data[line->length++] = '\n';
	write_all(port, line->data, line->length);
}

static void begin(struct text *line, const char *word)
{
	text_clear(line);
	text_add(line, "kvmkit: ");
	text_add(line, word);
}

void report(const char *word, const char *rest)
{
	struct text line;

	begin(&line, word);
	if (*rest)
		text_add(&line, " ");
	text_add(&line, rest);
	send(&line);
}

void report_exit(int status)
{
	struct text line;

	begin(&line, "exit ");
	text_add_number(&line, status);
	send(&line);
}

void report_trouble(const char *what, const char *name, long error)
{
	struct text line;

	begin(&line, "trouble ");
	text_add(&line, what);
	text_add(&line, " ");
	text_add(&line, name);
	text_add(&line, " ");
	text_add_number(&line, -error);
	send(&line);
}

void report_finish(void)
{
	if (port >= 0)
		terminal_drain(port);
}
