// SPDX-License-Identifier: GPL-2.0-only
#include "process.h"
#include "text.h"
#include "user.h"

#define SIGNALS_SIZE 8 /* bytes of the kernel's sigset_t */

int process_status(int wait_status)
{
	int number = wait_status & 0x7f;

	return number ? STATUS_SIGNAL + number : (wait_status >> 8) & 0xff;
}

static __attribute__((noreturn)) void fail(const char *name, const char *problem, int status)
{
	struct text line;

	text_clear(&line);
	text_add(&line, name);
	text_add(&line, ": ");
	text_add(&line, problem);
	text_add(&line, "\n");
	write_all(2, line.data, line.length);
	sys_exit(status);
}

/* Returns only if it cannot be executed. */
static long execute(const char *path, struct order *order)
{
	long error = sys3(__NR_execve, (long)path, (long)order->argv, (long)order->envp);

	if (error != -ENOEXEC)
		return error;
	/* A script that does not say of which shell (POSIX execvp): argv[0] makes room. */
	char **with_shell = map_memory((order->arguments + 2) * sizeof(char *));

	if (!with_shell)
		return -ENOMEM;
	with_shell[0] = "sh";
	with_shell[1] = (char *)path;
	for (size_t at = 1; at < order->arguments; at++)
		with_shell[at + 1] = order->argv[at];
	return sys3(__NR_execve, (long)"/bin/sh", (long)with_shell, (long)order->envp);
}

/* In the directories of a PATH; the last error that says more than "not here" counts. */
static long search(const char *name, const char *path, struct order *order)
{
	long result = -ENOENT, error;
	struct text candidate;

	for (const char *next = path ? path : ""; next;) {
		text_clear(&candidate);
		for (; *next && *next != ':'; next++)
			text_add_letter(&candidate, *next);
		next = *next ? next + 1 : NULL;
		text_add(&candidate, candidate.length ? "/" : "./");
		text_add(&candidate, name);
		error = execute(candidate.data, order);
		if (error == -EACCES)
			result = error;
		else if (error != -ENOENT && error != -ENOTDIR)
			return error;
	}
	return result;
}

static __attribute__((noreturn)) void become(struct order *order)
{
	const char *name = order->argv[0];
	struct user user;
	bool has_slash = false;
	long error;

	if (!user_find(order->user, order->groups, &user))
		fail(order->user, "no such user in the guest", STATUS_CANNOT_EXECUTE);
	if (!user_become(&user))
		fail(order->user ? order->user : "root", "cannot become this user",
		     STATUS_CANNOT_EXECUTE);
	order_setenv(order, user.home_variable, false);
	order_setenv(order, user.name_variable, false);
	order_setenv(order, user.logname_variable, false);
	if (order->cwd) {
		error = sys_chdir(order->cwd);
		if (error)
			fail(order->cwd,
			     error == -EACCES ? "Permission denied" : "no such directory in the guest",
			     STATUS_CANNOT_EXECUTE);
	} else if (sys_chdir(order_getenv(order, "HOME"))) {
		sys_chdir("/");
	}
	for (const char *letter = name; *letter; letter++)
		has_slash |= *letter == '/';
	if (has_slash)
		error = execute(name, order);
	else
		error = search(name, order_getenv(order, "PATH"), order);
	if (error == -ENOENT || error == -ENOTDIR)
		fail(name, "not found in the guest", STATUS_NOT_FOUND);
	fail(name,
	     error == -EACCES	 ? "Permission denied" :
	     error == -E2BIG	 ? "Argument list too long" :
	     error == -ENOEXEC	 ? "Exec format error" :
				   "cannot be executed",
	     STATUS_CANNOT_EXECUTE);
}

int process_start(struct order *order, const struct start *start)
{
	uint64_t none = 0;
	int pid = start->share ? sys_vfork() : sys_fork(), group;

	if (pid)
		return pid;
	if (start->session)
		sys3(__NR_setsid, 0, 0, 0);
	else
		sys3(__NR_setpgid, 0, 0, 0);
	for (int target = 0; target < 3; target++)
		if (start->streams[target] != target)
			sys_dup2(start->streams[target], target);
	if (start->terminal) {
		if (start->session)
			sys_ioctl(0, TIOCSCTTY, (void *)0);
		group = (int)sys3(__NR_getpid, 0, 0, 0);
		sys_ioctl(0, TIOCSPGRP, &group); /* with SIGTTOU blocked, see loop.c */
	}
	sys6(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, (long)&none, 0, SIGNALS_SIZE, 0, 0);
	become(order);
}
