"""A local APIC with a fake clock and CPU, and the driver's side of it."""

from __future__ import annotations

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.apic_message import ApicMessage, DeliveryMode, Shorthand
from kvmkit.devices.lapic import LocalApic
from tests.devices.fakes import FakeClock

__all__ = ["ENABLED", "MASKED", "FakeCpu", "Rig", "enabled_rig", "x2apic_rig"]

TSC_HZ = 3_000_000_000
ENABLED = reg.SVR_ENABLE | 0xFF
MASKED = reg.LVT_MASKED


class FakeCpu:
    """Remembers what its APIC did to it."""

    def __init__(self) -> None:
        self.pending = False
        self.changes = 0
        self.events: list[object] = []

    def interrupt(self, pending: bool) -> None:
        assert pending != self.pending, "told twice"
        self.pending = pending
        self.changes += 1

    def nmi(self) -> None:
        self.events.append("nmi")

    def init(self) -> None:
        self.events.append("init")

    def startup(self, vector: int) -> None:
        self.events.append(("startup", vector))

    def smi(self) -> None:
        self.events.append("smi")


class Rig:
    """One local APIC, and the driver's side of it."""

    def __init__(self, ident: int = 0) -> None:
        self.clock = FakeClock()
        self.cpu = FakeCpu()
        self.sent: list[tuple[ApicMessage, Shorthand]] = []
        self.eois: list[int] = []
        self.tsc_offset = 0
        self.apic = LocalApic(
            ident, self.clock, self.cpu, self._send, self.eois.append,
            tsc=self.tsc, tsc_hz=TSC_HZ, pic_acknowledge=lambda: 0x20,
        )  # fmt: skip

    def _send(self, apic: LocalApic, message: ApicMessage, shorthand: Shorthand) -> None:
        assert apic is self.apic
        self.sent.append((message, shorthand))

    def tsc(self) -> int:
        return self.clock.now() * 3 + self.tsc_offset

    def write(self, offset: int, value: int) -> None:
        if self.apic.x2apic:
            assert self.apic.write_msr(0x800 + (offset >> 4), value)
        else:
            self.apic.write(offset, 4, value)

    def read(self, offset: int) -> int:
        if self.apic.x2apic:
            value = self.apic.read_msr(0x800 + (offset >> 4))
            assert value is not None
            return value
        return self.apic.read(offset, 4)

    def fixed(self, vector: int, level: bool = False) -> bool:
        return self.apic.deliver(
            ApicMessage(0, False, DeliveryMode.FIXED, vector, trigger_level=level)
        )

    def pending(self) -> bool:
        return self.cpu.pending

    def eoi(self) -> None:
        self.write(reg.EOI, 0)


def enabled_rig() -> Rig:
    """An APIC in xAPIC mode, ID 0, enabled by software."""
    rig = Rig()
    rig.write(reg.SVR, ENABLED)
    return rig


def x2apic_rig() -> Rig:
    """An APIC in x2APIC mode, ID 0x25, enabled by software."""
    rig = Rig(0x25)
    assert rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00C00)
    rig.write(reg.SVR, ENABLED)
    return rig
