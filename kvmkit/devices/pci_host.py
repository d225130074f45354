"""The host bridge: function 00:00.0, and the ways into configuration space.

PCI Local Bus specification 3.0, section 3.2.2.3.2 (configuration mechanism
#1: CONFIG_ADDRESS at 0xcf8, CONFIG_DATA at 0xcfc); PCI Express base
specification, "Enhanced configuration access mechanism" (ECAM); PCI firmware
specification 3.0, section 4 (MCFG).
"""

from __future__ import annotations

from kvmkit.devices.pci_function import PciFunction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeAlias

__all__ = ["ConfigAddress", "ConfigData", "Ecam", "HostBridge"]

HOST_BRIDGE_VENDOR: Final = 0x1B36
HOST_BRIDGE_DEVICE: Final = 0x0008
HOST_BRIDGE_CLASS: Final = 0x06_00_00

# CONFIG_ADDRESS
ADDRESS_ENABLE: Final = 0x8000_0000
ADDRESS_BITS: Final = 0x80FF_FFFC  # reserved bits and the lowest two read 0

Find: TypeAlias = "Callable[[int, int], PciFunction | None]"
"""``(bus, devfn)``: the function there, if there is one."""


class HostBridge(PciFunction):
    """The generic PCI Express host bridge; it has no registers beyond its header."""

    def __init__(self) -> None:
        super().__init__(
            vendor=HOST_BRIDGE_VENDOR, device=HOST_BRIDGE_DEVICE, class_code=HOST_BRIDGE_CLASS
        )


class ConfigAddress:
    """CONFIG_ADDRESS, 4 ports. Only a dword access reaches it; others are plain
    I/O and meet nobody here."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def read(self, offset: int, size: int) -> int:
        return self.value if offset == 0 and size == 4 else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 4:
            self.value = value & ADDRESS_BITS

    def reset(self) -> None:
        """Address 0, not enabled."""
        self.value = 0

    def state(self) -> int:
        """The register; part of the bus's record."""
        return self.value

    def restore(self, state: int) -> None:
        self.value = state


class _Window:
    """A window with no state of its own."""

    __slots__ = ()

    def reset(self) -> None:
        """Nothing to do: it has no state."""

    def state(self) -> None:
        return None

    def restore(self, state: None) -> None:
        """Nothing to do: it has no state."""


class ConfigData(_Window):
    """CONFIG_DATA, 4 ports: the dword that CONFIG_ADDRESS names, or part of it."""

    __slots__ = ("_address", "_find")

    def __init__(self, address: ConfigAddress, find: Find) -> None:
        self._address = address
        self._find = find

    def _target(self, offset: int, size: int) -> tuple[PciFunction | None, int]:
        address = self._address.value
        if not address & ADDRESS_ENABLE or offset + size > 4:
            return None, 0
        return self._find(address >> 16 & 0xFF, address >> 8 & 0xFF), (address & 0xFC) + offset

    def read(self, offset: int, size: int) -> int:
        function, register = self._target(offset, size)
        return (1 << 8 * size) - 1 if function is None else function.read_config(register, size)

    def write(self, offset: int, size: int, value: int) -> None:
        function, register = self._target(offset, size)
        if function is not None:
            function.write_config(register, size, value)


class Ecam(_Window):
    """Memory-mapped configuration space: 1 MiB for each bus, 4 KiB for each function."""

    __slots__ = ("_find",)

    def __init__(self, find: Find) -> None:
        self._find = find

    def read(self, offset: int, size: int) -> int:
        function = self._find(offset >> 20, offset >> 12 & 0xFF)
        if function is None:
            return (1 << 8 * size) - 1
        return function.read_config(offset & 0xFFF, size)

    def write(self, offset: int, size: int, value: int) -> None:
        function = self._find(offset >> 20, offset >> 12 & 0xFF)
        if function is not None:
            function.write_config(offset & 0xFFF, size, value)
