/* SPDX-License-Identifier: GPL-2.0-only */
/* The file systems that programs expect, and those that the host asks for. */
#ifndef KVMKIT_AGENT_MOUNTS_H
#define KVMKIT_AGENT_MOUNTS_H

#include "setup.h"

/* /proc, /sys, /dev and what belongs below them, /run and /tmp. */
void mount_standard(void);

/* The host's mounts in their order, then its root. False, and a report, if one fails. */
bool mount_wanted(const struct setup *setup);

/* Unmount the host's mounts, the last first, so that their disks are whole. */
void unmount_wanted(const struct setup *setup);

#endif
