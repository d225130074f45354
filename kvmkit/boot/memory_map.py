"""The memory map a kernel is told, as e820 entries.

Specified in ACPI 6.5, section 15 ("System Address Map Interfaces"), table 15.1
(address range types).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["E820_RAM", "E820_RESERVED", "Range", "contains", "memory_map", "total", "usable"]

E820_RAM = 1
E820_RESERVED = 2

Range = tuple[int, int]
"""A guest-physical range: address, bytes."""


def usable(ram: Sequence[Range], reserved: Sequence[Range]) -> list[Range]:
    """RAM without what is reserved: sorted, adjacent ranges joined."""
    free = _joined(ram)
    for start, size in reserved:
        end = start + size
        cut: list[Range] = []
        for low, length in free:
            high = low + length
            if high <= start or end <= low:
                cut.append((low, length))
                continue
            if low < start:
                cut.append((low, start - low))
            if end < high:
                cut.append((end, high - end))
        free = cut
    return free


def memory_map(ram: Sequence[Range], reserved: Sequence[Range]) -> list[tuple[int, int, int]]:
    """The e820 table (address, bytes, type), sorted by address, without overlaps."""
    entries = [(start, size, E820_RAM) for start, size in usable(ram, reserved)]
    entries += [(start, size, E820_RESERVED) for start, size in _joined(reserved)]
    return sorted(entries)


def contains(ranges: Sequence[Range], start: int, size: int) -> bool:
    """Whether one of the joined ``ranges`` holds all of ``size`` bytes from ``start``."""
    return any(low <= start and start + size <= low + length for low, length in ranges)


def total(ranges: Sequence[Range]) -> int:
    """How many bytes the ranges have together."""
    return sum(size for _, size in ranges)


def _joined(ranges: Sequence[Range]) -> list[Range]:
    joined: list[Range] = []
    for start, size in sorted(ranges):
        if size <= 0:
            continue
        if joined and start <= joined[-1][0] + joined[-1][1]:
            low, length = joined[-1]
            joined[-1] = (low, max(length, start + size - low))
        else:
            joined.append((start, size))
    return joined
