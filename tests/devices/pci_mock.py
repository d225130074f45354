"""A tiny PCI device, a machine around it, and the driver's side of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvmkit.devices.device import Line
from kvmkit.devices.pci import BarKind, PciBus, PciFunction
from tests.devices.fakes import RecordingLine

__all__ = ["ECAM", "MEMORY_WINDOWS", "Driver", "Machine", "TestDevice"]

WINDOW_32 = (0xC000_0000, 0x2000_0000)
WINDOW_64 = (0x40_0000_0000, 0x40_0000_0000)
MEMORY_WINDOWS = (WINDOW_32, WINDOW_64)
IO_WINDOWS = ((0x1000, 0xF000),)
ECAM = "ecam"
VENDOR, DEVICE = 0x1234, 0x11E8


@dataclass(frozen=True, slots=True)
class TestDeviceState:
    """The device's one register."""

    __test__ = False

    value: int


class Registers:
    """Offset 0: a value. Offset 4: writing interrupts, by MSI-X vector or INTx.
    Offset 8: writing withdraws INTx."""

    def __init__(self, owner: TestDevice) -> None:
        self.owner = owner

    def read(self, offset: int, size: int) -> int:
        return self.owner.value & (1 << 8 * size) - 1 if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.owner.value = value & 0xFFFF_FFFF
        elif offset == 4 and self.owner.msix is not None:
            if not self.owner.msix.trigger(value & 0xFF):
                self.owner.set_intx(True)
        elif offset == 8:
            self.owner.set_intx(False)


class TestDevice(PciFunction):
    """BAR 0: 4 KiB of memory; BAR 1: 32 ports; BARs 2-3: 64 KiB, 64 bit,
    prefetchable; BAR 4: MSI-X with 4 vectors."""

    __test__ = False

    def __init__(self, machine: Machine, pin: int = 1) -> None:
        super().__init__(
            vendor=VENDOR, device=DEVICE, class_code=0xFF0000, subsystem=7, interrupt_pin=pin
        )
        self.value = 0
        registers = Registers(self)
        self.add_bar(0, 4096, registers)
        self.add_bar(1, 32, registers, kind=BarKind.IO)
        self.add_bar(2, 1 << 16, registers, kind=BarKind.MEMORY64, prefetchable=True)
        self.add_msix(4, 4, machine.msi, machine.vector_changed)
        self.add_express_capability()
        self.add_capability(0x09, b"\x06\0abc", b"\0\0\xff")

    def reset(self) -> None:
        self.value = 0
        super().reset()

    def device_state(self) -> TestDeviceState:
        return TestDeviceState(self.value)

    def restore_device(self, state: Any) -> None:
        self.value = state.value


class Machine:
    """A bus with what a board gives it: memory, ports, lines and messages."""

    def __init__(self) -> None:
        self.lines = [RecordingLine() for _ in range(8)]
        self.messages: list[tuple[int, int]] = []
        self.vectors: list[tuple[int, int, int, bool]] = []
        self.mapped: dict[tuple[PciFunction, int], int] = {}
        self.bus = PciBus(
            self.map_bar, self.line, memory_windows=MEMORY_WINDOWS, io_windows=IO_WINDOWS
        )

    def line(self, number: int) -> Line:
        return self.lines[number]

    def msi(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def vector_changed(self, vector: int, address: int, data: int, masked: bool) -> None:
        self.vectors.append((vector, address, data, masked))

    def map_bar(self, function: PciFunction, bar: int, address: int | None) -> None:
        key = (function, bar)
        if address is None:
            del self.mapped[key]
        else:
            assert key not in self.mapped
            self.mapped[key] = address

    def access(self, address: int, size: int, value: int | None = None) -> int:
        """A memory access of the guest."""
        for (function, index), base in self.mapped.items():
            bar = function.bars[index]
            assert bar is not None
            if not bar.is_io and base <= address < base + bar.size:
                if value is None:
                    return bar.device.read(address - base, size)
                bar.device.write(address - base, size, value)
                return 0
        return (1 << 8 * size) - 1


class Driver:
    """What a guest does with configuration space, by mechanism #1 or ECAM."""

    def __init__(self, machine: Machine, way: str) -> None:
        self.machine = machine
        self.way = way

    def read(self, devfn: int, register: int, size: int, bus: int = 0) -> int:
        if self.way == ECAM:
            return self.machine.bus.ecam.read(bus << 20 | devfn << 12 | register, size)
        address = 0x8000_0000 | bus << 16 | devfn << 8 | register & 0xFC
        self.machine.bus.config_address.write(0, 4, address)
        return self.machine.bus.config_data.read(register & 3, size)

    def write(self, devfn: int, register: int, size: int, value: int) -> None:
        if self.way == ECAM:
            self.machine.bus.ecam.write(devfn << 12 | register, size, value)
            return
        self.machine.bus.config_address.write(0, 4, 0x8000_0000 | devfn << 8 | register & 0xFC)
        self.machine.bus.config_data.write(register & 3, size, value)

    def enumerate(self) -> list[int]:
        """The devfns of all functions, found as 6.1 says."""
        found = []
        for slot in range(32):
            if self.read(slot << 3, 0, 2) == 0xFFFF:
                continue
            many = self.read(slot << 3, 0x0E, 1) & 0x80
            found += [
                slot << 3 | number
                for number in range(8 if many else 1)
                if self.read(slot << 3 | number, 0, 2) != 0xFFFF
            ]
        return found

    def size_bar(self, devfn: int, index: int) -> tuple[int, int]:
        """Flags and size of a 32-bit register, decoding being off."""
        at = 0x10 + 4 * index
        before = self.read(devfn, at, 4)
        self.write(devfn, at, 4, 0xFFFF_FFFF)
        mask = self.read(devfn, at, 4)
        self.write(devfn, at, 4, before)
        flags = before & (3 if before & 1 else 15)
        return flags, -(mask & ~(3 if before & 1 else 15)) & 0xFFFF_FFFF

    def capabilities(self, devfn: int) -> Iterator[tuple[int, int]]:
        """Identifier and offset of each capability."""
        at = self.read(devfn, 0x34, 1) if self.read(devfn, 0x06, 2) & 0x10 else 0
        while at:
            yield self.read(devfn, at, 1), at
            at = self.read(devfn, at + 1, 1)

    def program(self, devfn: int, memory: int, ports: int, memory64: int) -> None:
        """Give a test device's BARs addresses and enable it, as an OS does."""
        self.write(devfn, 0x10, 4, memory)
        self.write(devfn, 0x14, 4, ports)
        self.write(devfn, 0x18, 4, memory64 & 0xFFFF_FFFF)
        self.write(devfn, 0x1C, 4, memory64 >> 32)
        self.write(devfn, 0x20, 4, memory + 0x1000)
        self.write(devfn, 0x04, 2, 0x0007)

    def enable_vector(self, devfn: int, table: int, vector: int, address: int, data: int) -> None:
        """Fill in and unmask an MSI-X vector and turn MSI-X on."""
        write = partial(self.machine.access, size=4)
        entry = table + 16 * vector
        write(entry, value=address & 0xFFFF_FFFF)
        write(entry + 4, value=address >> 32)
        write(entry + 8, value=data)
        write(entry + 12, value=0)
        at = dict(self.capabilities(devfn))[0x11]
        self.write(devfn, at + 2, 2, 0x8000)
