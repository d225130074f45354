"""The PC's 8254 programmable interval timer, and the port that belongs to it.

Intel 231164-005 (8254); port 0x61 ("NMI status and control") as in the PIIX3
and ICH datasheets. Counter 0 raises IRQ0, counter 1 stood for memory refresh,
counter 2 drives the speaker, its gate and output being bits of port 0x61.

Counters are computed from the clock when they are looked at; the only alarm
there is, is for counter 0's next interrupt.
"""

from __future__ import annotations

from kvmkit.devices.pit_counter import TERMINAL_COUNT, CounterState, PitCounter
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.devices.device import Clock, Line

__all__ = ["PIT_HZ", "Pit", "PitState", "PortB", "PortBState"]

PIT_HZ = 1_193_182
"""The input clock: a twelfth of the 14.31818 MHz crystal."""

SECOND = 1_000_000_000

SHORTEST_PERIOD = 20_000
"""The least time between two interrupts in ns: a guest may program two ticks."""

# Port offsets.
CONTROL = 3

# Control word (figure 7) and read-back command (figure 11).
COUNTER_SHIFT = 6
READ_BACK = 3
ACCESS = 3 << 4
READ_BACK_NO_COUNT = 1 << 5
READ_BACK_NO_STATUS = 1 << 4

# Port 0x61.
PORT_B_GATE2 = 1 << 0
PORT_B_REFRESH = 1 << 4
PORT_B_OUT2 = 1 << 5
PORT_B_WRITABLE = 0x0F  # gate 2, speaker data, and the enables of SERR# and IOCHK#
REFRESH_TICKS = 18  # 15 us: what firmware programs counter 1 for


class PortBState(Record):
    """Port 0x61's writable bits."""

    bits: int = 0


class PitState(Record):
    """The 8254 and port 0x61. ``alarm`` is when IRQ0 comes next, in ns of guest time."""

    counters: tuple[CounterState, CounterState, CounterState]
    irq0: bool
    alarm: int | None
    port_b: PortBState


class Pit:
    """The four ports at 0x40."""

    def __init__(self, clock: Clock, irq0: Line) -> None:
        self._now = clock.now
        self._irq0 = irq0
        self._alarm = clock.timer(self._fire)
        self._level = False
        self._counters = (PitCounter(True), PitCounter(True), PitCounter(False))
        self.port_b = PortB(self)
        """Port 0x61, a device of its own."""

    def tick(self) -> int:
        """Cycles of the input clock since power-on."""
        return self._now() * PIT_HZ // SECOND

    @property
    def speaker(self) -> PitCounter:
        """Counter 2, whose gate and output are on port 0x61."""
        return self._counters[2]

    # --- registers ---

    def read(self, offset: int, size: int) -> int:
        """A counter's next byte; the control port is not readable."""
        if offset & 3 == CONTROL:
            return 0xFF
        return self._counters[offset & 3].read(self.tick())

    def write(self, offset: int, size: int, value: int) -> None:
        """A byte of a count, or a command."""
        self._catch_up()
        value &= 0xFF
        index = offset & 3
        tick = self.tick()
        if index == CONTROL:
            index = value >> COUNTER_SHIFT
            if index == READ_BACK:
                self._read_back(tick, value)
                return
            if not value & ACCESS:
                self._counters[index].latch_count(tick)
                return
            self._counters[index].set_control(value)
        else:
            self._counters[index].write(tick, value)
        if index == 0:
            # Where mode 0 is not counting, the output is high but for a pulse at each interrupt.
            counter = self._counters[0]
            self._set_irq0(counter.mode != TERMINAL_COUNT or counter.out(tick))
            self._schedule(tick, 0)

    def _read_back(self, tick: int, command: int) -> None:
        for index, counter in enumerate(self._counters):
            if command >> index + 1 & 1:
                if not command & READ_BACK_NO_COUNT:
                    counter.latch_count(tick)
                if not command & READ_BACK_NO_STATUS:
                    counter.latch_status(tick)

    # --- counter 0's interrupt ---

    def _set_irq0(self, level: bool) -> None:
        if level != self._level:
            self._level = level
            self._irq0(level)

    def _schedule(self, tick: int, earliest: int) -> None:
        rise = self._counters[0].next_rise(tick)
        if rise is None:
            self._alarm.cancel()
        else:
            self._alarm.arm(max(-(-rise * SECOND // PIT_HZ), earliest))

    def _fire(self) -> None:
        # The interrupt is the edge; the low half or tick before it has no alarm of its own.
        self._set_irq0(False)
        self._set_irq0(True)
        self._schedule(self.tick(), self._now() + SHORTEST_PERIOD)

    def _catch_up(self) -> None:
        # An interrupt that is due comes before what a write changes.
        due = self._alarm.deadline
        if due is not None and due <= self._now():
            self._fire()

    # --- reset and state ---

    def reset(self) -> None:
        """Go to a defined state; the 8254's own power-on state is not."""
        self.port_b.reset()
        gates = (True, True, False)
        for counter, gate in zip(self._counters, gates, strict=True):
            counter.restore(CounterState(gate=gate))
        self._alarm.cancel()
        self._set_irq0(False)

    def state(self) -> PitState:
        """The whole state, with port 0x61's."""
        first, second, third = (counter.state() for counter in self._counters)
        port_b = self.port_b.state()
        return PitState((first, second, third), self._level, self._alarm.deadline, port_b)

    def restore(self, state: PitState) -> None:
        """Become ``state``."""
        for counter, saved in zip(self._counters, state.counters, strict=True):
            counter.restore(saved)
        self.port_b.restore(state.port_b)
        if state.alarm is None:
            self._alarm.cancel()
        else:
            self._alarm.arm(state.alarm)
        self._set_irq0(state.irq0)


class PortB:
    """Port 0x61: counter 2's gate and output, the speaker, the refresh toggle."""

    def __init__(self, pit: Pit) -> None:
        self._pit = pit
        self._bits = 0

    def read(self, offset: int, size: int) -> int:
        """The writable bits, with OUT2 and the bit that toggles with each refresh cycle."""
        tick = self._pit.tick()
        value = self._bits
        if self._pit.speaker.out(tick):
            value |= PORT_B_OUT2
        if tick // REFRESH_TICKS & 1:
            value |= PORT_B_REFRESH
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the gate and the enables; these have no source of NMIs to act on."""
        self._bits = value & PORT_B_WRITABLE
        self._pit.speaker.set_gate(self._pit.tick(), bool(value & PORT_B_GATE2))

    def reset(self) -> None:
        """All bits 0: the gate is low."""
        self.write(0, 1, 0)

    def state(self) -> PortBState:
        """Its bits, which the PIT's record has as well; the gate is part of the counter's."""
        return PortBState(self._bits)

    def restore(self, state: PortBState) -> None:
        """Become ``state``."""
        self._bits = state.bits
