"""FUSE operations on open files: open and make, read and write, close."""

from __future__ import annotations

import os
from errno import EINVAL, EISDIR, ELOOP, ENOSYS, EOPNOTSUPP, EROFS
from stat import S_IFDIR, S_IFLNK, S_IFREG, S_IMODE

from kvmkit.backends.fuse import abi
from kvmkit.backends.fuse.attributes import kill_suidgid
from kvmkit.backends.fuse.descriptors import Descriptor
from kvmkit.backends.fuse.handles import Handle
from kvmkit.backends.fuse.request import Later, error, split
from kvmkit.backends.fuse.session import check_offset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.backends.fuse.inodes import Inode
    from kvmkit.backends.fuse.request import Request
    from kvmkit.backends.fuse.session import Session

__all__ = [
    "create",
    "flush",
    "fsync",
    "open_",
    "open_inode",
    "read",
    "readable",
    "release",
    "tmpfile",
    "write",
]

_IOV_MAX: Final = 1024
_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_SYNC
"""What of open(2)'s flags we take from a guest."""


def _flags(session: Session, wanted: int) -> int:
    """The host's flags for the guest's."""
    flags = wanted & _FLAGS
    if session.writeback:  # the guest reads a page it writes a part of, and knows the end itself
        flags &= ~os.O_APPEND
        if flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
    return flags


def _answer(session: Session, handle: Handle, keep: bool) -> bytes:
    """struct fuse_open_out."""
    flags = abi.FOPEN_KEEP_CACHE if keep else 0
    if not session.writeback:
        flags |= abi.FOPEN_NOFLUSH  # nothing is held back
    if session.cache == "never":
        flags = abi.FOPEN_DIRECT_IO
    return abi.OPEN_OUT.pack(session.handles.add(handle), flags, 0)


def open_(session: Session, request: Request) -> bytes:
    """OPEN: an ordinary file; others are opened by the guest's kernel alone."""
    wanted, how = request.take(abi.OPEN_IN)
    inode = session.inodes.get(request.nodeid)
    handle, status = open_inode(session, inode, wanted)
    if wanted & os.O_TRUNC and how & abi.OPEN_KILL_SUIDGID:
        kill_suidgid(handle.file)
    version = status.st_mtime_ns, status.st_size
    keep = inode.version == version or session.cache == "always"
    inode.version = version
    return _answer(session, handle, keep)


def open_inode(session: Session, inode: Inode, wanted: int) -> tuple[Handle, os.stat_result]:
    """Open a file the guest knows, and its attributes now. Raises OSError."""
    if inode.kind != S_IFREG:
        raise error({S_IFDIR: EISDIR, S_IFLNK: ELOOP}.get(inode.kind, EINVAL))
    flags = _flags(session, wanted)
    if flags & os.O_ACCMODE == os.O_ACCMODE:
        raise error(EINVAL)
    if session.read_only and (flags & os.O_ACCMODE != os.O_RDONLY or wanted & os.O_TRUNC):
        raise error(EROFS)
    # The descriptor is of this very file, an ordinary one, so opening it neither blocks nor
    # does anything but open it.
    descriptor = session.inodes.hold(inode)
    file = session.reopen(descriptor, flags | wanted & os.O_TRUNC)
    return Handle(inode, file, flags), os.fstat(file.fd)


def create(session: Session, request: Request) -> bytes:
    """CREATE: make and open; what is there already is opened unless O_EXCL forbids it."""
    wanted, mode, _, how = request.take(abi.CREATE_IN)
    name = request.name()
    parent, directory = session.place(request.nodeid)
    flags = _flags(session, wanted)
    making = flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    mode = S_IMODE(mode)
    try:
        with session.ids.acting(request):
            file = Descriptor(os.open(name, making, mode, dir_fd=directory.fd))
    except FileExistsError:
        if wanted & os.O_EXCL:
            raise
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        entry = session.entry(parent, name, status)
        inode = session.inodes.get(int.from_bytes(entry[:8], "little"))
        try:
            handle, _ = open_inode(session, inode, wanted)
            if wanted & os.O_TRUNC and how & abi.OPEN_KILL_SUIDGID:
                kill_suidgid(handle.file)
            return entry + _answer(session, handle, keep=False)
        except OSError:
            session.inodes.forget(inode.nodeid, 1)  # the guest does not get to know it
            raise
    return _opened(session, parent, name, file, flags, mode)


