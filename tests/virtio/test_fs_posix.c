/* What POSIX and Linux promise of a file system, tried in the directory given.
 *
 * Prints a line "ok NAME" or "FAILED NAME: LINE" for each case. Run on a local file
 * system as well: what fails there is not the share's fault.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static int bad;

#define WANT(x) do { if (!(x)) { bad = __LINE__; return; } } while (0)
#define ERR(x, e) WANT((x) == -1 && errno == (e))

static int make(const char *name, const char *text)
{
	int fd = open(name, O_CREAT | O_TRUNC | O_RDWR, 0644);
	if (fd >= 0 && write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		return -1;
	return fd;
}

static int holds(const char *name, const char *text)
{
	char got[256] = "";
	int fd = open(name, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, got, sizeof(got) - 1);
	close(fd);
	return n == (ssize_t)strlen(text) && !memcmp(got, text, n);
}

static void hard_links(void)
{
	struct stat a, b;
	close(make("a", "one"));
	WANT(!link("a", "b"));
	WANT(!stat("a", &a) && !stat("b", &b));
	WANT(a.st_ino == b.st_ino && a.st_nlink == 2 && b.st_nlink == 2);
	WANT(!unlink("a"));
	WANT(!stat("b", &b) && b.st_nlink == 1 && a.st_ino == b.st_ino);
	WANT(holds("b", "one"));
	ERR(link("b", "b"), EEXIST);
	WANT(!mkdir("d", 0755));
	ERR(link("d", "e"), EPERM);
}

static void renames(void)
{
	struct stat s, t;
	close(make("a", "a"));
	close(make("b", "b"));
	ERR(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE), EEXIST);
	WANT(!stat("a", &s));
	WANT(!renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE));
	WANT(holds("a", "b") && holds("b", "a"));
	WANT(!stat("b", &t) && s.st_ino == t.st_ino);
	WANT(!rename("a", "b") && holds("b", "b"));
	ERR(open("a", O_RDONLY), ENOENT);
	WANT(!mkdir("d", 0755) && !mkdir("e", 0755) && !rename("b", "d/b"));
	WANT(!renameat2(AT_FDCWD, "d", AT_FDCWD, "e", RENAME_EXCHANGE) && holds("e/b", "b"));
	ERR(rename("d", "e"), ENOTEMPTY);
	ERR(rename("e", "e/sub"), EINVAL);
	ERR(rename("e/b", "d"), EISDIR);
	WANT(!rename("e", "d") && holds("d/b", "b"));
	WANT(!link("d/b", "c") && !rename("c", "d/b") && holds("c", "b"));
	WANT(!rename("d/b", "d/renamed") && holds("d/renamed", "b"));
}

static void replaced_while_open(void)
{
	char c = 0;
	struct stat s;
	int fd = make("old", "old");
	close(make("new", "new"));
	WANT(!rename("new", "old"));
	WANT(!fstat(fd, &s) && s.st_nlink == 0);
	WANT(pread(fd, &c, 1, 0) == 1 && c == 'o');
	WANT(holds("old", "new"));
	close(fd);
}

static void unlinked_while_open(void)
{
	struct stat s;
	char got[8] = "";
	int fd = make("a", "kept"), other;
	WANT(!unlink("a"));
	ERR(stat("a", &s), ENOENT);
	WANT(!fstat(fd, &s) && s.st_nlink == 0 && s.st_size == 4);
	WANT(pwrite(fd, "KEPT!", 5, 0) == 5);
	WANT(pread(fd, got, 8, 0) == 5 && !memcmp(got, "KEPT!", 5));
	WANT(!ftruncate(fd, 2) && !fstat(fd, &s) && s.st_size == 2);
	WANT(!fchmod(fd, 0600) && !fstat(fd, &s) && (s.st_mode & 0777) == 0600);
	other = make("a", "another");
	WANT(!fstat(fd, &s) && s.st_size == 2);
	close(other);
	close(fd);
	/* Never opened, then removed by its other name. */
	close(make("x", "x"));
	WANT(!link("x", "y") && !stat("y", &s) && !unlink("y") && !stat("x", &s) && s.st_nlink == 1);
	WANT(!mkdir("d", 0755));
	fd = open("d", O_RDONLY | O_DIRECTORY);
	WANT(!rmdir("d") && !fstat(fd, &s));
	ERR(openat(fd, "f", O_CREAT | O_RDWR, 0644), ENOENT);
	close(fd);
}

