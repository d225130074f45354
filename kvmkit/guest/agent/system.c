// SPDX-License-Identifier: GPL-2.0-only
#include "system.h"
#include "report.h"
#include "setup.h"
#include "text.h"

#define MODULE_LIST_MAX (64 << 10)

/* Linux include/uapi/linux/if.h and sockios.h, which do not go without a libc. */
#define SIOCGIFFLAGS 0x8913
#define SIOCSIFFLAGS 0x8914
#define IFF_UP 1

struct ifreq {
	char name[16];
	short flags;
	char rest[22];
};

static void load(char *line)
{
	char *parameters = line, *path = next_field(&parameters, ' ');
	long fd = sys_open(path, O_RDONLY), error = fd;

	if (fd >= 0) {
		error = sys3(__NR_finit_module, fd, (long)(parameters ? parameters : ""), 0);
		sys_close((int)fd);
	}
	/* EEXIST: built in, or loaded already. */
	if (error < 0 && error != -EEXIST)
		report_trouble("module", path, error);
}

void load_modules(void)
{
	char *list, *rest, *line;

	if (sys3(__NR_access, (long)MODULE_LIST, 0, 0))
		return;
	list = rest = map_memory(MODULE_LIST_MAX);
	if (!list)
		return;
	read_file(MODULE_LIST, list, MODULE_LIST_MAX);
	while ((line = next_field(&rest, '\n')))
		if (*line)
			load(line);
	unmap_memory(list, MODULE_LIST_MAX);
}

void set_hostname(const char *name)
{
	size_t length = length_of(name);

	sys3(__NR_sethostname, (long)name, (long)(length < 64 ? length : 64), 0);
}

void loopback_up(void)
{
	struct ifreq request = { .name = "lo" };
	int fd = (int)sys3(__NR_socket, AF_INET, SOCK_DGRAM | O_CLOEXEC, 0);

	if (fd < 0)
		return;
	sys_ioctl(fd, SIOCGIFFLAGS, &request);
	request.flags |= IFF_UP;
	sys_ioctl(fd, SIOCSIFFLAGS, &request);
	sys_close(fd);
}

void console_level(char level)
{
	char text[2] = { level, '\0' };

	write_file("/proc/sys/kernel/printk", text);
}

void switch_off(unsigned int how)
{
	sys3(__NR_sync, 0, 0, 0);
	report_finish();
	sys3(__NR_reboot, (long)LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, (long)how);
	/* Not allowed, or no such way: a first process must not end. */
	for (;;)
		sleep_milliseconds(1000);
}
