"""MC146818A: time, calendar, setting, interrupts, CMOS memory."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices.calendar import date_of_day, day_of_date, weekday_of_day
from kvmkit.devices.rtc import Rtc
from tests.devices.fakes import FakeClock, RecordingLine

NS = 1_000_000_000
WALL = 1_700_000_000 * NS  # Tuesday 2023-11-14 22:13:20 UTC
A, B, C, D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF, UIP = 0x80, 0x40, 0x20, 0x10, 0x80


class Cmos:
    """A clock with its surroundings, and a driver's register accesses."""

    def __init__(self, **sizes: int) -> None:
        self.clock = FakeClock(wall=WALL)
        self.irq = RecordingLine()
        self.rtc = Rtc(self.clock, self.irq, **sizes)

    def high(self) -> bool:
        return self.irq.level

    def get(self, register: int) -> int:
        self.rtc.write(0, 1, register)
        return self.rtc.read(1, 1)

    def put(self, register: int, value: int) -> None:
        self.rtc.write(0, 1, register)
        self.rtc.write(1, 1, value)

    def time(self) -> list[int]:
        """Century, year, month, day, hour, minute, second as they stand."""
        return [self.get(r) for r in (CENTURY, 9, 8, 7, 4, 2, 0)]

    @property
    def deadline(self) -> int | None:
        return self.clock.timers[0].deadline


def test_calendar_agrees_with_pythons() -> None:
    """Dates from 1600 to 2400 and back, and their days of the week."""
    for ordinal in range(datetime.date(1600, 1, 1).toordinal(), 876_900, 13):
        date = datetime.date.fromordinal(ordinal)
        days = ordinal - 719_163
        assert date_of_day(days) == (date.year, date.month, date.day)
        assert day_of_date(date.year, date.month, date.day) == days
        assert weekday_of_day(days) == date.isoweekday() % 7


def test_time_in_bcd_24_hours() -> None:
    """At power-on the clock tells the wall time, BCD, 24 hours, Sunday is 1."""
    cmos = Cmos()
    assert cmos.get(B) == H24
    assert cmos.time() == [0x20, 0x23, 0x11, 0x14, 0x22, 0x13, 0x20]
    assert cmos.get(6) == 3


def test_time_in_binary_12_hours() -> None:
    """With DM set and 24/12 clear, hours after noon have bit 7."""
    cmos = Cmos()
    cmos.put(B, BINARY)
    assert cmos.time() == [20, 23, 11, 14, 0x80 | 10, 13, 20]


