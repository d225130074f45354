"""The FUSE protocol: operations, flags and structures.

Linux, ``include/uapi/linux/fuse.h``, protocol 7.39. Names are those of the header
without their ``FUSE_``; ``_IN`` is what the guest sends after the header, ``_OUT``
what it gets. All numbers are little-endian, as guest and host are x86-64.
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["IN_HEADER", "MAJOR", "MINOR", "OUT_HEADER", "ROOT_ID", "Op"]

MAJOR: Final = 7
MINOR: Final = 39
MINOR_LEAST: Final = 31  # Linux 5.4, the first with virtio-fs
ROOT_ID: Final = 1


class Op:
    """enum fuse_opcode."""

    LOOKUP: Final = 1
    FORGET: Final = 2  # no reply
    GETATTR: Final = 3
    SETATTR: Final = 4
    READLINK: Final = 5
    SYMLINK: Final = 6
    MKNOD: Final = 8
    MKDIR: Final = 9
    UNLINK: Final = 10
    RMDIR: Final = 11
    RENAME: Final = 12
    LINK: Final = 13
    OPEN: Final = 14
    READ: Final = 15
    WRITE: Final = 16
    STATFS: Final = 17
    RELEASE: Final = 18
    FSYNC: Final = 20
    SETXATTR: Final = 21
    GETXATTR: Final = 22
    LISTXATTR: Final = 23
    REMOVEXATTR: Final = 24
    FLUSH: Final = 25
    INIT: Final = 26
    OPENDIR: Final = 27
    READDIR: Final = 28
    RELEASEDIR: Final = 29
    FSYNCDIR: Final = 30
    GETLK: Final = 31
    SETLK: Final = 32
    SETLKW: Final = 33
    ACCESS: Final = 34
    CREATE: Final = 35
    INTERRUPT: Final = 36  # no reply
    BMAP: Final = 37
    DESTROY: Final = 38
    IOCTL: Final = 39
    POLL: Final = 40
    NOTIFY_REPLY: Final = 41  # no reply
    BATCH_FORGET: Final = 42  # no reply
    FALLOCATE: Final = 43
    READDIRPLUS: Final = 44
    RENAME2: Final = 45
    LSEEK: Final = 46
    COPY_FILE_RANGE: Final = 47
    SETUPMAPPING: Final = 48
    REMOVEMAPPING: Final = 49
    SYNCFS: Final = 50
    TMPFILE: Final = 51
    STATX: Final = 52


# Headers
IN_HEADER = Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extlen, padding
OUT_HEADER = Struct("<IiQ")  # len, error, unique

# INIT
INIT_IN = Struct("<IIII")  # major, minor, max_readahead, flags; flags2 follows with INIT_EXT
INIT_OUT = Struct("<IIII HHII HHI 28x")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write,
# time_gran, max_pages, map_alignment, flags2

ASYNC_READ: Final = 1 << 0
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
ASYNC_DIO: Final = 1 << 15
WRITEBACK_CACHE: Final = 1 << 16
NO_OPEN_SUPPORT: Final = 1 << 17
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
NO_OPENDIR_SUPPORT: Final = 1 << 24
HANDLE_KILLPRIV_V2: Final = 1 << 28
INIT_EXT: Final = 1 << 30

# Attributes
ATTR = Struct("<6Q10I")
# ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev,
# blksize, flags
ATTR_OUT = Struct("<QII")  # valid seconds, nanoseconds; ATTR follows
ENTRY_OUT = Struct("<QQQQII")
# nodeid, generation, entry and attribute validity in seconds, nanoseconds; ATTR follows
GETATTR_IN = Struct("<IIQ")  # flags, dummy, fh
GETATTR_FH: Final = 1 << 0
SETATTR_IN = Struct("<II QQQ QQQ III I I II I")
# valid, padding, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, unused,
# uid, gid, unused

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11

STATX_IN = Struct("<IIQII")  # getattr flags, reserved, fh, sx_flags, sx_mask
STATX_OUT = Struct("<QII 16x")  # valid, nanoseconds, flags, spare; STATX follows
STATX = Struct("<IIQ IIIH2x QQQQ qI4x qI4x qI4x qI4x IIII 112x")
# mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask,
# atime, btime, ctime, mtime (seconds, nanoseconds), rdev and dev as major, minor, spare

# Names
FORGET_IN = Struct("<Q")  # nlookup
BATCH_FORGET_IN = Struct("<II")  # count, dummy
FORGET_ONE = Struct("<QQ")  # nodeid, nlookup
MKNOD_IN = Struct("<IIII")  # mode, rdev, umask, padding
MKDIR_IN = Struct("<II")  # mode, umask
RENAME_IN = Struct("<Q")  # newdir
RENAME2_IN = Struct("<QII")  # newdir, flags, padding
LINK_IN = Struct("<Q")  # oldnodeid

# Files
OPEN_IN = Struct("<II")  # flags, open_flags
CREATE_IN = Struct("<IIII")  # flags, mode, umask, open_flags
OPEN_OUT = Struct("<QII")  # fh, open_flags, padding
OPEN_KILL_SUIDGID: Final = 1 << 0
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5

RELEASE_IN = Struct("<QIIQ")  # fh, flags, release_flags, lock_owner
FLUSH_IN = Struct("<QIIQ")  # fh, unused, padding, lock_owner
READ_IN = Struct("<QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
WRITE_IN = Struct("<QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding
WRITE_KILL_SUIDGID: Final = 1 << 2
WRITE_OUT = Struct("<II")  # size, padding
FSYNC_IN = Struct("<QII")  # fh, fsync_flags, padding
FSYNC_FDATASYNC: Final = 1 << 0
FALLOCATE_IN = Struct("<QQQII")  # fh, offset, length, mode, padding
LSEEK_IN = Struct("<QQII")  # fh, offset, whence, padding
LSEEK_OUT = Struct("<Q")  # offset
COPY_FILE_RANGE_IN = Struct("<QQQQQQQ")  # fh_in, off_in, nodeid_out, fh_out, off_out, len, flags

# Directories, xattrs, the file system
DIRENT = Struct("<QQII")  # ino, off, namelen, type; the name follows, padded to 8 bytes
STATFS_OUT = Struct("<QQQQQ III 28x")
# blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding and spare
ACCESS_IN = Struct("<II")  # mask, padding
SETXATTR_IN = Struct("<II")  # size, flags
GETXATTR_IN = Struct("<II")  # size, padding
GETXATTR_OUT = Struct("<II")  # size, padding
