/*
 * Reads and writes of a block device past the guest's page cache (O_DIRECT), for
 * benchmarks and for judging a disk. Compiled -static, so that it runs in any guest.
 *
 *   disk_io DEVICE read|write seq|rand BLOCK COUNT DEPTH
 *	COUNT requests of BLOCK bytes by DEPTH processes in all; random ones lie
 *	within the first SPAN bytes, sequential ones follow each other.
 *   disk_io DEVICE fill|check SEED BYTES
 *	"fill" writes numbers that tell seed and place, in pieces of many sizes and
 *	in random order, and flushes; "check" reads them back, in other pieces.
 *
 * The exit status is 1 for an error or a wrong number, which is told.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SPAN (256u << 20)
#define MOST (1u << 20)	/* bytes of a piece */
#define SECTOR 512u

static uint64_t state;

static uint64_t chance(void)	/* xorshift64 */
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static int fail(const char *what, uint64_t offset)
{
	printf("disk_io: %s at %llu: %s\n", what, (unsigned long long)offset, strerror(errno));
	return 1;
}

static int requests(int fd, int writing, int random, size_t block, long count, int part, int parts)
{
	uint64_t blocks = SPAN / block;
	char *buffer;

	if (posix_memalign((void **)&buffer, 4096, block))
		return fail("memory", 0);
	memset(buffer, part + 1, block);
	state = 88172645463325252ull + part;
	for (long i = part; i < count; i += parts) {
		uint64_t at = (random ? chance() % blocks : i % blocks) * block;
		ssize_t done = writing ? pwrite(fd, buffer, block, at) : pread(fd, buffer, block, at);

		if (done != (ssize_t)block)
			return fail(writing ? "write" : "read", at);
	}
	return 0;
}

static int measure(int fd, char **words)
{
	int writing = words[0][0] == 'w', random = words[1][0] == 'r', wrong = 0, status;
	int depth = atoi(words[4]);

	for (int part = 0; part < depth; part++) {
		if (fork() == 0)
			_exit(requests(fd, writing, random, atol(words[2]), atol(words[3]), part, depth));
	}
	while (wait(&status) > 0)
		wrong |= status;
	if (writing && fdatasync(fd))
		return fail("flush", 0);
	return wrong != 0;
}

static uint64_t number(uint64_t seed, uint64_t place)
{
	return (place + 1) * 0x9e3779b97f4a7c15ull ^ seed;
}

static int pieces(int fd, int writing, uint64_t seed, uint64_t bytes)
{
	static uint64_t starts[1 << 16];
	size_t count = 0;
	uint64_t *buffer;

	if (posix_memalign((void **)&buffer, 4096, MOST))
		return fail("memory", 0);
	state = seed + (writing ? 1 : 2);
	for (uint64_t at = 0; at < bytes && count + 1 < sizeof(starts) / sizeof(*starts);) {
		starts[count++] = at;
		at += SECTOR * (1 + chance() % (chance() % 4 ? 16 : MOST / SECTOR));
	}
	if (count == 0)
		return 0;
	uint64_t *order = malloc(count * sizeof(*order));
	for (size_t i = 0; i < count; i++) {
		size_t other = chance() % (i + 1);
		order[i] = order[other];
		order[other] = i;
	}
	starts[count] = bytes;
	for (size_t i = 0; i < count; i++) {
		uint64_t at = starts[order[i]];
		size_t size = starts[order[i] + 1] - at;

		while (size) {
			size_t part = size < MOST ? size : MOST, words = part / 8;

			if (writing)
				for (size_t j = 0; j < words; j++)
					buffer[j] = number(seed, at / 8 + j);
			ssize_t done = writing ? pwrite(fd, buffer, part, at) : pread(fd, buffer, part, at);
			if (done != (ssize_t)part)
				return fail(writing ? "write" : "read", at);
			for (size_t j = 0; j < words; j++)
				if (buffer[j] != number(seed, at / 8 + j)) {
					errno = EILSEQ;
					return fail("wrong number", at + 8 * j);
				}
			at += part;
			size -= part;
		}
	}
	if (writing && fdatasync(fd))
		return fail("flush", 0);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc != 7 && argc != 5)
		return 2;
	int fd = open(argv[1], O_RDWR | O_DIRECT);
	if (fd < 0)
		fd = open(argv[1], O_RDONLY | O_DIRECT);
	if (fd < 0)
		return fail("open", 0);
	if (argc == 7)
		return measure(fd, argv + 2);
	return pieces(fd, argv[2][0] == 'f', strtoull(argv[3], 0, 0), strtoull(argv[4], 0, 0));
}
