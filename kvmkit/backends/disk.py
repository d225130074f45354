"""What is behind a block device: a disk of so many bytes, and how one is opened.

A disk's methods block and may be called from several threads at once; offsets and
sizes are in bytes, whole sectors of 512. The device model calls them through
:class:`~kvmkit.backends.disk_queue.DiskQueue`.
"""

from __future__ import annotations

import errno
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

        def read_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
            """Fill the buffers if that takes no waiting; else False, and read anything of it.

            Raises OSError.
            """

        def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
            """Write the buffers at ``offset``. Raises OSError."""

        def write_now(self, offset: int, buffers: Sequence[memoryview]) -> bool:
            """Write the buffers if that is quick; else False, and nothing is written.

            Raises OSError.
            """

        def flush(self) -> None:
            """Return when all that was written is on the medium. Raises OSError."""

        def discard(self, offset: int, size: int) -> None:
            """The range is not needed any more; what it reads then is not defined."""

        def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
            """Make the range read as zeroes; with ``unmap``, its room may be given back."""

        def close(self) -> None:
            """Flush and let go. Callable twice."""


__all__ = ["FORMATS", "SECTOR", "open_disk", "open_file", "open_layer"]

SECTOR = 512
FORMATS = ("raw", "qcow2")
QCOW2_MAGIC = b"QFI\xfb"


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
    locked against other users. Raises FileTrouble, PermissionTrouble or UsageError.
    """
    if format not in (None, *FORMATS):
        raise UsageError(f"a disk's format is raw or qcow2, not {format!r}")
    disk = open_layer(path, read_only=read_only or snapshot, format=format)
    if not snapshot:
        return disk
    from kvmkit.backends.overlay import Overlay

    try:
        return Overlay(disk)
    except BaseException:
        disk.close()
        raise


def open_layer(
    path: str, *, read_only: bool, format: str | None, above: tuple[tuple[int, int], ...] = ()
) -> Disk:
    """One file, and what it is based on. ``above`` are the files that are based on it,
    as device and inode numbers."""
    fd = open_file(path, read_only)
    try:
        guessed = format is None
        if guessed:
            format = "qcow2" if os.pread(fd, 4, 0) == QCOW2_MAGIC else "raw"
        if format == "qcow2":
            from kvmkit.backends.qcow2 import Qcow2

            return Qcow2(fd, path, read_only=read_only, above=above)
        from kvmkit.backends.raw import RawDisk

        return RawDisk(fd, path, read_only=read_only, guessed=guessed)
    except OSError as error:
        os.close(fd)
        raise FileTrouble(f"{path}: the disk: {error.strerror}") from None
    except BaseException:
        os.close(fd)
        raise


def open_file(path: str, read_only: bool) -> int:
    """Open and lock an image; the caller closes it. Raises FileTrouble or PermissionTrouble."""
    from kvmkit.backends.image_lock import lock_image

    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_NONBLOCK)  # or a pipe would wait for its other end
    except PermissionError as error:
        hint = "add ,ro to read it only" if not read_only else f"chmod u+r {path}"
        raise PermissionTrouble(f"{path}: the disk: {error.strerror}", hint) from None
    except OSError as error:
        hint = "add ,ro to read it only" if error.errno == errno.EROFS else ""
        raise FileTrouble(f"{path}: the disk: {error.strerror}", hint) from None
    except ValueError as error:  # a NUL in the name
        raise FileTrouble(f"{path!r}: the disk: {error}") from None
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise FileTrouble(f"{path}: the disk is neither a file nor a block device")
        if not lock_image(fd, write=not read_only):
            raise FileTrouble(
                f"{path}: the disk is in use by another VM, or a program of QEMU's",
                "end that one; several can share a disk if all add ,ro or ,snapshot",
            )
    except BaseException:
        os.close(fd)
        raise
    return fd
