/* SPDX-License-Identifier: GPL-2.0-only */
/* Whom a program runs as: passwd(5) and group(5) of the guest. */
#ifndef KVMKIT_AGENT_USER_H
#define KVMKIT_AGENT_USER_H

#include "sys.h"

#define GROUPS_MAX 64

struct user {
	uint32_t uid, gid, groups[GROUPS_MAX];
	size_t group_count;
	/* "HOME=...", "USER=...", "LOGNAME=..." */
	char home_variable[512], name_variable[80], logname_variable[80];
};

/*
 * The user of a name or "UID[:GID]", root for NULL; groups are "GID,GID..." or NULL.
 * False if nobody has that name.
 */
bool user_find(const char *who, const char *groups, struct user *user);

bool user_become(const struct user *user);

#endif