static void xattrs(void)
{
	char got[256], big[40000];
	close(make("a", ""));
	WANT(!setxattr("a", "user.one", "1", 1, 0));
	ERR(setxattr("a", "user.one", "2", 1, XATTR_CREATE), EEXIST);
	ERR(setxattr("a", "user.two", "2", 1, XATTR_REPLACE), ENODATA);
	WANT(!setxattr("a", "user.two", "", 0, XATTR_CREATE));
	WANT(getxattr("a", "user.one", NULL, 0) == 1);
	WANT(getxattr("a", "user.one", got, sizeof(got)) == 1 && got[0] == '1');
	ERR(getxattr("a", "user.none", got, sizeof(got)), ENODATA);
	WANT(listxattr("a", NULL, 0) == 18);
	WANT(listxattr("a", got, sizeof(got)) == 18);
	ERR(listxattr("a", got, 3), ERANGE);
	WANT(!removexattr("a", "user.one"));
	WANT(listxattr("a", got, sizeof(got)) == 9 && !strcmp(got, "user.two"));
	memset(big, 'x', sizeof(big));
	if (!setxattr("a", "user.big", big, 2000, 0))
		WANT(getxattr("a", "user.big", big, sizeof(big)) == 2000);
}

static void tmpfile_(void)
{
	char path[64];
	struct stat s;
	int fd = open(".", O_TMPFILE | O_RDWR, 0640);
	if (fd < 0 && errno == EOPNOTSUPP) {
		puts("skipped tmpfile: this kernel's FUSE has no TMPFILE");
		return;
	}
	WANT(fd >= 0);
	WANT(write(fd, "tmp", 3) == 3 && !fstat(fd, &s) && s.st_nlink == 0);
	sprintf(path, "/proc/self/fd/%d", fd);
	WANT(!linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
	WANT(holds("named", "tmp") && !fstat(fd, &s) && s.st_nlink == 1 && (s.st_mode & 0777) == 0640);
	close(fd);
	fd = open(".", O_TMPFILE | O_RDWR | O_EXCL, 0600);
	WANT(fd >= 0);
	sprintf(path, "/proc/self/fd/%d", fd);
	ERR(linkat(AT_FDCWD, path, AT_FDCWD, "never", AT_SYMLINK_FOLLOW), ENOENT);
	close(fd);
}

static void mmap_shared(void)
{
	char got[8] = "";
	int fd = make("a", "");
	char *at;
	WANT(!ftruncate(fd, 3 * 4096));
	at = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	WANT(at != MAP_FAILED);
	memcpy(at + 4094, "across", 6);
	WANT(!msync(at, 3 * 4096, MS_SYNC));
	WANT(pread(fd, got, 6, 4094) == 6 && !memcmp(got, "across", 6));
	WANT(pwrite(fd, "WRITE", 5, 8192) == 5 && !memcmp(at + 8192, "WRITE", 5));
	if (!fork()) {
		at[0] = 'c';
		_exit(0);
	}
	wait(NULL);
	WANT(at[0] == 'c');
	munmap(at, 3 * 4096);
	close(fd);
	fd = open("a", O_RDONLY);
	at = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	WANT(at != MAP_FAILED && at[0] == 'c');
	munmap(at, 4096);
	close(fd);
}

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

static void large_directory(void)
{
	enum { N = 10000 }; /* many READDIRs, and more than one block of any file system */
	static int seen[N + 1];
	char name[32];
	struct dirent *e;
	long place = 0;
	int n = 0, i;
	DIR *d;
	WANT(!mkdir("big", 0755) && !chdir("big"));
	for (i = 0; i < N; i++) {
		sprintf(name, "entry-%05d", i);
		WANT(!mknod(name, S_IFREG | 0644, 0));
	}
	d = opendir(".");
	while ((e = readdir(d)))
		if (e->d_name[0] == 'e') {
			WANT(n < N);
			seen[n++] = atoi(e->d_name + 6);
			if (n == 5000)
				place = telldir(d);
		}
	WANT(n == N);
	qsort(seen, N, sizeof(int), by_number);
	for (i = 0; i < N; i++)
		WANT(seen[i] == i);
	seekdir(d, place);
	for (n = 0; (e = readdir(d)); )
		n += e->d_name[0] == 'e';
	WANT(n == 5000);
	rewinddir(d);
	for (n = 0; (e = readdir(d)); ) /* remove while reading */
		if (e->d_name[0] == 'e') {
			WANT(!unlink(e->d_name));
			n++;
		}
	WANT(n == N);
	closedir(d);
	WANT(!chdir("..") && !rmdir("big"));
}

static void statx_(void)
{
	struct statx x;
	struct stat s;
	close(make("a", "12345"));
	WANT(!statx(AT_FDCWD, "a", 0, STATX_BASIC_STATS | STATX_BTIME, &x) && !stat("a", &s));
	WANT(x.stx_size == 5 && x.stx_ino == s.st_ino && x.stx_mode == s.st_mode);
	WANT(x.stx_mtime.tv_sec == s.st_mtim.tv_sec && x.stx_mtime.tv_nsec == s.st_mtim.tv_nsec);
	WANT(x.stx_dev_major == major(s.st_dev) && x.stx_dev_minor == minor(s.st_dev));
	if (x.stx_mask & STATX_BTIME)
		puts("note: statx has the time of birth");
}

static void times_and_modes(void)
{
	struct timespec t[2] = { { 1000000000, 123456789 }, { -5, 0 } };
	struct timespec omit[2] = { { 0, UTIME_OMIT }, { 0, UTIME_NOW } };
	struct stat s;
	close(make("a", ""));
	WANT(!utimensat(AT_FDCWD, "a", t, 0) && !stat("a", &s));
	WANT(s.st_atim.tv_sec == 1000000000 && s.st_atim.tv_nsec == 123456789);
	WANT(s.st_mtim.tv_sec == -5);
	WANT(!utimensat(AT_FDCWD, "a", omit, 0) && !stat("a", &s));
	WANT(s.st_atim.tv_sec == 1000000000 && s.st_mtim.tv_sec > 1000000000);
	WANT(!chmod("a", 04751) && !stat("a", &s) && (s.st_mode & 07777) == 04751);
	umask(027);
	WANT(!mkdir("d", 0777) && !stat("d", &s) && (s.st_mode & 07777) == 0750);
	umask(0);
	WANT(!mkdir("e", 0777) && !stat("e", &s) && (s.st_mode & 07777) == 0777);
	WANT(!mkfifo("f", 0666) && !stat("f", &s) && s.st_mode == (S_IFIFO | 0666));
	close(open("g", O_CREAT | O_EXCL | O_WRONLY, 0666));
	WANT(!stat("g", &s) && (s.st_mode & 07777) == 0666);
	umask(022);
	WANT(!symlink("nowhere", "l") && !utimensat(AT_FDCWD, "l", t, AT_SYMLINK_NOFOLLOW));
	WANT(!lstat("l", &s) && S_ISLNK(s.st_mode) && s.st_size == 7 && s.st_mtim.tv_sec == -5);
}

static void owners(void)
{
	struct stat s;
	int status;
	close(make("a", ""));
	if (chown("a", 1234, 567) && errno == EPERM) {
		puts("skipped owners: the server is not root");
		return;
	}
	WANT(!stat("a", &s) && s.st_uid == 1234 && s.st_gid == 567);
	WANT(!chmod("a", 06755) && !chown("a", 0, 0) && !stat("a", &s) && !(s.st_mode & 06000));
	WANT(!mkdir("open", 0777) && !chmod("open", 0777));
	WANT(!mkdir("group", 0777) && !chown("group", 0, 4321) && !chmod("group", 02777));
	if (!fork()) {
		int fd;
		if (setgid(567) || setuid(1234))
			_exit(1);
		fd = open("open/file", O_CREAT | O_RDWR, 0600);
		if (fd < 0 || mkdir("open/dir", 0700) || symlink("x", "open/link"))
			_exit(2);
		if (mkdir("group/dir", 0755) || mknod("group/fifo", S_IFIFO | 0644, 0))
			_exit(3);
		if (open("a", O_RDWR) >= 0 || errno != EACCES || mkdir("no", 0755) != -1)
			_exit(4);
		_exit(0);
	}
	wait(&status);
	WANT(status == 0);
	WANT(!stat("open/file", &s) && s.st_uid == 1234 && s.st_gid == 567);
	WANT(!stat("open/dir", &s) && s.st_uid == 1234 && s.st_gid == 567);
	WANT(!lstat("open/link", &s) && s.st_uid == 1234);
	WANT(!stat("group/dir", &s) && s.st_uid == 1234 && s.st_gid == 4321 && s.st_mode & 02000);
	WANT(!stat("group/fifo", &s) && s.st_gid == 4321);
}

static void ranges(void)
{
	struct stat s;
	char got[4096], zero[4096] = "";
	int fd = make("a", ""), to = make("b", "");
	WANT(!fallocate(fd, 0, 0, 65536) && !fstat(fd, &s) && s.st_size == 65536);
	WANT(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 65536, 65536) && !fstat(fd, &s) && s.st_size == 65536);
	memset(got, 'x', sizeof(got));
	WANT(pwrite(fd, got, 4096, 8192) == 4096 && pwrite(fd, got, 4096, 16384) == 4096);
	WANT(!fsync(fd) && !fdatasync(fd));
	WANT(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 4096));
	WANT(pread(fd, got, 4096, 8192) == 4096 && !memcmp(got, zero, 4096));
	WANT(lseek(fd, 0, SEEK_HOLE) >= 0 && lseek(fd, 8192, SEEK_DATA) >= 8192);
	ERR(lseek(fd, 1 << 20, SEEK_DATA), ENXIO);
	off_t in = 16384, out = 0;
	WANT(copy_file_range(fd, &in, to, &out, 4096, 0) == 4096);
	WANT(pread(to, got, 4096, 0) == 4096 && got[0] == 'x' && got[4095] == 'x');
	WANT(!ftruncate(fd, 10) && !fstat(fd, &s) && s.st_size == 10);
	WANT(!truncate("a", 1 << 20) && !stat("a", &s) && s.st_size == 1 << 20);
	close(fd);
	close(to);
}

