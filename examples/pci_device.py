"""A PCI device that computes the CRC-32 of a piece of guest memory.

    kvmkit run --device pci_device:Crc32,limit=65536 -- sh

Registers (BAR 0): 0x00 address of the data (8 bytes), 0x08 their length (4),
0x0c control: 1 starts, 2 acknowledges the interrupt; read: 1 when done (4),
0x10 where the result is stored by DMA (8).
"""

from __future__ import annotations

from struct import pack
from zlib import crc32

from kvmkit.devices.pci_device import PciDevice


class Crc32(PciDevice):
    """At most ``limit`` bytes are looked at."""

    vendor_id, device_id, class_code = 0x1234, 0xCC32, 0x12_00_00

    def __init__(self, limit: str = "1048576") -> None:
        super().__init__()
        self.limit = int(limit)
        self.registers = bytearray(24)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.registers[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0x0C:
            self.control(value)
        elif offset + size <= 24:
            self.registers[offset : offset + size] = value.to_bytes(size, "little")

    def control(self, value: int) -> None:
        if value & 1:
            length = min(self.read(8, 4), self.limit)
            result = crc32(self.dma_read(self.read(0, 8), length))
            self.dma_write(self.read(0x10, 8), pack("<I", result))
            self.registers[0x0C] = 1
            self.interrupt()
        if value & 2:
            self.registers[0x0C] = 0
            self.withdraw()

    def reset(self) -> None:
        self.registers[:] = bytes(24)
        super().reset()

    def device_state(self) -> bytes:
        return bytes(self.registers)

    def restore_device(self, state: bytes) -> None:
        self.registers[:] = state
