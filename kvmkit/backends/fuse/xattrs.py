"""FUSE operations: extended attributes.

xattr(7). ``user``, ``trusted`` and ``security.capability`` are passed on, as far as
the host lets us; access lists and security labels are the host's own.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENODATA, EOPNOTSUPP, ERANGE, EROFS

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.request import error
from kvmkit.backends.fuse.session import self_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.backends.fuse.request import Request
    from kvmkit.backends.fuse.session import Session

__all__ = ["getxattr", "listxattr", "removexattr", "setxattr"]

NAME_MOST: Final = 255
SIZE_MOST: Final = 1 << 16
_FLAGS: Final = os.XATTR_CREATE | os.XATTR_REPLACE
_CAPABILITY: Final = b"security.capability"


def _passed_on(name: bytes) -> bool:
    return name.startswith((b"user.", b"trusted.")) or name == _CAPABILITY


def _name(request: Request) -> bytes:
    name = request.text(NAME_MOST)
    if not name:
        raise error(EINVAL)
    if not _passed_on(name):
        raise error(EOPNOTSUPP)
    return name


def getxattr(session: Session, request: Request) -> bytes:
    """GETXATTR: the value, or only its size."""
    size, _ = request.take(abi.GETXATTR_IN)
    name = _name(request)
    inode = session.inodes.get(request.nodeid)
    if inode.closed:
        raise error(ENODATA)
    descriptor = session.inodes.hold(inode)
    return _sized(size, os.getxattr(self_path(descriptor), name))


def listxattr(session: Session, request: Request) -> bytes:
    """LISTXATTR: the names, each ended by a NUL, or only their size."""
    size, _ = request.take(abi.GETXATTR_IN)
    inode = session.inodes.get(request.nodeid)
    if inode.closed:
        return _sized(size, b"")
    descriptor = session.inodes.hold(inode)
    names = [os.fsencode(name) for name in os.listxattr(self_path(descriptor))]
    return _sized(size, b"".join(name + b"\0" for name in names if _passed_on(name)))


def _sized(size: int, value: bytes) -> bytes:
    if size == 0:
        return abi.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise error(ERANGE)
    return value


def setxattr(session: Session, request: Request) -> bytes:
    """SETXATTR."""
    size, flags = request.take(abi.SETXATTR_IN)
    name = _name(request)
    if size > SIZE_MOST or flags & ~_FLAGS:
        raise error(EINVAL)
    value = request.rest(size)
    inode = session.inodes.get(request.nodeid)
    if inode.closed:
        raise error(EROFS)
    descriptor = session.inodes.hold(inode)
    os.setxattr(self_path(descriptor), name, value, flags)
    return b""


def removexattr(session: Session, request: Request) -> bytes:
    """REMOVEXATTR."""
    name = _name(request)
    inode = session.inodes.get(request.nodeid)
    if inode.closed:
        raise error(EROFS)
    descriptor = session.inodes.hold(inode)
    os.removexattr(self_path(descriptor), name)
    return b""
