"""The 8254 against Intel's datasheet (231164), and port 0x61."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvmkit.devices.pit import PIT_HZ, Pit
from kvmkit.devices.pit_counter import PitCounter
from tests.devices.fakes import FakeClock, RecordingLine

SECOND = 1_000_000_000


class Rig:
    """A PIT, and a clock that is turned by ticks of 1.193182 MHz."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.irq0 = RecordingLine()
        self.pit = Pit(self.clock, self.irq0)

    def ticks(self, count: int) -> None:
        """Go on to the moment at which ``count`` more ticks have passed."""
        target = self.pit.tick() + count
        self.clock.advance(-(-target * SECOND // PIT_HZ) - self.clock.now())

    def control(self, value: int) -> None:
        self.pit.write(3, 1, value)

    def count(self, counter: int, value: int) -> None:
        self.pit.write(counter, 1, value & 0xFF)
        self.pit.write(counter, 1, value >> 8)

    def value(self, counter: int) -> int:
        return self.pit.read(counter, 1) | self.pit.read(counter, 1) << 8

    def status(self, counter: int) -> int:
        self.control(0xE0 | 2 << counter)
        return self.pit.read(counter, 1)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def levels(counter: PitCounter, first: int, count: int) -> str:
    """The output at ``count`` ticks from ``first``, as the datasheet draws it."""
    return "".join("-" if counter.out(tick) else "_" for tick in range(first, first + count))


def programmed(mode: int, count: int, *, gate: bool = True, bcd: bool = False) -> PitCounter:
    """A counter with its count written at tick 0, low byte only: loaded at tick 1."""
    counter = PitCounter(gate)
    counter.set_control(0x30 | mode << 1 | bcd)
    counter.write(0, count & 0xFF)
    counter.write(0, count >> 8)
    return counter


# --- the six modes, as in the datasheet's waveforms ---


def test_mode_0_waveform() -> None:
    """Output low, high N + 1 clocks after the write, and so on (figure 15)."""
    assert levels(programmed(0, 4), 0, 8) == "_____---"


def test_mode_0_counts_on() -> None:
    """After terminal count it wraps to 0xffff."""
    counter = programmed(0, 3)
    assert [counter.value(tick) for tick in (1, 2, 3, 4, 5, 6)] == [3, 2, 1, 0, 0xFFFF, 0xFFFE]


def test_mode_0_gate_stops_the_count() -> None:
    """Gate low holds the count; the output is not affected."""
    counter = programmed(0, 4)
    counter.set_gate(3, False)
    assert counter.value(10) == 2 and not counter.out(10)
    counter.set_gate(10, True)
    assert levels(counter, 10, 4) == "__--"


def test_mode_0_loads_with_the_gate_low() -> None:
    """A count written with gate low is loaded; N clocks after the gate rises output goes high."""
    counter = programmed(0, 4, gate=False)
    assert counter.value(5) == 4
    counter.set_gate(5, True)
    assert levels(counter, 5, 6) == "____--"


def test_mode_0_first_byte_stops(rig: Rig) -> None:
    """Between the bytes of a new count the counter is disabled with its output low."""
    counter = programmed(0, 2)
    assert counter.out(4)
    counter.write(4, 3)
    assert not counter.out(4) and not counter.out(40)
    counter.write(40, 0)
    assert levels(counter, 40, 6) == "____--"


def test_mode_1_waveform() -> None:
    """A gate edge makes a low pulse of N clocks, from the next clock on (figure 16)."""
    counter = programmed(1, 3, gate=False)
    assert levels(counter, 0, 5) == "-----"
    counter.set_gate(5, True)
    assert levels(counter, 5, 6) == "-___--"


def test_mode_1_is_retriggerable() -> None:
    """Another edge starts the pulse anew; a low gate does not end it."""
    counter = programmed(1, 3, gate=False)
    counter.set_gate(5, True)
    counter.set_gate(6, False)
    counter.set_gate(7, True)
    assert levels(counter, 7, 6) == "____--"


def test_mode_1_new_count_waits_for_the_trigger() -> None:
    """A pulse that runs keeps its length."""
    counter = programmed(1, 3, gate=False)
    counter.set_gate(5, True)
    counter.write(7, 9)
    counter.write(7, 0)
    assert levels(counter, 7, 3) == "__-"


def test_mode_2_waveform() -> None:
    """Low for the last clock of every N (figure 17)."""
    assert levels(programmed(2, 4), 0, 13) == "----_---_---_"


def test_mode_2_values() -> None:
    """The count goes from N to 1."""
    counter = programmed(2, 3)
    assert [counter.value(tick) for tick in range(1, 8)] == [3, 2, 1, 3, 2, 1, 3]


def test_mode_2_new_count_starts_with_the_next_period() -> None:
    """The period that runs is not affected; the null flag tells until then."""
    counter = programmed(2, 4)
    counter.write(2, 2)
    counter.write(2, 0)
    counter.latch_status(2)
    assert counter.read(2) & 0x40
    assert levels(counter, 2, 9) == "--_-_-_-_"
    counter.latch_status(10)
    assert not counter.read(10) & 0x40


def test_mode_2_gate() -> None:
    """Gate low forces the output high at once; the rising edge starts a period."""
    counter = programmed(2, 4)
    counter.set_gate(4, False)
    assert levels(counter, 4, 4) == "----" and counter.value(9) == 1
    counter.set_gate(9, True)
    assert levels(counter, 9, 7) == "----_--"


def test_mode_3_waveform() -> None:
    """Even counts: equal halves. Odd counts: the high half is one clock longer (figure 18)."""
    assert levels(programmed(3, 4), 1, 9) == "--__--__-"
    assert levels(programmed(3, 5), 1, 11) == "---__---__-"


def test_mode_3_values() -> None:
    """The count goes down by two in each half (figure 18)."""
    even, odd = programmed(3, 4), programmed(3, 5)
    assert [even.value(tick) for tick in range(1, 6)] == [4, 2, 4, 2, 4]
    assert [odd.value(tick) for tick in range(1, 7)] == [4, 2, 0, 4, 2, 4]


def test_mode_3_new_count_starts_with_the_next_half() -> None:
    """Written in the high half it is the length of the low half (of 8: 4 clocks)."""
    counter = programmed(3, 4)
    counter.write(1, 8)
    counter.write(1, 0)
    assert levels(counter, 1, 14) == "--____----____"


def test_mode_3_new_count_in_the_low_half() -> None:
    """Written in the low half it starts a period."""
    counter = programmed(3, 4)
    counter.write(3, 6)
    counter.write(3, 0)
    assert levels(counter, 3, 9) == "__---___-"


def test_mode_4_waveform() -> None:
    """A strobe of one clock, N + 1 clocks after the write; not periodic (figure 19)."""
    assert levels(programmed(4, 3), 0, 9) == "----_----"


def test_mode_4_is_retriggered_by_a_write() -> None:
    """A new count starts again at the next clock."""
    counter = programmed(4, 3)
    counter.write(2, 3)
    counter.write(2, 0)
    assert levels(counter, 2, 6) == "----_-"


def test_mode_5_waveform() -> None:
    """The strobe comes N + 1 clocks after the gate's edge (figure 20)."""
    counter = programmed(5, 3, gate=False)
    counter.set_gate(5, True)
    counter.set_gate(6, False)
    assert levels(counter, 5, 6) == "----_-"


@pytest.mark.parametrize(("bits", "mode"), [(6, 2), (7, 3), (2, 2), (5, 5)])
def test_mode_bits(bits: int, mode: int) -> None:
    """The upper bit is "don't care" for modes 2 and 3; the status shows what was written."""
    counter = programmed(bits, 4)
    counter.latch_status(0)
    assert counter.mode == mode and counter.read(0) & 0x3F == 0x30 | bits << 1


def test_bcd() -> None:
    """Counts and values are decimal, 0 stands for 10000."""
    counter = programmed(0, 0x1000, bcd=True)
    counter.latch_count(2)
    assert (counter.read(2), counter.read(2)) == (0x99, 0x09)
    assert programmed(2, 0, bcd=True).value(1) == 0
    assert programmed(2, 0, bcd=True).value(2) == 0x9999
    assert programmed(0, 0x0002, bcd=True).value(4) == 0x9999


def test_largest_count() -> None:
    """0 stands for 65536."""
    counter = programmed(0, 0)
    assert not counter.out(65536) and counter.out(65537)


# --- reading and writing ---


def test_access_modes() -> None:
    """Low byte only, high byte only: the other half of a count is 0."""
    low, high = PitCounter(True), PitCounter(True)
    low.set_control(0x14)
    low.write(0, 0x34)
    high.set_control(0x24)
    high.write(0, 0x12)
    assert (low.value(1), low.read(1), low.read(1)) == (0x34, 0x34, 0x34)
    assert (high.value(1), high.read(1), high.read(1)) == (0x1200, 0x12, 0x12)


def test_latch_holds_the_count(rig: Rig) -> None:
    """The latched value is read in two bytes, whatever passes in between; a second latch waits."""
    rig.control(0x74)
    rig.count(1, 0x1000)
    rig.ticks(1)
    rig.control(0x40)
    rig.ticks(100)
    rig.control(0x40)
    assert rig.value(1) == 0x1000
    rig.control(0x40)
    assert rig.value(1) == 0x1000 - 100


def test_control_word_drops_latches(rig: Rig) -> None:
    """Reprogramming a counter releases what was latched."""
    rig.control(0x74)
    rig.count(1, 0x1000)
    rig.control(0xC4)
    rig.control(0x74)
    assert rig.value(1) == 0


def test_read_back(rig: Rig) -> None:
    """Status comes first, then the count; only the counters named are latched."""
    rig.control(0x76)
    rig.count(1, 0x100)
    rig.ticks(1)
    rig.control(0xC0 | 4)
    rig.ticks(1)
    assert rig.pit.read(1, 1) == 0x80 | 0x36
    assert rig.value(1) == 0x100
    assert rig.value(1) == 0xFE


def test_status_null_count(rig: Rig) -> None:
    """Null count is set by the control word and by a count, and cleared by the load."""
    rig.control(0x70)
    assert rig.status(1) == 0x40 | 0x30
    rig.count(1, 5)
    assert rig.status(1) == 0x40 | 0x30
    rig.ticks(1)
    assert rig.status(1) == 0x30
    rig.ticks(5)
    assert rig.status(1) == 0x80 | 0x30


def test_control_port_reads_nothing(rig: Rig) -> None:
    """The control port is write-only."""
    assert rig.pit.read(3, 1) == 0xFF


# --- IRQ0 ---


def test_periodic_interrupt(rig: Rig) -> None:
    """Mode 2 interrupts once per period, at the right time."""
    rig.control(0x34)
    rig.count(0, 11932)
    start = rig.irq0.rises
    rig.ticks(11932)
    assert rig.irq0.rises == start
    rig.ticks(1)
    assert rig.irq0.rises == start + 1
    rig.ticks(11932 * 99)
    assert rig.irq0.rises == start + 100


def test_square_wave_interrupts_once_per_period(rig: Rig) -> None:
    """Mode 3 interrupts at the end of the low half."""
    rig.control(0x36)
    rig.count(0, 1001)
    start = rig.irq0.rises
    rig.ticks(1 + 1001 * 10)
    assert rig.irq0.rises == start + 10


def test_one_shot_interrupt(rig: Rig) -> None:
    """Mode 0 raises the line once and leaves it; the next count lowers it."""
    rig.control(0x30)
    rig.count(0, 1000)
    rig.ticks(1000)
    assert rig.irq0.changes == []
    rig.ticks(1)
    assert rig.irq0.changes == [True]
    rig.ticks(200_000)
    rig.count(0, 1000)
    assert rig.irq0.changes == [True, False]


def test_strobe_interrupts(rig: Rig) -> None:
    """Mode 4 interrupts at the end of its strobe."""
    rig.control(0x38)
    rig.count(0, 1000)
    rises = rig.irq0.rises
    rig.ticks(1001)
    assert rig.irq0.rises == rises
    rig.ticks(1)
    assert rig.irq0.rises == rises + 1
    rig.ticks(100_000)
    assert rig.irq0.rises == rises + 1


def test_no_alarm_without_a_count(rig: Rig) -> None:
    """Until the guest programs counter 0, and for the other counters, nothing is armed."""
    rig.control(0xB6)
    rig.count(2, 1000)
    rig.control(0x34)
    assert rig.clock.timers[0].deadline is None


def test_shortest_period_spares_the_host(rig: Rig) -> None:
    """A period of two ticks does not occupy the host: alarms keep a distance."""
    rig.control(0x14)
    rig.pit.write(0, 1, 2)
    rig.clock.advance(1_000_000)
    assert rig.clock.timers[0].armed < 60


def test_count_of_one_is_no_clock(rig: Rig) -> None:
    """1 is not a legal count in modes 2 and 3: no alarm is left running."""
    for mode in (0x14, 0x16):
        rig.control(mode)
        rig.pit.write(0, 1, 1)
        rig.clock.advance(1_000_000)
        assert rig.clock.timers[0].deadline is None


def test_due_interrupt_is_not_lost_by_a_write(rig: Rig) -> None:
    """A write that comes before a late alarm does not swallow the interrupt."""
    rig.control(0x34)
    rig.count(0, 1000)
    rises = rig.irq0.rises
    late = rig.pit.state()
    assert late.alarm is not None
    rig.clock.timers[0].cancel()
    rig.ticks(1500)
    rig.pit.restore(late)
    rig.control(0x34)
    assert rig.irq0.rises == rises + 1


# --- port 0x61 ---


def test_calibration_with_counter_2(rig: Rig) -> None:
    """Gate on, mode 0, wait for OUT2: how kernels time the TSC."""
    port = rig.pit.port_b
    port.write(0, 1, port.read(0, 1) & ~2 | 1)
    rig.control(0xB0)
    rig.count(2, 59659)
    assert not port.read(0, 1) & 0x20
    rig.ticks(59659)
    assert not port.read(0, 1) & 0x20
    rig.ticks(1)
    assert port.read(0, 1) & 0x20


def test_refresh_toggles(rig: Rig) -> None:
    """Bit 4 toggles about every 15 us."""
    seen = set()
    for _ in range(4):
        seen.add(rig.pit.port_b.read(0, 1) & 0x10)
        rig.clock.advance(15_086)
    assert seen == {0, 0x10}


def test_port_b_keeps_four_bits(rig: Rig) -> None:
    """Bits 4-7 are read-only."""
    rig.pit.port_b.write(0, 1, 0xFF)
    assert rig.pit.port_b.read(0, 1) & 0xCF == 0x0F


def test_reset(rig: Rig) -> None:
    """Everything stops, lines are low, the gate of counter 2 is closed."""
    fresh = Rig().pit.state()
    rig.pit.port_b.write(0, 1, 3)
    rig.control(0x34)
    rig.count(0, 100)
    rig.ticks(300)
    rig.pit.reset()
    assert rig.pit.state() == fresh and not rig.irq0.level
    assert rig.pit.port_b.state().bits == 0


# --- properties ---

STEPS = st.one_of(
    st.tuples(st.just("port"), st.integers(0, 3), st.integers(0, 255)),
    st.tuples(st.just("count"), st.integers(0, 2), st.integers(0, 300)),
    st.tuples(st.just("read"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("gate"), st.integers(0, 255), st.just(0)),
    st.tuples(st.just("ticks"), st.integers(0, 1000), st.just(0)),
)


def drive(rig: Rig, step: tuple[str, int, int]) -> object:
    """One random thing that a guest does; returns what it saw."""
    name, first, second = step
    if name == "port":
        rig.pit.write(first, 1, second)
    elif name == "count":
        rig.count(first, second)
    elif name == "read":
        return rig.pit.read(first, 1)
    elif name == "gate":
        rig.pit.port_b.write(0, 1, first)
        return rig.pit.port_b.read(0, 1)
    else:
        rig.ticks(first)
    return None


@settings(deadline=None, max_examples=200)
@given(st.lists(STEPS, max_size=40), st.lists(STEPS, max_size=10))
def test_any_driver_and_a_round_trip(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    """Nothing raises; a restored PIT is the same, drives the same and goes on the same."""
    first, second = Rig(), Rig()
    for step in before:
        saw = drive(first, step)
        assert saw is None or 0 <= int(str(saw)) <= 0xFF
    second.clock.advance(first.clock.now())
    state = first.pit.state()
    second.pit.restore(state)
    assert second.pit.state() == state
    assert second.irq0.level == first.irq0.level
    for step in after:
        assert drive(second, step) == drive(first, step)
    assert second.pit.state() == first.pit.state()


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, 5), st.integers(2, 40), st.booleans(),
    st.lists(st.tuples(st.integers(0, 30), st.one_of(st.booleans(), st.integers(2, 40))),
             max_size=5),
)  # fmt: skip
@example(4, 2, True, [(3, 2)])
@example(4, 2, True, [(3, False), (0, 2)])
def test_next_rise_is_where_the_output_rises(
    mode: int, count: int, gate: bool, events: list[tuple[int, bool | int]]
) -> None:
    """After any gate edges and new counts, the alarm's time is the output's next rising edge."""
    counter = programmed(mode, count, gate=gate)
    tick = 0
    for delay, event in events:
        tick += delay
        if isinstance(event, bool):
            counter.set_gate(tick, event)
        else:
            counter.write(tick, event)
            counter.write(tick, 0)
    rise = counter.next_rise(tick)
    outputs = [counter.out(t) for t in range(tick, tick + 130)]
    rises = [tick + i for i in range(1, 130) if outputs[i] and not outputs[i - 1]]
    assert rise == (rises[0] if rises else None)


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 0xFFFF), st.booleans(), st.integers(0, 1 << 40))
def test_value_is_sixteen_bits(mode: int, count: int, bcd: bool, tick: int) -> None:
    """Whatever was programmed, also bad decimal digits, a read is two bytes."""
    counter = programmed(mode, count, bcd=bcd)
    counter.set_gate(0, False)
    counter.set_gate(0, True)
    assert 0 <= counter.value(tick) <= 0xFFFF
    assert replace(counter.state()) == counter.state()
