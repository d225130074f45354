"""A kernel's code at its place in guest memory."""

from __future__ import annotations

from kvmkit.boot.elf import Elf
from kvmkit.boot.extents import Extent, clip, gaps
from kvmkit.boot.image import KernelImage
from kvmkit.boot.memory_map import Range, contains
from kvmkit.boot.plan import Load
from kvmkit.boot.setup_header import SetupHeader
from kvmkit.errors import BadKernel, NotEnoughMemory
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PlacedKernel", "place_bzimage", "place_elf"]

MIB = 1 << 20
LOWEST = 1 << 20
"""No kernel is put lower than this on our own account: below are loader and firmware."""

ENTRY_64 = 0x200
"""The 64-bit entry of a bzImage, counted from where its code is loaded (``boot.rst``)."""


class PlacedKernel(Record):
    """What to write, what must be zero, what it occupies until it runs, and its entry."""

    loads: tuple[Load, ...]
    zero: tuple[Range, ...]
    start: int
    end: int
    entry: int


def place_elf(
    elf: Elf,
    data: memoryview,
    extents: Sequence[Extent] | None,
    free: Sequence[Range],
    entry: int,
    *,
    step: int = 0,
) -> PlacedKernel:
    """Put an ELF kernel at its physical addresses, which must be in ``free``.

    ``extents`` are the parts of ``data`` that are not zero; None takes all of it for content. A
    kernel that runs at any multiple of ``step`` bytes is put lower where memory ends too early.
    Raises NotEnoughMemory, or BadKernel where there will never be memory.
    """
    move = _move_down(elf, free, step)
    _check_top(free, elf.end + move)
    loads: list[Load] = []
    zero: list[Range] = []
    for segment in elf.segments:
        _check_room(free, segment.address + move, segment.memory_size)
        start, size = segment.offset, segment.file_size
        shift = segment.address + move - start
        content = [(start, size)] if extents is None else clip(extents, start, size)
        loads += [Load(at + shift, data[at : at + n]) for at, n in content if n]
        zero += [(at + shift, n) for at, n in gaps(content, start, segment.memory_size)]
    return PlacedKernel(tuple(loads), tuple(zero), elf.start + move, elf.end + move, entry + move)


def _move_down(elf: Elf, free: Sequence[Range], step: int) -> int:
    """How far to move a kernel so that it fits: 0, or a negative multiple of ``step``.

    Linux finds its physical address by itself (``__startup_64``: phys_base). Its own
    decompressor does not go below CONFIG_PHYSICAL_START, 16 MiB; with that a stock kernel needs
    some 80 MiB, and 16 of them stay unused while it starts.
    """
    size = elf.end - elf.start
    if not step or contains(free, elf.start, size):
        return 0
    for low, length in free:
        start = -(-max(low, LOWEST) // step) * step
        if start < elf.start and (start - elf.start) % step == 0 and start + size <= low + length:
            return start - elf.start
    return 0


def place_bzimage(image: KernelImage, header: SetupHeader, free: Sequence[Range]) -> PlacedKernel:
    """Put a bzImage's own code at its preferred address; it unpacks itself, in init_size bytes.

    Raises BadKernel without a 64-bit entry, NotEnoughMemory.
    """
    if not header.entry_64:
        raise BadKernel(
            "the kernel is 32-bit only (no 64-bit entry)",
            "A 64-bit kernel is needed (CONFIG_64BIT).",
        )
    code = image.data[header.code_offset :]
    start = header.pref_address
    size = max(header.init_size, len(code))
    _check_room(free, start, size)
    return PlacedKernel((Load(start, code),), (), start, start + size, start + ENTRY_64)


def _check_room(free: Sequence[Range], start: int, size: int) -> None:
    if contains(free, start, size):
        return
    end = start + size
    _check_top(free, end)
    raise BadKernel(
        f"the kernel wants to be loaded at {start:#x} to {end:#x}, "
        "which is reserved, or the loader's own, in this machine"
    )


def _check_top(free: Sequence[Range], end: int) -> None:
    top = max((low + length for low, length in free), default=0)
    if end > top:
        raise NotEnoughMemory(
            f"the kernel needs memory up to {-(-end // MIB)} MiB, the machine has it up to "
            f"{top // MIB} MiB",
            f"Give it at least {-(-end // MIB) + 16} MiB (-m).",
        )
