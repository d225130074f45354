/* SPDX-License-Identifier: GPL-2.0-only */
/* The machine as a whole: its modules, its name, its network with itself, its end. */
#ifndef KVMKIT_AGENT_SYSTEM_H
#define KVMKIT_AGENT_SYSTEM_H

#include "sys.h"

void load_modules(void);
void set_hostname(const char *name);
void loopback_up(void);

/* Which of the kernel's messages the console shows: 0 not even panics, 1 those. */
void console_level(char level);

/* LINUX_REBOOT_CMD_POWER_OFF, _RESTART or _HALT; what the kernel holds is written first. */
__attribute__((noreturn)) void switch_off(unsigned int how);

#endif
