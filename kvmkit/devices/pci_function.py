"""A PCI function: identity, base address registers, INTx and MSI-X.

PCI Local Bus specification 3.0, section 6.2.2 (command), 6.2.3 (status),
6.2.4 (interrupt pin), 6.2.5 (base addresses); PCI Express base specification,
section "PCI Express capability structure".
"""

from __future__ import annotations

from struct import pack

from kvmkit.devices import pci_config as reg
from kvmkit.devices.msix import Msix, MsixState, VectorChange
from kvmkit.frozen import Record
from kvmkit.named import Named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Final, Protocol
else:
    Protocol = object  # typing takes 3 ms to import

__all__ = ["Bar", "BarKind", "BarMemory", "PciFunction", "PciFunctionState"]

BAR_COUNT: Final = 6
MIN_MEMORY_BAR: Final = 16
MIN_IO_BAR: Final = 4
MAX_IO_BAR: Final = 256
BAR_IO: Final = 0x01
BAR_64: Final = 0x04
BAR_PREFETCHABLE: Final = 0x08
BAR_FLAGS_MEMORY: Final = 0x0F
BAR_FLAGS_IO: Final = 0x03

# PCI Express capability: version 2, root complex integrated endpoint
EXPRESS_FLAGS: Final = 0x0092
EXPRESS_ROLE_BASED_ERRORS: Final = 0x8000
EXPRESS_CONTROL: Final = 0x2810  # 512-byte reads, relaxed ordering, no snoop
EXPRESS_CONTROL_WRITABLE: Final = 0x7FFF
EXPRESS_BODY_SIZE: Final = 0x3C - 2


class BarKind(Named):
    """What a base address register maps."""

    IO = BAR_IO
    MEMORY32 = 0
    MEMORY64 = BAR_64


class BarMemory(Protocol):
    """What is behind a BAR: the register part of a device."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class Bar:
    """A base address register: ``size`` bytes of ``device``.

    ``address`` is where it is mapped now, None while it is not.
    """

    __slots__ = ("address", "device", "index", "kind", "prefetchable", "size")

    def __init__(
        self, index: int, size: int, kind: BarKind, device: BarMemory, prefetchable: bool
    ) -> None:
        self.index = index
        self.size = size
        self.kind = kind
        self.device = device
        self.prefetchable = prefetchable
        self.address: int | None = None

    @property
    def is_io(self) -> bool:
        """Ports, not memory."""
        return self.kind is BarKind.IO


class PciFunctionState(Record):
    """A function at rest: configuration space, the INTx level it asks for, and
    the MSI-X vectors. ``device`` is what its subclass adds."""

    config: bytes
    intx: bool
    msix: MsixState | None
    device: Any = None


class Attachment(Protocol):
    """What a function's bus does for it."""

    def decode_changed(self) -> None:
        """A BAR or its enable has changed."""

    def drive(self, function: PciFunction, level: bool) -> None:
        """Drive the interrupt pin of ``function``."""


