"""A kernel of a few bytes, for ends that Linux avoids.

An ELF executable with a PVH note (Xen ``docs/misc/pvh.pandoc``): it starts in
32-bit protected mode, flat and without paging.
"""

from __future__ import annotations

import struct

ENTRY = 0x100_0000

HANG = bytes.fromhex("fa f4 eb fd")  # cli; again: hlt; jmp again
TRIPLE_FAULT = bytes.fromhex(
    "b82a000000"  # mov eax, 42, to be seen among the registers
    "0f011d12000001"  # lidt [0x1000012]: no interrupt table at all
    "0f0b"  # ud2
    "00000000"
) + bytes(10)

_PT_LOAD, _PT_NOTE = 1, 4
_XEN_ELFNOTE_PHYS32_ENTRY = 18


def tiny_kernel(code: bytes) -> bytes:
    """The kernel that starts with ``code`` (System V ABI, "Object files")."""
    note = struct.pack("<III4sI", 4, 4, _XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0", ENTRY)
    at = 64 + 2 * 56
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, ENTRY, 64, 0, 0, 64, 56, 2, 64, 0, 0,
    )  # fmt: skip
    segments = _segment(_PT_NOTE, at, note) + _segment(_PT_LOAD, at + len(note), code)
    return header + segments + note + code


def _segment(kind: int, offset: int, data: bytes) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, 7, offset, ENTRY, ENTRY, len(data), len(data), 4)
