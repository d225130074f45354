// SPDX-License-Identifier: GPL-2.0-only
#include "mounts.h"
#include "report.h"
#include "text.h"

#define SAFE (MS_NOSUID | MS_NODEV | MS_NOEXEC)

static const struct {
	const char *type, *target;
	unsigned long flags;
	const char *data;
} standard[] = {
	{ "proc", "/proc", SAFE, "" },
	{ "sysfs", "/sys", SAFE, "" },
	{ "devtmpfs", "/dev", MS_NOSUID, "mode=755" },
	{ "devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666" },
	{ "tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777" },
	{ "tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755" },
	{ "tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777" },
	{ "cgroup2", "/sys/fs/cgroup", SAFE, "" },
};

/* What goes along to another root; the others are below these. */
static const char *const moved[] = { "/dev", "/proc", "/sys", "/run", "/tmp" };

static const struct {
	const char *name;
	unsigned long set, clear;
} options[] = {
	{ "ro", MS_RDONLY, 0 },
	{ "rw", 0, MS_RDONLY },
	{ "nosuid", MS_NOSUID, 0 },
	{ "nodev", MS_NODEV, 0 },
	{ "noexec", MS_NOEXEC, 0 },
	{ "noatime", MS_NOATIME, 0 },
	{ "relatime", MS_RELATIME, 0 },
	{ "sync", MS_SYNCHRONOUS, 0 },
	{ "bind", MS_BIND, 0 },
	{ "rbind", MS_BIND | MS_REC, 0 },
	{ "move", MS_MOVE, 0 },
	{ "remount", MS_REMOUNT, 0 },
};

void mount_standard(void)
{
	for (size_t at = 0; at < COUNT(standard); at++) {
		const char *target = standard[at].target;
		long error = sys_mount(standard[at].type, target, standard[at].type,
				       standard[at].flags, standard[at].data);

		if (error == -ENOENT) {
			sys_mkdir(target, 0755);
			error = sys_mount(standard[at].type, target, standard[at].type,
					  standard[at].flags, standard[at].data);
		}
		/* EBUSY: the kernel or the archive's owner did it; ENODEV: not in this kernel. */
		if (error && error != -EBUSY && error != -ENODEV && error != -ENOENT)
			report_trouble("mount", target, error);
	}
	sys3(__NR_symlink, (long)"/proc/self/fd", (long)"/dev/fd", 0);
	sys3(__NR_symlink, (long)"/proc/self/fd/0", (long)"/dev/stdin", 0);
	sys3(__NR_symlink, (long)"/proc/self/fd/1", (long)"/dev/stdout", 0);
	sys3(__NR_symlink, (long)"/proc/self/fd/2", (long)"/dev/stderr", 0);
}

static void make_directories(const char *path)
{
	struct text step;

	text_clear(&step);
	for (; *path; path++) {
		if (*path == '/' && step.length)
			sys_mkdir(step.data, 0755);
		text_add_letter(&step, *path);
	}
	sys_mkdir(step.data, 0755);
}

/* The flags among the options; what is left is for the file system. */
static unsigned long split(char *all, struct text *data)
{
	unsigned long flags = 0;
	char *option;

	text_clear(data);
	while ((option = next_field(&all, ','))) {
		size_t at = 0;

		while (at < COUNT(options) && !same(option, options[at].name))
			at++;
		if (at < COUNT(options)) {
			flags = (flags & ~options[at].clear) | options[at].set;
			continue;
		}
		if (data->length)
			text_add(data, ",");
		text_add(data, option);
	}
	return flags;
}

/* An overlay's layers above, which a fresh tmpfs does not have yet. */
static void make_layers(struct text *data)
{
	struct text copied = *data;
	char *rest = copied.data, *option, *path;

	while ((option = next_field(&rest, ',')))
		if ((path = after(option, "upperdir=")) || (path = after(option, "workdir=")))
			make_directories(path);
}

static bool mount_one(const struct mount *mount)
{
	struct text data;
	unsigned long flags = split(mount->options, &data);
	long error = sys_mount(mount->source, mount->target, mount->type, flags, data.data);

	if (error == -ENOENT) {
		make_directories(mount->target);
		make_layers(&data);
		error = sys_mount(mount->source, mount->target, mount->type, flags, data.data);
	}
	/* A bind mount takes its other flags only afterwards: mount(2). */
	if (!error && (flags & MS_BIND) && (flags & (MS_RDONLY | SAFE)))
		error = sys_mount("none", mount->target, NULL,
				  (flags & ~(unsigned long)MS_REC) | MS_REMOUNT, NULL);
	if (error)
		report_trouble("mount", mount->target, error);
	return !error;
}

static bool change_root(const char *root)
{
	struct text target;
	long error;

	for (size_t at = 0; at < COUNT(moved); at++) {
		text_clear(&target);
		text_add(&target, root);
		text_add(&target, moved[at]);
		error = sys_mount(moved[at], target.data, NULL, MS_MOVE, NULL);
		if (error == -ENOENT) {
			sys_mkdir(target.data, 0755);
			error = sys_mount(moved[at], target.data, NULL, MS_MOVE, NULL);
		}
		if (error)
			report_trouble("move", target.data, error);
	}
	/* As Linux Documentation/filesystems/ramfs-rootfs-initramfs.rst has it. */
	error = sys_chdir(root);
	if (!error)
		error = sys_mount(".", "/", NULL, MS_MOVE, NULL);
	if (!error)
		error = sys3(__NR_chroot, (long)".", 0, 0);
	if (!error)
		error = sys_chdir("/");
	if (error)
		report_trouble("root", root, error);
	return !error;
}

bool mount_wanted(const struct setup *setup)
{
	for (size_t at = 0; at < setup->mount_count; at++)
		if (!mount_one(&setup->mounts[at]))
			return false;
	return !setup->root || change_root(setup->root);
}

void unmount_wanted(const struct setup *setup)
{
	sys3(__NR_sync, 0, 0, 0);
	if (setup->root) /* what is mounted is below the root now, or is it */
		sys_mount("none", "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	for (size_t at = setup->mount_count; at--;)
		sys3(__NR_umount2, (long)setup->mounts[at].target, 0, 0);
}
