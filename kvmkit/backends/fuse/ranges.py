"""FUSE operations on ranges of open files: holes, room, copies."""

from __future__ import annotations

import os
from errno import EINVAL, EOPNOTSUPP

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.attributes import kill_suidgid
from kvmkit.backends.fuse.files import readable
from kvmkit.backends.fuse.request import error
from kvmkit.backends.fuse.session import check_offset
from kvmkit.backends.fuse.syscalls import fallocate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.backends.fuse.request import Request
    from kvmkit.backends.fuse.session import Session

__all__ = ["copy_file_range", "fallocate_", "lseek"]

# linux/falloc.h
KEEP_SIZE: Final = 0x01
PUNCH_HOLE: Final = 0x02
ZERO_RANGE: Final = 0x10

COPY_MOST: Final = 64 << 20
"""Bytes copied at a time; who wants more asks again, as copy_file_range(2) allows."""


def fallocate_(session: Session, request: Request) -> bytes:
    """FALLOCATE: room for a range, zeroes or a hole in it."""
    number, offset, length, mode, _ = request.take(abi.FALLOCATE_IN)
    check_offset(offset, length)
    if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE):
        raise error(EOPNOTSUPP)
    handle = session.handles.file(number)
    fallocate(handle.fd, mode, offset, length)
    kill_suidgid(handle.file)
    return b""


def lseek(session: Session, request: Request) -> bytes:
    """LSEEK: the next data or hole; the rest of lseek(2) is the guest's own."""
    number, offset, whence, _ = request.take(abi.LSEEK_IN)
    check_offset(offset)
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise error(EINVAL)
    handle = session.handles.file(number) if number else readable(session, request.nodeid)
    return abi.LSEEK_OUT.pack(os.lseek(handle.fd, offset, whence))


def copy_file_range(session: Session, request: Request) -> bytes:
    """COPY_FILE_RANGE: without the data going through the guest; shared extents if it can be."""
    source, start, _, target, to, length, flags = request.take(abi.COPY_FILE_RANGE_IN)
    check_offset(start, to)
    if flags:
        raise error(EINVAL)
    reading, writing = session.handles.file(source), session.handles.file(target)
    done = os.copy_file_range(reading.fd, writing.fd, min(length, COPY_MOST), start, to)
    kill_suidgid(writing.file)
    return abi.WRITE_OUT.pack(done, 0)
