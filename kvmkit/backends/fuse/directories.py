"""FUSE operations on directories: open, list, list with attributes, close."""

from __future__ import annotations

import os
from struct import Struct

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.handles import DirectoryHandle
from kvmkit.backends.fuse.session import check_offset
from kvmkit.backends.fuse.syscalls import getdents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.backends.fuse.inodes import Inode
    from kvmkit.backends.fuse.request import Request
    from kvmkit.backends.fuse.session import Session

__all__ = ["fsyncdir", "open_directory", "opendir", "readdir", "readdirplus", "releasedir"]

_AHEAD: Final = 8192
"""Bytes read from a directory at a time, kept with its handle."""

_ANSWER: Final = 1 << 16
"""Bytes of entries given at a time, however many are asked for."""

_RECORD = Struct("<QQHB")  # struct linux_dirent64: d_ino, d_off, d_reclen, d_type; d_name
_ENTRY_SIZE: Final = abi.ENTRY_OUT.size + abi.ATTR.size


def opendir(session: Session, request: Request) -> bytes:
    """OPENDIR."""
    handle = open_directory(session, session.directory(request.nodeid))
    flags = abi.FOPEN_CACHE_DIR | abi.FOPEN_KEEP_CACHE if session.cache == "always" else 0
    return abi.OPEN_OUT.pack(session.handles.add(handle), flags, 0)


def open_directory(session: Session, inode: Inode) -> DirectoryHandle:
    """Open a directory the guest knows. Raises OSError."""
    descriptor = session.inodes.hold(inode)
    if inode.closed:
        return DirectoryHandle(inode, descriptor)
    return DirectoryHandle(inode, session.reopen(descriptor, os.O_RDONLY | os.O_DIRECTORY))


def releasedir(session: Session, request: Request) -> bytes:
    """RELEASEDIR."""
    number, _, _, _ = request.take(abi.RELEASE_IN)
    session.handles.remove(number)
    return b""


def fsyncdir(session: Session, request: Request) -> bytes:
    """FSYNCDIR: names made, removed and renamed there are on the medium."""
    number, _, _ = request.take(abi.FSYNC_IN)
    handle = session.handles.directory(number)
    if not handle.inode.closed:
        os.fsync(handle.fd)
    return b""


def readdir(session: Session, request: Request) -> bytes:
    """READDIR: names, inode numbers and kinds."""
    return _list(session, request, plus=False)


def readdirplus(session: Session, request: Request) -> bytes:
    """READDIRPLUS: the same, and each looked up at once."""
    return _list(session, request, plus=True)


def _list(session: Session, request: Request, plus: bool) -> bytes:
    number, offset, size, _, _, _, _ = request.take(abi.READ_IN)
    check_offset(offset)
    handle = session.handles.directory(number) if number else _readable(session, request.nodeid)
    if handle.inode.closed:
        return b""
    with handle.lock:
        return _entries(session, handle, offset, min(size, request.room_size, _ANSWER), plus)


def _readable(session: Session, nodeid: int) -> DirectoryHandle:
    """A directory the guest reads without having opened it (FUSE_NO_OPENDIR_SUPPORT)."""
    inode = session.directory(nodeid)
    handle = inode.data
    if not isinstance(handle, DirectoryHandle):
        handle = open_directory(session, inode)
        session.inodes.attach(inode, handle)
    return handle


def _entries(
    session: Session, handle: DirectoryHandle, offset: int, size: int, plus: bool
) -> bytes:
    """Directory entries from ``offset`` on, as many as fit. With the handle's lock."""
    if offset != handle.position:
        os.lseek(handle.fd, offset, os.SEEK_SET)
        handle.ahead, handle.at, handle.position = b"", 0, offset
    found: list[bytes] = []
    inode = handle.inode
    header = abi.DIRENT.size + (_ENTRY_SIZE if plus else 0)
    while True:
        if handle.at >= len(handle.ahead):
            handle.ahead, handle.at = getdents(handle.fd, _AHEAD), 0
            if not handle.ahead:
                break
        data, at = handle.ahead, handle.at
        ino, following, length, kind = _RECORD.unpack_from(data, at)
        name = data[at + _RECORD.size : data.index(b"\0", at + _RECORD.size)]
        space = header + len(name) + 7 & ~7
        if space > size:
            break
        size -= space
        ino = session.inodes.number_of(inode.key[0], ino)
        if name in (b".", b".."):  # what is above the share is no affair of the guest's
            ino = session.inodes.number_of(*inode.key[:2])
            entry = bytes(_ENTRY_SIZE)
        elif plus:
            entry = _looked_up(session, handle, name)
        if plus:
            found.append(entry)
        found.append(abi.DIRENT.pack(ino, following, len(name), kind))
        found.append(name + bytes(-len(name) % 8))
        handle.at = at + length
        handle.position = following
    return b"".join(found)


def _looked_up(session: Session, handle: DirectoryHandle, name: bytes) -> bytes:
    """The entry of a name; of nothing if it has just gone: then the guest gets the name only."""
    try:
        status = os.stat(name, dir_fd=handle.fd, follow_symlinks=False)
        return session.entry(handle.inode, name, status)
    except OSError:
        return bytes(_ENTRY_SIZE)
