// SPDX-License-Identifier: GPL-2.0-only
#include "setup.h"
#include "report.h"
#include "text.h"

static char *shell[] = { "/bin/sh", "-l", NULL };

static bool take_mount(struct setup *setup, char *record)
{
	struct mount *mount = &setup->mounts[setup->mount_count ? setup->mount_count - 1 : 0];
	char *value;

	if ((value = after(record, "mount="))) {
		if (setup->mount_count == MOUNTS_MAX) {
			report_trouble("mount", value, -E2BIG);
			return true;
		}
		mount = &setup->mounts[setup->mount_count++];
		mount->target = value;
		mount->type = mount->source = "none";
	} else if ((value = after(record, "type="))) {
		mount->type = value;
	} else if ((value = after(record, "source="))) {
		mount->source = value;
	} else if ((value = after(record, "options="))) {
		mount->options = value;
	} else {
		return false;
	}
	return true;
}

static void take(struct setup *setup, char *record)
{
	char *value;

	if (order_take(&setup->order, record) || take_mount(setup, record))
		return;
	if ((value = after(record, "hostname=")))
		setup->hostname = value;
	else if ((value = after(record, "console=")))
		setup->console = value;
	else if ((value = after(record, "link=")))
		setup->link = value;
	else if ((value = after(record, "root=")))
		setup->root = value;
	else if ((value = after(record, "vsock=")))
		setup->vsock = (unsigned int)number_or(value, UINT32_MAX - 1, 0);
}

/* The environment that the kernel gave us; ours are not passed on. */
static void take_environment(struct setup *setup)
{
	static char *const names[] = { "KVMKIT_CONSOLE", "KVMKIT_NAME", "KVMKIT_QUIET",
				       "KVMKIT_ROWS", "KVMKIT_COLUMNS", "KVMKIT_NET" };
	struct order *order = &setup->order;
	const char *value[COUNT(names)];

	for (size_t at = 0; at < COUNT(names); at++)
		value[at] = order_getenv(order, names[at]);
	setup->console = value[0];
	setup->hostname = value[1] ? value[1] : "kvmkit";
	setup->network = (char *)value[5];
	setup->quiet = value[2] && same(value[2], "1");
	if (value[3] && value[4]) {
		order->rows = (unsigned int)number_or(value[3], 0xffff, 0);
		order->columns = (unsigned int)number_or(value[4], 0xffff, 0);
	}
	for (size_t at = 0; at < COUNT(names); at++)
		order_unsetenv(order, names[at]);
	/* The kernel's own HOME is "/": ours depends on the user. */
	order_unsetenv(order, "HOME");
	order_setenv(order, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		     true);
}

bool setup_read(struct setup *setup, char **environment)
{
	char *text = map_memory(INSTRUCTIONS_MAX), *at = text, *record;
	size_t size;

	if (!text)
		return false;
	size = read_file(INSTRUCTIONS, text, INSTRUCTIONS_MAX);
	if (!order_begin(&setup->order, environment, text, size))
		return false;
	take_environment(setup);
	record = next_record(&at, text + size);
	if (!record) {
		setup->shell = true;
		setup->order.argv = shell;
		setup->order.mode = MODE_TTY;
		return true;
	}
	if (!same(record, "kvmkit-agent=1")) {
		report("failed", "the instructions are not of version 1");
		return false;
	}
	while ((record = next_record(&at, text + size)))
		take(setup, record);
	return true;
}
