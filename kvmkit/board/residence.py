"""Which parts of a mapped file hold anything, without touching the others.

lseek(2), ``SEEK_DATA``: where a sparse file has data; proc_pid_pagemap(5): which
pages of a private mapping this process has written.
"""

from __future__ import annotations

import os

__all__ = ["data_extents", "merged", "private_pages"]

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