class PciFunction:
    """One function of a PCI device; subclass it, or add BARs to one.

    ``class_code`` has 24 bits: class, sub-class, programming interface.
    ``interrupt_pin`` is 1 to 4 for INTA to INTD, 0 for none.
    """

    def __init__(
        self,
        *,
        vendor: int,
        device: int,
        class_code: int,
        revision: int = 0,
        subsystem_vendor: int = 0,
        subsystem: int = 0,
        interrupt_pin: int = 0,
    ) -> None:
        self.config = reg.ConfigSpace()
        self.bars: list[Bar | None] = [None] * BAR_COUNT
        self.msix: Msix | None = None
        self.bus: Attachment | None = None
        self.slot = 0
        self.number = 0
        self.interrupt_pin = interrupt_pin
        self._intx = False
        self._msix_control = 0
        self._command_writable = reg.COMMAND_ALWAYS
        define = self.config.define_int
        define(reg.VENDOR_ID, 2, vendor)
        define(reg.DEVICE_ID, 2, device)
        define(reg.COMMAND, 2, 0, self._command_writable)
        self.config.define(reg.STATUS, bytes(2), clear=pack("<H", reg.STATUS_ERRORS))
        define(reg.REVISION, 4, class_code << 8 | revision)
        define(reg.CACHE_LINE_SIZE, 1, 0, 0xFF)
        define(reg.SUBSYSTEM_VENDOR, 2, subsystem_vendor)
        define(reg.SUBSYSTEM, 2, subsystem)
        define(reg.INTERRUPT_LINE, 1, 0, 0xFF)
        define(reg.INTERRUPT_PIN, 1, interrupt_pin)

    def __str__(self) -> str:
        return f"00:{self.slot:02x}.{self.number}"

    # Building

    def add_bar(
        self,
        index: int,
        size: int,
        device: BarMemory,
        *,
        kind: BarKind = BarKind.MEMORY32,
        prefetchable: bool = False,
    ) -> Bar:
        """A base address register for ``size`` bytes (a power of two) of ``device``.
        A 64-bit one takes two. Raises ValueError when it cannot be so."""
        registers = 2 if kind is BarKind.MEMORY64 else 1
        low, high = (
            (MIN_IO_BAR, MAX_IO_BAR) if kind is BarKind.IO else (MIN_MEMORY_BAR, 1 << 62)
        )
        if kind is BarKind.MEMORY32:
            high = 1 << 31
        if size & (size - 1) or not low <= size <= high:
            raise ValueError(f"expected a power of two from {low:#x} to {high:#x}, found {size:#x}")
        if not 0 <= index <= BAR_COUNT - registers or self._bar_taken(index, registers):
            raise ValueError(f"there is no free BAR {index}")
        bar = Bar(index, size, kind, device, prefetchable)
        self.bars[index] = bar
        flags = kind.value | (BAR_PREFETCHABLE if prefetchable and not bar.is_io else 0)
        width = 4 * registers
        mask = -size & ((1 << 8 * width) - 1)
        self.config.define_int(reg.BAR0 + 4 * index, width, flags, mask)
        self._command_writable |= reg.COMMAND_IO if bar.is_io else reg.COMMAND_MEMORY
        self.config.define_int(reg.COMMAND, 2, 0, self._command_writable)
        return bar

    def _bar_taken(self, index: int, registers: int) -> bool:
        below = self.bars[index - 1] if index else None
        return any(self.bars[index : index + registers]) or (
            below is not None and below.kind is BarKind.MEMORY64
        )

    def add_capability(self, ident: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; see :meth:`ConfigSpace.add_capability`."""
        return self.config.add_capability(ident, body, writable)

    def add_express_capability(self) -> int:
        """Be a PCI Express integrated endpoint: the guest then looks past byte 255."""
        body = pack("<HIH", EXPRESS_FLAGS, EXPRESS_ROLE_BASED_ERRORS, EXPRESS_CONTROL)
        writable = pack("<HIH", 0, 0, EXPRESS_CONTROL_WRITABLE)
        return self.config.add_capability(
            reg.CAP_EXPRESS, body.ljust(EXPRESS_BODY_SIZE, b"\0"), writable
        )

    def add_msix(
        self,
        bar: int,
        vectors: int,
        msi: Callable[[int, int], None],
        on_vector_change: VectorChange | None = None,
        *,
        kind: BarKind = BarKind.MEMORY32,
    ) -> Msix:
        """MSI-X with its table and pending bits in a BAR of their own."""
        msix = Msix(vectors, msi, on_vector_change)
        self.add_bar(bar, msix.size, msix, kind=kind)
        body, writable = msix.capability(bar)
        self._msix_control = 2 + self.config.add_capability(reg.CAP_MSIX, body, writable)
        self.msix = msix
        return msix

    # The guest's side

    def read_config(self, offset: int, size: int) -> int:
        """Read configuration space."""
        self.before_config_read(offset, size)
        return self.config.read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write configuration space; BARs, interrupts and MSI-X follow."""
        self.config.write(offset, size, value)
        end = offset + size
        if offset < reg.STATUS and end > reg.COMMAND:
            self._follow()
        elif offset < reg.BAR_END and end > reg.BAR0:
            self._decode_changed()
        elif offset < self._msix_control + 2 and end > self._msix_control:
            self._follow()
        self.after_config_write(offset, size)

    def before_config_read(self, offset: int, size: int) -> None:
        """For subclasses: bring registers up to date before they are read."""

    def after_config_write(self, offset: int, size: int) -> None:
        """For subclasses: act on what was written to their capabilities."""

    # The device's side

    @property
    def bus_master(self) -> bool:
        """The guest lets this function read and write its memory."""
        return bool(self.config.word(reg.COMMAND) & reg.COMMAND_MASTER)

    def set_intx(self, level: bool) -> None:
        """Ask for the legacy interrupt, or withdraw it. Interrupt status tells of
        it always, the pin only if INTx is not disabled and MSI-X not enabled."""
        self._intx = level
        status = self.config.data[reg.STATUS] & ~reg.STATUS_INTERRUPT
        self.config.data[reg.STATUS] = status | (reg.STATUS_INTERRUPT if level else 0)
        self._drive()

    def wanted_bars(self) -> Iterator[tuple[Bar, int]]:
        """The BARs whose decoding is enabled, and the address each has."""
        command = self.config.word(reg.COMMAND)
        for bar in self.bars:
            if bar is None or not command & (reg.COMMAND_IO if bar.is_io else reg.COMMAND_MEMORY):
                continue
            at = reg.BAR0 + 4 * bar.index
            if bar.is_io:
                yield bar, self.config.dword(at) & ~BAR_FLAGS_IO
                continue
            address = self.config.dword(at) & ~BAR_FLAGS_MEMORY
            if bar.kind is BarKind.MEMORY64:
                address |= self.config.dword(at + 4) << 32
            yield bar, address

    def _follow(self) -> None:
        """Do what the command register and the MSI-X message control say now."""
        if self.msix is not None:
            self.msix.configure(self.config.word(self._msix_control), self.bus_master)
        self._drive()
        self._decode_changed()

    def _drive(self) -> None:
        silent = self.config.word(reg.COMMAND) & reg.COMMAND_INTX_DISABLE or (
            self.msix is not None and self.msix.enabled
        )
        if self.bus is not None and self.interrupt_pin:
            self.bus.drive(self, self._intx and not silent)

    def _decode_changed(self) -> None:
        if self.bus is not None:
            self.bus.decode_changed()

    # Life

    def reset(self) -> None:
        """Power-on: BARs unmapped, interrupts withdrawn. Subclasses reset themselves first."""
        self.config.reset()
        self._intx = False
        if self.msix is not None:
            self.msix.reset()
        self._follow()

    def device_state(self) -> Any:
        """For subclasses: their own state, a record."""
        return None

    def restore_device(self, state: Any) -> None:
        """For subclasses: become what :meth:`device_state` gave."""

    def state(self) -> PciFunctionState:
        return PciFunctionState(
            config=self.config.state(),
            intx=self._intx,
            msix=None if self.msix is None else self.msix.state(),
            device=self.device_state(),
        )

    def restore(self, state: PciFunctionState) -> None:
        self.config.restore(state.config)
        self._intx = state.intx
        if self.msix is not None and state.msix is not None:
            self.msix.restore(state.msix)
        self.restore_device(state.device)
        self._follow()
