"""The FUSE server: messages in, answers out.

Linux, ``Documentation/filesystems/fuse.rst``; ``include/uapi/linux/fuse.h``. A
message is two lists of buffers in the guest's memory, the request to read and
the room for its answer. Whatever a guest sends, it gets an answer or none; no
exception leaves :meth:`Server.serve`.
"""

from __future__ import annotations

from errno import EINVAL, EIO, EMFILE, ENFILE, ENOMEM, ENOSYS, EPROTO, EROFS
from time import perf_counter_ns

from kvmkit.backends.fuse import (
    abi,
    attributes,
    changes,
    directories,
    files,
    lookups,
    ranges,
    xattrs,
)
from kvmkit.backends.fuse.abi import Op
from kvmkit.backends.fuse.request import Later, error, parse, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmkit.backends.fuse.request import Answer, Request
    from kvmkit.backends.fuse.session import Session
    from kvmkit.virtio.fs_state import ShareState

__all__ = ["MAX_PAGES", "Server"]

MAX_PAGES: Final = 256
"""Pages of data a request may have: 1 MiB, the most Linux takes."""

_PAGE: Final = 4096
_LONG: Final = 2_000_000
"""Nanoseconds that a request may take which nobody waits for."""
_PENANCE: Final = 100
"""Requests that are left to threads after one that took longer."""
_QUICK_MOST: Final = 256 << 10
"""Bytes that are read or written at once: copying more takes longer than a thread's wake-up."""
_BACKGROUND: Final = 128  # requests under way that nobody waits for (read-ahead)

_ALWAYS: Final = (
    abi.ASYNC_READ
    | abi.ATOMIC_O_TRUNC
    | abi.BIG_WRITES
    | abi.AUTO_INVAL_DATA
    | abi.DO_READDIRPLUS
    | abi.ASYNC_DIO
    | abi.PARALLEL_DIROPS
    | abi.MAX_PAGES
    | abi.HANDLE_KILLPRIV_V2
)
"""What is asked of every guest that has it. Locks are not: Linux keeps them in the guest."""


class Server:
    """Serves ``session``; ``warn`` gets one line about a failure of ours."""

    def __init__(self, session: Session, warn: Callable[[str], None] | None = None) -> None:
        self.session = session
        self._warn = warn
        self._wait = 0

    def reset(self) -> None:
        """The guest is gone, without a word perhaps."""
        self.session.clear()

    def save(self) -> ShareState:
        """What the guest knows and has open, while no request is under way."""
        from kvmkit.backends.fuse.state import save

        return save(self.session)

    def restore(self, state: ShareState) -> None:
        """Become what :meth:`save` gave, as far as the host's files are still there."""
        from kvmkit.backends.fuse.state import restore

        restore(self.session, state)

    def serve_now(self, readable: list[memoryview], writable: list[memoryview]) -> int | None:
        """:meth:`serve` if that takes no time to speak of; else None, and nothing was done.

        Most of what guests ask is in the host's caches, and done sooner than a thread wakes
        up. When something took long nevertheless, the next requests are left to threads.
        """
        if self._wait:
            self._wait -= 1
            return None
        request = parse(readable, writable)
        if request is None:
            return 0
        opcode = request.opcode
        if opcode not in _QUICK:
            return None
        if opcode in _DATA and request.room_size + sum(map(len, request.data)) > _QUICK_MOST:
            return None
        request.now = True
        start = perf_counter_ns()
        try:
            return self._answer(request, writable)
        except Later:
            return None
        finally:
            if perf_counter_ns() - start > _LONG:
                self._wait = _PENANCE

    def serve(self, readable: list[memoryview], writable: list[memoryview]) -> int:
        """Do what a message says; how many bytes of ``writable`` are filled. From any thread."""
        request = parse(readable, writable)
        return 0 if request is None else self._answer(request, writable)

    def _answer(self, request: Request, writable: list[memoryview]) -> int:
        """Do it and store the answer; how many bytes that is. Raises Later if it may."""
        number = 0
        answer: Answer = b""
        try:
            answer = self._do(request)
        except OSError as trouble:
            number = trouble.errno or EIO
        except (ValueError, OverflowError):
            number = EINVAL
        except Later:
            raise
        except MemoryError:
            number = ENOMEM
        except Exception as trouble:
            number = EIO
            if self._warn is not None:
                self._warn(f"operation {request.opcode} failed: {trouble!r}")
        if answer is None:
            return 0
        return _reply(request, writable, number, answer)

    def _do(self, request: Request) -> Answer:
        opcode = request.opcode
        if opcode in _CHANGING and self.session.read_only:
            raise error(EROFS)
        operation = _OPERATIONS.get(opcode)
        if operation is None:
            return self._special(request)
        session = self.session
        if (opcode == Op.OPEN and session.no_open) or (opcode == Op.OPENDIR and session.no_opendir):
            raise error(ENOSYS)  # and Linux never asks again
        try:
            return operation(self.session, request)
        except OSError as trouble:
            if trouble.errno not in (EMFILE, ENFILE):
                raise
            self.session.inodes.relieve()
            return operation(self.session, request.again())

    def _special(self, request: Request) -> Answer:
        opcode = request.opcode
        if opcode == Op.INIT:
            return self._init(request)
        if opcode == Op.DESTROY:
            self.reset()
            return b""
        if opcode in _UNANSWERED:  # nothing takes so long that it could be interrupted
            return None
        raise error(ENOSYS)

    def _init(self, request: Request) -> bytes:
        """INIT: agree on a version and on what both can."""
        major, minor, readahead, offered = request.take(abi.INIT_IN)
        if major < abi.MAJOR or (major == abi.MAJOR and minor < abi.MINOR_LEAST):
            raise error(EPROTO)
        self.reset()
        session = self.session
        wanted = _ALWAYS
        if major > abi.MAJOR:
            wanted = 0  # it asks again, in our version
        elif session.cache == "always":
            wanted |= abi.CACHE_SYMLINKS
            if not session.read_only:
                wanted |= abi.WRITEBACK_CACHE
        agreed = wanted & offered
        session.writeback = bool(agreed & abi.WRITEBACK_CACHE)
        if session.read_only and session.cache != "never":
            # Nothing is lost when files are read without being opened, and a request per file
            # is saved. For directories it means that Linux caches them.
            session.no_open = bool(offered & abi.NO_OPEN_SUPPORT)
            session.no_opendir = session.cache == "always" and bool(
                offered & abi.NO_OPENDIR_SUPPORT
            )
        return abi.INIT_OUT.pack(
            abi.MAJOR, abi.MINOR, readahead, agreed, _BACKGROUND, _BACKGROUND * 3 // 4,
            MAX_PAGES * _PAGE, 1, MAX_PAGES, 0, 0,
        )  # fmt: skip


