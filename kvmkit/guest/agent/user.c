// SPDX-License-Identifier: GPL-2.0-only
#include "user.h"
#include "text.h"

#define NOBODY UINT32_MAX /* (uid_t)-1 is no user: setresuid(2) takes it for "leave it" */
#define FILE_MAX (1 << 20)
#define FIELDS 7 /* name, password, uid, gid, comment, home, shell */

static void copy(char *to, size_t size, const char *prefix, const char *value)
{
	size_t at = 0;

	while (*prefix && at < size - 1)
		to[at++] = *prefix++;
	while (*value && at < size - 1)
		to[at++] = *value++;
	to[at] = '\0';
}

static uint32_t id_of(const char *text)
{
	return (uint32_t)number_or(text, NOBODY - 1, NOBODY);
}

static void describe(struct user *user, const char *name, const char *home)
{
	copy(user->home_variable, sizeof(user->home_variable), "HOME=", home);
	copy(user->name_variable, sizeof(user->name_variable), "USER=", name);
	copy(user->logname_variable, sizeof(user->logname_variable), "LOGNAME=", name);
}

/* The line of passwd with that name, or if name is NULL, that number. */
static bool look_up(const char *name, uint32_t uid, struct user *user)
{
	char *text = map_memory(FILE_MAX), *rest = text, *line, *field[FIELDS];
	bool found = false;

	if (!text)
		return false;
	read_file("/etc/passwd", text, FILE_MAX);
	while (!found && (line = next_field(&rest, '\n'))) {
		size_t count = 0;

		while (count < FIELDS && (field[count] = next_field(&line, ':')))
			count++;
		if (count < 6 || id_of(field[2]) == NOBODY || id_of(field[3]) == NOBODY)
			continue;
		found = name ? same(name, field[0]) : id_of(field[2]) == uid;
		if (found) {
			user->uid = id_of(field[2]);
			user->gid = id_of(field[3]);
			describe(user, field[0], field[5]);
		}
	}
	unmap_memory(text, FILE_MAX);
	return found;
}

static void add_group(struct user *user, uint32_t gid)
{
	if (gid != NOBODY && user->group_count < GROUPS_MAX)
		user->groups[user->group_count++] = gid;
}

/* The groups that list the name as a member. */
static void find_groups(const char *name, struct user *user)
{
	char *text = map_memory(FILE_MAX), *rest = text, *line, *member;

	if (!text)
		return;
	read_file("/etc/group", text, FILE_MAX);
	while ((line = next_field(&rest, '\n'))) {
		char *gid;

		if (!next_field(&line, ':') || !next_field(&line, ':'))
			continue;
		gid = next_field(&line, ':');
		while (gid && (member = next_field(&line, ',')))
			if (same(member, name))
				add_group(user, id_of(gid));
	}
	unmap_memory(text, FILE_MAX);
}

static void take_groups(const char *list, struct user *user)
{
	char copied[12 * GROUPS_MAX], *rest = copied, *group;

	copy(copied, sizeof(copied), "", list);
	while ((group = next_field(&rest, ',')))
		add_group(user, id_of(group));
}

bool user_find(const char *who, const char *groups, struct user *user)
{
	char text[32], *gid = text, *uid;
	bool by_name = false;

	user->uid = user->gid = 0;
	user->group_count = 0;
	describe(user, "root", "/root");
	if (who) {
		copy(text, sizeof(text), "", who);
		uid = next_field(&gid, ':');
		if (id_of(uid) != NOBODY) {
			if (!look_up(NULL, id_of(uid), user)) {
				user->uid = user->gid = id_of(uid);
				describe(user, uid, "/");
			}
			if (gid && id_of(gid) == NOBODY)
				return false;
			if (gid)
				user->gid = id_of(gid);
		} else if (look_up(who, 0, user)) {
			by_name = true;
		} else {
			return false;
		}
	}
	if (groups)
		take_groups(groups, user);
	else if (by_name)
		find_groups(who, user);
	return true;
}

bool user_become(const struct user *user)
{
	long gid = user->gid, uid = user->uid;

	if (!uid && !gid && !user->group_count)
		return true; /* as whom we started */
	/* With CONFIG_MULTIUSER off there are no groups, and only root. */
	if (sys3(__NR_setgroups, (long)user->group_count, (long)user->groups, 0) &&
	    user->group_count)
		return false;
	return !sys3(__NR_setresgid, gid, gid, gid) && !sys3(__NR_setresuid, uid, uid, uid);
}
