// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's first process: mounts what programs expect, loads modules, then runs
 * a program, a shell, or whatever the host orders, and switches the machine off.
 *
 * setup.h says what it is told and where; docs/guest-protocol.md how it talks to
 * the host. kvmkit/guest/init is the same in shell, without links, for hosts that
 * have no C compiler.
 */
#include "console.h"
#include "loop.h"
#include "mounts.h"
#include "network.h"
#include "process.h"
#include "report.h"
#include "session.h"
#include "system.h"
#include "text.h"

#define POLITENESS 500 /* ms for processes to end by themselves when the machine ends */
#define STATUS_FAILED 125 /* as env(1), timeout(1) and others have it for their own troubles */

static struct setup setup;

static int run_console(const struct console *console)
{
	struct order *order = &setup.order;
	struct start how = { .streams = { 0, 1, 2 }, .share = true };
	int pid;

	if (order->mode == MODE_TTY) {
		/* Our session, so that the terminal is not hung up before it is drained. */
		sys3(__NR_setsid, 0, 0, 0);
		sys_ioctl(console->fd, TIOCSCTTY, (void *)0);
		how.terminal = true;
	} else if (order->mode == MODE_NULL) {
		how.streams[0] = (int)sys_open("/dev/null", O_RDONLY);
	}
	if (!setup.shell)
		report("ready", "");
	pid = process_start(order, &how);
	if (pid < 0) {
		report_trouble("fork", order->argv[0], pid);
		return STATUS_CANNOT_EXECUTE;
	}
	return process_status(
		loop_until_exit(pid, order->mode == MODE_TTY ? console->fd : -1));
}

static int run_agent(void)
{
	unsigned int how;

	sessions_begin(setup.order.envp);
	if (!loop_open_links(&setup)) {
		report("failed", "no console port or vsock to the host");
		return STATUS_FAILED;
	}
	report("agent", PROTOCOL_VERSION);
	how = loop_until_power();
	loop_end_processes(POLITENESS);
	unmount_wanted(&setup);
	switch_off(how);
}

int main(int argc, char **argv, char **envp)
{
	struct console console;
	int status;

	(void)argc, (void)argv;
	loop_begin();
	mount_standard();
	if (!setup_read(&setup, envp)) {
		report_exit(STATUS_FAILED);
		switch_off(LINUX_REBOOT_CMD_POWER_OFF);
	}
	set_hostname(setup.hostname);
	loopback_up();
	if (setup.quiet)
		console_level('1');
	load_modules();
	if (setup.network)
		networks_up(setup.network, setup.order.envp);
	console_open(&console, setup.console, setup.order.mode);
	if (!mount_wanted(&setup))
		status = STATUS_FAILED;
	else if (setup.order.mode == MODE_AGENT)
		status = run_agent();
	else {
		console_set(&console, &setup.order);
		status = run_console(&console);
	}
	console_finish(&console);
	/* The kernel's "Power down" must not be the last line of a program's output. */
	if (console.is_kernels)
		console_level('0');
	/* The host ends the machine as soon as it knows the status: disks must be written by then. */
	sys3(__NR_sync, 0, 0, 0);
	if (!setup.shell)
		report_exit(status);
	if (setup.mount_count) {
		loop_end_processes(0);
		unmount_wanted(&setup);
	}
	switch_off(LINUX_REBOOT_CMD_POWER_OFF);
}
