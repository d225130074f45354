"""What firmware does to PCI before a guest starts: gives every BAR an address.

PCI firmware specification 3.0, section 3.5 (device state at hand-off). Linux
does it by itself where it finds BARs at 0; smaller systems rely on it.
"""

from __future__ import annotations

from kvmkit.devices import pci_config as reg
from kvmkit.devices.pci_function import Bar, BarKind, PciFunction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["assign_bars"]


class _Space:
    """A window that is handed out from its start, each piece at a multiple of its size."""

    def __init__(self, window: tuple[int, int] | None) -> None:
        base, size = window or (0, 0)
        self._next = base
        self._end = base + size

    def take(self, size: int) -> int | None:
        address = -(-self._next // size) * size
        if address == 0 or address + size > self._end:
            return None
        self._next = address + size
        return address


def assign_bars(
    functions: Iterable[PciFunction],
    *,
    memory32: tuple[int, int],
    memory64: tuple[int, int] | None = None,
    io: tuple[int, int] | None = None,
) -> list[tuple[PciFunction, Bar]]:
    """Give the BARs of ``functions`` addresses in these ``(base, size)`` windows,
    largest first, and enable decoding. 64-bit BARs go into ``memory64`` if there
    is one. Returns those that found no place; they stay off, with their function.
    """
    low, ports = _Space(memory32), _Space(io)
    high = _Space(memory64) if memory64 else low
    spaces = {BarKind.IO: ports, BarKind.MEMORY32: low, BarKind.MEMORY64: high}
    bars = [(each, bar) for each in functions for bar in each.bars if bar is not None]
    commands: dict[PciFunction, int] = {}
    homeless: list[tuple[PciFunction, Bar]] = []
    for function, bar in sorted(bars, key=lambda pair: -pair[1].size):
        address = spaces[bar.kind].take(bar.size)
        if address is None:
            homeless.append((function, bar))
            continue
        width = 8 if bar.kind is BarKind.MEMORY64 else 4
        function.write_config(reg.BAR0 + 4 * bar.index, width, address)
        enable = reg.COMMAND_IO if bar.is_io else reg.COMMAND_MEMORY
        commands[function] = commands.get(function, 0) | enable
    without = {function for function, _ in homeless}
    for function, command in commands.items():
        if function not in without:
            function.write_config(reg.COMMAND, 2, function.config.word(reg.COMMAND) | command)
    return homeless
