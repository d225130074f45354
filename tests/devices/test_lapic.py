"""The local APIC against Intel SDM vol. 3, chapter 11."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.apic_message import BROADCAST, ApicMessage, DeliveryMode, Shorthand
from kvmkit.devices.lapic import LocalApic
from tests.devices.fakes import FakeClock

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


@pytest.fixture
def rig() -> Rig:
    """An enabled APIC in xAPIC mode."""
    rig = Rig()
    rig.write(reg.SVR, ENABLED)
    return rig


@pytest.fixture
def x2() -> Rig:
    """An enabled APIC in x2APIC mode, ID 0x25."""
    rig = Rig(0x25)
    assert rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00C00)
    rig.write(reg.SVR, ENABLED)
    return rig


# --- reset values ---


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (reg.ID, 5 << 24), (reg.VERSION, 0x01060014), (reg.TPR, 0), (reg.PPR, 0), (reg.LDR, 0),
        (reg.DFR, 0xFFFFFFFF), (reg.SVR, 0xFF), (reg.ESR, 0), (reg.ICR_LOW, 0),
        (reg.ICR_HIGH, 0), (reg.LVT_TIMER, MASKED), (reg.LVT_LINT0, MASKED),
        (reg.LVT_LINT1, MASKED), (reg.LVT_ERROR, MASKED), (reg.LVT_PMC, MASKED),
        (reg.LVT_THERMAL, MASKED), (reg.LVT_CMCI, MASKED), (reg.INITIAL_COUNT, 0),
        (reg.CURRENT_COUNT, 0), (reg.DIVIDE, 0), (reg.ISR + 0x70, 0), (reg.IRR, 0),
    ],
)  # fmt: skip
def test_registers_after_power_up(offset: int, value: int) -> None:
    """Every register has the value of 11.4.7.1."""
    assert Rig(5).read(offset) == value


def test_base_register_after_power_up() -> None:
    """Only the CPU with ID 0 is the bootstrap CPU; all start in xAPIC mode at 0xfee00000."""
    assert Rig(0).apic.read_msr(reg.MSR_APIC_BASE) == 0xFEE00900
    assert Rig(1).apic.read_msr(reg.MSR_APIC_BASE) == 0xFEE00800
    assert Rig(1).apic.base == 0xFEE00000


# --- acceptance and priority ---


def test_interrupt_is_acknowledged_and_ended(rig: Rig) -> None:
    """A fixed interrupt goes IRR, ISR, nowhere, and the CPU hears of each change once."""
    assert rig.fixed(0x41)
    assert rig.pending() and rig.read(reg.IRR + 0x20) == 2
    assert rig.apic.acknowledge() == 0x41
    assert not rig.pending()
    assert (rig.read(reg.IRR + 0x20), rig.read(reg.ISR + 0x20), rig.read(reg.PPR)) == (0, 2, 0x40)
    rig.eoi()
    assert (rig.read(reg.ISR + 0x20), rig.read(reg.PPR)) == (0, 0)
    assert rig.cpu.changes == 2


def test_same_class_waits_for_eoi(rig: Rig) -> None:
    """A vector of the class in service is held back until the EOI (11.8.3)."""
    rig.fixed(0x41)
    rig.apic.acknowledge()
    rig.fixed(0x4F)
    assert not rig.pending() and rig.apic.acknowledge() is None
    rig.eoi()
    assert rig.apic.acknowledge() == 0x4F


def test_higher_class_nests(rig: Rig) -> None:
    """A vector of a higher class interrupts the one in service; EOIs come highest first."""
    rig.fixed(0x41)
    rig.apic.acknowledge()
    rig.fixed(0x51)
    assert rig.apic.acknowledge() == 0x51
    rig.eoi()
    assert rig.read(reg.PPR) == 0x40
    rig.eoi()
    assert rig.read(reg.PPR) == 0


def test_task_priority_holds_back(rig: Rig) -> None:
    """TPR blocks its class and below; PPR shows all of TPR when no higher class is in service."""
    rig.write(reg.TPR, 0x4A)
    rig.fixed(0x4F)
    assert not rig.pending() and rig.read(reg.PPR) == 0x4A
    rig.fixed(0x50)
    assert rig.pending()
    rig.write(reg.TPR, 0x50)
    assert not rig.pending()
    rig.write(reg.TPR, 0x30)
    assert rig.apic.acknowledge() == 0x50


def test_cr8_is_the_class_of_tpr(rig: Rig) -> None:
    """CR8 and TPR are one register (11.8.6)."""
    rig.apic.set_cr8(5)
    assert rig.read(reg.TPR) == 0x50
    rig.write(reg.TPR, 0x7F)
    assert rig.apic.cr8 == 7


def test_eoi_without_interrupt_does_nothing(rig: Rig) -> None:
    """A stray EOI is harmless."""
    rig.eoi()
    assert rig.eois == [] and rig.cpu.changes == 0


def test_software_disabled_accepts_no_fixed_interrupt(rig: Rig) -> None:
    """With SVR bit 8 clear fixed messages are refused, NMIs are not (11.4.7.2)."""
    rig.write(reg.SVR, 0xFF)
    assert not rig.fixed(0x41)
    assert rig.apic.deliver(ApicMessage(0, False, DeliveryMode.NMI, 0))
    assert rig.cpu.events == ["nmi"] and not rig.pending()


def test_software_disable_masks_the_vector_table(rig: Rig) -> None:
    """Mask bits are set and stay set until the APIC is enabled again."""
    rig.write(reg.LVT_ERROR, 0x33)
    rig.write(reg.SVR, 0xFF)
    rig.write(reg.LVT_ERROR, 0x34)
    assert rig.read(reg.LVT_ERROR) == MASKED | 0x34


def test_vectors_below_16_are_errors(rig: Rig) -> None:
    """A received illegal vector sets ESR bit 6 after the latching write, and interrupts once."""
    rig.write(reg.LVT_ERROR, 0xFE)
    assert not rig.fixed(15)
    assert not rig.fixed(15)
    assert rig.read(reg.ESR) == 0
    rig.write(reg.ESR, 0)
    assert rig.read(reg.ESR) == reg.ESR_RECEIVE_ILLEGAL_VECTOR
    assert rig.apic.acknowledge() == 0xFE
    rig.write(reg.ESR, 0)
    assert rig.read(reg.ESR) == 0


def test_error_vector_itself_illegal(rig: Rig) -> None:
    """An error entry with an illegal vector does not loop."""
    rig.write(reg.LVT_ERROR, 3)
    rig.fixed(1)
    assert not rig.pending()


# --- level-triggered interrupts ---


def test_level_interrupt_broadcasts_eoi(rig: Rig) -> None:
    """TMR is set on acceptance, and the EOI is broadcast for such vectors only."""
    rig.fixed(0x61, level=True)
    rig.fixed(0x71)
    assert rig.read(reg.TMR + 0x30) == 2
    assert [rig.apic.acknowledge(), rig.apic.acknowledge()] == [0x71, None]
    rig.eoi()
    rig.apic.acknowledge()
    rig.eoi()
    assert rig.eois == [0x61]


def test_eoi_broadcast_can_be_suppressed(rig: Rig) -> None:
    """SVR bit 12 keeps the EOI local (11.8.5)."""
    rig.write(reg.SVR, ENABLED | reg.SVR_SUPPRESS_EOI)
    rig.fixed(0x61, level=True)
    rig.apic.acknowledge()
    rig.eoi()
    assert rig.eois == []


def test_edge_clears_the_trigger_mode(rig: Rig) -> None:
    """The same vector as an edge ends without a broadcast."""
    rig.fixed(0x61, level=True)
    rig.fixed(0x61)
    rig.apic.acknowledge()
    rig.eoi()
    assert rig.eois == []


# --- other deliveries ---


def test_startup_sequence_reaches_the_cpu(rig: Rig) -> None:
    """INIT resets the APIC, its de-assert does nothing, start-up carries the vector."""
    rig.write(reg.TPR, 0x80)
    init = ApicMessage(0, False, DeliveryMode.INIT, 0, level=True, trigger_level=True)
    rig.apic.deliver(init)
    rig.apic.deliver(replace(init, level=False))
    rig.apic.deliver(ApicMessage(0, False, DeliveryMode.STARTUP, 0x9A))
    rig.apic.deliver(ApicMessage(0, False, DeliveryMode.SMI, 0))
    assert rig.cpu.events == ["init", ("startup", 0x9A), "smi"]
    assert rig.read(reg.TPR) == 0 and rig.read(reg.SVR) == 0xFF


def test_init_keeps_x2apic_mode(x2: Rig) -> None:
    """INIT clears the registers but neither mode nor ID (11.12.5.1)."""
    x2.apic.deliver(ApicMessage(0x25, False, DeliveryMode.INIT, 0))
    assert x2.apic.x2apic and x2.read(reg.ID) == 0x25 and x2.read(reg.SVR) == 0xFF


def test_extint_from_lint0(rig: Rig) -> None:
    """LINT0 in ExtINT mode asks the 8259A, past any task priority, while its level lasts."""
    rig.write(reg.LVT_LINT0, 0x700)
    rig.write(reg.TPR, 0xFF)
    rig.apic.set_lint0(True)
    assert rig.pending() and rig.apic.acknowledge() == 0x20
    assert rig.pending()  # the model 8259A of this test did not lower its line
    rig.apic.set_lint0(False)
    assert not rig.pending() and rig.apic.acknowledge() is None


def test_extint_masked(rig: Rig) -> None:
    """A masked LINT0 keeps the 8259A out; unmasking lets a waiting request in."""
    rig.apic.set_lint0(True)
    assert not rig.pending()
    rig.write(reg.LVT_LINT0, 0x700)
    assert rig.pending()


def test_extint_message_asks_once(rig: Rig) -> None:
    """An ExtINT message from the I/O APIC is answered with one acknowledge of the 8259A."""
    rig.apic.deliver(ApicMessage(0, False, DeliveryMode.EXTINT, 0))
    assert rig.apic.acknowledge() == 0x20
    assert not rig.pending()


def test_disabled_apic_lets_the_pins_through(rig: Rig) -> None:
    """With IA32_APIC_BASE's enable clear LINT0 is INTR and LINT1 NMI (11.4.3)."""
    rig.apic.write_msr(reg.MSR_APIC_BASE, reg.BASE_DEFAULT | reg.BASE_BSP)
    rig.apic.set_lint0(True)
    rig.apic.set_lint1(True)
    rig.apic.set_lint1(True)
    assert rig.apic.acknowledge() == 0x20 and rig.cpu.events == ["nmi"]


