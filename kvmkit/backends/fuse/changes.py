"""FUSE operations that make, remove and rename names."""

from __future__ import annotations

import os
from errno import EINVAL, EPERM
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK, S_IMODE

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.descriptors import Descriptor
from kvmkit.backends.fuse.request import error
from kvmkit.backends.fuse.session import self_path
from kvmkit.backends.fuse.syscalls import beneath, renameat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.backends.fuse.inodes import Inode
    from kvmkit.backends.fuse.request import Request
    from kvmkit.backends.fuse.session import Session

__all__ = ["link", "mkdir", "mknod", "rename", "rename2", "rmdir", "symlink", "unlink"]

# linux/fs.h
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4


def _made(session: Session, parent: Inode, fd: int, name: bytes) -> bytes:
    """The entry of what was made."""
    return session.entry(parent, name, os.stat(name, dir_fd=fd, follow_symlinks=False))


def _unmask(session: Session, request: Request, fd: int, name: bytes, mode: int) -> None:
    """Give what was made the bits that our umask took: the guest's was applied already."""
    if not S_IMODE(mode) & session.umask:
        return
    descriptor = Descriptor(beneath(fd, name))
    status = os.fstat(descriptor.fd)
    # Somebody may have put something else there: then it must be his own at least.
    owner = request.uid if session.ids.privileged else os.geteuid()
    if status.st_uid == owner and S_IFMT(status.st_mode) == S_IFMT(mode):
        os.chmod(self_path(descriptor), S_IMODE(mode) | status.st_mode & 0o2000)


def mknod(session: Session, request: Request) -> bytes:
    """MKNOD: a file, FIFO, socket or whiteout. Device nodes are nothing to be had on the host."""
    mode, device, _, _ = request.take(abi.MKNOD_IN)
    name = request.name()
    parent, directory = session.place(request.nodeid)
    kind = S_IFMT(mode) or S_IFREG
    if kind == S_IFBLK or (kind == S_IFCHR and device):
        raise error(EPERM)
    if kind not in (S_IFREG, S_IFIFO, S_IFSOCK, S_IFCHR):
        raise error(EINVAL)
    mode = kind | S_IMODE(mode)
    with session.ids.acting(request):
        os.mknod(name, mode, device, dir_fd=directory.fd)
    _unmask(session, request, directory.fd, name, mode)
    return _made(session, parent, directory.fd, name)


def mkdir(session: Session, request: Request) -> bytes:
    """MKDIR."""
    mode, _ = request.take(abi.MKDIR_IN)
    name = request.name()
    parent, directory = session.place(request.nodeid)
    with session.ids.acting(request):
        os.mkdir(name, S_IMODE(mode), dir_fd=directory.fd)
    _unmask(session, request, directory.fd, name, S_IFDIR | S_IMODE(mode))
    return _made(session, parent, directory.fd, name)


def symlink(session: Session, request: Request) -> bytes:
    """SYMLINK: its text is the guest's affair."""
    name = request.name()
    target = request.text()
    parent, directory = session.place(request.nodeid)
    with session.ids.acting(request):
        os.symlink(target, name, dir_fd=directory.fd)
    return _made(session, parent, directory.fd, name)


def link(session: Session, request: Request) -> bytes:
    """LINK: one more name for a file, also for one without any (O_TMPFILE)."""
    (nodeid,) = request.take(abi.LINK_IN)
    name = request.name()
    parent, directory = session.place(request.nodeid)
    inode = session.inodes.get(nodeid)
    if inode.kind == S_IFDIR:
        raise error(EPERM)
    descriptor = session.inodes.hold(inode)
    os.link(
        str(descriptor.fd), name,
        src_dir_fd=session.proc.fd, dst_dir_fd=directory.fd, follow_symlinks=True,
    )  # fmt: skip
    return session.entry(parent, name, os.fstat(descriptor.fd))


def unlink(session: Session, request: Request) -> bytes:
    """UNLINK: the guest may have the file open, and goes on using it."""
    name = request.name()
    parent, directory = session.place(request.nodeid)
    inode = session.inodes.unnamed(parent, name)
    os.unlink(name, dir_fd=directory.fd)
    if inode is not None:
        session.inodes.moved(inode, parent, name, None)
    return b""


def rmdir(session: Session, request: Request) -> bytes:
    """RMDIR."""
    name = request.name()
    parent, directory = session.place(request.nodeid)
    inode = session.inodes.unnamed(parent, name)
    os.rmdir(name, dir_fd=directory.fd)
    if inode is not None:
        session.inodes.moved(inode, parent, name, None)
    return b""


def rename(session: Session, request: Request) -> bytes:
    """RENAME: replaces what has the new name."""
    (target,) = request.take(abi.RENAME_IN)
    return _rename(session, request, target, 0)


def rename2(session: Session, request: Request) -> bytes:
    """RENAME2: with renameat2(2)'s flags."""
    target, flags, _ = request.take(abi.RENAME2_IN)
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
        raise error(EINVAL)
    return _rename(session, request, target, flags)


def _rename(session: Session, request: Request, target: int, flags: int) -> bytes:
    old, new = request.name(), request.name()
    source, source_directory = session.place(request.nodeid)
    destination, destination_directory = session.place(target)
    inodes = session.inodes
    moving = inodes.known(
        os.stat(old, dir_fd=source_directory.fd, follow_symlinks=False)
    )  # looked at before: afterwards nobody could tell which it was
    try:
        replaced = inodes.unnamed(destination, new)
    except FileNotFoundError:
        replaced = None
    fds = source_directory.fd, destination_directory.fd
    with session.ids.acting(request):
        if flags:
            renameat2(fds[0], old, fds[1], new, flags)
        else:
            os.rename(old, new, src_dir_fd=fds[0], dst_dir_fd=fds[1])
    if moving is replaced:  # two names of one file: rename(2) does nothing
        return b""
    if replaced is not None:
        there = (source, old) if flags & RENAME_EXCHANGE else None
        inodes.moved(replaced, destination, new, there)
    if moving is not None:
        inodes.moved(moving, source, old, (destination, new))
    return b""
