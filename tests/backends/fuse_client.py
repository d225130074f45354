"""The guest's side of FUSE: requests made, answers taken apart."""

from __future__ import annotations

import os
from errno import errorcode
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.abi import Op
from kvmkit.backends.fuse.server import Server
from kvmkit.backends.fuse.session import Session

__all__ = ["Client", "Entry", "FuseError"]

ATTR_FIELDS = (
    "ino", "size", "blocks", "atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec",
    "mode", "nlink", "uid", "gid", "rdev", "blksize", "flags",
)  # fmt: skip
DEFAULT_FLAGS = (1 << 31) - 1


class FuseError(Exception):
    """The server answered with an error; ``name`` is its symbol."""

    def __init__(self, number: int) -> None:
        super().__init__(errorcode[number])
        self.name = errorcode[number]


class Attr:
    """struct fuse_attr."""

    def __init__(self, data: bytes) -> None:
        self.__dict__.update(zip(ATTR_FIELDS, abi.ATTR.unpack(data), strict=True))

    def __getattr__(self, name: str) -> int:
        raise AttributeError(name)


class Entry(Attr):
    """struct fuse_entry_out."""

    def __init__(self, data: bytes) -> None:
        self.nodeid = abi.ENTRY_OUT.unpack_from(data)[0]
        super().__init__(data[abi.ENTRY_OUT.size : abi.ENTRY_OUT.size + abi.ATTR.size])