def test_virtual_wire(rig: Rig) -> None:
    """What firmware leaves behind: LINT0 ExtINT, LINT1 NMI, enabled."""
    rig.apic.reset()
    rig.apic.virtual_wire()
    rig.apic.set_lint0(True)
    rig.apic.set_lint1(True)
    assert rig.pending() and rig.cpu.events == ["nmi"] and rig.apic.software_enabled


def test_lint_fixed_level_waits_for_eoi(rig: Rig) -> None:
    """A level-triggered LINT entry sets its remote IRR and comes again after the EOI."""
    rig.write(reg.LVT_LINT0, reg.LVT_LEVEL | 0x45)
    rig.apic.set_lint0(True)
    assert rig.read(reg.LVT_LINT0) == reg.LVT_LEVEL | reg.LVT_REMOTE_IRR | 0x45
    rig.apic.acknowledge()
    rig.apic.set_lint0(True)
    assert rig.read(reg.IRR + 0x20) == 0
    rig.eoi()
    assert rig.apic.acknowledge() == 0x45
    rig.apic.set_lint0(False)
    rig.eoi()
    assert rig.read(reg.LVT_LINT0) == reg.LVT_LEVEL | 0x45 and not rig.pending()


def test_lint_fixed_edge(rig: Rig) -> None:
    """An edge-triggered LINT entry interrupts at each rising edge."""
    rig.write(reg.LVT_LINT1, 0x46)
    rig.apic.set_lint1(True)
    rig.apic.acknowledge()
    rig.eoi()
    rig.apic.set_lint1(True)
    assert not rig.pending()