static void append(void)
{
	int a = open("a", O_CREAT | O_WRONLY | O_APPEND, 0644), b;
	WANT(a >= 0);
	b = open("a", O_WRONLY | O_APPEND);
	WANT(write(a, "1", 1) == 1 && write(b, "2", 1) == 1 && write(a, "3", 1) == 1);
	close(a);
	close(b);
	WANT(holds("a", "123"));
	a = open("a", O_RDWR | O_TRUNC);
	WANT(a >= 0 && holds("a", ""));
	close(a);
	ERR(open("a", O_CREAT | O_EXCL | O_RDWR, 0644), EEXIST);
	ERR(open("a", O_DIRECTORY), ENOTDIR);
}

static void locks(void)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10 };
	int fd = make("a", ""), status;
	WANT(!fcntl(fd, F_SETLK, &l) && !flock(fd, LOCK_EX | LOCK_NB));
	if (!fork()) {
		int again = open("a", O_RDWR);
		struct flock m = l;
		int refused = fcntl(again, F_SETLK, &m) == -1 && (errno == EAGAIN || errno == EACCES);
		m = l;
		fcntl(again, F_GETLK, &m);
		_exit(!(refused && m.l_type == F_WRLCK && m.l_pid == getppid() &&
			flock(again, LOCK_EX | LOCK_NB) == -1));
	}
	wait(&status);
	WANT(status == 0);
	close(fd);
}

