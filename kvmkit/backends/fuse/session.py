"""What all operations work on: a share as one guest sees it, from INIT to DESTROY."""

from __future__ import annotations

import os
from errno import EINVAL, ENOTDIR, EROFS
from stat import S_IFDIR

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.descriptors import Descriptor, descriptor_budget
from kvmkit.backends.fuse.handles import Handles
from kvmkit.backends.fuse.ids import Ids
from kvmkit.backends.fuse.inodes import Inode, InodeTable
from kvmkit.backends.fuse.request import error
from kvmkit.errors import FileTrouble, PermissionTrouble, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["CACHES", "Session"]

CACHES = {"never": 0.0, "auto": 1.0, "always": 86400.0}
"""How long a guest may believe what it was told, in seconds."""

_NS: Final = 1_000_000_000
_MASK: Final = (1 << 64) - 1


class Session:
    """Directory ``path`` as a share; see :class:`kvmkit.backends.fuse.share.Share`.

    Raises FileTrouble, PermissionTrouble or UsageError.
    """

    def __init__(
        self,
        path: str,
        *,
        read_only: bool = False,
        cache: str = "auto",
        owner: int | None = None,
        budget: int | None = None,
    ) -> None:
        if cache not in CACHES:
            raise UsageError(f"a share's cache is one of {', '.join(CACHES)}, not {cache!r}")
        self.path = path
        self.read_only = read_only
        self.cache = cache
        self.ids = Ids(owner)
        self.writeback = False
        """Whether the guest keeps what it writes (negotiated in INIT)."""
        self.no_open = self.no_opendir = False
        """Whether the guest reads files, or directories, without opening them (INIT)."""
        root = _open_root(path)
        try:
            fd = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as trouble:
            raise FileTrouble(
                f"/proc/self/fd: a share needs it: {trouble.strerror}", "mount /proc"
            ) from None
        self.proc = Descriptor(fd)
        """The directory ``/proc/self/fd``, to open again what is open."""
        self.umask = _umask()
        """Bits this process takes from the mode of what it makes."""
        budget = descriptor_budget() if budget is None else budget
        self.inodes = InodeTable(root, budget)
        self.handles = Handles(budget)
        seconds, nanoseconds = divmod(int(CACHES[cache] * _NS), _NS)
        self._valid = (seconds, nanoseconds)
        self._entry_valid = (seconds, seconds, nanoseconds, nanoseconds)

    def clear(self) -> None:
        """The guest has unmounted, or was reset."""
        self.writeback = self.no_open = self.no_opendir = False
        self.handles.clear()
        self.inodes.clear()

    # What many operations need

    def attributes(self, status: os.stat_result) -> bytes:
        """struct fuse_attr."""
        atime, atime_ns = divmod(status.st_atime_ns, _NS)
        mtime, mtime_ns = divmod(status.st_mtime_ns, _NS)
        ctime, ctime_ns = divmod(status.st_ctime_ns, _NS)
        uid, gid = self.ids.shown(status.st_uid, status.st_gid)
        return abi.ATTR.pack(
            self.inodes.number(status),
            status.st_size,
            status.st_blocks,
            atime & _MASK,
            mtime & _MASK,
            ctime & _MASK,
            atime_ns,
            mtime_ns,
            ctime_ns,
            status.st_mode,
            status.st_nlink & 0xFFFF_FFFF,
            uid,
            gid,
            status.st_rdev & 0xFFFF_FFFF,
            status.st_blksize & 0xFFFF_FFFF,
            0,
        )

    def attribute_answer(self, status: os.stat_result) -> bytes:
        """struct fuse_attr_out."""
        return abi.ATTR_OUT.pack(*self._valid, 0) + self.attributes(status)

    def entry(self, parent: Inode, name: bytes | None, status: os.stat_result) -> bytes:
        """struct fuse_entry_out; the guest knows the file from now on, once more."""
        inode = self.inodes.remember(parent, name, status)
        return abi.ENTRY_OUT.pack(inode.nodeid, 0, *self._entry_valid) + self.attributes(status)

    def absent(self) -> bytes | None:
        """The entry for a name that is not there, if the guest may believe that for long."""
        if self.cache != "always":
            return None
        return abi.ENTRY_OUT.pack(0, 0, *self._entry_valid) + bytes(abi.ATTR.size)

    @property
    def valid(self) -> tuple[int, int]:
        """How long attributes are good for: seconds, nanoseconds."""
        return self._valid

    def directory(self, nodeid: int) -> Inode:
        """The directory ``nodeid``. Raises OSError."""
        inode = self.inodes.get(nodeid)
        if inode.kind != S_IFDIR:
            raise error(ENOTDIR)
        return inode

    def place(self, nodeid: int) -> tuple[Inode, Descriptor]:
        """A directory in which something is to be changed. Raises OSError."""
        inode = self.directory(nodeid)
        if inode.closed:
            raise error(EROFS)
        return inode, self.inodes.hold(inode)

    def reopen(self, descriptor: Descriptor, flags: int, mode: int = 0) -> Descriptor:
        """Open what ``descriptor`` is once more, with ``flags``. Raises OSError."""
        flags |= os.O_CLOEXEC | os.O_NOCTTY
        return Descriptor(os.open(str(descriptor.fd), flags, mode, dir_fd=self.proc.fd))


def self_path(descriptor: Descriptor) -> str:
    """A path to what it is, for calls that take nothing else."""
    return f"/proc/self/fd/{descriptor.fd}"


def check_offset(*offsets: int) -> None:
    """Raise OSError (EINVAL) for what no file offset can be."""
    for offset in offsets:
        if offset >> 63:
            raise error(EINVAL)


def _umask() -> int:
    """The process's umask; asking umask(2) would change it for a moment (proc_pid_status(5))."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line[6:], 8)
    return 0


def _open_root(path: str) -> Descriptor:
    try:
        return Descriptor(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError as trouble:
        raise PermissionTrouble(f"{path}: the share: {trouble.strerror}") from None
    except NotADirectoryError:
        raise FileTrouble(f"{path}: a share is a directory, and this is none") from None
    except (OSError, ValueError) as trouble:
        text = trouble.strerror if isinstance(trouble, OSError) else trouble
        raise FileTrouble(f"{path}: the share: {text}") from None
