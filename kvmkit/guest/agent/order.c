// SPDX-License-Identifier: GPL-2.0-only
#include "order.h"
#include "text.h"

/* Variables that we add ourselves: PATH, HOME, USER, LOGNAME, TERM and some air. */
#define OWN_VARIABLES 16

char *next_record(char **at, const char *end)
{
	char *record = *at;

	if (record >= end)
		return NULL;
	*at = record + length_of(record) + 1;
	return record;
}

bool order_begin(struct order *order, char **environment, const char *text, size_t size)
{
	size_t records = 1, inherited = 0;

	memset(order, 0, sizeof(*order));
	order->mode = MODE_NULL;
	for (size_t at = 0; at < size; at++)
		records += !text[at];
	while (environment[inherited])
		inherited++;
	/* Either array could get all records; both end with a null pointer. */
	order->memory_size = (2 * records + inherited + OWN_VARIABLES + 2) * sizeof(char *);
	order->memory = map_memory(order->memory_size);
	if (!order->memory)
		return false;
	order->argv = order->memory;
	order->envp = order->argv + records + 1;
	for (size_t at = 0; at < inherited; at++)
		order->envp[order->variables++] = environment[at];
	return true;
}

static bool same_name(const char *left, const char *right)
{
	while (*left && *left != '=' && *left == *right)
		left++, right++;
	return (*left == '=' || !*left) && (*right == '=' || !*right);
}

static char **find(const struct order *order, const char *name)
{
	for (char **variable = order->envp; *variable; variable++)
		if (same_name(*variable, name))
			return variable;
	return NULL;
}

void order_setenv(struct order *order, char *assignment, bool replace)
{
	char **there = find(order, assignment);

	if (!there)
		order->envp[order->variables++] = assignment;
	else if (replace)
		*there = assignment;
}

char *order_getenv(const struct order *order, const char *name)
{
	char **there = find(order, name);

	return there ? after(*there + length_of(name), "=") : NULL;
}

void order_unsetenv(struct order *order, const char *name)
{
	char **there = find(order, name);

	if (there) {
		*there = order->envp[--order->variables];
		order->envp[order->variables] = NULL;
	}
}

static enum mode mode_of(const char *name)
{
	if (same(name, "tty"))
		return MODE_TTY;
	if (same(name, "pipe"))
		return MODE_PIPE;
	return same(name, "agent") ? MODE_AGENT : MODE_NULL;
}

bool order_take(struct order *order, char *record)
{
	char *value;

	if ((value = after(record, "arg=")))
		order->argv[order->arguments++] = value;
	else if ((value = after(record, "env=")))
		order_setenv(order, value, true);
	else if ((value = after(record, "cwd=")))
		order->cwd = value;
	else if ((value = after(record, "user=")))
		order->user = value;
	else if ((value = after(record, "groups=")))
		order->groups = value;
	else if ((value = after(record, "mode=")))
		order->mode = mode_of(value);
	else if ((value = after(record, "rows=")))
		order->rows = (unsigned int)number_or(value, 0xffff, 0);
	else if ((value = after(record, "columns=")))
		order->columns = (unsigned int)number_or(value, 0xffff, 0);
	else
		return false;
	return true;
}

void order_end(struct order *order)
{
	if (order->memory)
		unmap_memory(order->memory, order->memory_size);
	order->memory = NULL;
}