def test_performance_counter_masks_itself(rig: Rig) -> None:
    """Its entry delivers an NMI and sets its mask bit (11.5.1)."""
    rig.write(reg.LVT_PMC, DeliveryMode.NMI << 8)
    rig.apic.raise_local(reg.LVT_PMC)
    rig.apic.raise_local(reg.LVT_PMC)
    assert rig.cpu.events == ["nmi"] and rig.read(reg.LVT_PMC) & MASKED


def test_thermal_and_cmci(rig: Rig) -> None:
    """The other local sources deliver by their own entries."""
    rig.write(reg.LVT_THERMAL, 0xFA)
    rig.write(reg.LVT_CMCI, DeliveryMode.SMI << 8)
    rig.apic.raise_local(reg.LVT_THERMAL)
    rig.apic.raise_local(reg.LVT_CMCI)
    assert rig.apic.acknowledge() == 0xFA and rig.cpu.events == ["smi"]


# --- the timer ---


def test_one_shot_timer(rig: Rig) -> None:
    """It counts bus clocks by the divisor, interrupts at zero, and stays there."""
    rig.write(reg.DIVIDE, 0b0011)  # by 16
    rig.write(reg.LVT_TIMER, 0xEC)
    rig.write(reg.INITIAL_COUNT, 1000)
    rig.clock.advance(15_999)
    assert rig.read(reg.CURRENT_COUNT) == 1 and not rig.pending()
    rig.clock.advance(1)
    assert rig.apic.acknowledge() == 0xEC and rig.read(reg.CURRENT_COUNT) == 0
    rig.eoi()
    rig.clock.advance(1_000_000)
    assert not rig.pending() and rig.read(reg.INITIAL_COUNT) == 1000


