"""The APIC timer (Intel SDM vol. 3, 11.5.4)."""

from __future__ import annotations

import pytest

from kvmkit.devices import lapic_registers as reg
from tests.devices.fakes import FakeClock
from tests.devices.lapic_rig import MASKED, Rig, enabled_rig


@pytest.fixture
def rig() -> Rig:
    return enabled_rig()


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


def test_interrupt_that_is_due_is_not_lost_by_a_write(rig: Rig) -> None:
    """Masking, or another divisor, after a late alarm's time does not swallow its interrupt."""
    for offset, value in ((reg.LVT_TIMER, MASKED | 0xEC), (reg.DIVIDE, 3)):
        rig.write(reg.LVT_TIMER, 0xEC)
        rig.write(reg.INITIAL_COUNT, 1000)
        late = rig.apic.state()
        rig.clock.timers[0].cancel()
        rig.clock.advance(3000)
        rig.apic.restore(late)
        rig.write(offset, value)
        assert rig.apic.acknowledge() == 0xEC
        rig.eoi()
        assert rig.clock.timers[0].deadline is None


def test_count_shorter_than_the_write_takes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that runs, a one-shot of one count is over at once, and still interrupts."""
    clock = rig.clock

    def running() -> int:
        clock.advance(1000)
        return FakeClock.now(clock)

    rig.write(reg.LVT_TIMER, 0xEC)
    monkeypatch.setattr(rig.apic._timer, "_now", running)
    rig.write(reg.INITIAL_COUNT, 1)
    clock.advance(1000)
    assert rig.apic.acknowledge() == 0xEC
