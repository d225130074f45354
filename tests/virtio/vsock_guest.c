/* A program in the guest: vsock_guest echo PORT | send PORT BYTES | recv PORT | refused PORT
 * echo: listen, and give each of many connections its bytes back, until it ends.
 * send: connect to the host, send, and print what comes back.
 * recv: connect to the host, count what it sends.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <unistd.h>

static char buffer[65536];

static int open_socket(unsigned cid, unsigned port, int listening)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (listening ? bind(fd, (void *)&address, sizeof(address)) || listen(fd, 128)
		      : connect(fd, (void *)&address, sizeof(address))) {
		printf("failed: %s\n", strerror(errno));
		return -1;
	}
	return fd;
}

static void put(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t done = write(fd, data, size);

		if (done <= 0) {
			printf("write: %s\n", strerror(errno));
			return;
		}
		data += done;
		size -= done;
	}
}

static void echo(unsigned port)
{
	static struct pollfd fds[512];
	int count = 1;

	fds[0].fd = open_socket(VMADDR_CID_ANY, port, 1);
	fds[0].events = POLLIN;
	puts("listening");
	fflush(stdout);
	for (;;) {
		poll(fds, count, -1);
		for (int at = count - 1; at > 0; at--) {
			ssize_t size;

			if (!fds[at].revents)
				continue;
			size = read(fds[at].fd, buffer, sizeof(buffer));
			if (size == 4 && !memcmp(buffer, "quit", 4))
				return;
			if (size > 0) {
				put(fds[at].fd, buffer, size);
				continue;
			}
			close(fds[at].fd);
			fds[at] = fds[--count];
		}
		if (fds[0].revents) {
			fds[count].fd = accept(fds[0].fd, NULL, NULL);
			fds[count].revents = 0;
			fds[count++].events = POLLIN;
		}
	}
}

int main(int argc, char **argv)
{
	unsigned port = atoi(argv[2]);
	long size = argc > 3 ? atol(argv[3]) : 0, total = 0;
	ssize_t got;
	int fd;

	if (!strcmp(argv[1], "echo")) {
		echo(port);
		return 0;
	}
	fd = open_socket(VMADDR_CID_HOST, port, 0);
	if (fd < 0)
		return 1;
	memset(buffer, 'g', sizeof(buffer));
	for (; size > 0; size -= sizeof(buffer))
		put(fd, buffer, size < (long)sizeof(buffer) ? (size_t)size : sizeof(buffer));
	shutdown(fd, SHUT_WR);
	while ((got = read(fd, buffer, sizeof(buffer))) > 0)
		total += got;
	printf("%s got %ld%s\n", argv[1], total, got ? " and an error" : "");
	return 0;
}
