"""The timer of a local APIC: one-shot, periodic and TSC-deadline (Intel SDM vol. 3, 11.5.4).

Nothing ticks: the current count is computed from the clock when it is read,
and one alarm is armed for the next interrupt, none while the entry is masked.
"""

from __future__ import annotations

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.lapic_registers import LapicTimerState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmkit.devices.device import Clock

__all__ = ["LapicTimer"]

SECOND = 1_000_000_000

SHORTEST_PERIOD = 20_000
"""The least time between two interrupts of a periodic timer, in ns: a guest
may program a period of one bus clock, and the host has other things to do."""


def divisor(configuration: int) -> int:
    """The number of bus clocks per count (figure 11-10): 2, 4, ... 128, and 1 for 0b111."""
    code = configuration & 3 | configuration >> 1 & 4
    return 1 << (code + 1 & 7)


class LapicTimer:
    """Calls ``expired`` whenever the timer's LVT entry shall deliver."""

    __slots__ = (
        "_alarm", "_bus_hz", "_clock", "_counted_from", "_divide", "_expired", "_initial",
        "_masked", "_mode", "_now", "_started", "_tsc", "_tsc_hz", "deadline",
    )  # fmt: skip

    def __init__(
        self, clock: Clock, expired: Callable[[], None],
        tsc: Callable[[], int], tsc_hz: int, bus_hz: int,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._now = clock.now
        self._expired = expired
        self._tsc = tsc
        self._tsc_hz = tsc_hz
        self._bus_hz = bus_hz
        self._alarm = clock.timer(self._fire)
        self._mode = reg.TIMER_ONE_SHOT
        self._masked = True
        self._initial = 0
        self._divide = 0
        self._started = 0
        self._counted_from = 0
        self.deadline = 0
        """IA32_TSC_DEADLINE: the TSC value to fire at; 0 is disarmed."""

    # --- registers ---

    def set_lvt(self, entry: int) -> None:
        """Take a new value of the LVT timer entry: its mode and mask."""
        self._catch_up()
        mode = entry & reg.LVT_TIMER_MODE
        if mode != self._mode:
            if reg.TIMER_TSC_DEADLINE in (mode, self._mode):
                # "Transitioning between TSC-deadline mode and other timer modes also
                # disarms the timer" (11.5.4.1).
                self._stop()
            else:
                self._rebase()
            self._mode = mode
        masked = bool(entry & reg.LVT_MASKED)
        if self._masked and not masked and not self.current():
            self._counted_from = 0  # it ran out while masked: that interrupt is lost
        self._masked = masked
        self._schedule()

    @property
    def initial(self) -> int:
        """The initial-count register."""
        return self._initial

    def set_initial(self, count: int) -> None:
        """Start counting down from ``count``; 0 stops. Ignored in TSC-deadline mode."""
        if self._mode == reg.TIMER_TSC_DEADLINE:
            return
        self._initial = count
        self._counted_from = count
        self._started = self._now()
        self._schedule()

    def current(self) -> int:
        """The current-count register."""
        start = self._counted_from
        if not start:
            return 0
        elapsed = (self._now() - self._started) * self._bus_hz // (SECOND * divisor(self._divide))
        if elapsed < start:
            return start - elapsed
        if self._mode != reg.TIMER_PERIODIC:
            return 0
        return self._initial - (elapsed - start) % self._initial

    @property
    def divide(self) -> int:
        """The divide-configuration register."""
        return self._divide

    def set_divide(self, configuration: int) -> None:
        """Change the speed; a running count goes on from where it is."""
        self._catch_up()
        self._rebase()
        self._divide = configuration & reg.DIVIDE_WRITABLE
        self._schedule()

    def set_deadline(self, value: int) -> None:
        """Write IA32_TSC_DEADLINE (11.5.4.1): 0 disarms, a time that has passed fires now."""
        if self._mode != reg.TIMER_TSC_DEADLINE:
            return
        self.deadline = value
        if not value:
            self._alarm.cancel()
            return
        ahead = value - self._tsc()
        if ahead > 0:
            self._alarm.arm(self._now() - -ahead * SECOND // self._tsc_hz)
        else:
            self._alarm.cancel()
            self._fire()

    def tsc_changed(self) -> None:
        """The TSC was written: the deadline is at another time now."""
        if self.deadline:
            self.set_deadline(self.deadline)

    # --- counting ---

    def _period(self, count: int) -> int:
        # Nanoseconds that `count` takes, rounded up so that an alarm is never early.
        return -(-count * divisor(self._divide) * SECOND // self._bus_hz)

    def _rebase(self) -> None:
        # Restart the count from its current value: what follows changes mode or speed.
        if self._counted_from:
            self._counted_from = self.current()
            self._started = self._now()

    def _stop(self) -> None:
        self._initial = self._counted_from = self.deadline = 0

    def _schedule(self) -> None:
        # Arm the alarm for the next interrupt of the counting modes.
        if self._mode == reg.TIMER_TSC_DEADLINE and self.deadline:
            return
        if not self._counted_from or self._masked:
            self._alarm.cancel()
            return
        now = self._now()
        next_time = self._started + self._period(self._counted_from)
        if next_time <= now and self._mode == reg.TIMER_PERIODIC:
            period = self._period(self._initial)
            self._started = now - (now - next_time) % period
            self._counted_from = self._initial
            next_time = self._started + period
        self._alarm.arm(next_time)

    def _catch_up(self) -> None:
        # An interrupt that is due comes before what a register write changes.
        due = self._alarm.deadline
        if due is not None and due <= self._now():
            self._alarm.cancel()
            self._fire()

    def _fire(self) -> None:
        if self._mode == reg.TIMER_PERIODIC:
            now = self._now()
            self._schedule()
            due = self._alarm.deadline
            if due is not None and due < now + SHORTEST_PERIOD:
                self._alarm.arm(now + SHORTEST_PERIOD)
        else:
            self.deadline = self._counted_from = 0
        self._expired()

    # --- state ---

    def reset(self) -> None:
        """Go to the power-on state: masked, one-shot, stopped."""
        self._stop()
        self._started = self._divide = 0
        self._mode = reg.TIMER_ONE_SHOT
        self._masked = True
        self._alarm.cancel()

    def state(self) -> LapicTimerState:
        """The timer's registers and when it fires next."""
        return LapicTimerState(
            self._initial, self._divide, self._started, self._counted_from,
            self.deadline, self._alarm.deadline,
        )  # fmt: skip

    def restore(self, state: LapicTimerState, entry: int) -> None:
        """Become ``state``, with ``entry`` as the LVT timer entry."""
        self._mode = entry & reg.LVT_TIMER_MODE
        self._masked = bool(entry & reg.LVT_MASKED)
        self._initial = state.initial
        self._divide = state.divide
        self._started = state.started
        self._counted_from = state.counted_from
        self.deadline = state.deadline
        if state.alarm is None:
            self._alarm.cancel()
        else:
            self._alarm.arm(state.alarm)