@pytest.mark.parametrize(
    ("code", "divisor"),
    [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)],
)
def test_divide_configuration(rig: Rig, code: int, divisor: int) -> None:
    """The divisors of figure 11-10; bit 2 is reserved."""
    rig.write(reg.DIVIDE, code | 4)
    rig.write(reg.INITIAL_COUNT, 100)
    rig.clock.advance(50 * divisor)
    assert rig.read(reg.CURRENT_COUNT) == 50 and rig.read(reg.DIVIDE) == code


def test_periodic_timer(rig: Rig) -> None:
    """It reloads: one interrupt per period, the count goes on in between."""
    rig.write(reg.DIVIDE, 0b1011)
    rig.write(reg.LVT_TIMER, reg.TIMER_PERIODIC | 0xEC)
    rig.write(reg.INITIAL_COUNT, 1_000_000)
    for _ in range(3):
        rig.clock.advance(999_999)
        assert not rig.pending()
        rig.clock.advance(1)
        assert rig.apic.acknowledge() == 0xEC
        rig.eoi()
    rig.clock.advance(400_000)
    assert rig.read(reg.CURRENT_COUNT) == 600_000


def test_periodic_timer_shorter_than_the_host_can(rig: Rig) -> None:
    """A period of one bus clock does not occupy the host: alarms keep a distance."""
    rig.write(reg.LVT_TIMER, reg.TIMER_PERIODIC | 0xEC)
    rig.write(reg.INITIAL_COUNT, 1)
    before = rig.clock.timers[0].armed
    rig.clock.advance(1_000_000)
    assert rig.clock.timers[0].armed - before < 120


def test_masked_timer_arms_nothing(rig: Rig) -> None:
    """A masked timer counts, but costs no alarm; what ran out meanwhile is lost."""
    rig.write(reg.INITIAL_COUNT, 1000)
    rig.clock.advance(500)
    assert rig.read(reg.CURRENT_COUNT) == 750 and rig.clock.timers[0].deadline is None
    rig.clock.advance(5000)
    rig.write(reg.LVT_TIMER, 0xEC)
    assert rig.read(reg.CURRENT_COUNT) == 0 and rig.clock.timers[0].deadline is None


def test_unmasked_periodic_timer_keeps_its_phase(rig: Rig) -> None:
    """Masking does not shift the periods."""
    rig.write(reg.DIVIDE, 0b1011)
    rig.write(reg.LVT_TIMER, MASKED | reg.TIMER_PERIODIC | 0xEC)
    rig.write(reg.INITIAL_COUNT, 100_000)
    rig.clock.advance(250_000)
    rig.write(reg.LVT_TIMER, reg.TIMER_PERIODIC | 0xEC)
    rig.clock.advance(49_999)
    assert not rig.pending()
    rig.clock.advance(1)
    assert rig.pending()


def test_new_divisor_takes_a_running_count_along(rig: Rig) -> None:
    """The count goes on from its value at the new speed."""
    rig.write(reg.INITIAL_COUNT, 1000)
    rig.clock.advance(1000)
    rig.write(reg.DIVIDE, 0b1011)
    rig.clock.advance(100)
    assert rig.read(reg.CURRENT_COUNT) == 400


def test_zero_initial_count_stops(rig: Rig) -> None:
    """Writing 0 stops the timer (11.5.4)."""
    rig.write(reg.LVT_TIMER, 0xEC)
    rig.write(reg.INITIAL_COUNT, 1000)
    rig.write(reg.INITIAL_COUNT, 0)
    rig.clock.advance(10_000)
    assert not rig.pending()


def test_tsc_deadline(rig: Rig) -> None:
    """It fires when the TSC reaches the deadline, not before, and reads 0 then."""
    rig.write(reg.LVT_TIMER, reg.TIMER_TSC_DEADLINE | 0xEC)
    rig.clock.advance(1000)
    rig.apic.write_msr(reg.MSR_TSC_DEADLINE, rig.tsc() + 3001)
    rig.clock.advance(1000)
    assert rig.apic.read_msr(reg.MSR_TSC_DEADLINE) == 6001 and not rig.pending()
    rig.clock.advance(1)
    assert rig.apic.acknowledge() == 0xEC
    assert rig.apic.read_msr(reg.MSR_TSC_DEADLINE) == 0


