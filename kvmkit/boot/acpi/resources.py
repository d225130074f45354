"""ACPI resource descriptors: what a device's ``_CRS`` is made of.

ACPI 6.5, section 6.4 ("Resource Data Types for ACPI"): small descriptors
(6.4.2) for ISA ports and interrupts, large ones (6.4.3) for memory and for
the windows of a host bridge.
"""

from __future__ import annotations

from struct import pack

from kvmkit.boot.acpi.aml import buffer

__all__ = [
    "dword_memory",
    "io",
    "irq",
    "memory32_fixed",
    "qword_memory",
    "template",
    "word_bus_number",
    "word_io",
]

# Small descriptors (table 6.27): type << 3 | length
_IRQ_3_BYTES = 0x23
_IO_PORT = 0x47
_END_TAG = b"\x79\x00"  # checksum 0: treated as correct

# Large descriptors (table 6.40)
_MEMORY32_FIXED = 0x86
_DWORD_ADDRESS = 0x87
_WORD_ADDRESS = 0x88
_QWORD_ADDRESS = 0x8A

# IRQ information, byte 3 of the IRQ descriptor (table 6.29)
_IRQ_EDGE = 1 << 0
_IRQ_ACTIVE_LOW = 1 << 3
_IRQ_SHARED = 1 << 4

_IO_DECODE_16 = 1 << 0

# Address space resource type (table 6.47 ff.)
_TYPE_MEMORY = 0
_TYPE_IO = 1
_TYPE_BUS = 2

# General flags: a producer (bit 0 clear) with both ends fixed
_MIN_FIXED = 1 << 2
_MAX_FIXED = 1 << 3
_FIXED = _MIN_FIXED | _MAX_FIXED

# Type specific flags
_MEMORY_READ_WRITE = 1 << 0
_MEMORY_CACHEABLE = 1 << 1
_IO_ENTIRE_RANGE = 3


def template(*descriptors: bytes) -> bytes:
    """ResourceTemplate () {descriptors}: the buffer a ``_CRS`` returns."""
    return buffer(b"".join(descriptors) + _END_TAG)


def io(port: int, size: int) -> bytes:
    """IO (Decode16, port, port, 1, size): a fixed range of I/O ports."""
    return pack("<BBHHBB", _IO_PORT, _IO_DECODE_16, port, port, 1, size)


def irq(number: int, *, shared: bool = False) -> bytes:
    """IRQ (Edge, ActiveHigh) {number}: an ISA interrupt, 0 to 15."""
    flags = _IRQ_EDGE | (_IRQ_SHARED if shared else 0)
    return pack("<BHB", _IRQ_3_BYTES, 1 << number, flags)


def memory32_fixed(address: int, size: int) -> bytes:
    """Memory32Fixed (ReadWrite, address, size)."""
    return pack("<BHBII", _MEMORY32_FIXED, 9, _MEMORY_READ_WRITE, address, size)


def _address(tag: int, width: str, kind: int, flags: int, first: int, size: int) -> bytes:
    # Address space descriptors (6.4.3.5) differ in the width of their five numbers only:
    # granularity, minimum, maximum, translation offset, length.
    body = pack(f"<BBB5{width}", kind, _FIXED, flags, 0, first, first + size - 1, 0, size)
    return pack("<BH", tag, len(body)) + body


def word_bus_number(first: int, count: int) -> bytes:
    """WordBusNumber: the PCI buses behind a host bridge."""
    return _address(_WORD_ADDRESS, "H", _TYPE_BUS, 0, first, count)


def word_io(first: int, size: int) -> bytes:
    """WordIO: a window of I/O ports that a host bridge forwards."""
    return _address(_WORD_ADDRESS, "H", _TYPE_IO, _IO_ENTIRE_RANGE, first, size)


def dword_memory(address: int, size: int) -> bytes:
    """DWordMemory: a memory window below 4 GiB that a host bridge forwards."""
    return _address(_DWORD_ADDRESS, "I", _TYPE_MEMORY, _MEMORY_READ_WRITE, address, size)


def qword_memory(address: int, size: int) -> bytes:
    """QWordMemory, cacheable: a memory window anywhere that a host bridge forwards."""
    flags = _MEMORY_READ_WRITE | _MEMORY_CACHEABLE
    return _address(_QWORD_ADDRESS, "Q", _TYPE_MEMORY, flags, address, size)
