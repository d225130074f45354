"""A raw disk image, or a block device: byte n of the disk is byte n of the file."""

from __future__ import annotations

import errno
import os
import stat

from kvmkit.backends.disk import QCOW2_MAGIC, SECTOR
from kvmkit.backends.haste import Haste
from kvmkit.errors import FileTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RawDisk", "punch", "read_cached", "read_fully", "write_fully", "write_zeroes"]

_ZEROES = bytes(1 << 20)
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # linux/falloc.h
_ZERO_RANGE = 0x10
_BLKDISCARD = 0x1277  # linux/fs.h
_IOV_MAX = 1024


class RawDisk:
    """The image open as ``fd``, which the disk closes. Raises FileTrouble if it is no disk.

    If the format was ``guessed``, the guest must not turn the image into something
    else, qcow2 with a host file for backing, that would be guessed next time: the
    first sector does not take qcow2's mark.
    """

    def __init__(self, fd: int, path: str, *, read_only: bool, guessed: bool = False) -> None:
        self._fd = fd
        self._guessed = guessed
        self._haste = Haste()
        self._lost: OSError | None = None
        self.read_only = read_only
        status = os.fstat(fd)
        self._is_device = stat.S_ISBLK(status.st_mode)
        self.size = os.lseek(fd, 0, os.SEEK_END) if self._is_device else status.st_size
        self.block_size = min(max(status.st_blksize, SECTOR), 1 << 16)
        if self.size < SECTOR:
            raise FileTrouble(
                f"{path}: a disk has at least {SECTOR} bytes, this file {self.size}",
                "qemu-img create, or truncate -s 1G, makes one",
            )
        if self.size % SECTOR and not read_only:
            raise FileTrouble(
                f"{path}: a disk is whole sectors of {SECTOR} bytes, this file has {self.size}",
                f"truncate -s %{SECTOR} {path}, or add ,ro",
            )
        self.size -= self.size % SECTOR

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        read_fully(self._fd, offset, buffers)

    def read_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """What is in the page cache needs no waiting (preadv2(2), RWF_NOWAIT)."""
        return read_cached(self._fd, offset, buffers)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        if self._guessed and offset < len(QCOW2_MAGIC):
            data = b"".join(buffers)  # a copy, which the guest cannot change any more
            if data.startswith(QCOW2_MAGIC[offset:]):
                raise PermissionError(errno.EPERM, "qcow2's mark on a disk of unknown format")
            buffers = [memoryview(data)]
        write_fully(self._fd, offset, buffers)

    def write_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
        """See :class:`kvmkit.backends.haste.Haste`."""
        return self._haste.write(self.write, offset, buffers)

    def flush(self) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        if self.read_only:
            return
        if self._lost is not None:
            raise self._lost
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # The kernel has forgotten what it could not write; a second try would succeed.
            self._lost = error
            raise

    def discard(self, offset: int, size: int) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        punch(self._fd, offset, size, is_device=self._is_device)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        try:
            mode = _PUNCH_HOLE_KEEP_SIZE if unmap else _ZERO_RANGE
            _fallocate(self._fd, mode, offset, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
                raise
            write_zeroes(self._fd, offset, size)

    def close(self) -> None:
        """See :class:`kvmkit.backends.disk.Disk`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                if not self.read_only:
                    os.fdatasync(fd)
            finally:
                os.close(fd)


def read_fully(fd: int, offset: int, buffers: Sequence[memoryview]) -> None:
    """preadv(2) until all is there; past the end of the file it is zeroes."""
    left = list(buffers)
    while left:
        done = os.preadv(fd, left[:_IOV_MAX], offset)
        if not done:
            for view in left:
                view[:] = bytes(len(view))
            return
        offset += done
        _advance(left, done)


def punch(fd: int, offset: int, size: int, *, is_device: bool = False) -> None:
    """Give the range's room back to the host, where that is possible."""
    try:
        if is_device:
            import fcntl
            from struct import pack

            fcntl.ioctl(fd, _BLKDISCARD, pack("<QQ", offset, size))
        else:
            _fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY):
            raise


def read_cached(fd: int, offset: int, buffers: Sequence[memoryview]) -> bool:
    """preadv2(2) of all at once, from the page cache; False if that does not go."""
    if len(buffers) > _IOV_MAX:
        return False
    try:
        return os.preadv(fd, buffers, offset, os.RWF_NOWAIT) == sum(map(len, buffers))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return False
        raise


def write_zeroes(fd: int, offset: int, size: int) -> None:
    """Zeroes as data."""
    while size > 0:
        part = min(size, len(_ZEROES))
        write_fully(fd, offset, [memoryview(_ZEROES)[:part]])
        offset += part
        size -= part


def write_fully(fd: int, offset: int, buffers: Sequence[memoryview]) -> None:
    """pwritev(2) until all is written."""
    left = list(buffers)
    while left:
        done = os.pwritev(fd, left[:_IOV_MAX], offset)
        offset += done
        _advance(left, done)


def _advance(views: list[memoryview], done: int) -> None:
    """Drop the first ``done`` bytes, and empty views."""
    while views and done >= len(views[0]):
        done -= len(views[0])
        del views[0]
    if done:
        views[0] = views[0][done:]


def _fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    """fallocate(2), which Python has without its modes only."""
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).fallocate64
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