def test_tsc_deadline_in_the_past_fires_now(rig: Rig) -> None:
    """A deadline that has passed interrupts at once."""
    rig.write(reg.LVT_TIMER, reg.TIMER_TSC_DEADLINE | 0xEC)
    rig.clock.advance(1000)
    rig.apic.write_msr(reg.MSR_TSC_DEADLINE, 1)
    assert rig.pending() and rig.apic.read_msr(reg.MSR_TSC_DEADLINE) == 0


def test_tsc_deadline_disarmed(rig: Rig) -> None:
    """0 disarms; so does leaving the mode; other modes ignore the MSR (11.5.4.1)."""
    rig.apic.write_msr(reg.MSR_TSC_DEADLINE, 1 << 40)
    assert rig.apic.read_msr(reg.MSR_TSC_DEADLINE) == 0
    rig.write(reg.LVT_TIMER, reg.TIMER_TSC_DEADLINE | 0xEC)
    rig.apic.write_msr(reg.MSR_TSC_DEADLINE, 3000)
    rig.apic.write_msr(reg.MSR_TSC_DEADLINE, 0)
    assert rig.clock.timers[0].deadline is None
    rig.apic.write_msr(reg.MSR_TSC_DEADLINE, 3000)
    rig.write(reg.LVT_TIMER, 0xEC)
    rig.clock.advance(10_000)
    assert not rig.pending()


def test_tsc_deadline_follows_the_tsc(rig: Rig) -> None:
    """Setting the TSC moves the alarm."""
    rig.write(reg.LVT_TIMER, reg.TIMER_TSC_DEADLINE | 0xEC)
    rig.apic.write_msr(reg.MSR_TSC_DEADLINE, 3_000_000)
    rig.tsc_offset = 2_700_000
    rig.apic.tsc_changed()
    rig.clock.advance(100_000)
    assert rig.pending()


def test_counts_are_ignored_in_deadline_mode(rig: Rig) -> None:
    """The count registers do nothing in TSC-deadline mode."""
    rig.write(reg.LVT_TIMER, reg.TIMER_TSC_DEADLINE | 0xEC)
    rig.write(reg.INITIAL_COUNT, 1000)
    assert rig.read(reg.INITIAL_COUNT) == rig.read(reg.CURRENT_COUNT) == 0


# --- interrupt commands ---


def test_icr_of_xapic(rig: Rig) -> None:
    """The high half names the destination, the low half sends; delivery status reads idle."""
    rig.write(reg.ICR_HIGH, 0x03FFFFFF)
    rig.write(reg.ICR_LOW, 0xFFF00000 | reg.ICR_ASSERT | 1 << 12 | reg.ICR_LOGICAL | 0x55)
    message = ApicMessage(3, True, DeliveryMode.FIXED, 0x55)
    assert rig.sent == [(message, Shorthand.NONE)]
    assert rig.read(reg.ICR_HIGH) == 3 << 24
    assert rig.read(reg.ICR_LOW) == reg.ICR_ASSERT | reg.ICR_LOGICAL | 0x55


def test_icr_broadcast_of_xapic(rig: Rig) -> None:
    """Destination 0xff is everyone, whatever mode they are in."""
    rig.write(reg.ICR_HIGH, 0xFF000000)
    rig.write(reg.ICR_LOW, reg.ICR_ASSERT | 0x55)
    assert rig.sent[0][0].destination == BROADCAST


def test_icr_of_x2apic(x2: Rig) -> None:
    """One 64-bit write; shorthands, modes and 32-bit destinations come through."""
    assert x2.apic.write_msr(reg.MSR_ICR, 0x12345 << 32 | 0xC4500)
    message = ApicMessage(0x12345, False, DeliveryMode.INIT, 0)
    assert x2.sent == [(message, Shorthand.OTHERS)]
    assert x2.apic.read_msr(reg.MSR_ICR) == 0x12345 << 32 | 0xC4500


def test_init_deassert_is_sent_as_such(x2: Rig) -> None:
    """Level and trigger mode matter for INIT only."""
    x2.write(reg.ICR_LOW, reg.ICR_LEVEL | 0x500)
    x2.write(reg.ICR_LOW, reg.ICR_LEVEL | 0x40)
    assert (x2.sent[0][0].level, x2.sent[0][0].trigger_level) == (False, True)
    assert (x2.sent[1][0].level, x2.sent[1][0].trigger_level) == (True, False)


