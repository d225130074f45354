"""ACPI fixed hardware: PM1a events and control, PM timer, GPE0.

ACPI specification 6.5, section 4.8 ("ACPI hardware features"): 4.8.2.1 (power
management timer), 4.8.3.1 (PM1 event registers), 4.8.3.2 (PM1 control),
4.8.3.3 (PM timer register), 4.8.4.1 (general-purpose events).

The machine is in ACPI mode from power-on: there is no SMI command port, so
SCI_EN reads 1 always (section 4.8.2.5 allows machines that are ACPI only).
"""

from __future__ import annotations

from kvmkit.devices.registers import read_bytes, write_bytes
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmkit.devices.device import Clock, Line

__all__ = ["AcpiPm", "AcpiPmState", "EventBlock", "Pm1Control", "PmTimer"]

PM_TIMER_HZ: Final = 3_579_545
NS_PER_SECOND: Final = 1_000_000_000

# PM1 status (table 4.11); written with 1 to clear
TMR_STS: Final = 1 << 0
BM_STS: Final = 1 << 4
GBL_STS: Final = 1 << 5
PWRBTN_STS: Final = 1 << 8
SLPBTN_STS: Final = 1 << 9
RTC_STS: Final = 1 << 10
WAK_STS: Final = 1 << 15
PM1_STATUS_BITS: Final = TMR_STS | BM_STS | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS | WAK_STS

# PM1 enable (table 4.12)
TMR_EN: Final = 1 << 0
GBL_EN: Final = 1 << 5
PWRBTN_EN: Final = 1 << 8
SLPBTN_EN: Final = 1 << 9
RTC_EN: Final = 1 << 10
PM1_ENABLE_BITS: Final = TMR_EN | GBL_EN | PWRBTN_EN | SLPBTN_EN | RTC_EN

# PM1 control (table 4.13)
SCI_EN: Final = 1 << 0
BM_RLD: Final = 1 << 1
SLP_TYP_SHIFT: Final = 10
SLP_TYP_MASK: Final = 7 << SLP_TYP_SHIFT
SLP_EN: Final = 1 << 13  # reads 0
PM1_CONTROL_KEPT: Final = BM_RLD | SLP_TYP_MASK

GPE0_BITS: Final = 0xFFFF


class AcpiPmState(Record):
    """The fixed hardware at rest. ``timer_base`` is the guest time (ns) at which
    the PM timer was 0; ``toggles`` how often its top bit has changed and was seen."""

    pm1_status: int
    pm1_enable: int
    pm1_control: int
    gpe0_status: int
    gpe0_enable: int
    timer_base: int
    toggles: int