def tmpfile(session: Session, request: Request) -> bytes:
    """TMPFILE: a file without a name, which LINK may give it one."""
    wanted, mode, _, _ = request.take(abi.CREATE_IN)
    parent, directory = session.place(request.nodeid)
    flags = _flags(session, wanted)
    mode = S_IMODE(mode)
    with session.ids.acting(request):
        file = session.reopen(directory, flags | os.O_TMPFILE | wanted & os.O_EXCL, mode)
    return _opened(session, parent, None, file, flags, mode)


def _opened(
    session: Session, parent: Inode, name: bytes | None, file: Descriptor, flags: int, mode: int
) -> bytes:
    """The answer for a new file."""
    if mode & session.umask:
        os.fchmod(file.fd, mode)
    status = os.fstat(file.fd)
    entry = session.entry(parent, name, status)
    inode = session.inodes.get(int.from_bytes(entry[:8], "little"))
    try:
        if name is None:
            session.inodes.keep(inode, session.reopen(file, os.O_PATH))
        inode.version = status.st_mtime_ns, status.st_size
        return entry + _answer(session, Handle(inode, file, flags), keep=False)
    except OSError:
        session.inodes.forget(inode.nodeid, 1)
        raise


def release(session: Session, request: Request) -> bytes:
    """RELEASE: the last user of an open file has closed it."""
    number, _, _, _ = request.take(abi.RELEASE_IN)
    session.handles.remove(number)
    return b""


def flush(session: Session, request: Request) -> bytes:
    """FLUSH: one user closes it; errors of earlier writes come up here (close(2))."""
    if session.read_only:
        raise error(ENOSYS)  # nothing is ever written, so Linux need not ask again
    number, _, _, _ = request.take(abi.FLUSH_IN)
    handle = session.handles.file(number)
    os.close(os.dup(handle.fd))
    return b""


def read(session: Session, request: Request) -> int:
    """READ: straight into the guest's memory."""
    number, offset, size, _, _, _, _ = request.take(abi.READ_IN)
    check_offset(offset)
    handle = session.handles.file(number) if number else readable(session, request.nodeid)
    room, _ = split(request.room, size)
    if request.now:
        return _read_cached(handle.fd, offset, room)
    done = 0
    while room:
        got = os.preadv(handle.fd, room[:_IOV_MAX], offset + done)
        done += got
        if not got or len(room) <= _IOV_MAX:
            break
        _, room = split(room, got)
    return done


def _read_cached(fd: int, offset: int, room: list[memoryview]) -> int:
    """Read what is in the page cache (preadv2(2), RWF_NOWAIT). Raises Later if that is not all."""
    try:
        done = os.preadv(fd, room[:_IOV_MAX], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        raise Later from None
    except OSError as trouble:
        if trouble.errno == EOPNOTSUPP:
            raise Later from None
        raise
    if done < sum(map(len, room)) and offset + done < os.fstat(fd).st_size:
        raise Later
    return done


def readable(session: Session, nodeid: int) -> Handle:
    """A file the guest reads without having opened it (FUSE_NO_OPEN_SUPPORT)."""
    inode = session.inodes.get(nodeid)
    handle = inode.data
    if handle is None:
        handle, _ = open_inode(session, inode, os.O_RDONLY)
        session.inodes.attach(inode, handle)
    return handle


def write(session: Session, request: Request) -> bytes:
    """WRITE: straight from the guest's memory."""
    number, offset, size, flags, _, _, _ = request.take(abi.WRITE_IN)
    check_offset(offset)
    handle = session.handles.file(number)
    data, _ = split(request.data, size)
    done = 0
    while data:
        try:
            put = os.pwritev(handle.fd, data[:_IOV_MAX], offset + done)
        except OSError:
            if not done:
                raise
            break
        done += put
        if not put:
            break
        _, data = split(data, put)
    if flags & abi.WRITE_KILL_SUIDGID:
        kill_suidgid(handle.file)
    return abi.WRITE_OUT.pack(done, 0)


def fsync(session: Session, request: Request) -> bytes:
    """FSYNC: what was written is on the medium; without times and such for fdatasync(2)."""
    number, flags, _ = request.take(abi.FSYNC_IN)
    if not number and session.read_only:
        return b""
    handle = session.handles.file(number)
    if flags & abi.FSYNC_FDATASYNC:
        os.fdatasync(handle.fd)
    else:
        os.fsync(handle.fd)
    return b""
