"""From a device's interrupt line to the chips, the same for both engines.

A device has a :data:`~kvmkit.devices.device.Line` or sends a message (MSI).
Which chips take it is the board's affair: KVM's in the kernel
(:class:`KernelChips`), or our own models beside the software CPU
(:class:`kvmkit.board.model_chips.ModelChips`).

As on a PC, ISA interrupt *n* reaches the 8259A pair's input *n* and the I/O
APIC's pin *n*, but ISA 0 pin 2; pins 16 and up are PCI's and reach only the I/O
APIC. Lines that share a pin are wired-or: it is asserted while any of them is.
"""

from __future__ import annotations

from kvmkit.board import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from kvmkit.devices.device import Line

    class Chips(Protocol):
        """What the board and its devices use of either kind of chips."""

        def line(self, gsi: int) -> Line: ...
        def isa_line(self, irq: int) -> Line: ...
        def msi(self, address: int, data: int) -> None: ...
        def restate(self) -> None: ...

    class KernelIrqchip(Protocol):
        """What of the KVM engine is used here."""

        def set_line(self, gsi: int, level: bool) -> None: ...
        def msi(self, address: int, data: int) -> object: ...


__all__ = ["KernelChips", "Pins"]


class Pins:
    """The interrupt inputs of a machine; ``drive(gsi, level)`` sets one."""

    def __init__(self, drive: Callable[[int, bool], None]) -> None:
        self._drive = drive
        self._asserted = [0] * layout.GSI_COUNT  # how many lines assert each pin

    def line(self, gsi: int) -> Line:
        """A new line to pin ``gsi``. Raises ValueError for a pin that does not exist."""
        if not 0 <= gsi < layout.GSI_COUNT:
            raise ValueError(f"GSIs are 0 to {layout.GSI_COUNT - 1}, not {gsi}")
        asserted = self._asserted
        drive = self._drive
        state = False

        def set_level(level: bool) -> None:
            nonlocal state
            if level == state:
                return
            state = level
            if level:
                asserted[gsi] += 1
                if asserted[gsi] == 1:
                    drive(gsi, True)
            else:
                asserted[gsi] -= 1
                if not asserted[gsi]:
                    drive(gsi, False)

        return set_level

    def isa_line(self, irq: int) -> Line:
        """A new line to ISA interrupt ``irq``, 0 to 15."""
        if not 0 <= irq < 16:
            raise ValueError(f"ISA interrupts are 0 to 15, not {irq}")
        return self.line(layout.GSI_PIT if irq == layout.IRQ_PIT else irq)

    def restate(self) -> None:
        """Tell the chips every pin's level again, after they were reset or restored."""
        for gsi, count in enumerate(self._asserted):
            self._drive(gsi, bool(count))


class KernelChips(Pins):
    """KVM's in-kernel 8259A pair, I/O APIC and local APICs.

    KVM has its timer's interrupt at GSI 0, routed to the 8259A's input 0 and
    the I/O APIC's pin 2 as on a PC; its GSI 2 leads nowhere.
    """

    def __init__(self, engine: KernelIrqchip) -> None:
        super().__init__(self._set)
        self._engine = engine

    def _set(self, gsi: int, level: bool) -> None:
        self._engine.set_line(layout.IRQ_PIT if gsi == layout.GSI_PIT else gsi, level)

    def msi(self, address: int, data: int) -> None:
        """A device's message-signalled interrupt."""
        self._engine.msi(address, data)