static void names(void)
{
	char name[300];
	struct statvfs v;
	struct stat s;
	memset(name, 'n', sizeof(name));
	name[255] = 0;
	WANT(!mkdir(name, 0755) && !rmdir(name));
	name[255] = 'n';
	name[256] = 0;
	ERR(mkdir(name, 0755), ENAMETOOLONG);
	WANT(!mkdir("\xff\xfe \n\t\"'", 0755) && !stat("\xff\xfe \n\t\"'", &s));
	WANT(!statvfs(".", &v) && v.f_bsize && v.f_namemax >= 255);
	ERR(mkdir("gone/sub", 0755), ENOENT);
	close(make("file", ""));
	ERR(mkdir("file/sub", 0755), ENOTDIR);
	ERR(rmdir("file"), ENOTDIR);
	WANT(!mkdir("full", 0755) && !mkdir("full/x", 0755));
	ERR(rmdir("full"), ENOTEMPTY);
	ERR(unlink("full"), EISDIR);
	WANT(!symlink("file", "link") && readlink("link", name, sizeof(name)) == 4);
	WANT(!symlink("loop", "loop"));
	ERR(open("loop", O_RDONLY), ELOOP);
	ERR(open("link", O_RDONLY | O_NOFOLLOW), ELOOP);
	ERR(mknod("device", S_IFBLK | 0600, makedev(8, 0)), EPERM);
}

