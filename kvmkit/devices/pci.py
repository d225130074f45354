"""The PCI bus: which function is where, what its BARs map, whose interrupt is whose.

PCI Local Bus specification 3.0, section 2.2.6 (interrupt pins, level
triggered and shared), 3.2.2 (address decoding), 6.1 (slots and functions).

One root bus, number 0, without bridges to others: what the guest looks for on
other buses is not there.
"""

from __future__ import annotations

from kvmkit.devices.pci_function import Bar, BarKind, PciFunction, PciFunctionState
from kvmkit.devices.pci_host import ConfigAddress, ConfigData, Ecam, HostBridge
from kvmkit.errors import UsageError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, Final, TypeAlias

    from kvmkit.devices.device import Line

__all__ = [
    "INTX_LINES",
    "Bar",
    "BarKind",
    "PciBus",
    "PciBusState",
    "PciFunction",
    "PciFunctionState",
    "intx_line",
]

SLOTS: Final = 32
FUNCTIONS: Final = 8
INTX_LINES: Final = 8
IO_SPACE: Final = 0x1_0000

MapBar: TypeAlias = "Callable[[PciFunction, int, int | None], None]"
"""``(function, bar, address)``: map ``function.bars[bar]`` there, or, with None,
nowhere. It must not raise: the address is the guest's choice."""


def intx_line(slot: int, pin: int) -> int:
    """Which of the eight interrupt lines INTA (``pin`` 0) to INTD (3) of a slot is
    wired to. The ACPI _PRT must say the same."""
    return (slot + pin) % INTX_LINES


class PciBusState(Record):
    """CONFIG_ADDRESS, and each function's state by device and function number."""

    config_address: int
    functions: tuple[tuple[int, Any], ...]


class PciBus:
    """The root bus, with a host bridge in slot 0.

    ``map_bar`` is called when a BAR's memory or ports appear or go. ``intx``
    gives the line with a number from 0 to 7; functions that share one are
    wired-or. ``memory_windows`` and ``io_windows`` are the ``(base, size)``
    ranges the host bridge passes on: a BAR outside is mapped nowhere, and the
    whole space is open if they are not given. Of BARs that overlap the one of
    the lower slot and number is mapped.
    """

    def __init__(
        self,
        map_bar: MapBar,
        intx: Callable[[int], Line],
        *,
        memory_windows: Sequence[tuple[int, int]] | None = None,
        io_windows: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self._map_bar = map_bar
        self._intx = intx
        self._memory_windows = ((0, 1 << 64),) if memory_windows is None else memory_windows
        self._io_windows = ((0, IO_SPACE),) if io_windows is None else io_windows
        self._functions: dict[int, PciFunction] = {}
        self._asserting: list[set[PciFunction]] = [set() for _ in range(INTX_LINES)]
        self.config_address = ConfigAddress()
        self.config_data = ConfigData(self.config_address, self.find)
        self.ecam = Ecam(self.find)
        self.host_bridge = HostBridge()
        self.add(self.host_bridge, slot=0)

    # What is plugged in

    def __iter__(self) -> Iterator[PciFunction]:
        """All functions, by slot and number."""
        return (self._functions[devfn] for devfn in sorted(self._functions))

    def find(self, bus: int, devfn: int) -> PciFunction | None:
        """The function at ``bus`` and ``devfn`` (slot << 3 | number), or None."""
        return self._functions.get(devfn) if bus == 0 else None

    def add(self, function: PciFunction, slot: int | None = None, number: int = 0) -> int:
        """Plug ``function`` in: in ``slot``, or the first free one. Returns the slot.

        A guest finds functions 1 to 7 of a slot only if there is a function 0.
        Raises UsageError when the place is taken or does not exist.
        """
        if slot is None:
            slot = next((s for s in range(1, SLOTS) if not self._in_slot(s)), SLOTS)
        if not 0 <= slot < SLOTS or not 0 <= number < FUNCTIONS:
            raise UsageError(
                f"PCI: expected a free slot from 0 to {SLOTS - 1}, found {slot:#x}.{number}",
                "use fewer devices",
            )
        devfn = slot << 3 | number
        if devfn in self._functions:
            raise UsageError(
                f"PCI: {self._functions[devfn]} is taken", "name another slot or none"
            )
        self._functions[devfn] = function
        function.slot, function.number, function.bus = slot, number, self
        together = self._in_slot(slot)
        if len(together) > 1:
            for each in together:
                each.config.set_multifunction()
        return slot

    def _in_slot(self, slot: int) -> list[PciFunction]:
        numbers = range(slot << 3, (slot << 3) + FUNCTIONS)
        return [self._functions[devfn] for devfn in numbers if devfn in self._functions]

    # What the functions ask for

    def decode_changed(self) -> None:
        """Map every BAR where it wants to be and may be; first what goes, then what comes."""
        wanted = self._placed()
        coming: list[tuple[PciFunction, Bar, int]] = []
        for function in self:
            for bar in function.bars:
                if bar is None:
                    continue
                address = wanted.get(bar)
                if address == bar.address:
                    continue
                if bar.address is not None:
                    bar.address = None
                    self._map_bar(function, bar.index, None)
                if address is not None:
                    coming.append((function, bar, address))
        for function, bar, address in coming:
            bar.address = address
            self._map_bar(function, bar.index, address)

    def _placed(self) -> dict[Bar, int]:
        """Where each BAR goes whose address is in a window and free."""
        placed: dict[Bar, int] = {}
        for function in self:
            for bar, address in function.wanted_bars():
                windows = self._io_windows if bar.is_io else self._memory_windows
                end = address + bar.size
                if (
                    address
                    and any(base <= address and end <= base + size for base, size in windows)
                    and not any(
                        other.is_io == bar.is_io and start < end and address < start + other.size
                        for other, start in placed.items()
                    )
                ):
                    placed[bar] = address
        return placed

    def drive(self, function: PciFunction, level: bool) -> None:
        """The interrupt pin of ``function``; lines are wired-or."""
        number = intx_line(function.slot, function.interrupt_pin - 1)
        asserting = self._asserting[number]
        before = bool(asserting)
        if level:
            asserting.add(function)
        else:
            asserting.discard(function)
        if bool(asserting) != before:
            self._intx(number)(level)

    # Life

    def reset(self) -> None:
        """Reset every function; all BARs are unmapped, all lines low."""
        self.config_address.reset()
        for function in self:
            function.reset()

    def state(self) -> PciBusState:
        return PciBusState(
            config_address=self.config_address.state(),
            functions=tuple(
                (devfn, self._functions[devfn].state()) for devfn in sorted(self._functions)
            ),
        )

    def restore(self, state: PciBusState) -> None:
        """Restore every function that is plugged in; others in the record are left out."""
        self.config_address.restore(state.config_address)
        for devfn, each in state.functions:
            function = self._functions.get(devfn)
            if function is not None:
                function.restore(each)
        for number, asserting in enumerate(self._asserting):
            self._intx(number)(bool(asserting))
