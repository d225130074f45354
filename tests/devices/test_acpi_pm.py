"""ACPI fixed hardware: events, control, timer, general-purpose events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices.acpi_pm import AcpiPm
from tests.devices.fakes import FakeClock, RecordingLine

TMR, PWRBTN = 1 << 0, 1 << 8
SLP_EN = 1 << 13
HALF_PERIOD_32 = (1 << 31) * 1_000_000_000 // 3_579_545 + 1


class Machine:
    """The fixed hardware with its surroundings."""

    def __init__(self, timer_bits: int = 32) -> None:
        self.clock = FakeClock()
        self.sci = RecordingLine()
        self.offs = 0
        self.pm = AcpiPm(self.clock, self.sci, self._off, timer_bits=timer_bits)

    def sci_high(self) -> bool:
        return self.sci.level

    def _off(self) -> None:
        self.offs += 1


def test_power_button_raises_sci_when_enabled() -> None:
    """PWRBTN_STS is set by the button and raises SCI with PWRBTN_EN."""
    machine = Machine()
    assert not machine.pm.press_power_button()
    assert not machine.sci_high()
    machine.pm.event.write(2, 2, PWRBTN)
    assert machine.sci_high()
    assert machine.pm.event.read(0, 2) == PWRBTN
    machine.pm.event.write(0, 2, PWRBTN)
    assert not machine.sci_high()
    assert machine.pm.press_power_button()
    assert machine.sci_high()


def test_status_is_cleared_by_ones_only() -> None:
    """Zeros and other bits leave a status bit; byte accesses reach their half."""
    machine = Machine()
    machine.pm.press_power_button()
    machine.pm.event.write(0, 2, 0x00FF)
    assert machine.pm.event.read(0, 2) == PWRBTN
    machine.pm.event.write(1, 1, 0x01)
    assert machine.pm.event.read(0, 2) == 0


def test_enable_keeps_defined_bits() -> None:
    """Reserved enable bits read zero; a dword access reaches both registers."""
    machine = Machine()
    machine.pm.event.write(0, 4, 0xFFFF_0000)
    assert machine.pm.event.read(0, 4) == 0x0721_0000


def test_sci_en_is_on_from_the_start() -> None:
    """The machine is in ACPI mode and stays there."""
    machine = Machine()
    assert machine.pm.control.read(0, 2) == 1
    machine.pm.control.write(0, 2, 0)
    assert machine.pm.control.read(0, 2) == 1


def test_s5_powers_off() -> None:
    """SLP_EN with S5's type powers off; another type or no SLP_EN does not."""
    machine = Machine()
    machine.pm.control.write(0, 2, 5 << 10)
    machine.pm.control.write(0, 2, 3 << 10 | SLP_EN)
    assert machine.offs == 0
    machine.pm.control.write(0, 2, 5 << 10 | SLP_EN)
    assert machine.offs == 1
    assert machine.pm.control.read(0, 2) == 5 << 10 | 1


def test_s5_by_byte_access() -> None:
    """The high byte alone carries SLP_TYP and SLP_EN."""
    machine = Machine()
    machine.pm.control.write(1, 1, (5 << 10 | SLP_EN) >> 8)
    assert machine.offs == 1


def test_timer_counts_at_its_rate_and_wraps() -> None:
    """3.579545 MHz, cut to 24 bits where the FADT says so."""
    machine, short = Machine(), Machine(timer_bits=24)
    for each in (machine, short):
        each.clock.advance(10_000_000_000)
    assert machine.pm.timer.read(0, 4) == 35_795_450
    assert short.pm.timer.read(0, 4) == 35_795_450 & 0xFF_FFFF
    assert machine.pm.timer.read(1, 1) == 35_795_450 >> 8 & 0xFF


def test_no_alarm_is_armed_for_a_timer_nobody_listens_to() -> None:
    """Without TMR_EN time passes without a wake-up, and the status is right when read."""
    machine = Machine()
    assert machine.clock.timers[0].deadline is None
    machine.clock.advance(HALF_PERIOD_32)
    assert machine.pm.event.read(0, 2) == TMR
    assert not machine.sci_high()


def test_timer_carry_raises_sci() -> None:
    """With TMR_EN each change of the top bit interrupts."""
    machine = Machine()
    machine.pm.event.write(2, 2, TMR)
    machine.clock.advance(HALF_PERIOD_32 - 10)
    assert not machine.sci_high()
    machine.clock.advance(10)
    assert machine.sci_high()
    machine.pm.event.write(0, 2, TMR)
    assert not machine.sci_high()
    machine.clock.advance(HALF_PERIOD_32)
    assert machine.sci_high()


def test_gpe_raises_sci_when_enabled() -> None:
    """General-purpose events behave as the fixed ones."""
    machine = Machine()
    machine.pm.raise_gpe(3)
    machine.pm.gpe0.write(2, 2, 1 << 3)
    assert machine.sci_high()
    machine.pm.gpe0.write(0, 1, 1 << 3)
    assert not machine.sci_high()


def test_reset_clears_all() -> None:
    """After a reset nothing is enabled and the timer starts at 0."""
    machine = Machine()
    machine.pm.event.write(0, 4, 0xFFFF_0000)
    machine.pm.press_power_button()
    machine.clock.advance(1_000_000)
    machine.pm.reset()
    assert machine.pm.event.read(0, 4) == 0
    assert machine.pm.timer.read(0, 4) == 0
    assert not machine.sci_high()


accesses = st.lists(
    st.tuples(
        st.sampled_from(["event", "control", "timer", "gpe0"]),
        st.integers(0, 5),
        st.sampled_from([1, 2, 4, 8]),
        st.integers(0, (1 << 64) - 1),
        st.integers(0, 1 << 40),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(accesses)
def test_any_accesses_and_state_round_trip(
    steps: list[tuple[str, int, int, int, int]],
) -> None:
    """No access raises or gives more than its size; the state's copy equals it."""
    machine, copy = Machine(), Machine()
    for block, offset, size, value, wait in steps:
        device = getattr(machine.pm, block)
        device.write(offset, size, value & (1 << 8 * size) - 1)
        assert 0 <= device.read(offset, size) < 1 << 8 * size
        machine.clock.advance(wait)
    copy.clock.advance(machine.clock.now())
    copy.pm.restore(machine.pm.state())
    assert copy.pm.state() == machine.pm.state()
    assert copy.sci_high() == machine.sci_high()
    assert copy.clock.timers[0].deadline == machine.clock.timers[0].deadline
    assert copy.pm.timer.read(0, 4) == machine.pm.timer.read(0, 4)
