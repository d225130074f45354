"""FUSE operations: names looked up and forgotten, symbolic links read."""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT
from stat import S_IFLNK

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.request import error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.backends.fuse.request import Request
    from kvmkit.backends.fuse.session import Session

__all__ = ["batch_forget", "forget", "lookup", "readlink"]


def lookup(session: Session, request: Request) -> bytes:
    """LOOKUP: a name in a directory."""
    parent = session.directory(request.nodeid)
    name = request.name()
    try:
        if parent.closed:
            raise FileNotFoundError(ENOENT, "ENOENT")
        directory = session.inodes.hold(parent)
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        absent = session.absent()
        if absent is None:
            raise
        return absent
    return session.entry(parent, name, status)


def forget(session: Session, request: Request) -> None:
    """FORGET: the guest drops look-ups of one file."""
    (count,) = request.take(abi.FORGET_IN)
    session.inodes.forget(request.nodeid, count)


def batch_forget(session: Session, request: Request) -> None:
    """BATCH_FORGET: of many."""
    count, _ = request.take(abi.BATCH_FORGET_IN)
    one = abi.FORGET_ONE
    inside = len(request.body) - abi.BATCH_FORGET_IN.size
    for _ in range(min(count, inside // one.size)):
        session.inodes.forget(*request.take(one))


def readlink(session: Session, request: Request) -> bytes:
    """READLINK: the text of a symbolic link, which the guest follows, not we."""
    inode = session.inodes.get(request.nodeid)
    if inode.kind != S_IFLNK:
        raise error(EINVAL)
    # An empty name is the link itself (readlink(2)).
    descriptor = session.inodes.hold(inode)
    return os.readlink(b"", dir_fd=descriptor.fd)