def test_sending_an_illegal_vector(x2: Rig) -> None:
    """Nothing is sent and ESR bit 5 is set; start-up vectors below 16 are legal."""
    x2.write(reg.ICR_LOW, 0x0F)
    x2.write(reg.SELF_IPI, 0x0F)
    x2.write(reg.ESR, 0)
    assert x2.sent == [] and x2.read(reg.ESR) == reg.ESR_SEND_ILLEGAL_VECTOR
    x2.write(reg.ICR_LOW, 0x608)
    assert x2.sent[0][0].vector == 8


def test_self_ipi(x2: Rig) -> None:
    """SELF IPI interrupts its own CPU as an edge."""
    x2.write(reg.SELF_IPI, 0x66)
    assert x2.apic.acknowledge() == 0x66 and x2.sent == []


# --- addressing ---


def accepts(rig: Rig, destination: int, logical: bool) -> bool:
    return rig.apic.accepts(ApicMessage(destination, logical, DeliveryMode.FIXED, 0x40))


def test_physical_destination() -> None:
    """The ID, 0xff and the long broadcast; nothing else."""
    rig = Rig(5)
    assert [accepts(rig, d, False) for d in (5, 0xFF, BROADCAST, 4, 0x105)] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_flat_logical_destination(rig: Rig) -> None:
    """Any common bit of LDR and destination."""
    rig.write(reg.LDR, 0x0A123456)
    assert rig.read(reg.LDR) == 0x0A000000
    assert accepts(rig, 0x08, True) and not accepts(rig, 0x05, True)
    assert accepts(rig, 0xFF, True) and not accepts(rig, 0x108, True)


def test_cluster_logical_destination(rig: Rig) -> None:
    """The cluster must be equal, and a bit within it common."""
    rig.write(reg.DFR, 0)
    assert rig.read(reg.DFR) == 0x0FFFFFFF
    rig.write(reg.LDR, 0x24000000)
    assert accepts(rig, 0x2C, True)
    assert not accepts(rig, 0x3C, True) and not accepts(rig, 0x23, True)


def test_undefined_destination_model(rig: Rig) -> None:
    """A DFR that is neither flat nor cluster matches broadcasts only."""
    rig.write(reg.DFR, 0x50000000)
    rig.write(reg.LDR, 0xFF000000)
    assert not accepts(rig, 0x01, True) and accepts(rig, 0xFF, True)


def test_x2apic_logical_destination(x2: Rig) -> None:
    """LDR is derived from the ID: cluster 2, bit 5 (11.12.10.2)."""
    assert x2.read(reg.LDR) == 2 << 16 | 1 << 5
    assert accepts(x2, 0x20030, True) and accepts(x2, BROADCAST, True)
    assert not accepts(x2, 0x30020, True) and not accepts(x2, 0x2001F, True)
    assert accepts(x2, 0x25, False) and not accepts(x2, 0xFF, False)


# --- modes ---


def test_mode_changes() -> None:
    """Only the transitions of figure 11-27 are allowed."""
    off, xapic, x2apic, invalid = (0xFEE00000 | bits for bits in (0, 0x800, 0xC00, 0x400))
    allowed = {(off, xapic), (xapic, off), (xapic, x2apic), (x2apic, off)}
    paths = {off: [off], xapic: [], x2apic: [x2apic]}
    for start, path in paths.items():
        for target in (off, xapic, x2apic, invalid):
            rig = Rig(1)
            for step in path:
                assert rig.apic.write_msr(reg.MSR_APIC_BASE, step)
            ok = rig.apic.write_msr(reg.MSR_APIC_BASE, target)
            assert ok == (start == target or (start, target) in allowed), (start, target)
            assert rig.apic.read_msr(reg.MSR_APIC_BASE) == (target if ok else start)


@pytest.mark.parametrize("bit", [0, 7, 9, 52, 63])
def test_reserved_bits_of_the_base_fault(rig: Rig, bit: int) -> None:
    """Reserved bits and addresses beyond MAXPHYADDR raise #GP."""
    assert not rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00900 | 1 << bit)


def test_base_moves(rig: Rig) -> None:
    """The page can be anywhere below MAXPHYADDR."""
    assert rig.apic.write_msr(reg.MSR_APIC_BASE, 0x12_3456_7900)
    assert rig.apic.base == 0x12_3456_7000


