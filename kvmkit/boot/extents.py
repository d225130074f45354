"""Which parts of an unpacked kernel are not zero.

A fifth of a kernel is empty (BSS, page tables, alignment). What is zero needs
no copy into fresh guest memory, and no block in the cache.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Extent", "clip", "gaps", "nonzero_extents"]

BLOCK = 64 << 10

Extent = tuple[int, int]
"""A part of a file: offset, bytes."""


def nonzero_extents(data: memoryview) -> list[Extent]:
    """The parts of ``data`` that are not zero, to 64 KiB blocks, adjacent ones joined."""
    empty = bytes(BLOCK)
    extents: list[Extent] = []
    start = -1
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        if block == empty[: len(block)]:
            if start >= 0:
                extents.append((start, at - start))
                start = -1
        elif start < 0:
            start = at
    if start >= 0:
        extents.append((start, len(data) - start))
    return extents


def clip(extents: Sequence[Extent], start: int, size: int) -> list[Extent]:
    """What of ``extents`` lies in ``size`` bytes from ``start``."""
    end = start + size
    parts: list[Extent] = []
    for low, length in extents:
        first, last = max(low, start), min(low + length, end)
        if first < last:
            parts.append((first, last - first))
    return parts


def gaps(extents: Sequence[Extent], start: int, size: int) -> list[Extent]:
    """What of ``size`` bytes from ``start`` the (sorted) ``extents`` leave out."""
    holes: list[Extent] = []
    at = start
    for low, length in clip(extents, start, size):
        if low > at:
            holes.append((at, low - at))
        at = low + length
    if at < start + size:
        holes.append((at, start + size - at))
    return holes