static void deep_tree(void)
{
	struct stat s;
	int i, home = open(".", O_RDONLY);
	for (i = 0; i < 300; i++)
		WANT(!mkdir("level", 0755) && !chdir("level"));
	close(make("bottom", "deep"));
	WANT(holds("bottom", "deep") && !stat("../../..", &s));
	WANT(!unlink("bottom"));
	for (i = 0; i < 300; i++)
		WANT(!chdir("..") && !rmdir("level"));
	close(home);
}

static const struct { const char *name; void (*run)(void); } cases[] = {
	{ "hard_links", hard_links }, { "renames", renames },
	{ "replaced_while_open", replaced_while_open },
	{ "unlinked_while_open", unlinked_while_open }, { "xattrs", xattrs },
	{ "tmpfile", tmpfile_ }, { "mmap_shared", mmap_shared },
	{ "large_directory", large_directory }, { "statx", statx_ },
	{ "times_and_modes", times_and_modes }, { "owners", owners }, { "ranges", ranges },
	{ "append", append }, { "locks", locks }, { "names", names }, { "deep_tree", deep_tree },
};

int main(int argc, char **argv)
{
	unsigned i;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 2 || chdir(argv[1]))
		return 2;
	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		int home = open(".", O_RDONLY);
		if (argc > 2 && strcmp(argv[2], cases[i].name))
			continue;
		bad = 0;
		umask(022);
		if (mkdir(cases[i].name, 0755) || chdir(cases[i].name))
			bad = __LINE__;
		else
			cases[i].run();
		if (fchdir(home))
			bad = __LINE__;
		close(home);
		if (bad)
			printf("FAILED %s: line %d, errno %d (%s)\n", cases[i].name, bad, errno, strerror(errno));
		else
			printf("ok %s\n", cases[i].name);
	}
	return 0;
}
