"""The interrupt chips and timers of a machine whose CPU is software: our own models, wired.

As on a PC: the 8254's counter 0 is ISA interrupt 0; the 8259A pair's INTR goes
to LINT0 of CPU 0, which asks the pair for a vector (MultiProcessor
Specification 1.4, 3.6.2.2, "virtual wire"); the I/O APIC, the local APICs and
messages of devices meet on one bus.
"""

from __future__ import annotations

from kvmkit.board import layout
from kvmkit.board.interrupts import Pins
from kvmkit.devices.apic_bus import ApicBus
from kvmkit.devices.ioapic import IoApic
from kvmkit.devices.lapic import LocalApic
from kvmkit.devices.pic import PicPair
from kvmkit.devices.pit import Pit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from kvmkit.board.bus import BoardBus
    from kvmkit.devices.device import Clock
    from kvmkit.devices.lapic import Cpu

__all__ = ["ModelChips"]

_ISA_PINS = 16


class ModelChips(Pins):
    """All chips of one machine; ``cpus`` in the order of their APIC IDs.

    ``tsc[i]`` reads CPU *i*'s time-stamp counter, which runs at ``tsc_hz``.
    """

    def __init__(
        self,
        clock: Clock,
        cpus: Sequence[Cpu],
        *,
        tsc: Sequence[Callable[[], int]],
        tsc_hz: int,
    ) -> None:
        super().__init__(self._set)
        self.bus = ApicBus()
        self.ioapic = IoApic(self.bus.deliver, layout.GSI_COUNT, layout.IOAPIC_ID)
        self.bus.ioapic = self.ioapic
        self.pic = PicPair(self._intr)
        self.apics: tuple[LocalApic, ...] = tuple(
            LocalApic(
                index,
                clock,
                cpu,
                self.bus.send,
                self.bus.broadcast_eoi,
                tsc=tsc[index],
                tsc_hz=tsc_hz,
                pic_acknowledge=self.pic.acknowledge if index == 0 else None,
            )
            for index, cpu in enumerate(cpus)
        )
        for apic in self.apics:
            self.bus.add(apic)
        self.pit = Pit(clock, self.isa_line(layout.IRQ_PIT))
        self.apics[0].virtual_wire()

    def _intr(self, level: bool) -> None:
        self.apics[0].set_lint0(level)

    def _set(self, gsi: int, level: bool) -> None:
        if gsi == layout.GSI_PIT:
            self.pic.set_line(layout.IRQ_PIT, level)
        elif gsi < _ISA_PINS:
            self.pic.set_line(gsi, level)
        self.ioapic.set_line(gsi, level)

    def msi(self, address: int, data: int) -> None:
        """A device's message-signalled interrupt."""
        self.bus.msi(address, data)

    def map(self, bus: BoardBus) -> None:
        """Put the chips' registers on the buses; the local APICs' pages are the engine's."""
        bus.map_ports(layout.PIC_PRIMARY, 2, self.pic.primary)
        bus.map_ports(layout.PIC_SECONDARY, 2, self.pic.secondary)
        bus.map_ports(layout.PIC_ELCR, 2, self.pic.elcr)
        bus.map_ports(layout.PIT, 4, self.pit)
        bus.map_ports(layout.PORT_B, 1, self.pit.port_b)
        bus.map_memory(layout.IOAPIC, layout.IOAPIC_SIZE, self.ioapic)

    def devices(self) -> dict[str, Any]:
        """The chips by name, for reset and state records."""
        chips: dict[str, Any] = {"pic": self.pic, "ioapic": self.ioapic, "apicbus": self.bus}
        chips |= {f"lapic{apic.ident}": apic for apic in self.apics}
        chips["pit"] = self.pit
        return chips

    def reset_done(self) -> None:
        """What firmware does after a reset: open the virtual wire."""
        self.apics[0].virtual_wire()
        self.restate()
