/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the host tells the guest's first process, and where it is written.
 *
 * "/kvmkit/modules", from the archive with the modules: kernel modules in the order
 * in which they are loaded, one a line: a path, and after a blank parameters.
 *
 * "/kvmkit/instructions", from the archive made for one run: first the record
 * "kvmkit-agent=1", the version of this format, then records as in an order
 * (order.h) with these keys besides; mount may be repeated:
 *
 *   hostname=NAME      (default: KVMKIT_NAME, else "kvmkit")
 *   console=NAME       terminal of the program or shell (default: KVMKIT_CONSOLE,
 *                      else the kernel's console)
 *   link=PATH          a device for the agent's protocol, for guests without a
 *                      virtio console (default: the port "org.kvmkit.agent")
 *   vsock=PORT         listen there for the protocol as well
 *   mount=DIRECTORY    mount something; the next three keys say what
 *     type=NAME source=TEXT options=ro,bind,...
 *   root=DIRECTORY     after all mounts, make this the root and take /dev, /proc,
 *                      /sys, /run and /tmp along
 *
 * Without this file a shell runs on the console. From the kernel's environment
 * (words of its command line), all optional: KVMKIT_CONSOLE, KVMKIT_NAME,
 * KVMKIT_NET=eth0,10.0.2.15/24,10.0.2.2,10.0.2.3;eth1,dhcp (network cards: address,
 * router and name server, or a question for them), KVMKIT_QUIET=1 (no kernel messages on the console), KVMKIT_ROWS, KVMKIT_COLUMNS.
 *
 * The host is trusted with the guest, but not to be free of mistakes: lengths are
 * limits of arrays here, not of trust, and what exceeds them is reported.
 */
#ifndef KVMKIT_AGENT_SETUP_H
#define KVMKIT_AGENT_SETUP_H

#include "order.h"

#define INSTRUCTIONS "/kvmkit/instructions"
#define MODULE_LIST "/kvmkit/modules"
#define INSTRUCTIONS_MAX (4 << 20) /* argv and envp of a program are at most about 2 MiB */
#define MOUNTS_MAX 32

struct mount {
	const char *target, *type, *source;
	char *options;
};

struct setup {
	const char *hostname, *console, *link, *root;
	unsigned int vsock; /* a port; 0: none */
	char *network; /* what KVMKIT_NET says, or NULL */
	bool quiet;
	bool shell; /* no instructions: a shell for whoever sits at the console */
	struct mount mounts[MOUNTS_MAX];
	size_t mount_count;
	struct order order;
};

/* Read both sources. False, and a report, when that cannot be. */
bool setup_read(struct setup *setup, char **environment);

#endif