def test_disabling_loses_everything(rig: Rig) -> None:
    """After off and on again the APIC is as after power-up."""
    rig.fixed(0x41)
    rig.write(reg.LVT_TIMER, reg.TIMER_TSC_DEADLINE | 0xEC)
    rig.apic.write_msr(reg.MSR_TSC_DEADLINE, 1 << 50)
    rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00100)
    assert not rig.pending() and rig.apic.read(reg.ID, 4) == 0xFFFFFFFF
    assert not accepts(rig, BROADCAST, False) and rig.clock.timers[0].deadline is None
    rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00900)
    assert rig.apic.state() == Rig().apic.state()


def test_entering_x2apic_keeps_interrupts(rig: Rig) -> None:
    """What is pending and in service survives the change of mode; ICR does not."""
    rig.fixed(0x41)
    rig.write(reg.ICR_HIGH, 0x03000000)
    rig.apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00D00)
    assert rig.apic.acknowledge() == 0x41 and rig.apic.read_msr(reg.MSR_ICR) == 0


def test_msrs_fault_outside_x2apic_mode(rig: Rig) -> None:
    """0x800-0x8ff raise #GP in xAPIC mode."""
    for index in range(0x800, 0x900):
        assert rig.apic.read_msr(index) is None
        assert not rig.apic.write_msr(index, 0)


def test_readable_x2apic_registers(x2: Rig) -> None:
    """Exactly the registers of table 11-6 that are not write-only can be read."""
    readable = {0x802, 0x803, 0x808, 0x80A, 0x80D, 0x80F, *range(0x810, 0x829), 0x82F, 0x830,
                *range(0x832, 0x83A), 0x83E}  # fmt: skip
    assert {i for i in range(0x800, 0x900) if x2.apic.read_msr(i) is not None} == readable


def test_writable_x2apic_registers(x2: Rig) -> None:
    """Exactly the registers of table 11-6 that are not read-only can be written."""
    writable = {0x808, 0x80B, 0x80F, 0x828, 0x82F, 0x830, *range(0x832, 0x839), 0x83E, 0x83F}
    assert {i for i in range(0x800, 0x900) if x2.apic.write_msr(i, 0)} == writable


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x808, 0x100), (0x80B, 1), (0x80F, 1 << 10), (0x80F, 1 << 32), (0x828, 1),
        (0x830, 1 << 12), (0x830, 1 << 13), (0x830, 1 << 20), (0x832, 1 << 19), (0x835, 1 << 17),
        (0x837, 1 << 8), (0x838, 1 << 32), (0x83E, 4), (0x83F, 0x100), (0x83F, 1 << 63),
    ],
)  # fmt: skip
def test_reserved_bits_of_x2apic_fault(x2: Rig, index: int, value: int) -> None:
    """Reserved bits raise #GP and change nothing (11.12.1.3)."""
    before = x2.apic.state()
    assert not x2.apic.write_msr(index, value)
    assert x2.apic.state() == before


# --- the MMIO page ---


def test_mmio_access_widths(rig: Rig) -> None:
    """Bytes and halves of a register can be read; only whole aligned writes count (11.4.1)."""
    assert rig.apic.read(reg.VERSION, 1) == 0x14
    assert rig.apic.read(reg.VERSION + 2, 2) == 0x0106
    assert rig.apic.read(reg.VERSION, 8) == 0x01060014
    assert rig.apic.read(reg.VERSION + 4, 4) == 0
    rig.apic.write(reg.TPR, 1, 0x50)
    rig.apic.write(reg.TPR + 1, 4, 0x50)
    rig.apic.write(reg.TPR, 8, 0x50)
    assert rig.read(reg.TPR) == 0


def test_undefined_registers_are_errors(rig: Rig) -> None:
    """Access to a reserved offset sets ESR bit 7; a read-only register only ignores writes."""
    rig.write(reg.VERSION, 0)
    rig.write(reg.ESR, 0)
    assert rig.read(reg.ESR) == 0
    assert rig.read(0x3F0) == 0
    rig.write(0x000, 1)
    rig.write(reg.ESR, 0)
    assert rig.read(reg.ESR) == reg.ESR_ILLEGAL_REGISTER


def test_mmio_page_is_gone_in_x2apic_mode(x2: Rig) -> None:
    """Nobody answers there: all ones, writes do nothing."""
    x2.apic.write(reg.TPR, 4, 0x50)
    assert x2.apic.read(reg.TPR, 4) == 0xFFFFFFFF and x2.read(reg.TPR) == 0


# --- properties ---

