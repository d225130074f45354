// SPDX-License-Identifier: GPL-2.0-only
/* netdevice(7) and rtentry of ioctl_route; DHCP is busybox's affair. */
#include "network.h"
#include "report.h"
#include "sys.h"
#include "text.h"

#include <linux/sockios.h>

#define NAME_MAX_SIZE 16
#define IFF_UP 1
#define RTF_UP 1
#define RTF_GATEWAY 2
#define DHCP_PROGRAM "/bin/udhcpc"
#define RESOLV_CONF "/etc/resolv.conf"

/* struct sockaddr_in, sockaddr's size */
struct address {
	uint16_t family, port;
	uint32_t number; /* as on the wire */
	char rest[8];
};

/* struct ifreq */
struct request {
	char name[NAME_MAX_SIZE];
	union {
		struct address address;
		short flags;
		char rest[24];
	};
};

/* struct rtentry of 64-bit kernels */
struct route {
	unsigned long pad1;
	struct address target, router, mask;
	unsigned short flags;
	short pad2;
	unsigned long pad3;
	void *pad4;
	short metric;
	char *device;
	unsigned long mtu, window;
	unsigned short irtt;
};

/* The number of four decimal ones with points; 0 if it is none. */
static uint32_t parse_address(char *text)
{
	uint32_t number = 0;
	char *part;
	int parts = 0;

	for (; (part = next_field(&text, '.')); parts++)
		number |= (uint32_t)number_or(part, 255, 0) << (8 * (parts & 3));
	return parts == 4 ? number : 0;
}

static uint32_t mask_of(unsigned int bits)
{
	return bits ? __builtin_bswap32(~0U << (32 - bits)) : 0;
}

static long set_flags_up(int fd, struct request *request)
{
	long error = sys_ioctl(fd, SIOCGIFFLAGS, request);

	if (error)
		return error;
	request->flags |= IFF_UP;
	return sys_ioctl(fd, SIOCSIFFLAGS, request);
}

static long set_address(int fd, unsigned long what, const char *name, uint32_t number)
{
	struct request request = { .address = { .family = AF_INET, .number = number } };

	memcpy(request.name, name, length_of(name));
	return sys_ioctl(fd, what, &request);
}

static long set_router(int fd, uint32_t number)
{
	struct route route = {
		.target = { .family = AF_INET },
		.router = { .family = AF_INET, .number = number },
		.mask = { .family = AF_INET },
		.flags = RTF_UP | RTF_GATEWAY,
	};

	return sys_ioctl(fd, SIOCADDRT, &route);
}

static void set_name_server(const char *address)
{
	struct text line;
	long fd = sys_open(RESOLV_CONF, O_WRONLY | O_CREAT | O_TRUNC);

	if (fd < 0)
		return;
	text_clear(&line);
	text_add(&line, "nameserver ");
	text_add(&line, address);
	text_add(&line, "\n");
	write_all((int)fd, line.data, line.length);
	sys_close((int)fd);
}

static long ask(char *name, char **environment)
{
	char *words[] = { DHCP_PROGRAM, "-i", name, "-n", "-q", "-t", "3", "-T", "1", NULL };
	int pid = sys_fork(), status = 0;

	if (!pid) {
		int fd = (int)sys_open("/dev/null", O_RDWR);

		for (int stream = 0; fd >= 0 && stream < 3; stream++)
			sys_dup2(fd, stream);
		sys3(__NR_execve, (long)DHCP_PROGRAM, (long)words, (long)environment);
		sys_exit(1);
	}
	if (pid < 0)
		return pid;
	sys6(__NR_wait4, pid, (long)&status, 0, 0, 0, 0);
	return status ? -EADDRNOTAVAIL : 0;
}

static long card_up(int fd, char *card, char **environment)
{
	char *name = next_field(&card, ','), *address = next_field(&card, ',');
	char *router = next_field(&card, ','), *server = next_field(&card, ',');
	struct request request = { 0 };
	char *bits = address;
	long error;

	if (!name || !address || !*name || length_of(name) >= NAME_MAX_SIZE)
		return -EINVAL;
	memcpy(request.name, name, length_of(name));
	if (same(address, "dhcp")) {
		error = set_flags_up(fd, &request);
		return error ? error : ask(name, environment);
	}
	address = next_field(&bits, '/');
	error = set_address(fd, SIOCSIFADDR, name, parse_address(address));
	if (!error)
		error = set_address(fd, SIOCSIFNETMASK, name,
				    mask_of((unsigned int)number_or(bits ? bits : "", 32, 32)));
	if (!error)
		error = set_flags_up(fd, &request);
	if (!error && router && *router)
		error = set_router(fd, parse_address(router));
	if (!error && server && *server)
		set_name_server(server);
	return error;
}

void networks_up(char *text, char **environment)
{
	int fd = (int)sys3(__NR_socket, AF_INET, SOCK_DGRAM | O_CLOEXEC, 0);
	char *card;

	if (fd < 0)
		return;
	while ((card = next_field(&text, ';'))) {
		long error = card_up(fd, card, environment);

		if (error)
			report_trouble("network", card, error);
	}
	sys_close(fd);
}
