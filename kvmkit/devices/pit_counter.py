"""One counter of an 8254 programmable interval timer (Intel 231164-005, "8254").

Nothing counts: the counter knows at which tick of its clock it was loaded, and
computes its value and its output for the tick it is asked about. Ticks are
absolute, 0 at power-on; those that methods are given never go back.
"""

from __future__ import annotations

from kvmkit.frozen import Record

__all__ = ["CounterState", "PitCounter"]

# Control word (figure 7), without the counter's number.
BCD = 1 << 0
MODE_SHIFT = 1
ACCESS_SHIFT = 4
CONTROL_MASK = 0x3F

ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH = 1, 2, 3

TERMINAL_COUNT, ONE_SHOT, RATE, SQUARE, SOFT_STROBE, HARD_STROBE = range(6)

# Status byte (figure 12); bits 0-5 are the control word's.
STATUS_OUT = 1 << 7
STATUS_NULL = 1 << 6


class CounterState(Record):
    """One counter. Times are ticks."""

    gate: bool
    control: int = 0
    count: int | None = None  # the count register; None until it is written
    null: bool = False  # the count register was not loaded yet
    loaded: int = 0  # what was loaded into the counting element, 0 before the first load
    origin: int = 0  # when it was loaded
    held: int | None = None  # how far it had counted when the gate stopped it
    load_at: int | None = None  # when the count register is loaded next
    load_half: bool = False  # ... which is in the middle of a square wave's period
    write_low: int | None = None  # the first byte of a two-byte count
    read_high: bool = False  # the next read gets the second byte
    output: int | None = None  # the latched count
    status: int | None = None  # the latched status


