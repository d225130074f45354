"""ELF files as kernels: the segments to load, the entry point and the notes.

Specified in the System V ABI, "Object Files" (gABI chapters 4 and 5); the PVH
note in Xen ``xen/include/public/elfnote.h`` (XEN_ELFNOTE_PHYS32_ENTRY).
Addresses of segments are the physical ones (``p_paddr``).
"""

from __future__ import annotations

import struct
from itertools import pairwise

from kvmkit.errors import BadKernel
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Elf", "Segment", "parse_elf"]

MAGIC = b"\x7fELF"
CLASS_32, CLASS_64 = 1, 2
LITTLE_ENDIAN = 1
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4

XEN_ELFNOTE_PHYS32_ENTRY = 18
PHYSICAL_LIMIT = 1 << 46
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""Linux's __START_KERNEL_map (``Documentation/arch/x86/x86_64/mm.rst``)."""

MACHINES = {
    2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "64-bit PowerPC", 22: "S/390", 40: "32-bit ARM",
    50: "IA-64", 183: "arm64", 243: "RISC-V", 247: "BPF", 258: "LoongArch",
}  # fmt: skip


class Segment(Record):
    """A PT_LOAD program header: ``offset`` and ``file_size`` in the file, the rest in memory."""

    offset: int
    file_size: int
    address: int
    memory_size: int
    virtual: int

    def contains(self, address: int) -> bool:
        """Whether the file has content for a physical address."""
        return self.address <= address < self.address + self.file_size


class Elf(Record):
    """A kernel in an ELF file. ``pvh_entry`` is the 32-bit entry of the PVH note, if there."""

    bits: int
    entry: int
    segments: tuple[Segment, ...]
    pvh_entry: int | None

    @property
    def start(self) -> int:
        """The lowest physical address in use."""
        return min(s.address for s in self.segments)

    @property
    def end(self) -> int:
        """The first physical address behind the kernel, BSS included."""
        return max(s.address + s.memory_size for s in self.segments)

    @property
    def is_linux_64(self) -> bool:
        """Whether ``entry`` is x86-64 Linux's physical 64-bit entry point (startup_64).

        Linux links its text at __START_KERNEL_map + its physical address, and
        gives the entry as a physical address (``vmlinux.lds.S``: phys_startup_64).
        """
        return self.bits == 64 and any(
            s.virtual == KERNEL_MAP + s.address and s.contains(self.entry) for s in self.segments
        )

    def has_code(self, address: int) -> bool:
        """Whether the file has content for a physical address."""
        return any(s.contains(address) for s in self.segments)


def parse_elf(data: memoryview) -> Elf:
    """Read the headers of a file that starts with the ELF magic.

    Raises BadKernel for files of other machines, object files, and headers
    that point outside the file or outside physical memory.
    """
    if len(data) < 52:
        raise BadKernel(f"the ELF file is truncated: it has {len(data)} bytes")
    bits = {CLASS_32: 32, CLASS_64: 64}.get(data[4])
    if bits is None or data[5] != LITTLE_ENDIAN:
        raise BadKernel("the ELF file is not for a little-endian 32- or 64-bit machine")
    type_, machine = struct.unpack_from("<HH", data, 16)
    if machine not in (EM_386, EM_X86_64):
        name = MACHINES.get(machine, f"machine type {machine}")
        raise BadKernel(f"the ELF file is for {name}, not for x86")
    if type_ not in (ET_EXEC, ET_DYN):
        raise BadKernel("the ELF file is not an executable", "Give the linked vmlinux.")
    if bits == 64:
        if len(data) < 64:
            raise BadKernel(f"the ELF file is truncated: it has {len(data)} bytes")
        entry, table = struct.unpack_from("<QQ", data, 24)
        entry_size, count = struct.unpack_from("<HH", data, 54)
        expected = 56
    else:
        entry, table = struct.unpack_from("<II", data, 24)
        entry_size, count = struct.unpack_from("<HH", data, 42)
        expected = 32
    if entry_size != expected or not 0 < count <= 256:
        raise BadKernel("the ELF file has no usable program headers")
    if table + count * entry_size > len(data):
        raise BadKernel("the ELF file is truncated: its program headers lie behind its end")

    segments: list[Segment] = []
    pvh_entry: int | None = None
    for index in range(count):
        kind, segment = _program_header(data, table + index * entry_size, bits)
        if kind not in (PT_LOAD, PT_NOTE):
            continue
        if segment.offset + segment.file_size > len(data):
            raise BadKernel(
                f"the ELF file is truncated: program header {index} ends at byte "
                f"{segment.offset + segment.file_size}, the file has {len(data)}"
            )
        if kind == PT_NOTE and pvh_entry is None:
            pvh_entry = _pvh_entry(data[segment.offset : segment.offset + segment.file_size])
        elif kind == PT_LOAD and segment.memory_size:
            _check_load(segment, index)
            segments.append(segment)
    if not segments:
        raise BadKernel("the ELF file has nothing to load (no PT_LOAD)")
    segments.sort(key=lambda s: s.address)
    for low, high in pairwise(segments):
        if low.address + low.memory_size > high.address:
            raise BadKernel(f"the ELF file's segments overlap at address {high.address:#x}")
    return Elf(bits, entry, tuple(segments), pvh_entry)


def _program_header(data: memoryview, at: int, bits: int) -> tuple[int, Segment]:
    if bits == 64:
        kind, _, offset, virtual, physical, file_size, memory_size = struct.unpack_from(
            "<IIQQQQQ", data, at
        )
    else:
        kind, offset, virtual, physical, file_size, memory_size = struct.unpack_from(
            "<6I", data, at
        )
    return kind, Segment(offset, file_size, physical, memory_size, virtual)


def _check_load(segment: Segment, index: int) -> None:
    if segment.file_size > segment.memory_size:
        raise BadKernel(f"the ELF file's program header {index} is larger in the file than loaded")
    if segment.address + segment.memory_size > PHYSICAL_LIMIT:
        raise BadKernel(
            f"the ELF file's program header {index} asks for physical address "
            f"{segment.address:#x}, which no machine has"
        )


def _pvh_entry(notes: memoryview) -> int | None:
    for owner, kind, description in _notes(notes):
        if owner == b"Xen\0" and kind == XEN_ELFNOTE_PHYS32_ENTRY and len(description) in (4, 8):
            return int.from_bytes(description, "little")
    return None


def _notes(data: memoryview) -> Iterator[tuple[bytes, int, bytes]]:
    # name and description are each padded to 4 bytes
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        at += 12
        start = at + (name_size + 3 & ~3)
        stop = start + size
        if stop > len(data):
            return
        yield bytes(data[at : at + name_size]), kind, bytes(data[start:stop])
        at = stop + 3 & ~3