class Client:
    """A guest that has mounted ``path``; ``raw`` sends anything, the rest what is proper."""

    def __init__(self, path: Path | str, *, flags: int = DEFAULT_FLAGS, **options: Any) -> None:
        self.warnings: list[str] = []
        self.session = Session(str(path), **options)
        self.server = Server(self.session, self.warnings.append)
        self.unique = 0
        self.uid = self.gid = 0
        init = self.call(Op.INIT, 0, pack("<IIII48x", 7, 39, 1 << 17, flags))
        self.init = abi.INIT_OUT.unpack(init)

    def raw(self, message: bytes, room: int, cuts: tuple[int, ...] = ()) -> bytes:
        """Any bytes, and room for so many; both cut into pieces of such sizes. The answer."""
        answer = bytearray(room)
        written = None
        if self.unique % 2:  # as the device does, or as its workers do
            written = self.server.serve_now(_cut(message, cuts), _cut(answer, cuts))
        if written is None:
            written = self.server.serve(_cut(message, cuts), _cut(answer, cuts))
        assert 0 <= written <= room
        return bytes(answer[:written])

    def message(self, opcode: int, nodeid: int, body: bytes = b"") -> bytes:
        """A request with its header."""
        self.unique += 1
        return abi.IN_HEADER.pack(
            abi.IN_HEADER.size + len(body), opcode, self.unique, nodeid, self.uid, self.gid, 1, 0, 0
        ) + body  # fmt: skip

    def call(
        self, opcode: int, nodeid: int, body: bytes = b"", room: int = 4096, cuts: Any = ()
    ) -> bytes:
        """The payload of the answer. Raises FuseError."""
        answer = self.raw(self.message(opcode, nodeid, body), 16 + room, cuts)
        length, error, unique = abi.OUT_HEADER.unpack_from(answer)
        assert (length, unique) == (len(answer), self.unique)
        assert not self.warnings
        if error:
            assert length == abi.OUT_HEADER.size
            raise FuseError(-error)
        return answer[abi.OUT_HEADER.size :]

    # Operations

    def lookup(self, name: str | bytes, parent: int = 1) -> Entry:
        """LOOKUP, of one name or a path of names."""
        for part in os.fsencode(name).split(b"/"):
            entry = Entry(self.call(Op.LOOKUP, parent, part + b"\0"))
            parent = entry.nodeid
        return entry

    def forget(self, nodeid: int, count: int = 1) -> None:
        """FORGET."""
        assert self.raw(self.message(Op.FORGET, nodeid, pack("<Q", count)), 0) == b""

    def getattr(self, nodeid: int) -> Attr:
        """GETATTR."""
        return Attr(self.call(Op.GETATTR, nodeid, bytes(16))[abi.ATTR_OUT.size :])

    def setattr(self, nodeid: int, valid: int, **values: int) -> Attr:
        """SETATTR."""
        names = (
            "valid", "padding", "fh", "size", "lock_owner", "atime", "mtime", "ctime", "atimensec",
            "mtimensec", "ctimensec", "mode", "unused4", "uid", "gid", "unused5",
        )  # fmt: skip
        body = abi.SETATTR_IN.pack(*[{"valid": valid, **values}.get(name, 0) for name in names])
        return Attr(self.call(Op.SETATTR, nodeid, body)[abi.ATTR_OUT.size :])

    def open(self, nodeid: int, flags: int = os.O_RDONLY) -> int:
        """OPEN: the handle."""
        return int(unpack_from("<Q", self.call(Op.OPEN, nodeid, pack("<II", flags, 0)))[0])

    def open_flags(self, nodeid: int, flags: int = os.O_RDONLY) -> int:
        """OPEN: the flags of the answer."""
        return int(abi.OPEN_OUT.unpack(self.call(Op.OPEN, nodeid, pack("<II", flags, 0)))[1])

    def create(
        self, name: str, flags: int = os.O_RDWR, mode: int = 0o644, parent: int = 1
    ) -> tuple[Entry, int]:
        """CREATE: the file and the handle."""
        body = pack("<IIII", flags | os.O_CREAT, mode, 0, 0) + os.fsencode(name) + b"\0"
        answer = self.call(Op.CREATE, parent, body)
        return Entry(answer), int(unpack_from("<Q", answer, 128)[0])

    def read(self, nodeid: int, handle: int, size: int, offset: int = 0, cuts: Any = ()) -> bytes:
        """READ."""
        body = abi.READ_IN.pack(handle, offset, size, 0, 0, 0, 0)
        return self.call(Op.READ, nodeid, body, min(size, 1 << 20), cuts)

    def write(self, nodeid: int, handle: int, data: bytes, offset: int = 0, cuts: Any = ()) -> int:
        """WRITE."""
        body = abi.WRITE_IN.pack(handle, offset, len(data), 0, 0, 0, 0) + data
        return int(abi.WRITE_OUT.unpack(self.call(Op.WRITE, nodeid, body, cuts=cuts))[0])

    def release(self, nodeid: int, handle: int) -> None:
        """RELEASE."""
        self.call(Op.RELEASE, nodeid, abi.RELEASE_IN.pack(handle, 0, 0, 0))

    def mkdir(self, name: str, mode: int = 0o755, parent: int = 1) -> Entry:
        """MKDIR."""
        return Entry(self.call(Op.MKDIR, parent, pack("<II", mode, 0) + os.fsencode(name) + b"\0"))

    def unlink(self, name: str, parent: int = 1) -> None:
        """UNLINK."""
        self.call(Op.UNLINK, parent, os.fsencode(name) + b"\0")

    def rename(self, old: str, new: str, parent: int = 1, target: int = 1, flags: int = 0) -> None:
        """RENAME2."""
        names = os.fsencode(old) + b"\0" + os.fsencode(new) + b"\0"
        self.call(Op.RENAME2, parent, pack("<QII", target, flags, 0) + names)

    def opendir(self, nodeid: int = 1) -> int:
        """OPENDIR: the handle."""
        return int(unpack_from("<Q", self.call(Op.OPENDIR, nodeid, bytes(8)))[0])

    def entries(
        self, nodeid: int, handle: int, *, plus: bool = False, size: int = 4096, offset: int = 0
    ) -> list[tuple[bytes, int, int, Entry | None]]:
        """READDIR or READDIRPLUS, one answer: name, offset after it, kind, entry."""
        body = abi.READ_IN.pack(handle, offset, size, 0, 0, 0, 0)
        data = self.call(Op.READDIRPLUS if plus else Op.READDIR, nodeid, body, size)
        found, at = [], 0
        while at < len(data):
            entry = Entry(data[at : at + 128]) if plus else None
            at += 128 if plus else 0
            _, following, length, kind = abi.DIRENT.unpack_from(data, at)
            name = data[at + abi.DIRENT.size :][:length]
            found.append((name, following, kind, entry))
            at += abi.DIRENT.size + length + 7 & ~7
        return found

    def list(self, nodeid: int = 1, *, plus: bool = False, size: int = 4096) -> list[bytes]:
        """All names of a directory."""
        handle, names, offset = self.opendir(nodeid), [], 0
        while found := self.entries(nodeid, handle, plus=plus, size=size, offset=offset):
            names += [name for name, _, _, _ in found]
            offset = found[-1][1]
        self.call(Op.RELEASEDIR, nodeid, abi.RELEASE_IN.pack(handle, 0, 0, 0))
        return sorted(set(names) - {b".", b".."})

    def xattr(self, nodeid: int, name: str, size: int = 4096) -> bytes:
        """GETXATTR."""
        return self.call(Op.GETXATTR, nodeid, pack("<II", size, 0) + name.encode() + b"\0")


def _cut(data: bytes | bytearray, cuts: tuple[int, ...]) -> list[memoryview]:
    views, view = [], memoryview(data)
    for size in cuts:
        if len(view) > size:
            views.append(view[:size])
            view = view[size:]
    return [*views, view] if len(view) else views