VALUES = st.one_of(
    st.integers(0, (1 << 64) - 1), st.integers(0, 0x1FFFF), st.sampled_from([0, 0x1FF, 0x700EC])
)
OFFSETS = st.one_of(
    st.integers(0, 0xFFF),
    st.sampled_from([v for k, v in vars(reg).items() if isinstance(v, int) and k.isupper()]).filter(
        lambda v: v < 0x1000
    ),
)
STEPS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, VALUES),
    st.tuples(st.just("register"), st.sampled_from([*reg.X2APIC_RESERVED, reg.ICR_LOW]), VALUES),
    st.tuples(st.just("msr"), st.integers(0x800, 0x83F), VALUES),
    st.tuples(st.just("base"), st.sampled_from([0, 0x800, 0xC00]), st.just(0)),
    st.tuples(st.just("deadline"), st.integers(0, 1 << 20), st.just(0)),
    st.tuples(st.just("deliver"), st.integers(0, 255), st.integers(0, 31)),
    st.tuples(st.just("lint"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("cr8"), VALUES, st.just(0)),
    st.tuples(st.just("acknowledge"), st.just(0), st.just(0)),
    st.tuples(st.just("advance"), st.integers(0, 300_000), st.just(0)),
)


def drive(rig: Rig, step: tuple[str, int, int]) -> None:
    """One random thing that a guest or a machine does."""
    name, first, second = step
    apic = rig.apic
    if name == "write":
        for size in (1, 2, 4, 8):
            apic.read(first, size)
            apic.write(first, size, second & (1 << 8 * size) - 1)
    elif name == "register":
        apic.write(first, 4, second & 0xFFFFFFFF)
        apic.write_msr(0x800 + (first >> 4), second)
    elif name == "msr":
        apic.read_msr(first)
        apic.write_msr(first, second)
    elif name == "base":
        apic.write_msr(reg.MSR_APIC_BASE, 0xFEE00000 | first)
    elif name == "deadline":
        apic.write_msr(reg.MSR_TSC_DEADLINE, first)
    elif name == "deliver":
        mode = DeliveryMode(second & 7)
        apic.deliver(ApicMessage(0, False, mode, first, bool(second & 8), bool(second & 16)))
    elif name == "lint":
        (apic.set_lint1 if first & 2 else apic.set_lint0)(bool(first & 1))
    elif name == "cr8":
        apic.set_cr8(second)
    elif name == "acknowledge":
        apic.acknowledge()
    else:
        rig.clock.advance(first)


@settings(deadline=None, max_examples=300)
@given(st.booleans(), st.lists(STEPS, max_size=40))
def test_no_driver_confuses_it(software_enabled: bool, steps: list[tuple[str, int, int]]) -> None:
    """Nothing raises; the CPU is told of changes only; what is pending is what is deliverable."""
    rig = Rig(3)
    if software_enabled:
        rig.write(reg.SVR, ENABLED)
    for step in steps:
        drive(rig, step)
        state = rig.apic.state()
        in_service = max(state.isr.bit_length() - 1, 0) & 0xF0
        ppr = state.tpr if in_service <= state.tpr & 0xF0 else in_service
        assert rig.apic.priority == ppr
        requested = state.irr.bit_length() - 1
        if not (state.lint0 or state.lint1 or state.extint):
            assert rig.pending() == (requested >> 4 > ppr >> 4)
        assert not (state.irr | state.isr) & 0xFFFF


@settings(deadline=None, max_examples=200)
@given(st.lists(STEPS, max_size=40), st.lists(STEPS, max_size=10))
def test_state_round_trip(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    """A restored APIC has the same state, signals the same, and behaves the same afterwards."""
    first, second = Rig(3), Rig(3)
    first.write(reg.SVR, ENABLED)
    for step in before:
        drive(first, step)
    second.clock.advance(first.clock.now())
    second.apic.restore(first.apic.state())
    assert second.apic.state() == first.apic.state()
    assert second.pending() == first.pending()
    for step in after:
        drive(first, step)
        drive(second, step)
        assert second.apic.state() == first.apic.state()


@settings(deadline=None)
@given(st.lists(st.integers(16, 255), max_size=30))
def test_vectors_come_in_order_of_priority(vectors: list[int]) -> None:
    """With an EOI after each, pending vectors are handed out once each, highest first."""
    rig = Rig()
    rig.write(reg.SVR, ENABLED)
    for vector in vectors:
        rig.fixed(vector)
    taken = []
    while (taken_now := rig.apic.acknowledge()) is not None:
        taken.append(taken_now)
        rig.eoi()
    assert taken == sorted(set(vectors), reverse=True)
