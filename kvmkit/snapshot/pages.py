"""The memory of a snapshot: a sparse file as large as the guest's RAM.

It is mapped privately when a VM goes on from it: pages are read when they are
first touched, and writes stay in the VM. Ranges of zeroes are holes. Each range
that is not a hole has a CRC-32 (zlib's, ISO 3309) in the snapshot's state.
"""

from __future__ import annotations

import os
from zlib import crc32

from kvmkit.errors import BadSnapshot, FileTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvmkit.board.memory import GuestMemory

__all__ = ["Extent", "check_pages", "save_pages"]

Extent = tuple[int, int, int]
"""Offset in the file and size in bytes, and the CRC-32 of what is there."""

GRAIN = 64 << 10
"""Zeroes are left out in pieces of this size."""

PIECE = 256 << 10
"""Memory is checked in pieces that stay in the processor's cache."""

EXTENT_MAX = 16 << 20
_ZEROES = bytes(GRAIN)


def save_pages(
    ram: GuestMemory, fd: int, progress: Callable[[str], None] | None = None
) -> list[Extent]:
    """Write the guest's memory to the empty file ``fd``, and say what is where.

    Raises FileTrouble when the file cannot take it.
    """
    extents: list[Extent] = []
    start = size = check = 0
    try:
        os.ftruncate(fd, ram.size)
        done_to = 0
        for offset, length in ram.extents():
            _tell(progress, "saving the memory", offset, ram.size)
            for at in range(max(offset - offset % GRAIN, done_to), offset + length, GRAIN):
                done_to = at + GRAIN
                piece = ram.at_offset(at, min(GRAIN, ram.size - at))
                if piece == _ZEROES[: len(piece)]:
                    continue
                done = 0
                while done < len(piece):
                    done += os.pwrite(fd, piece[done:], at + done)
                if at != start + size or size >= EXTENT_MAX:
                    if size:
                        extents.append((start, size, check))
                    start, size, check = at, 0, 0
                size += len(piece)
                check = crc32(piece, check)
    except OSError as error:
        raise FileTrouble(f"the memory cannot be written: {error.strerror}") from None
    if size:
        extents.append((start, size, check))
    return extents


def check_pages(
    fd: int,
    size: int,
    extents: Iterable[Extent],
    progress: Callable[[str], None] | None = None,
) -> None:
    """Raise BadSnapshot unless the file holds just what ``extents`` says."""
    if os.fstat(fd).st_size != size:
        raise BadSnapshot(f"the memory is {os.fstat(fd).st_size} bytes, not {size}")
    end = 0
    for offset, length, check in extents:
        if offset < end or length <= 0 or offset + length > size:
            raise BadSnapshot(f"an extent of the memory cannot be: {offset}, {length}")
        _only_zeroes(fd, end, offset)
        _tell(progress, "checking the memory", offset, size)
        found = 0
        for at in range(offset, offset + length, PIECE):
            found = crc32(os.pread(fd, min(PIECE, offset + length - at), at), found)
        if found != check:
            raise BadSnapshot(
                f"the memory is damaged at {offset:#x}",
                "it does not hold what was saved; take a new snapshot",
            )
        end = offset + length
    _only_zeroes(fd, end, size)


def _tell(progress: Callable[[str], None] | None, what: str, done: int, size: int) -> None:
    if progress is not None:
        progress(f"{what}: {100 * done // size} %")


def _only_zeroes(fd: int, start: int, end: int) -> None:
    """Where nothing was saved there must be nothing."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:  # ENXIO: no data after it
            return
        if start >= end:
            return
        piece = os.pread(fd, min(GRAIN, end - start), start)
        if piece.strip(b"\0"):
            raise BadSnapshot(f"the memory is damaged at {start:#x}")
        start += len(piece) or end
