"""Initial RAM disks: opened, laid one behind the other, placed.

Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``: an
initramfs is a row of archives, compressed or not, each starting at a multiple
of 4 bytes, with zeros between.
"""

from __future__ import annotations

from kvmkit.boot.files import map_file
from kvmkit.boot.memory_map import Range, total
from kvmkit.boot.plan import Load
from kvmkit.errors import BadInitrd, NotEnoughMemory
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Initrd", "open_initrds", "place_initrd"]

ALIGNMENT = 4
PAGE = 4096
MIB = 1 << 20


class Initrd(Record):
    """Archives (offset from the start, content); ``size`` is that of all, in bytes."""

    parts: tuple[tuple[int, memoryview], ...]
    size: int

    def loads(self, address: int) -> tuple[Load, ...]:
        """Where each archive goes when the first goes to ``address``."""
        return tuple(Load(address + offset, data) for offset, data in self.parts)

    def gaps(self, address: int) -> tuple[Range, ...]:
        """The padding between the archives, which must be zero."""
        ends = [offset + len(data) for offset, data in self.parts]
        starts = [offset for offset, _ in self.parts[1:]] + [self.size]
        pairs = zip(ends, starts, strict=True)
        return tuple((address + end, start - end) for end, start in pairs if start > end)


def open_initrds(paths: Sequence[Path]) -> Initrd | None:
    """Map the files; None if there are none. Raises BadInitrd if one cannot be read or is empty."""
    parts: list[tuple[int, memoryview]] = []
    size = 0
    for path in paths:
        data, _ = map_file(path, BadInitrd, "the initrd")
        parts.append((size, data))
        size += len(data) + ALIGNMENT - 1 & -ALIGNMENT
    return Initrd(tuple(parts), size) if parts else None


def place_initrd(initrd: Initrd, free: Sequence[Range], *, limit: int, above_4g: bool) -> int:
    """The page-aligned address for an initrd, as high as it may be.

    ``free`` are ranges nobody uses; ``limit`` is the last byte the kernel may find an initrd at
    (initrd_addr_max), ignored where nothing else fits and the kernel takes one above 4 GiB.
    Raises NotEnoughMemory when all free memory is too small, BadInitrd when only the limit is
    in the way.
    """
    below = _highest(initrd.size, free, limit + 1)
    if below is None and above_4g:
        below = _highest(initrd.size, free, 1 << 63)
    if below is not None:
        return below
    need = f"the initrd needs {_mib(initrd.size)} in one piece"
    largest = max((size for _, size in free), default=0)
    if largest < initrd.size:
        raise NotEnoughMemory(
            f"{need}, the kernel leaves {_mib(largest)}",
            f"Give the machine {_mib(initrd.size - largest)} more memory (-m).",
        )
    under = [(low, min(size, limit + 1 - low)) for low, size in free if low <= limit]
    raise BadInitrd(
        f"{need} below address {limit + 1:#x}, which this kernel asks for; "
        f"there are {_mib(max((size for _, size in under), default=0))} "
        f"(of {_mib(total(free))} free)",
        "Use a smaller initrd, or put its content on a disk.",
    )


def _highest(size: int, free: Sequence[Range], limit: int) -> int | None:
    for low, length in sorted(free, reverse=True):
        address = min(low + length, limit) - size & -PAGE
        if address >= low:
            return address
    return None


def _mib(size: int) -> str:
    return f"{-(-size // MIB)} MiB" if size >= MIB else f"{-(-size // 1024)} KiB"
