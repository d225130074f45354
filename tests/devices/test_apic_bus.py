"""Messages between local APICs, I/O APIC and devices (Intel SDM vol. 3, 11.6 and 11.11)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.apic_bus import ApicBus
from kvmkit.devices.apic_message import BROADCAST, ApicMessage, DeliveryMode
from kvmkit.devices.ioapic import IoApic
from kvmkit.devices.lapic import LocalApic
from tests.devices.fakes import FakeClock

FIXED = DeliveryMode.FIXED
LOWEST = DeliveryMode.LOWEST_PRIORITY


class FakeCpu:
    """Remembers messages that are not interrupts."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def interrupt(self, pending: bool) -> None:
        pass

    def nmi(self) -> None:
        self.events.append("nmi")

    def init(self) -> None:
        self.events.append("init")

    def startup(self, vector: int) -> None:
        self.events.append(vector)

    def smi(self) -> None:
        self.events.append("smi")


class Machine:
    """CPUs with local APICs, and an I/O APIC."""

    def __init__(self, idents: tuple[int, ...] = (0, 1, 2, 3), x2apic: bool = False) -> None:
        clock = FakeClock()
        self.bus = ApicBus()
        self.cpus = {ident: FakeCpu() for ident in idents}
        for ident in idents:
            apic = LocalApic(
                ident, clock, self.cpus[ident], self.bus.send, self.bus.broadcast_eoi,
                tsc=clock.now, tsc_hz=1_000_000_000,
            )  # fmt: skip
            self.bus.add(apic)
            if x2apic:
                apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00C00)
                apic.write_msr(0x80F, 0x1FF)
            else:
                apic.write(reg.SVR, 4, 0x1FF)
        self.ioapic = IoApic(self.bus.deliver)
        self.bus.ioapic = self.ioapic

    def apic(self, ident: int) -> LocalApic:
        return next(apic for apic in self.bus.apics if apic.ident == ident)

    def receivers(self, vector: int) -> list[int]:
        """The APIC IDs that have ``vector`` pending; it is taken from them."""
        found = []
        for apic in self.bus.apics:
            if apic.acknowledge() == vector:
                found.append(apic.ident)
                if apic.x2apic:
                    apic.write_msr(reg.MSR_EOI, 0)
                else:
                    apic.write(reg.EOI, 4, 0)
        return found

    def icr(self, sender: int, low: int, destination: int = 0) -> None:
        apic = self.apic(sender)
        if apic.x2apic:
            assert apic.write_msr(reg.MSR_ICR, destination << 32 | low)
        else:
            apic.write(reg.ICR_HIGH, 4, destination << 24)
            apic.write(reg.ICR_LOW, 4, low)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize("x2apic", [False, True])
def test_ipi_to_one_cpu(x2apic: bool) -> None:
    """A physical destination reaches that CPU only, in both modes."""
    machine = Machine(x2apic=x2apic)
    machine.icr(0, 0x4041, 2)
    assert machine.receivers(0x41) == [2]


@pytest.mark.parametrize(("shorthand", "expected"), [(1, [1]), (2, [0, 1, 2, 3]), (3, [0, 2, 3])])
def test_shorthands(machine: Machine, shorthand: int, expected: list[int]) -> None:
    """Self, all, and all but self, whatever the destination field says."""
    machine.icr(1, shorthand << 18 | 0x41, 3)
    assert machine.receivers(0x41) == expected


def test_shorthand_others_of_lowest_priority_takes_one(machine: Machine) -> None:
    """Lowest priority chooses among the others."""
    machine.icr(0, 3 << 18 | 0x141)
    assert machine.receivers(0x41) == [1]


def test_broadcast_destination(machine: Machine) -> None:
    """Physical 0xff is everyone, the sender included."""
    machine.icr(1, 0x41, 0xFF)
    assert machine.receivers(0x41) == [0, 1, 2, 3]


def test_start_of_the_other_cpus(machine: Machine) -> None:
    """INIT, its de-assert and two start-up messages, as the MP specification has it."""
    for low in (0xC500, 0x8500, 0x4609, 0x4609):
        machine.icr(0, low, 3)
    assert machine.cpus[3].events == ["init", 9, 9]
    assert machine.cpus[1].events == []


def test_nmi_to_all_others(machine: Machine) -> None:
    """An NMI ignores the vector and the destination's software enable."""
    machine.apic(2).write(reg.SVR, 4, 0xFF)
    machine.icr(0, 3 << 18 | 0x400)
    assert [cpu.events for cpu in machine.cpus.values()] == [[], ["nmi"], ["nmi"], ["nmi"]]


def test_flat_logical_ipi(machine: Machine) -> None:
    """Every CPU with a common bit gets a fixed message."""
    for apic in machine.bus.apics:
        apic.write(reg.LDR, 4, 1 << apic.ident + 24)
    machine.icr(0, 0x4841, 0b1010)
    assert machine.receivers(0x41) == [1, 3]


def test_receivers_follow_a_changed_address(machine: Machine) -> None:
    """What is kept about destinations is dropped when an LDR changes."""
    message = ApicMessage(0x01, True, FIXED, 0x41)
    assert not machine.bus.deliver(message)
    machine.apic(2).write(reg.LDR, 4, 0x01000000)
    assert machine.bus.deliver(message)
    assert machine.receivers(0x41) == [2]
    machine.apic(2).reset()
    assert not machine.bus.deliver(message)


