"""Which parts of a mapped file hold anything, without touching the others.

lseek(2), ``SEEK_DATA``: where a sparse file has data; proc_pid_pagemap(5): which
pages of a private mapping this process has written.
"""

from __future__ import annotations

import os

from kvmkit.errors import NotEnoughMemory

__all__ = ["data_extents", "map_private", "merged", "private_pages", "seal"]

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # mmap(2); not in Python 3.11's module

_PAGE = 4096
_ENTRY = 8
_PRESENT, _SWAPPED, _OF_FILE = 1 << 7, 1 << 6, 1 << 5  # bits 63, 62 and 61, in the top byte


def data_extents(fd: int, size: int) -> list[tuple[int, int]]:
    """``(offset, size)`` of the ranges of the file that are not holes, in whole pages."""
    found = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data after it
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        start -= start % _PAGE
        found.append((start, min(-(-at // _PAGE) * _PAGE, size) - start))
    return found


def private_pages(address: int, size: int) -> list[tuple[int, int]]:
    """``(offset, size)`` of the pages that were written in a private mapping at ``address``."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(address // _PAGE * _ENTRY)
        wanted = size // _PAGE * _ENTRY
        entries = b""
        while len(entries) < wanted:
            piece = file.read(wanted - len(entries))
            if not piece:
                break
            entries += piece
    kinds = entries[_ENTRY - 1 :: _ENTRY]
    # Present and not of the file, or swapped out: the process's own.
    own = bytes(
        kind & _SWAPPED != 0 or kind & (_PRESENT | _OF_FILE) == _PRESENT for kind in range(256)
    )
    marks = kinds.translate(own)
    found = []
    start = marks.find(1)
    while start >= 0:
        end = marks.find(0, start)
        if end < 0:
            end = len(marks)
        found.append((start * _PAGE, (end - start) * _PAGE))
        start = marks.find(1, end)
    return found


def merged(extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes in order and without overlaps."""
    found: list[tuple[int, int]] = []
    for start, size in sorted(extents):
        if found and start <= found[-1][0] + found[-1][1]:
            before, length = found[-1]
            found[-1] = (before, max(length, start + size - before))
        else:
            found.append((start, size))
    return found


def map_private(address: int, size: int, fd: int) -> None:
    """Put a private mapping of a file where another mapping is. Raises NotEnoughMemory."""
    import mmap
    from ctypes import CDLL, c_int, c_long, c_size_t, c_void_p, get_errno

    call = CDLL(None, use_errno=True).mmap
    call.restype = c_void_p
    call.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_long)
    flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
    if call(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0) != address:
        raise NotEnoughMemory(f"the memory cannot be mapped again: {os.strerror(get_errno())}")


def seal(fd: int) -> None:
    """Nobody writes to a memory file any more (fcntl(2), "File Sealing")."""
    from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl

    try:
        fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE)
    except OSError:
        pass  # somebody else has it mapped: a debugger
