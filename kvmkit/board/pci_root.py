"""The PCI root: configuration space on the buses, BARs that come and go, interrupt lines."""

from __future__ import annotations

from kvmkit.board import layout
from kvmkit.board.bus import BusOverlap
from kvmkit.devices.pci import INTX_LINES, PciBus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmkit.board.bus import BoardBus
    from kvmkit.board.interrupts import Chips
    from kvmkit.devices.pci import PciFunction

__all__ = ["PciRoot"]

_PORT_SIZES = (1, 2, 4)
_REGISTER_SIZES = (1, 2, 4)
_WINDOW_32 = (layout.PCI_WINDOW_32, layout.PCI_WINDOW_32_SIZE)
_WINDOW_64 = (layout.PCI_WINDOW_64, layout.PCI_WINDOW_64_SIZE)
_WINDOW_IO = (layout.PCI_WINDOW_IO, layout.PCI_WINDOW_IO_SIZE)


class PciRoot:
    """The root bus of a board; further functions are added to :attr:`bus` before it starts."""

    def __init__(self, bus: BoardBus, chips: Chips) -> None:
        self._board_bus = bus
        self._mapped: dict[tuple[PciFunction, int], int] = {}
        self._followers: dict[PciFunction, Callable[[int, int | None], None]] = {}
        lines = [chips.line(layout.GSI_PCI + number) for number in range(INTX_LINES)]
        self.bus = PciBus(
            self._map_bar,
            lines.__getitem__,
            memory_windows=(_WINDOW_32, _WINDOW_64),
            io_windows=(_WINDOW_IO,),
        )
        bus.map_ports(layout.PCI_CONFIG_ADDRESS, 4, self.bus.config_address, sizes=(4,))
        bus.map_ports(layout.PCI_CONFIG_DATA, 4, self.bus.config_data, sizes=_PORT_SIZES)
        bus.map_memory(layout.PCI_ECAM, layout.PCI_ECAM_SIZE, self.bus.ecam, sizes=_REGISTER_SIZES)

    def assign(self) -> None:
        """Give every BAR an address, as firmware would before it starts a system."""
        if any(bar is not None for function in self.bus for bar in function.bars):
            from kvmkit.devices.pci_assign import assign_bars

            assign_bars(self.bus, memory32=_WINDOW_32, memory64=_WINDOW_64, io=_WINDOW_IO)

    def follow(self, function: PciFunction, moved: Callable[[int, int | None], None]) -> None:
        """Call ``moved(bar, address)`` whenever a BAR of ``function`` is mapped somewhere, or
        (None) no longer."""
        self._followers[function] = moved

    def _map_bar(self, function: PciFunction, index: int, address: int | None) -> None:
        bar = function.bars[index]
        if bar is None:
            return
        before = self._mapped.pop((function, index), None)
        device: Any = bar.device
        if before is not None:
            if bar.is_io:
                self._board_bus.unmap_ports(before, bar.size, sizes=_PORT_SIZES)
            else:
                self._board_bus.unmap_memory(before)
        moved = self._followers.get(function)
        if before is not None and moved is not None:
            moved(index, None)
        if address is None:
            return
        try:
            if bar.is_io:
                self._board_bus.map_ports(address, bar.size, device, sizes=_PORT_SIZES)
            else:
                self._board_bus.map_memory(address, bar.size, device)
        except BusOverlap:  # the guest put it over something: it stays out of reach
            return
        self._mapped[function, index] = address
        if moved is not None:
            moved(index, address)
