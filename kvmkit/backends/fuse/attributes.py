"""FUSE operations: attributes of files, and of the file system."""

from __future__ import annotations

import os
from errno import EINVAL, EROFS
from stat import S_IFREG, S_IMODE, S_ISGID, S_ISREG, S_ISUID, S_IXGRP

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.ids import UNCHANGED
from kvmkit.backends.fuse.request import error
from kvmkit.backends.fuse.session import check_offset, self_path
from kvmkit.backends.fuse.syscalls import UTIME_NOW, UTIME_OMIT, statx, syncfs, utimensat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.backends.fuse.descriptors import Descriptor
    from kvmkit.backends.fuse.handles import Handle
    from kvmkit.backends.fuse.request import Request
    from kvmkit.backends.fuse.session import Session

__all__ = ["access", "getattr_", "kill_suidgid", "setattr_", "statfs", "statx_", "sync_fs"]

_NS_MOST: Final = 999_999_999
_STATX_KNOWN: Final = 0x0FFF  # STATX_BASIC_STATS and STATX_BTIME


def getattr_(session: Session, request: Request) -> bytes:
    """GETATTR: by the open file if the guest names one."""
    flags, _, number = request.take(abi.GETATTR_IN)
    inode = session.inodes.get(request.nodeid)
    if flags & abi.GETATTR_FH and inode.held is None:
        handle = session.handles.file(number)
        if handle.inode is inode:
            return session.attribute_answer(os.fstat(handle.fd))
    return session.attribute_answer(session.inodes.status(inode))


def statx_(session: Session, request: Request) -> bytes:
    """STATX: also the time of birth."""
    _, _, _, _, mask = request.take(abi.STATX_IN)
    inode = session.inodes.get(request.nodeid)
    descriptor = session.inodes.hold(inode)
    fields = list(abi.STATX.unpack(statx(descriptor.fd, mask & _STATX_KNOWN)))
    status = os.fstat(descriptor.fd)
    fields[2] = fields[10] = 0  # attributes: what a mount is on the host means nothing here
    fields[4:6] = session.ids.shown(fields[4], fields[5])
    fields[7] = session.inodes.number(status)
    fields[21:23] = 0, 0  # the host's device
    return abi.STATX_OUT.pack(*session.valid, 0) + abi.STATX.pack(*fields)


def setattr_(session: Session, request: Request) -> bytes:
    """SETATTR: mode, owner, size, times; all that is asked for."""
    (
        valid, _, number, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _,
    ) = request.take(abi.SETATTR_IN)  # fmt: skip
    inode = session.inodes.get(request.nodeid)
    if inode.closed:
        raise error(EROFS)
    descriptor = session.inodes.hold(inode)
    if valid & abi.FATTR_MODE:
        os.chmod(self_path(descriptor), S_IMODE(mode))
    if valid & (abi.FATTR_UID | abi.FATTR_GID):
        _chown(
            session,
            descriptor,
            uid if valid & abi.FATTR_UID else UNCHANGED,
            gid if valid & abi.FATTR_GID else UNCHANGED,
        )
    if valid & abi.FATTR_SIZE:
        check_offset(size)
        if inode.kind != S_IFREG:
            raise error(EINVAL)
        handle = session.handles.file(number) if valid & abi.FATTR_FH else None
        _truncate(session, descriptor, handle if handle and handle.inode is inode else None, size)
        if valid & abi.FATTR_KILL_SUIDGID:
            kill_suidgid(descriptor)
    if valid & (abi.FATTR_ATIME | abi.FATTR_MTIME):
        utimensat(
            session.proc.fd,
            b"%d" % descriptor.fd,
            _time(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, atime, atime_ns),
            _time(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, mtime, mtime_ns),
        )
    return session.attribute_answer(os.fstat(descriptor.fd))


def _chown(session: Session, descriptor: Descriptor, uid: int, gid: int) -> None:
    """Give it to another, as far as it is not his already."""
    uid, gid = session.ids.wanted(uid, gid)
    status = os.fstat(descriptor.fd)
    if uid in (UNCHANGED, status.st_uid) and gid in (UNCHANGED, status.st_gid):
        if status.st_mode & (S_ISUID | S_ISGID):
            kill_suidgid(descriptor)
        return
    os.chown(
        self_path(descriptor), -1 if uid == UNCHANGED else uid, -1 if gid == UNCHANGED else gid
    )


def _truncate(session: Session, descriptor: Descriptor, handle: Handle | None, size: int) -> None:
    if handle is not None and handle.flags & os.O_ACCMODE != os.O_RDONLY:
        os.ftruncate(handle.fd, size)
    else:
        os.truncate(self_path(descriptor), size)


def _time(valid: int, bit: int, now: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
    if not valid & bit:
        return 0, UTIME_OMIT
    if valid & now:
        return 0, UTIME_NOW
    if nanoseconds > _NS_MOST:
        raise error(EINVAL)
    return seconds - (1 << 64) if seconds >> 63 else seconds, nanoseconds


def kill_suidgid(descriptor: Descriptor) -> None:
    """A file that was changed does not keep set-user-id and set-group-id.

    The host's kernel sees to that unless we are root; we always see to it.
    """
    mode = os.fstat(descriptor.fd).st_mode
    wanted = mode & ~S_ISUID
    if mode & S_IXGRP:
        wanted &= ~S_ISGID
    if S_ISREG(mode) and wanted != mode:
        os.chmod(self_path(descriptor), S_IMODE(wanted))


def access(session: Session, request: Request) -> bytes:
    """ACCESS: the guest's kernel checks permissions by mode and owner; here is what it cannot know.

    Linux does not ask on virtio-fs.
    """
    mask, _ = request.take(abi.ACCESS_IN)
    session.inodes.status(session.inodes.get(request.nodeid))
    if mask & os.W_OK and session.read_only:
        raise error(EROFS)
    return b""


def statfs(session: Session, request: Request) -> bytes:
    """STATFS: room on the host's file system."""
    descriptor = session.inodes.hold(session.inodes.get(request.nodeid))
    found = os.statvfs(descriptor.fd)
    return abi.STATFS_OUT.pack(
        found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
        found.f_bsize, found.f_namemax, found.f_frsize,
    )  # fmt: skip


def sync_fs(session: Session, request: Request) -> bytes:
    """SYNCFS: what sync(2) in the guest asks for."""
    if not session.read_only:
        root = session.inodes.hold(session.inodes.get(abi.ROOT_ID))
        directory = session.reopen(root, os.O_RDONLY | os.O_DIRECTORY)
        syncfs(directory.fd)
    return b""