class PitCounter:
    """An 8254 counter with its gate and output."""

    mode: int
    """What the control word chose, 0-5."""
    gate: bool
    """The level of the gate input."""

    # CounterState says what each is.
    _control: int
    _count: int | None
    _null: bool
    _loaded: int
    _origin: int
    _held: int | None
    _load_at: int | None
    _load_half: bool
    _write_low: int | None
    _read_high: bool
    _output: int | None
    _status: int | None

    def __init__(self, gate: bool) -> None:
        self._load(CounterState(gate=gate))

    # --- counting ---

    def _full(self) -> int:
        # The count register as a number: 0 is the largest (65536, or 10000 in BCD).
        count = self._count or 0
        if not self._bcd:
            return count or 0x10000
        digits = (count >> shift & 0xF for shift in (12, 8, 4, 0))
        value = 0
        for digit in digits:
            value = value * 10 + digit
        return value or 10000

    def _sync(self, tick: int) -> None:
        # Do the load that was to happen by now.
        at = self._load_at
        if at is None or tick < at:
            return
        self._loaded = self._full()
        # A load in the middle of a period goes on with the second half of the new one.
        self._origin = at - (self._loaded + 1) // 2 if self._load_half else at
        self._held = 0 if not self.gate and self.mode not in (ONE_SHOT, HARD_STROBE) else None
        self._load_at = None
        self._load_half = self._null = False

    def _elapsed(self, tick: int) -> int:
        return tick - self._origin if self._held is None else self._held

    def out(self, tick: int) -> bool:
        """The level of the output at ``tick``."""
        self._sync(tick)
        count = self._loaded
        mode = self.mode
        if not count:
            return mode != TERMINAL_COUNT
        elapsed = self._elapsed(tick)
        if mode in (TERMINAL_COUNT, ONE_SHOT):
            return elapsed >= count
        if mode in (SOFT_STROBE, HARD_STROBE):
            return elapsed != count
        if self._held is not None or count == 1:  # a gate that is low forces it high
            return True
        if mode == RATE:
            return elapsed % count != count - 1
        return elapsed % count < (count + 1) // 2

    def value(self, tick: int) -> int:
        """The counting element at ``tick``, 16 bits as software reads them."""
        self._sync(tick)
        count = self._loaded
        if not count:
            return 0
        elapsed = self._elapsed(tick)
        if self.mode == RATE:
            value = count - elapsed % count
        elif self.mode == SQUARE:
            # Both halves count down by two; an odd count is loaded less one.
            value = (count & ~1) - 2 * (elapsed % count % ((count + 1) // 2))
        else:
            value = count - elapsed
        if not self._bcd:
            return value & 0xFFFF
        value %= 10000
        return value // 1000 << 12 | value // 100 % 10 << 8 | value // 10 % 10 << 4 | value % 10

    def next_rise(self, tick: int) -> int | None:
        """The first tick after ``tick`` at which the output goes from low to high."""
        self._sync(tick)
        load = self._load_at
        if self.mode in (RATE, SQUARE):
            return self._next_period(tick, load)
        extra = int(self.mode in (SOFT_STROBE, HARD_STROBE))  # the strobe is low for one tick
        if extra and not self.out(tick) and (self._held is None or load is not None):
            return tick + 1  # in the strobe: it ends, or the load ends it
        if load is not None:
            counts = self.gate or self.mode in (ONE_SHOT, HARD_STROBE)
            return load + self._full() + extra if counts else None
        if not self._loaded or self._held is not None:
            return None
        end = self._origin + self._loaded + extra
        return end if end > tick else None

    def _next_period(self, tick: int, load: int | None) -> int | None:
        if not self._loaded or self._held is not None:
            # Stopped, or started at `load`: the first period is complete then.
            return None if load is None or not self.gate else load + self._full()
        if load is not None:
            return load + self._full() // 2 if self._load_half else load
        if self._loaded == 1:
            return None  # not a legal count
        return tick + self._loaded - (tick - self._origin) % self._loaded

    def set_gate(self, tick: int, level: bool) -> None:
        """Set the gate input ("Gate pin operations summary", figure 21)."""
        self._sync(tick)
        if level == self.gate:
            return
        self.gate = level
        if self.mode in (TERMINAL_COUNT, SOFT_STROBE):  # the gate enables counting
            if level and self._held is not None:
                self._origin = tick - self._held
                self._held = None
            elif not level and self._loaded:
                self._held = tick - self._origin
        elif level:  # a rising edge triggers: load at the next tick
            if self._count is not None:
                self._load_at = tick + 1
                self._load_half = False
        elif self.mode in (RATE, SQUARE) and self._loaded and self._held is None:
            self._held = tick - self._origin
            self._load_at = None

    # --- registers ---

    def set_control(self, control: int) -> None:
        """Take a control word: the counter stops until it gets a count."""
        self._load(CounterState(gate=self.gate, control=control & CONTROL_MASK, null=True))

    def latch_count(self, tick: int) -> None:
        """Counter latch command; ignored while a latched count waits to be read."""
        if self._output is None:
            self._output = self.value(tick)

    def latch_status(self, tick: int) -> None:
        """Latch the status byte; ignored while one waits to be read."""
        if self._status is None:
            self._status = (
                self._control | STATUS_OUT * self.out(tick) | STATUS_NULL * self._null
            )  # fmt: skip

    def read(self, tick: int) -> int:
        """The next byte: of the latched status, the latched count, or the count as it is."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        value = self.value(tick) if self._output is None else self._output
        if self._access == ACCESS_LOW:
            high = False
        elif self._access == ACCESS_HIGH:
            high = True
        else:
            high = self._read_high
            self._read_high = not high
            if not high:
                return value & 0xFF
        self._output = None
        return value >> 8 if high else value & 0xFF

    def write(self, tick: int, byte: int) -> None:
        """Take the next byte of a count."""
        self._sync(tick)
        if self._access == ACCESS_LOW:
            self._write_count(tick, byte)
        elif self._access == ACCESS_HIGH:
            self._write_count(tick, byte << 8)
        elif self._write_low is None:
            self._write_low = byte
            if self.mode == TERMINAL_COUNT:  # the first byte stops it, output low
                self._loaded = 0
                self._load_at = None
        else:
            low, self._write_low = self._write_low, None
            self._write_count(tick, byte << 8 | low)

    def _write_count(self, tick: int, count: int) -> None:
        self._count = count
        self._null = True
        if self.mode == TERMINAL_COUNT:
            self._loaded = 0  # output low until the new count is over
            self._load_at = tick + 1
        elif self.mode == SOFT_STROBE or (self.mode in (RATE, SQUARE) and not self._loaded):
            self._load_at = tick + 1
        elif self.mode in (RATE, SQUARE) and self._held is None and self._load_at is None:
            # The period, or the half of a square wave, is finished with the old count.
            loaded = self._loaded
            into = (tick - self._origin) % loaded
            half = (loaded + 1) // 2
            self._load_half = self.mode == SQUARE and into < half < loaded
            self._load_at = tick - into + (half if self._load_half else loaded)

    # --- state ---

    def state(self) -> CounterState:
        """The whole state."""
        return CounterState(
            self.gate, self._control, self._count, self._null, self._loaded, self._origin,
            self._held, self._load_at, self._load_half, self._write_low, self._read_high,
            self._output, self._status,
        )  # fmt: skip

    def restore(self, state: CounterState) -> None:
        """Become ``state``."""
        self._load(state)

    def _load(self, state: CounterState) -> None:
        control = state.control
        self.gate = state.gate
        self._control = control
        # In modes 2 and 3 the upper mode bit is "don't care".
        self.mode = control >> MODE_SHIFT & (3 if control >> MODE_SHIFT & 2 else 7)
        self._access = control >> ACCESS_SHIFT
        self._bcd = bool(control & BCD)
        self._count, self._null = state.count, state.null
        self._loaded, self._origin, self._held = state.loaded, state.origin, state.held
        self._load_at, self._load_half = state.load_at, state.load_half
        self._write_low, self._read_high = state.write_low, state.read_high
        self._output, self._status = state.output, state.status
