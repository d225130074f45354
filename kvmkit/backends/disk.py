"""What is behind a block device: a disk of so many bytes, and how one is opened.

A disk's methods block and may be called from several threads at once; offsets and
sizes are in bytes, whole sectors of 512. The device model calls them through
:class:`~kvmkit.backends.disk_queue.DiskQueue`.
"""

from __future__ import annotations

import os
import stat

from kvmkit.errors import FileTrouble, PermissionTrouble, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Disk(Protocol):
        """A disk image, block device, or something made of one."""

        size: int
        read_only: bool
        block_size: int
        """What the medium likes to be written in, in bytes."""

        def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
            """Fill the buffers from ``offset``. Raises OSError."""

        def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
            """Write the buffers at ``offset``. Raises OSError."""

        def flush(self) -> None:
            """Return when all that was written is on the medium. Raises OSError."""

        def discard(self, offset: int, size: int) -> None:
            """The range is not needed any more; what it reads then is not defined."""

        def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
            """Make the range read as zeroes; with ``unmap``, its room may be given back."""

        def close(self) -> None:
            """Flush and let go. Callable twice."""


__all__ = ["SECTOR", "open_disk", "open_file"]

SECTOR = 512
_FORMATS = ("raw", "qcow2")


def open_disk(
    path: str,
    *,
    read_only: bool = False,
    format: str | None = None,
    snapshot: bool = False,
) -> Disk:
    """The disk in ``path``: a raw image, a qcow2 image, or a block device.

    Without ``format``, qcow2 is known by its first bytes. With ``snapshot``, writes
    go to a temporary overlay and are gone at the end. A disk that is written is
    locked against a second writer. Raises FileTrouble, PermissionTrouble or UsageError.
    """
    if format not in (None, *_FORMATS):
        raise UsageError(f"a disk's format is raw or qcow2, not {format!r}")
    fd = open_file(path, read_only or snapshot)
    try:
        if format is None:
            format = "qcow2" if os.pread(fd, 4, 0) == b"QFI\xfb" else "raw"
        disk: Disk
        if format == "qcow2":
            from kvmkit.backends.qcow2 import Qcow2

            disk = Qcow2(fd, path, read_only=read_only or snapshot)
        else:
            from kvmkit.backends.raw import RawDisk

            disk = RawDisk(fd, path, read_only=read_only or snapshot)
    except BaseException:
        os.close(fd)
        raise
    if snapshot:
        from kvmkit.backends.overlay import Overlay

        return Overlay(disk)
    return disk


def open_file(path: str, read_only: bool) -> int:
    """Open and lock an image; the caller closes it. Raises FileTrouble or PermissionTrouble."""
    import fcntl

    try:
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except PermissionError as error:
        hint = "add ,ro to read it only" if not read_only else f"chmod u+r {path}"
        raise PermissionTrouble(f"{path}: the disk: {error.strerror}", hint) from None
    except OSError as error:
        raise FileTrouble(f"{path}: the disk: {error.strerror}") from None
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise FileTrouble(f"{path}: the disk is neither a file nor a block device")
        fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise FileTrouble(
            f"{path}: the disk is in use by another VM", "add ,snapshot or ,ro, or end that VM"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd
