"""What a guest has open: numbers for open files and directories."""

from __future__ import annotations

from _thread import allocate_lock
from errno import EBADF, ENFILE

from kvmkit.backends.fuse.request import error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.backends.fuse.descriptors import Descriptor
    from kvmkit.backends.fuse.inodes import Inode

__all__ = ["DirectoryHandle", "Handle", "Handles"]


class Handle:
    """``inode``, open as ``file`` with open(2)'s ``flags``."""

    __slots__ = ("file", "flags", "inode")

    def __init__(self, inode: Inode, file: Descriptor, flags: int) -> None:
        self.inode = inode
        self.file = file
        self.flags = flags

    @property
    def fd(self) -> int:
        """Its descriptor, valid as long as the handle is referred to."""
        return self.file.fd


class DirectoryHandle(Handle):
    """An open directory: what was read ahead of the guest, and where that stands."""

    __slots__ = ("ahead", "at", "lock", "position")

    def __init__(self, inode: Inode, file: Descriptor, flags: int = 0) -> None:
        super().__init__(inode, file, flags)
        self.lock = allocate_lock()
        self.ahead = b""
        """Records of getdents64(2)."""
        self.at = 0
        """How much of them the guest has got."""
        self.position = 0
        """The directory's own offset (d_off) there."""


class Handles:
    """At most ``most`` at a time. Numbers are never used twice, and 0 is none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = allocate_lock()
        self._open: dict[int, Handle] = {}
        self.last = 0
        """The highest number so far."""

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether nothing more can be opened."""
        return len(self._open) >= self._most

    def add(self, handle: Handle) -> int:
        """Its number. Raises OSError (ENFILE)."""
        with self._lock:
            if len(self._open) >= self._most:
                raise error(ENFILE)
            self.last += 1
            self._open[self.last] = handle
            return self.last

    def put(self, number: int, handle: Handle) -> None:
        """Open under a number that it had before. Raises OSError (ENFILE)."""
        with self._lock:
            if len(self._open) >= self._most:
                raise error(ENFILE)
            self._open[number] = handle
            self.last = max(self.last, number)

    def all(self) -> list[tuple[int, Handle]]:
        """What is open, by number."""
        return sorted(self._open.items(), key=lambda pair: pair[0])

    def file(self, number: int) -> Handle:
        """An open file. Raises OSError (EBADF) if the number is none."""
        handle = self._open.get(number)
        if handle is None or type(handle) is not Handle:
            raise error(EBADF)
        return handle

    def directory(self, number: int) -> DirectoryHandle:
        """An open directory. Raises OSError (EBADF) if the number is none."""
        handle = self._open.get(number)
        if not isinstance(handle, DirectoryHandle):
            raise error(EBADF)
        return handle

    def remove(self, number: int) -> None:
        """It is closed as soon as nobody uses it any more. Unknown numbers do nothing."""
        self._open.pop(number, None)

    def clear(self) -> None:
        """Close all."""
        self._open = {}