def _reply(request: Request, writable: list[memoryview], number: int, answer: bytes | int) -> int:
    """Store the header, and the payload if the room is enough."""
    header, room = split(writable, abi.OUT_HEADER.size)
    if sum(map(len, header)) < abi.OUT_HEADER.size:
        return 0
    size = 0
    if not number:
        if isinstance(answer, int):
            size = answer
        else:
            size = len(answer)
            if size > sum(map(len, room)):
                number, size = EINVAL, 0
            else:
                _scatter(answer, room)
    total = abi.OUT_HEADER.size + size
    _scatter(abi.OUT_HEADER.pack(total, -number, request.unique), header)
    return total


def _scatter(data: bytes, views: list[memoryview]) -> None:
    at = 0
    for view in views:
        if at >= len(data):
            return
        part = data[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)


_DATA: Final = (Op.READ, Op.WRITE)

_QUICK: Final = frozenset(
    (
        Op.LOOKUP, Op.FORGET, Op.GETATTR, Op.SETATTR, Op.READLINK, Op.SYMLINK, Op.MKNOD, Op.MKDIR,
        Op.UNLINK, Op.RMDIR, Op.RENAME, Op.LINK, Op.OPEN, Op.READ, Op.WRITE, Op.STATFS,
        Op.RELEASE, Op.SETXATTR, Op.GETXATTR, Op.LISTXATTR, Op.REMOVEXATTR, Op.OPENDIR,
        Op.READDIR, Op.RELEASEDIR, Op.ACCESS, Op.CREATE, Op.INTERRUPT, Op.BATCH_FORGET,
        Op.READDIRPLUS, Op.RENAME2, Op.LSEEK, Op.TMPFILE, Op.STATX,
    )
)  # fmt: skip
"""What works on the host's caches; the others wait for a medium, or may."""

_UNANSWERED: Final = (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.NOTIFY_REPLY)

_CHANGING: Final = frozenset(
    (
        Op.SETATTR, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.LINK,
        Op.WRITE, Op.SETXATTR, Op.REMOVEXATTR, Op.CREATE, Op.FALLOCATE, Op.RENAME2,
        Op.COPY_FILE_RANGE, Op.TMPFILE,
    )
)  # fmt: skip

_OPERATIONS: dict[int, Callable[[Session, Request], Answer]] = {
    Op.LOOKUP: lookups.lookup,
    Op.FORGET: lookups.forget,
    Op.GETATTR: attributes.getattr_,
    Op.SETATTR: attributes.setattr_,
    Op.READLINK: lookups.readlink,
    Op.SYMLINK: changes.symlink,
    Op.MKNOD: changes.mknod,
    Op.MKDIR: changes.mkdir,
    Op.UNLINK: changes.unlink,
    Op.RMDIR: changes.rmdir,
    Op.RENAME: changes.rename,
    Op.LINK: changes.link,
    Op.OPEN: files.open_,
    Op.READ: files.read,
    Op.WRITE: files.write,
    Op.STATFS: attributes.statfs,
    Op.RELEASE: files.release,
    Op.FSYNC: files.fsync,
    Op.SETXATTR: xattrs.setxattr,
    Op.GETXATTR: xattrs.getxattr,
    Op.LISTXATTR: xattrs.listxattr,
    Op.REMOVEXATTR: xattrs.removexattr,
    Op.FLUSH: files.flush,
    Op.OPENDIR: directories.opendir,
    Op.READDIR: directories.readdir,
    Op.RELEASEDIR: directories.releasedir,
    Op.FSYNCDIR: directories.fsyncdir,
    Op.ACCESS: attributes.access,
    Op.CREATE: files.create,
    Op.BATCH_FORGET: lookups.batch_forget,
    Op.FALLOCATE: ranges.fallocate_,
    Op.READDIRPLUS: directories.readdirplus,
    Op.RENAME2: changes.rename2,
    Op.LSEEK: ranges.lseek,
    Op.COPY_FILE_RANGE: ranges.copy_file_range,
    Op.SYNCFS: attributes.sync_fs,
    Op.TMPFILE: files.tmpfile,
    Op.STATX: attributes.statx_,
}
"""What is not here is ENOSYS, and Linux does without: GETLK, SETLK and SETLKW (locks are
the guest's own), BMAP, IOCTL, POLL, SETUPMAPPING, REMOVEMAPPING."""
