"""Writing cpio archives in the "newc" format.

The kernel unpacks them as its initial file system: Linux
``Documentation/driver-api/early-userspace/buffer-format.rst``. Every member
is a header of 13 numbers in hexadecimal, its name and its data, each padded
to 4 bytes; the member "TRAILER!!!" ends the archive. Archives may follow each
other; a later file replaces an earlier one of the same name.
"""

from __future__ import annotations

from kvmkit.errors import UsageError

__all__ = ["Archive"]

_S_IFIFO = 0o010000
_S_IFCHR = 0o020000
_S_IFDIR = 0o040000
_S_IFBLK = 0o060000
_S_IFREG = 0o100000
_S_IFLNK = 0o120000

_MAX_SIZE = 0xFFFF_FFFF  # c_filesize has 8 hexadecimal digits
_MAX_NAME = 4095  # PATH_MAX without its NUL; the kernel skips members with longer names

# After the inode number: mode, uid, gid, nlink, mtime, filesize, major, minor, rmajor, rminor,
# namesize, check.
_HEADER = "070701%08X%08X0000000000000000%08X00000000%08X0000000000000000%08X%08X%08X00000000"


class Archive:
    """An archive under construction: the same calls give the same bytes.

    Everything belongs to root and dates from 1970. Paths are relative to the
    root of the file system, a leading "/" is allowed; directories above a
    member are made when they are missing. Raises UsageError for a path that
    cannot be in an archive and for data of 4 GiB and more.
    """

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []
        self._inode = 0
        self._directories: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; again the same one changes nothing."""
        name = self._place(path)
        if name not in self._directories:
            self._directories.add(name)
            self._member(name, _S_IFDIR | mode, links=2)

    def file(self, path: str, data: bytes | memoryview, mode: int = 0o644) -> None:
        """A regular file with ``data``."""
        self._member(self._place(path), _S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link to ``target``."""
        self._member(self._place(path), _S_IFLNK | 0o777, target.encode(errors="surrogateescape"))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character special file."""
        self._member(self._place(path), _S_IFCHR | mode, device=(major, minor))

    def block_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A block special file."""
        self._member(self._place(path), _S_IFBLK | mode, device=(major, minor))

    def fifo(self, path: str, mode: int = 0o600) -> None:
        """A named pipe."""
        self._member(self._place(path), _S_IFIFO | mode)

    def finish(self) -> bytes:
        """The archive, padded to 4 bytes so that another one may follow."""
        parts = list(self._parts)
        parts.append((_HEADER % (0, 0, 1, 0, 0, 0, 11)).encode() + b"TRAILER!!!\0\0\0\0")
        return b"".join(parts)

    def _place(self, path: str) -> str:
        # The name as it stands in the archive; its parents exist afterwards.
        name = path.strip("/")
        steps = name.split("/")
        if "" in steps or "." in steps or ".." in steps or "\0" in name:
            raise UsageError(f"a file in an archive needs a plain path, not {path!r}")
        if name not in self._directories:
            for depth in range(1, len(steps)):
                parent = "/".join(steps[:depth])
                if parent not in self._directories:
                    self._directories.add(parent)
                    self._member(parent, _S_IFDIR | 0o755, links=2)
        return name

    def _member(
        self,
        name: str,
        mode: int,
        data: bytes | memoryview = b"",
        *,
        links: int = 1,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        raw = name.encode(errors="surrogateescape") + b"\0"
        size = len(data) if isinstance(data, bytes) else data.nbytes
        if len(raw) > _MAX_NAME + 1:
            raise UsageError(f"a path in an archive has at most {_MAX_NAME} bytes: {name[:40]}...")
        if size > _MAX_SIZE:
            raise UsageError(f"{name} has {size} bytes, an archive member at most {_MAX_SIZE}")
        self._inode += 1
        header = _HEADER % (self._inode, mode, links, size, *device, len(raw))
        self._parts.append(header.encode() + raw + bytes(-(len(header) + len(raw)) % 4))
        if size:
            self._parts.append(data)
            self._parts.append(bytes(-size % 4))
