"""What firmware would have left in the CMOS memory.

IBM PC AT Technical Reference, "Real-time clock/CMOS RAM information", and the
bytes later machines added: 0x30-0x31 (memory above 1 MiB), 0x34-0x35 (above
16 MiB, 64 KiB units) and 0x5b-0x5d (above 4 GiB, 64 KiB units, of Bochs and
QEMU).
"""

from __future__ import annotations

from struct import pack_into

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["CMOS_SIZE", "initial_memory"]

CMOS_SIZE: Final = 128

EQUIPMENT: Final = 0x14
BASE_MEMORY: Final = 0x15  # KiB below 640 KiB, 2 bytes
EXTENDED_MEMORY: Final = 0x17  # KiB above 1 MiB, 2 bytes
CHECKED: Final = slice(0x10, 0x2E)
CHECKSUM: Final = 0x2E  # sum of the bytes 0x10-0x2d, high byte first
EXTENDED_MEMORY_2: Final = 0x30  # as 0x17
ABOVE_16_MIB: Final = 0x34  # 64 KiB units, 2 bytes
ABOVE_4_GIB: Final = 0x5B  # 64 KiB units, 3 bytes

HAS_FPU: Final = 0x02
KIB: Final = 1 << 10
MIB: Final = 1 << 20


def initial_memory(below_4g: int, above_4g: int) -> bytes:
    """128 bytes that tell of the memory below and above 4 GiB, both in bytes."""
    memory = bytearray(CMOS_SIZE)
    memory[EQUIPMENT] = HAS_FPU
    extended = min(max(below_4g - MIB, 0) // KIB, 0xFFFF)
    pack_into("<H", memory, BASE_MEMORY, min(below_4g // KIB, 640))
    pack_into("<H", memory, EXTENDED_MEMORY, extended)
    pack_into("<H", memory, EXTENDED_MEMORY_2, extended)
    pack_into("<H", memory, ABOVE_16_MIB, min(max(below_4g - 16 * MIB, 0) >> 16, 0xFFFF))
    units = min(above_4g >> 16, 0xFF_FFFF)
    memory[ABOVE_4_GIB : ABOVE_4_GIB + 3] = units.to_bytes(3, "little")
    pack_into(">H", memory, CHECKSUM, sum(memory[CHECKED]) & 0xFFFF)
    return bytes(memory)
