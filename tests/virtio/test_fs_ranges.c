/* Random writes, reads, truncations, mappings, holes and copies of one file, each
 * checked against a copy in memory. Two descriptors, closed and opened again now and
 * then. Arguments: file, seed, number of steps. Prints "ok" or what differs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 300000 };

static char want[MOST], got[MOST], data[MOST];
static long size;

static long below(long n)
{
	return n > 0 ? random() % n : 0;
}

static int wrong(int step, const char *what, long at, long n)
{
	printf("FAILED step %d: %s of %ld at %ld, size %ld, errno %d\n", step, what, n, at, size, errno);
	return 1;
}

int main(int argc, char **argv)
{
	int fds[2], step, i, steps = argc > 3 ? atoi(argv[3]) : 0;
	struct stat s;
	char *map;
	if (argc < 4)
		return 2;
	srandom(atoi(argv[2]));
	fds[0] = open(argv[1], O_CREAT | O_TRUNC | O_RDWR, 0644);
	fds[1] = open(argv[1], O_RDWR);
	for (step = 0; step < steps; step++) {
		int fd = fds[random() & 1];
		long at = below(MOST - 1), n = below(random() & 3 ? 20000 : 100), end;
		if (at + n > MOST)
			n = MOST - at;
		end = at + n;
		switch (random() % 10) {
		case 0: case 1: case 2: /* write */
			for (i = 0; i < n; i++)
				data[i] = random();
			if (n && pwrite(fd, data, n, at) != n)
				return wrong(step, "write", at, n);
			if (n) {
				memcpy(want + at, data, n);
				if (end > size)
					size = end;
			}
			break;
		case 3: /* truncate */
			if (ftruncate(fd, at))
				return wrong(step, "truncate", at, 0);
			if (at < size)
				memset(want + at, 0, size - at);
			size = at;
			break;
		case 4: /* write through a mapping */
			if (at >= size)
				break;
			if (end > size)
				end = size;
			map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			if (map == MAP_FAILED)
				return wrong(step, "map", at, n);
			if (memcmp(map, want, size))
				return wrong(step, "mapping", 0, size);
			memset(map + at, step, end - at);
			memset(want + at, step, end - at);
			munmap(map, size);
			break;
		case 5: /* hole */
			if (n && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, n))
				return wrong(step, "hole", at, n);
			memset(want + at, 0, n);
			break;
		case 6: /* room */
			if (n && fallocate(fd, 0, at, n))
				return wrong(step, "room", at, n);
			if (n && end > size)
				size = end;
			break;
		case 7: /* copy to somewhere it does not overlap */
			if (2 * n <= size) {
				off_t from = 0, to = size - n;
				if (n && copy_file_range(fds[0], &from, fds[1], &to, n, 0) != n)
					return wrong(step, "copy", size - n, n);
				memcpy(want + size - n, want, n);
			}
			break;
		case 8: /* close, open */
			i = random() & 1;
			close(fds[i]);
			fds[i] = open(argv[1], O_RDWR);
			if (fds[i] < 0 || (random() % 4 == 0 && fsync(fds[i])))
				return wrong(step, "open", 0, 0);
			break;
		}
		if (fstat(fds[0], &s) || s.st_size != size)
			return wrong(step, "size", s.st_size, 0);
		n = pread(fds[random() & 1], got, MOST, 0);
		if (n != size || memcmp(got, want, size)) {
			for (i = 0; i < size && got[i] == want[i]; i++)
				;
			return wrong(step, "content", i, n);
		}
	}
	puts("ok");
	return 0;
}