def test_x2apic_cluster_ipi() -> None:
    """The upper half of a logical destination is the cluster, the lower a set of 16 CPUs."""
    machine = Machine((0, 1, 16, 17, 18), x2apic=True)
    machine.icr(0, 0x4841, 1 << 16 | 0b101)
    assert machine.receivers(0x41) == [16, 18]


def test_lowest_priority_takes_the_idlest(machine: Machine) -> None:
    """The CPU with the lowest processor priority gets it (11.6.2.4)."""
    for ident, priority in ((0, 0x50), (1, 0x40), (2, 0x20), (3, 0x30)):
        machine.apic(ident).write(reg.TPR, 4, priority)
    machine.bus.deliver(ApicMessage(BROADCAST, False, LOWEST, 0x91))
    assert machine.receivers(0x91) == [2]


def test_lowest_priority_takes_turns(machine: Machine) -> None:
    """Equals are chosen in turn; those disabled by software are passed over."""
    machine.apic(2).write(reg.SVR, 4, 0xFF)
    chosen = []
    for _ in range(4):
        machine.bus.deliver(ApicMessage(BROADCAST, False, LOWEST, 0x91))
        chosen += machine.receivers(0x91)
    assert chosen == [0, 1, 3, 0]


def test_nobody_there(machine: Machine) -> None:
    """A message without a taker says so."""
    assert not machine.bus.deliver(ApicMessage(9, False, FIXED, 0x41))
    assert not machine.bus.deliver(ApicMessage(9, False, LOWEST, 0x41))


def test_duplicate_ident_is_refused(machine: Machine) -> None:
    """Two local APICs cannot have one ID."""
    with pytest.raises(ValueError, match="ID 0"):
        machine.bus.add(machine.apic(0))


@pytest.mark.parametrize(
    ("address", "data", "message"),
    [
        (0xFEE02000, 0x41, ApicMessage(2, False, FIXED, 0x41)),
        (0xFEE0300C, 0x41, ApicMessage(3, True, LOWEST, 0x41)),
        (0xFEE03004, 0x141, ApicMessage(3, True, LOWEST, 0x41)),
        (0xFEEFF000, 0x400, ApicMessage(BROADCAST, False, DeliveryMode.NMI, 0)),
        (0xFEE01000, 0xC041, ApicMessage(1, False, FIXED, 0x41, True, True)),
        (0xFEE01000, 0x8041, ApicMessage(1, False, FIXED, 0x41, False, True)),
        (0xFEE01FF3, 0xFFFF3841, ApicMessage(1, False, FIXED, 0x41)),
    ],
)  # fmt: skip
def test_msi_format(address: int, data: int, message: ApicMessage) -> None:
    """Address and data as in figures 11-14 and 11-15; reserved bits are ignored."""
    assert ApicMessage.from_msi(address, data) == message


def test_msi_is_delivered(machine: Machine) -> None:
    """A device's write reaches the CPU."""
    assert machine.bus.msi(0xFEE01000, 0x41)
    assert machine.receivers(0x41) == [1]


def test_level_line_through_to_the_eoi(machine: Machine) -> None:
    """A level line: delivered, held by remote IRR, delivered again on EOI until it falls."""
    machine.ioapic.write(0x00, 4, 0x10 + 34)
    machine.ioapic.write(0x10, 4, 0x8051)
    machine.ioapic.set_line(17, True)
    assert machine.receivers(0x51) == [0]
    assert machine.receivers(0x51) == [0]  # the EOI within delivered it again
    machine.ioapic.set_line(17, False)
    assert machine.receivers(0x51) == [0]
    assert machine.receivers(0x51) == []


def test_state_round_trip(machine: Machine) -> None:
    """The turn of lowest-priority delivery is kept."""
    machine.bus.deliver(ApicMessage(BROADCAST, False, LOWEST, 0x91))
    machine.bus.deliver(ApicMessage(BROADCAST, False, LOWEST, 0x92))
    other = Machine()
    other.bus.restore(machine.bus.state())
    assert other.bus.state() == machine.bus.state()
    other.bus.deliver(ApicMessage(BROADCAST, False, LOWEST, 0x91))
    assert other.receivers(0x91) == [2]
    other.bus.reset()
    assert other.bus.state() == ApicBus().state()


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 3), st.sampled_from([0x830, 0x80F, 0x80D, 0x1B]),
                      st.integers(0, (1 << 64) - 1)),
            st.tuples(st.integers(0, 3), st.sampled_from([reg.LDR, reg.DFR, reg.ICR_LOW]),
                      st.integers(0, (1 << 32) - 1)),
            st.tuples(st.integers(0, 3), st.just(0x1B),
                      st.sampled_from([0xFEE00000, 0xFEE00800, 0xFEE00C00])),
        ),
        max_size=30,
    ),
    st.integers(0, 0xFFFF), st.booleans(),
)  # fmt: skip
def test_kept_receivers_are_right(
    writes: list[tuple[int, int, int]], destination: int, logical: bool
) -> None:
    """After any writes, a message goes exactly to the APICs that accept it; nothing raises."""
    machine = Machine()
    message = ApicMessage(destination, logical, DeliveryMode.NMI, 0)
    for ident, where, value in writes:
        apic = machine.apic(ident)
        if where in (reg.LDR, reg.DFR, reg.ICR_LOW):
            apic.write(where, 4, value)
        else:
            apic.write_msr(where, value)
        for cpu in machine.cpus.values():
            cpu.events.clear()
        machine.bus.deliver(message)
        for apic in machine.bus.apics:
            assert bool(machine.cpus[apic.ident].events) == apic.accepts(message)
