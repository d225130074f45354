// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a C library would bring: the entry point, the memory functions that the
 * compiler calls by itself, and small helpers around system calls.
 */
#include "sys.h"

int main(int argc, char **argv, char **envp);

/*
 * System V ABI, AMD64 supplement, 3.4.1: at the entry rsp points to argc, argv
 * and envp follow, each ended by a null pointer.
 */
__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call start_with\n"
	"	hlt\n");

__attribute__((noreturn, used)) void start_with(long *stack)
{
	int argc = (int)stack[0];
	char **argv = (char **)(stack + 1);

	sys_exit(main(argc, argv, argv + argc + 1));
}

/* The string instructions are short, and fast on every CPU this runs on. */
void *memcpy(void *to, const void *from, size_t size)
{
	void *start = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
	return start;
}

void *memset(void *to, int value, size_t size)
{
	void *start = to;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
	return start;
}

void *memmove(void *to, const void *from, size_t size)
{
	char *target = to;
	const char *source = from;

	if (target <= source || target >= source + size)
		return memcpy(to, from, size);
	while (size--)
		target[size] = source[size];
	return to;
}

int memcmp(const void *left, const void *right, size_t size)
{
	const unsigned char *a = left, *b = right;

	for (; size; size--, a++, b++)
		if (*a != *b)
			return *a - *b;
	return 0;
}

size_t read_file(const char *path, char *data, size_t size)
{
	size_t length = 0;
	long fd = sys_open(path, O_RDONLY), got = 0;

	if (fd >= 0) {
		while (length < size - 1) {
			got = sys_read((int)fd, data + length, size - 1 - length);
			if (got <= 0)
				break;
			length += (size_t)got;
		}
		sys_close((int)fd);
	}
	data[length] = '\0';
	return length;
}

void write_file(const char *path, const char *text)
{
	long fd = sys_open(path, O_WRONLY);
	size_t length = 0;

	while (text[length])
		length++;
	if (fd < 0)
		return;
	sys_write((int)fd, text, length);
	sys_close((int)fd);
}

bool write_all(int fd, const void *data, size_t size)
{
	const char *next = data;

	while (size) {
		long done = sys_write(fd, next, size);

		if (done == -EINTR)
			continue;
		if (done == -EAGAIN) {
			sleep_milliseconds(1);
			continue;
		}
		if (done <= 0)
			return false;
		next += done;
		size -= (size_t)done;
	}
	return true;
}

void *map_memory(size_t size)
{
	long at = sys6(__NR_mmap, 0, (long)size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at < 0 && at > -4096)
		return NULL;
	small_pages((void *)at, size);
	return (void *)at;
}

void small_pages(void *memory, size_t size)
{
	size_t start = (size_t)memory & ~(size_t)(PAGE_SIZE - 1);

	sys3(__NR_madvise, (long)start, (long)((size_t)memory + size - start), MADV_NOHUGEPAGE);
}

void unmap_memory(void *memory, size_t size)
{
	sys3(__NR_munmap, (long)memory, (long)size, 0);
}

uint64_t milliseconds(void)
{
	struct {
		int64_t seconds, nanoseconds;
	} now = { 0, 0 };

	sys3(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, (long)&now, 0);
	return (uint64_t)now.seconds * 1000 + (uint64_t)now.nanoseconds / 1000000;
}

void sleep_milliseconds(unsigned int count)
{
	struct {
		int64_t seconds, nanoseconds;
	} length = { count / 1000, (int64_t)(count % 1000) * 1000000 };

	sys3(__NR_nanosleep, (long)&length, 0, 0);
}
