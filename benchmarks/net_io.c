// SPDX-License-Identifier: GPL-2.0-only
/*
 * A TCP stream in one direction, and questions with answers, for benchmarks/net.py:
 *   net_io send|receive|ask ADDRESS PORT COUNT
 * COUNT is bytes, or questions of one byte.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[256 << 10];

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	long left, done, one = 1;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (argc != 5)
		return 2;
	inet_aton(argv[2], &to.sin_addr);
	to.sin_port = htons((unsigned short)atoi(argv[3]));
	left = atol(argv[4]);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int));
	if (connect(fd, (struct sockaddr *)&to, sizeof(to))) {
		perror("connect");
		return 1;
	}
	/* What is wanted of the server: a letter and a number. */
	memset(buffer, ' ', 32);
	buffer[snprintf(buffer, 32, "%c%s", argv[1][0], argv[4])] = ' ';
	if (write(fd, buffer, 32) != 32)
		return 1;
	for (; left > 0; left -= done) {
		size_t size = left < (long)sizeof(buffer) ? (size_t)left : sizeof(buffer);

		if (argv[1][0] == 'a')
			done = write(fd, buffer, 1) == 1 && read(fd, buffer, 1) == 1;
		else
			done = argv[1][0] == 's' ? write(fd, buffer, size) : read(fd, buffer, size);
		if (done <= 0) {
			perror(argv[1]);
			return 1;
		}
	}
	shutdown(fd, SHUT_WR);
	return read(fd, buffer, 1) < 0; /* until the other side has all */
}
