/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's system calls, without a C library.
 *
 * The agent is the first process of guests that start in a fraction of a second,
 * so it is one small static program: no dynamic linker, no libc start-up, no heap.
 * Constants and structures come from the kernel's own UAPI headers. Every call
 * returns what the kernel returns: a negative errno is an error. x86-64 only.
 */
#ifndef KVMKIT_AGENT_SYS_H
#define KVMKIT_AGENT_SYS_H

#include <asm/poll.h>
#include <asm/signal.h>
#include <asm/stat.h>
#include <asm/termios.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/reboot.h>
#include <linux/stat.h>
#include <linux/wait.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROT_READ 1
#define PROT_WRITE 2
#define MAP_PRIVATE 2
#define MAP_ANONYMOUS 0x20
#define MAP_NORESERVE 0x4000
#define MADV_NOHUGEPAGE 15
#define PAGE_SIZE 4096

/* Not in UAPI headers that can be included without a libc. */
#define AF_INET 2
#define AF_VSOCK 40
#define SOCK_STREAM 1
#define SOCK_DGRAM 2

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static inline long sys3(long n, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(n), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return result;
}

#define sys5(n, a, b, c, d, e) \
	sys6((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

static inline long sys_open(const char *path, int flags)
{
	return sys3(__NR_open, (long)path, flags | O_CLOEXEC, 0644);
}

static inline long sys_close(int fd)
{
	return sys3(__NR_close, fd, 0, 0);
}

static inline long sys_read(int fd, void *data, size_t size)
{
	return sys3(__NR_read, fd, (long)data, (long)size);
}

static inline long sys_write(int fd, const void *data, size_t size)
{
	return sys3(__NR_write, fd, (long)data, (long)size);
}

static inline long sys_ioctl(int fd, unsigned long request, const void *argument)
{
	return sys3(__NR_ioctl, fd, (long)request, (long)argument);
}

static inline long sys_mkdir(const char *path, unsigned int mode)
{
	return sys3(__NR_mkdir, (long)path, mode, 0);
}

static inline long sys_chdir(const char *path)
{
	return sys3(__NR_chdir, (long)path, 0, 0);
}

static inline long sys_mount(const char *source, const char *target, const char *type,
			     unsigned long flags, const char *data)
{
	return sys5(__NR_mount, source, target, type, flags, data);
}

static inline long sys_dup2(int from, int to)
{
	return sys3(__NR_dup2, from, to, 0);
}

static inline long sys_kill(int pid, int number)
{
	return sys3(__NR_kill, pid, number, 0);
}

static inline int sys_fork(void)
{
	return (int)sys3(__NR_fork, 0, 0, 0);
}

/*
 * A child that shares our memory until it executes a program, while we stand still:
 * spares copying. Only for a function that calls, in the child, what never returns.
 */
static inline __attribute__((always_inline)) int sys_vfork(void)
{
	return (int)sys3(__NR_vfork, 0, 0, 0);
}

static inline __attribute__((noreturn)) void sys_exit(int status)
{
	for (;;)
		sys3(__NR_exit_group, status, 0, 0);
}

static inline long sys_fcntl(int fd, int command, long argument)
{
	return sys3(__NR_fcntl, fd, command, argument);
}

/* The compiler calls these by itself too. */
void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *left, const void *right, size_t size);

/* What of a whole file's text could be read, at most size - 1 bytes, and a NUL. */
size_t read_file(const char *path, char *data, size_t size);

/* Write all of text to a file that exists; for the knobs of /proc and /sys. */
void write_file(const char *path, const char *text);

/* Write all, waiting as long as it takes; false if the other end is gone. */
bool write_all(int fd, const void *data, size_t size);

/* Zeroed memory that costs nothing until it is touched; NULL when there is none. */
void *map_memory(size_t size);
void unmap_memory(void *memory, size_t size);

/* Of large memory we touch little: clearing 2 MiB at the first touch takes milliseconds. */
void small_pages(void *memory, size_t size);

/* Milliseconds on a clock that never goes back. */
uint64_t milliseconds(void);
void sleep_milliseconds(unsigned int count);

#endif
