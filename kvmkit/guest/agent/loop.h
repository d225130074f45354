/* SPDX-License-Identifier: GPL-2.0-only */
/* What the first process does while programs run: reap, pass on, wait. */
#ifndef KVMKIT_AGENT_LOOP_H
#define KVMKIT_AGENT_LOOP_H

#include "setup.h"

#define LINK_PATIENCE 10000 /* ms for the host's port to appear */

/* Before the first child: its end must not be missed. */
void loop_begin(void);

/* Open the link and listen, as the setup says. False if there is no way to the host. */
bool loop_open_links(const struct setup *setup);

/* Until the process with that ID has ended: its status as wait(2) has it. */
int loop_until_exit(int pid, int console);

/* Until the host wants the machine to end: an argument for switch_off(). */
unsigned int loop_until_power(void);

/* End all processes: politely, and after that many ms by force. */
void loop_end_processes(unsigned int patience);

#endif