@pytest.mark.parametrize(
    ("hour", "code"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)]
)
def test_twelve_hours(hour: int, code: int) -> None:
    """Midnight is 12 AM and noon 12 PM."""
    cmos = Cmos()
    cmos.put(4, hour // 10 << 4 | hour % 10)
    cmos.put(B, 0)
    assert cmos.get(4) == code
    cmos.put(4, code)
    cmos.put(B, H24)
    assert cmos.get(4) == hour // 10 << 4 | hour % 10


def test_time_passes_over_new_year() -> None:
    """Seconds carry into the century."""
    cmos = Cmos()
    for register, value in zip(
        (CENTURY, 9, 8, 7, 4, 2, 0), (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59), strict=True
    ):
        cmos.put(register, value)
    cmos.clock.advance(NS)
    assert cmos.time() == [0x20, 0x00, 0x01, 0x01, 0, 0, 0]


def test_set_freezes_and_resumes() -> None:
    """With SET the registers are memory; clearing it runs on from what they hold."""
    cmos = Cmos()
    cmos.put(B, H24 | SET)
    cmos.clock.advance(10 * NS)
    assert cmos.get(0) == 0x20
    cmos.put(0, 0x45)
    cmos.put(6, 6)
    cmos.put(B, H24)
    assert cmos.time()[-2:] == [0x13, 0x45]
    cmos.clock.advance(2 * NS)
    assert cmos.get(0) == 0x47
    assert cmos.get(6) == 6
    cmos.clock.advance(86_400 * NS)
    assert cmos.get(6) == 7


def test_divider_reset_starts_half_a_second_before_the_next() -> None:
    """The first update comes 500 ms after the divider is released."""
    cmos = Cmos()
    cmos.put(B, H24 | SET)
    cmos.put(A, 0x76)
    cmos.put(0, 0x10)
    cmos.put(B, H24)
    cmos.clock.advance(123_456_789)
    assert cmos.get(0) == 0x10
    cmos.put(A, 0x26)
    cmos.clock.advance(NS // 2 - 1)
    assert cmos.get(0) == 0x10
    cmos.clock.advance(1)
    assert cmos.get(0) == 0x11


def test_update_in_progress_before_the_second_ends() -> None:
    """UIP is high for 2228 us before the registers change, never with SET."""
    cmos = Cmos()
    assert cmos.get(A) == 0x26
    cmos.clock.advance(NS - 2_228_001)
    assert not cmos.get(A) & UIP
    cmos.clock.advance(1)
    assert cmos.get(A) & UIP
    cmos.put(B, H24 | SET)
    assert not cmos.get(A) & UIP
    cmos.put(B, H24)
    cmos.clock.advance(2_228_000)
    assert not cmos.get(A) & UIP


def test_nothing_armed_until_enabled() -> None:
    """An idle clock wakes nobody, whatever is read and set."""
    cmos = Cmos()
    cmos.put(0, 0x30)
    cmos.get(C)
    assert cmos.deadline is None
    assert cmos.clock.timers[0].armed == 0


def test_flags_without_interrupts_are_seen_when_polled() -> None:
    """UF and PF are set though not enabled; IRQF is not."""
    cmos = Cmos()
    cmos.clock.advance(NS)
    assert cmos.get(C) & (IRQF | UF | PF) == UF | PF
    assert cmos.get(C) == 0
    assert cmos.irq.changes == []


def test_update_interrupt_each_second() -> None:
    """UIE raises IRQ 8 at each second; reading C withdraws it."""
    cmos = Cmos()
    cmos.put(B, H24 | UIE)
    cmos.clock.advance(NS)
    assert cmos.high()
    assert cmos.get(C) & (IRQF | UF) == IRQF | UF
    assert not cmos.high()
    cmos.clock.advance(NS)
    assert cmos.high()


@pytest.mark.parametrize(("rate", "hertz"), [(6, 1024), (15, 2), (3, 8192), (1, 256), (2, 128)])
def test_periodic_interrupt_rate(rate: int, hertz: int) -> None:
    """The periodic interrupt comes at the rate of register A."""
    cmos = Cmos()
    cmos.put(A, 0x20 | rate)
    cmos.put(B, H24 | PIE)
    for _ in range(64):
        assert cmos.deadline is not None
        cmos.clock.advance(cmos.deadline - cmos.clock.now())
        assert cmos.get(C) & PF
    assert cmos.clock.now() == -(-64 * NS // hertz)


def test_rate_zero_is_silent() -> None:
    """Rate 0 gives no periodic interrupt."""
    cmos = Cmos()
    cmos.put(A, 0x20)
    cmos.put(B, H24 | PIE)
    assert cmos.deadline is None


@pytest.mark.parametrize(
    ("alarm", "after"),
    [
        ((0x22, 0x13, 0x30), 10),
        ((0xFF, 0xFF, 0x10), 50),
        ((0xC0, 0x15, 0x00), 100),
        ((0xFF, 0xFF, 0xFF), 1),
        ((0x22, 0x13, 0x20), 86_400),
        ((0x01, 0x00, 0x00), 2 * 3600 + 46 * 60 + 40),
    ],
)
def test_alarm(alarm: tuple[int, int, int], after: int) -> None:
    """The alarm comes at the next time its bytes match, 0xc0-0xff matching all."""
    cmos = Cmos()
    for register, value in zip((5, 3, 1), alarm, strict=True):
        cmos.put(register, value)
    cmos.put(B, H24 | AIE)
    cmos.clock.advance(after * NS - 1)
    assert not cmos.high()
    cmos.clock.advance(1)
    assert cmos.high()
    assert cmos.get(C) & (IRQF | AF) == IRQF | AF


def test_alarm_that_never_matches() -> None:
    """An alarm byte that no time has arms nothing."""
    cmos = Cmos()
    cmos.put(1, 0x7A)
    cmos.put(B, H24 | AIE)
    assert cmos.deadline is None


def test_set_clears_uie() -> None:
    """SET going high clears UIE."""
    cmos = Cmos()
    cmos.put(B, H24 | UIE)
    cmos.put(B, H24 | UIE | SET)
    assert cmos.get(B) == H24 | SET
    assert cmos.deadline is None


def test_register_d_says_valid_and_is_read_only() -> None:
    """VRT is set and nothing else."""
    cmos = Cmos()
    cmos.put(D, 0)
    assert cmos.get(D) == 0x80


def test_memory_sizes() -> None:
    """CMOS tells of the memory as firmware would, with a right checksum."""
    cmos = Cmos(below_4g=3 << 30, above_4g=5 << 30)

    def word(at: int) -> int:
        return cmos.get(at) | cmos.get(at + 1) << 8

    assert word(0x15) == 640
    assert word(0x17) == word(0x30) == 0xFFFF
    assert word(0x34) == ((3 << 30) - (16 << 20)) >> 16
    assert word(0x5B) | cmos.get(0x5D) << 16 == (5 << 30) >> 16
    assert cmos.get(0x2E) << 8 | cmos.get(0x2F) == sum(cmos.get(at) for at in range(0x10, 0x2E))


def test_memory_keeps_what_is_written_and_index_is_write_only() -> None:
    """Bytes outside the clock's are memory; bit 7 of the index is the NMI mask."""
    cmos = Cmos()
    cmos.put(0x80 | 0x7F, 0x5A)
    assert cmos.get(0x7F) == 0x5A
    before = cmos.rtc.nmi_masked
    cmos.rtc.write(0, 1, 0x80)
    assert (before, cmos.rtc.nmi_masked) == (False, True)
    assert cmos.rtc.read(0, 1) == 0xFF


def test_reset_keeps_time_and_memory() -> None:
    """The RESET pin turns interrupts off and nothing else."""
    cmos = Cmos()
    cmos.put(0x40, 0x12)
    cmos.put(4, 0x03)
    cmos.put(B, H24 | UIE | PIE)
    cmos.clock.advance(NS)
    cmos.rtc.reset()
    assert not cmos.high()
    assert cmos.deadline is None
    assert (cmos.get(B), cmos.get(0x40), cmos.get(4)) == (H24, 0x12, 0x03)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 0x0E), st.just(CENTURY), st.integers(0, 255)),
            st.integers(0, 255),
            st.integers(0, 3 * NS),
        ),
        max_size=40,
    )
)
def test_any_accesses_and_state_round_trip(steps: list[tuple[int, int, int]]) -> None:
    """Any register takes any value; the copy of the state has state, line and timer."""
    cmos, copy = Cmos(), Cmos()
    for register, value, wait in steps:
        cmos.put(register, value)
        cmos.clock.advance(wait % 50_000_000 if value & 1 else 0)
        assert all(0 <= cmos.get(r) <= 0xFF for r in (*range(0x0C), CENTURY))
    copy.clock.advance(cmos.clock.now())
    copy.rtc.restore(cmos.rtc.state())
    assert copy.rtc.state() == cmos.rtc.state()
    assert copy.high() == cmos.high()
    assert copy.deadline == cmos.deadline
    assert copy.time() == cmos.time()


@settings(deadline=None)
@given(st.integers(0, 3), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))
def test_any_port_access(offset: int, size: int, value: int) -> None:
    """Any size at any port: no exception, and no more bits than asked for."""
    cmos = Cmos()
    cmos.rtc.write(offset, size, value & (1 << 8 * size) - 1)
    assert 0 <= cmos.rtc.read(offset, size) < 1 << 8 * size
