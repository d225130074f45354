"""PVH's start_info: what the 32-bit entry of a PVH kernel is handed.

Specified in Xen ``xen/include/public/arch-x86/hvm/start_info.h`` (version 1)
and ``docs/misc/pvh.pandoc``.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAGIC", "start_info"]

MAGIC = 0x336E_C578
VERSION = 1
HEADER = struct.Struct("<4I4QII")
MODULE = struct.Struct("<4Q")
MEMORY = struct.Struct("<QQII")


def start_info(
    address: int,
    *,
    memory: Sequence[tuple[int, int, int]],
    command_line: int,
    ramdisk: tuple[int, int] | None,
    acpi_rsdp: int,
) -> bytes:
    """start_info for ``address``, with its module list and memory map behind it.

    ``memory`` is the e820 table (address, bytes, type); ``ramdisk`` becomes the one module.
    """
    modules = address + HEADER.size
    table = modules + (MODULE.size if ramdisk else 0)
    header = HEADER.pack(
        MAGIC, VERSION, 0, 1 if ramdisk else 0,
        modules if ramdisk else 0, command_line, acpi_rsdp, table, len(memory), 0,
    )  # fmt: skip
    module = MODULE.pack(*ramdisk, 0, 0) if ramdisk else b""
    return header + module + b"".join(MEMORY.pack(*entry, 0) for entry in memory)