class EventBlock:
    """A status register, write 1 to clear, and its enable register: 2 bytes each."""

    __slots__ = ("_changed", "_enable_bits", "_look", "enable", "status")

    def __init__(
        self, enable_bits: int, changed: Callable[[], None], look: Callable[[], None]
    ) -> None:
        self._enable_bits = enable_bits
        self._changed = changed  # called after each write
        self._look = look  # called before each access, to bring ``status`` up to date
        self.status = 0
        self.enable = 0

    @property
    def pending(self) -> bool:
        """An enabled event has happened."""
        return bool(self.status & self.enable)

    def read(self, offset: int, size: int) -> int:
        self._look()
        return read_bytes(self._read, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._look()
        write_bytes(self._write, offset, size, value)
        self._changed()

    def _read(self, offset: int) -> int:
        if offset > 3:
            return 0xFF
        return (self.status | self.enable << 16) >> (8 * offset) & 0xFF

    def _write(self, offset: int, value: int) -> None:
        if offset < 2:
            self.status &= ~(value << (8 * offset))
        elif offset < 4:
            shift = 8 * (offset - 2)
            self.enable = (self.enable & ~(0xFF << shift) | value << shift) & self._enable_bits

    def reset(self) -> None:
        """No event happened, none enabled."""
        self.status = self.enable = 0
        self._changed()

    def state(self) -> tuple[int, int]:
        """Status and enable; part of :class:`AcpiPmState`."""
        return self.status, self.enable

    def restore(self, state: tuple[int, int]) -> None:
        self.status, self.enable = state
        self._changed()


class Pm1Control:
    """PM1a control: 2 bytes. ``sleep`` is called with SLP_TYP when SLP_EN is written."""

    __slots__ = ("_sleep", "value")

    def __init__(self, sleep: Callable[[int], None]) -> None:
        self._sleep = sleep
        self.value = SCI_EN

    def read(self, offset: int, size: int) -> int:
        return read_bytes(lambda at: self.value >> 8 * at & 0xFF if at < 2 else 0xFF, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        written = self.value
        for at in range(offset, min(offset + size, 2)):
            byte = value >> 8 * (at - offset) & 0xFF
            written = written & ~(0xFF << 8 * at) | byte << 8 * at
        self.value = written & PM1_CONTROL_KEPT | SCI_EN
        if written & SLP_EN:
            self._sleep((written & SLP_TYP_MASK) >> SLP_TYP_SHIFT)

    def reset(self) -> None:
        """SLP_TYP 0, in ACPI mode."""
        self.value = SCI_EN

    def state(self) -> int:
        """The register; part of :class:`AcpiPmState`."""
        return self.value

    def restore(self, state: int) -> None:
        self.value = state


class PmTimer:
    """The power management timer: 4 bytes, read-only, 3.579545 MHz, 24 or 32 bits."""

    __slots__ = ("_base", "_clock", "_mask", "bits")

    def __init__(self, clock: Clock, bits: int) -> None:
        self._clock = clock
        self._base = 0
        self._mask = (1 << bits) - 1
        self.bits = bits

    def read(self, offset: int, size: int) -> int:
        value = (self._clock.now() - self._base) * PM_TIMER_HZ // NS_PER_SECOND & self._mask
        if offset == 0 and size == 4:
            return value
        return read_bytes(lambda at: value >> 8 * at & 0xFF if at < 4 else 0xFF, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Read-only: no effect."""

    def toggles(self) -> int:
        """How often the top bit has changed since the timer was 0."""
        ticks = (self._clock.now() - self._base) * PM_TIMER_HZ // NS_PER_SECOND
        return ticks >> (self.bits - 1)

    def next_toggle(self) -> int:
        """Guest time (ns) of the next change of the top bit."""
        ticks = self.toggles() + 1 << self.bits - 1
        return self._base - (-ticks * NS_PER_SECOND // PM_TIMER_HZ)  # rounded up

    def reset(self) -> None:
        """Count from 0."""
        self._base = self._clock.now()

    def state(self) -> int:
        """Guest time at which it was 0; part of :class:`AcpiPmState`."""
        return self._base

    def restore(self, state: int) -> None:
        self._base = state


class AcpiPm:
    """The fixed hardware of one machine.

    ``event`` (4 bytes), ``control`` (2), ``timer`` (4) and ``gpe0`` (4) are the
    register blocks to map. ``sci`` is the level-triggered system control
    interrupt. ``power_off`` is called when the guest enters S5, whose sleep
    type is ``s5_type``; ``timer_bits`` is 24 or 32, as the FADT says.
    """

    def __init__(
        self,
        clock: Clock,
        sci: Line,
        power_off: Callable[[], None],
        *,
        s5_type: int = 5,
        timer_bits: int = 32,
    ) -> None:
        self._sci = sci
        self._power_off = power_off
        self._s5_type = s5_type
        self._level = False
        self._toggles = 0
        self._alarm = clock.timer(self._alarm_fired)
        self.timer = PmTimer(clock, timer_bits)
        self.event = EventBlock(PM1_ENABLE_BITS, self._update, self._look)
        self.gpe0 = EventBlock(GPE0_BITS, self._update, lambda: None)
        self.control = Pm1Control(self._sleep)

    def press_power_button(self) -> bool:
        """The power button; False if the guest has not enabled its event (4.8.2.2.1)."""
        self.event.status |= PWRBTN_STS
        self._update()
        return bool(self.event.enable & PWRBTN_EN)

    def press_sleep_button(self) -> bool:
        """The sleep button; False if the guest has not enabled its event."""
        self.event.status |= SLPBTN_STS
        self._update()
        return bool(self.event.enable & SLPBTN_EN)

    def raise_gpe(self, number: int) -> None:
        """General-purpose event ``number``, 0 to 15, has happened."""
        self.gpe0.status |= 1 << number & GPE0_BITS
        self._update()

    def _sleep(self, sleep_type: int) -> None:
        """Enter a sleep state; only S5 exists, other types do nothing."""
        if sleep_type == self._s5_type:
            self._power_off()

    def _look(self) -> None:
        """TMR_STS is set whenever the timer's top bit changes (4.8.2.1)."""
        toggles = self.timer.toggles()
        if toggles != self._toggles:
            self._toggles = toggles
            self.event.status |= TMR_STS

    def _alarm_fired(self) -> None:
        self._look()
        self._update()

    def _update(self) -> None:
        """Drive SCI; wait for the timer's carry only if somebody wants to hear of it."""
        if self.event.enable & TMR_EN and not self.event.status & TMR_STS:
            self._alarm.arm(self.timer.next_toggle())
        else:
            self._alarm.cancel()
        level = self.event.pending or self.gpe0.pending
        if level != self._level:
            self._level = level
            self._sci(level)

    def reset(self) -> None:
        """Power-on: no events, the timer counts from 0."""
        self.timer.reset()
        self._toggles = 0
        self.control.reset()
        self.gpe0.reset()
        self.event.reset()

    def state(self) -> AcpiPmState:
        return AcpiPmState(
            pm1_status=self.event.status,
            pm1_enable=self.event.enable,
            pm1_control=self.control.value,
            gpe0_status=self.gpe0.status,
            gpe0_enable=self.gpe0.enable,
            timer_base=self.timer.state(),
            toggles=self._toggles,
        )

    def restore(self, state: AcpiPmState) -> None:
        self.timer.restore(state.timer_base)
        self._toggles = state.toggles
        self.control.restore(state.pm1_control)
        self.event.status, self.event.enable = state.pm1_status, state.pm1_enable
        self.gpe0.status, self.gpe0.enable = state.gpe0_status, state.gpe0_enable
        self._level = not (self.event.pending or self.gpe0.pending)  # so that the line is driven
        self._update()
