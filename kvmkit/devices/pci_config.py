"""Configuration space of a PCI function.

PCI Local Bus specification 3.0, section 6.1 and 6.2 (header type 0), 6.7
(capability list); PCI Express base specification, "Extended configuration
space" (256 to 4095) and "Device capabilities" of the PCI Express capability.

A byte array with a mask that says which bits the guest may write and one that
says which it clears by writing 1. What a register does is not here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["CONFIG_SIZE", "ConfigSpace"]

CONFIG_SIZE: Final = 4096
LEGACY_SIZE: Final = 256

# Header type 0 (figure 6-1)
VENDOR_ID: Final = 0x00
DEVICE_ID: Final = 0x02
COMMAND: Final = 0x04
STATUS: Final = 0x06
REVISION: Final = 0x08  # and the class code above it
CACHE_LINE_SIZE: Final = 0x0C
HEADER_TYPE: Final = 0x0E
BAR0: Final = 0x10
BAR_END: Final = 0x28
SUBSYSTEM_VENDOR: Final = 0x2C
SUBSYSTEM: Final = 0x2E
CAPABILITIES: Final = 0x34
INTERRUPT_LINE: Final = 0x3C
INTERRUPT_PIN: Final = 0x3D
HEADER_END: Final = 0x40

# Command register (6.2.2)
COMMAND_IO: Final = 0x0001
COMMAND_MEMORY: Final = 0x0002
COMMAND_MASTER: Final = 0x0004
COMMAND_PARITY: Final = 0x0040
COMMAND_SERR: Final = 0x0100
COMMAND_INTX_DISABLE: Final = 0x0400
COMMAND_ALWAYS: Final = COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE

# Status register (6.2.3)
STATUS_INTERRUPT: Final = 0x0008
STATUS_CAPABILITIES: Final = 0x0010
STATUS_ERRORS: Final = 0xF900  # written with 1 to clear

HEADER_MULTIFUNCTION: Final = 0x80

# Capability identifiers (appendix H)
CAP_VENDOR: Final = 0x09
CAP_EXPRESS: Final = 0x10
CAP_MSIX: Final = 0x11

_EXTENDED_END = 0  # a next pointer of 0 ends either list


class ConfigSpace:
    """4096 bytes of configuration space with their masks.

    :meth:`define` and the ``add_`` methods build it and say what it holds after
    a reset; :meth:`poke` is the device's own hand; :meth:`read` and
    :meth:`write` are the guest's.
    """

    __slots__ = ("_clear", "_last", "_last_extended", "_next", "_power_on", "_writable", "data")

    def __init__(self) -> None:
        self.data = bytearray(CONFIG_SIZE)
        self._power_on = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        self._clear = bytearray(CONFIG_SIZE)
        self._next = HEADER_END
        self._last = 0
        self._last_extended = 0

    # Building

    def define(
        self, offset: int, value: bytes, *, writable: bytes = b"", clear: bytes = b""
    ) -> None:
        """Registers at ``offset``: what they hold after a reset, the bits the guest
        may write, and those it clears by writing 1. Masks may be shorter."""
        if offset < 0 or offset + len(value) > CONFIG_SIZE:
            raise ValueError(f"configuration space has no {offset:#x}+{len(value):#x}")
        end = offset + len(value)
        self.data[offset:end] = self._power_on[offset:end] = value
        self._writable[offset:end] = writable.ljust(len(value), b"\0")[: len(value)]
        self._clear[offset:end] = clear.ljust(len(value), b"\0")[: len(value)]

    def define_int(self, offset: int, size: int, value: int, writable: int = 0) -> None:
        """:meth:`define` for one register of ``size`` bytes."""
        self.define(
            offset, value.to_bytes(size, "little"), writable=writable.to_bytes(size, "little")
        )

    def add_capability(self, ident: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; ``body`` and its write mask begin behind the identifier
        and the next pointer, at byte 2. Returns its offset. ValueError: no space left."""
        offset = self._next
        if offset + 2 + len(body) > LEGACY_SIZE:
            raise ValueError("no space left in the capability list")
        self.define(offset, bytes((ident, 0)) + body, writable=b"\0\0" + writable)
        if self._last:
            self._fix(self._last + 1, offset)
        else:
            self._fix(CAPABILITIES, offset)
            self._fix(STATUS, self._power_on[STATUS] | STATUS_CAPABILITIES)
        self._last = offset
        self._next = (offset + 2 + len(body) + 3) & ~3
        return offset

    def add_extended_capability(
        self, ident: int, version: int, body: bytes, writable: bytes = b""
    ) -> int:
        """Append an extended capability; ``body`` begins behind its 4-byte header.
        The first stands at 0x100. Returns its offset. ValueError: no space left."""
        offset = LEGACY_SIZE
        if self._last_extended:
            offset = self._last_extended >> 16
        if offset + 4 + len(body) > CONFIG_SIZE:
            raise ValueError("no space left in the extended capability list")
        header = ident | version << 16 | _EXTENDED_END << 20
        self.define(offset, header.to_bytes(4, "little") + body, writable=bytes(4) + writable)
        if self._last_extended:
            before = self._last_extended & 0xFFFF
            self._fix(before + 2, self._power_on[before + 2] & 0x0F | (offset & 0x0F) << 4)
            self._fix(before + 3, offset >> 4)
        self._last_extended = ((offset + 4 + len(body) + 3) & ~3) << 16 | offset
        return offset

    def _fix(self, offset: int, value: int) -> None:
        """One byte, now and after each reset."""
        self.data[offset] = self._power_on[offset] = value

    def set_multifunction(self) -> None:
        """Say in the header that the slot has more functions than this one."""
        self._fix(HEADER_TYPE, self._power_on[HEADER_TYPE] | HEADER_MULTIFUNCTION)

    # Access

    def read(self, offset: int, size: int) -> int:
        """What the guest reads; all ones past the end."""
        if offset + size > CONFIG_SIZE:
            return (1 << 8 * size) - 1
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes; nothing happens past the end."""
        if offset + size > CONFIG_SIZE:
            return
        data, writable, clear = self.data, self._writable, self._clear
        for at in range(offset, offset + size):
            byte = value & 0xFF
            value >>= 8
            mask = writable[at]
            data[at] = (data[at] & ~mask | byte & mask) & ~(byte & clear[at])

    def word(self, offset: int) -> int:
        """The 16-bit register at ``offset``."""
        return self.data[offset] | self.data[offset + 1] << 8

    def dword(self, offset: int) -> int:
        """The 32-bit register at ``offset``."""
        return int.from_bytes(self.data[offset : offset + 4], "little")

    def poke(self, offset: int, value: bytes) -> None:
        """The device changes a register, whatever the guest may do with it."""
        self.data[offset : offset + len(value)] = value

    def reset(self) -> None:
        """Every register as it was defined."""
        self.data[:] = self._power_on

    def state(self) -> bytes:
        """All 4096 bytes; part of the function's record."""
        return bytes(self.data)

    def restore(self, state: bytes) -> None:
        self.data[:] = state
