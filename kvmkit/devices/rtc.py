"""MC146818A real-time clock and CMOS memory.

Motorola MC146818A data sheet, "Register A" to "Register D", "Update cycle",
"Interrupts"; IBM PC AT Technical Reference for the two ports (index and data)
and for the use of the memory behind the clock's fourteen bytes. The century at
0x32 is the byte the ACPI FADT's CENTURY field names (ACPI 6.5, 5.2.9).

Time passes without a timer: the clock is the wall clock plus an offset, worked
out when it is read; the guest setting it changes the offset. Flags are worked
out from the time of the last look. A timer is armed only for an interrupt
that is enabled.
"""

from __future__ import annotations

from kvmkit.devices.calendar import date_of_day, day_of_date, weekday_of_day
from kvmkit.devices.cmos import CMOS_SIZE, initial_memory
from kvmkit.devices.registers import read_bytes, write_bytes
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmkit.devices.device import Clock, Line

__all__ = ["Rtc", "RtcState"]

# Registers
SECONDS: Final = 0x00
SECONDS_ALARM: Final = 0x01
MINUTES: Final = 0x02
MINUTES_ALARM: Final = 0x03
HOURS: Final = 0x04
HOURS_ALARM: Final = 0x05
DAY_OF_WEEK: Final = 0x06
DAY: Final = 0x07
MONTH: Final = 0x08
YEAR: Final = 0x09
REGISTER_A: Final = 0x0A
REGISTER_B: Final = 0x0B
REGISTER_C: Final = 0x0C
REGISTER_D: Final = 0x0D
CENTURY: Final = 0x32

TIME_REGISTERS: Final = (SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY)
ALARM_REGISTERS: Final = (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM)

# Register A
A_UIP: Final = 0x80  # update in progress, read-only
A_DIVIDER_RESET: Final = 0x60  # both of DV2 and DV1: the divider is held
A_RATE: Final = 0x0F
A_BITS: Final = 0x7F
A_POWER_ON: Final = 0x26  # 32.768 kHz time base, 1024 Hz

# Register B
B_SET: Final = 0x80  # updates stopped: the time may be written
B_PIE: Final = 0x40
B_AIE: Final = 0x20
B_UIE: Final = 0x10
B_SQWE: Final = 0x08
B_BINARY: Final = 0x04
B_24_HOURS: Final = 0x02

# Register C: flags at the places of their enables in register B
C_IRQF: Final = 0x80
C_PF: Final = B_PIE
C_AF: Final = B_AIE
C_UF: Final = B_UIE

# Register D
D_VRT: Final = 0x80  # memory and time are valid

PM: Final = 0x80  # in the hours of 12-hour mode
DONT_CARE: Final = 0xC0  # an alarm byte with both bits matches everything
INDEX_MASK: Final = CMOS_SIZE - 1

NS: Final = 1_000_000_000
TIME_BASE_HZ: Final = 32_768
UPDATE_NS: Final = 244_000 + 1_984_000  # UIP is high this long before a second ends
HALF_SECOND: Final = NS // 2  # the first update after a divider reset comes this late


class RtcState(Record):
    """The clock at rest. ``offset`` is its time less the wall clock's, ``seen``
    its time when the flags were last brought up to date, both in ns; ``weekday``
    how many days its day of the week runs ahead of the date's."""

    index: int
    memory: bytes
    offset: int
    weekday: int
    seen: int


class Rtc:
    """The clock, 2 ports: index and data.

    ``below_4g`` and ``above_4g`` are the bytes of guest memory below and above
    4 GiB, which the CMOS memory tells of. The time is UTC.
    """

    def __init__(
        self, clock: Clock, irq8: Line, *, below_4g: int = 0, above_4g: int = 0
    ) -> None:
        self._clock = clock
        self._irq8 = irq8
        self._level = False
        self._alarm = clock.timer(self._alarm_fired)
        self._index = 0
        self._memory = bytearray(initial_memory(below_4g, above_4g))
        self._memory[REGISTER_A] = A_POWER_ON
        self._memory[REGISTER_B] = B_24_HOURS
        self._offset = 0
        self._weekday = 0
        self._seen = self._now()

    @property
    def nmi_masked(self) -> bool:
        """Bit 7 of the index port: the guest wants no NMI."""
        return bool(self._index & 0x80)

    # Ports

    def read(self, offset: int, size: int) -> int:
        return read_bytes(self._read, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        write_bytes(self._write, offset, size, value)

    def _read(self, offset: int) -> int:
        if offset != 1:
            return 0xFF  # the index port is write-only
        register = self._index & INDEX_MASK
        if register in TIME_REGISTERS and not self._halted():
            self._latch()
        elif register == REGISTER_A:
            return self._memory[REGISTER_A] | (A_UIP if self._updating() else 0)
        elif register == REGISTER_C:
            return self._read_flags()
        elif register == REGISTER_D:
            return D_VRT
        return self._memory[register]

    def _write(self, offset: int, value: int) -> None:
        if offset == 0:
            self._index = value
            return
        if offset != 1:
            return
        register = self._index & INDEX_MASK
        self._catch_up()
        if register in TIME_REGISTERS:
            self._write_time(register, value)
        elif register == REGISTER_A:
            self._write_a(value & A_BITS)
        elif register == REGISTER_B:
            self._write_b(value)
        elif register not in (REGISTER_C, REGISTER_D):
            self._memory[register] = value
        if register <= REGISTER_B or register == CENTURY:
            self._update()

    # Time

    def _now(self) -> int:
        """The clock's time in ns since 1970-01-01 00:00."""
        return self._clock.wall() + self._offset

    def _divider_held(self) -> bool:
        return self._memory[REGISTER_A] & A_DIVIDER_RESET == A_DIVIDER_RESET

    def _halted(self) -> bool:
        """The time stands still and its registers are plain memory."""
        return bool(self._memory[REGISTER_B] & B_SET) or self._divider_held()

    def _updating(self) -> bool:
        return not self._halted() and self._now() % NS >= NS - UPDATE_NS

    def _encode(self, value: int) -> int:
        if self._memory[REGISTER_B] & B_BINARY:
            return value & 0xFF
        return value // 10 % 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        if self._memory[REGISTER_B] & B_BINARY:
            return value
        return (value >> 4) * 10 + (value & 0x0F)

    def _encode_hour(self, hour: int) -> int:
        if self._memory[REGISTER_B] & B_24_HOURS:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._memory[REGISTER_B] & B_24_HOURS:
            return self._decode(value)
        return self._decode(value & ~PM) % 12 + (12 if value & PM else 0)

    def _latch(self) -> None:
        """Put the time into the registers."""
        days, second = divmod(self._now() // NS, 86_400)
        year, month, day = date_of_day(days)
        encode, memory = self._encode, self._memory
        memory[SECONDS] = encode(second % 60)
        memory[MINUTES] = encode(second // 60 % 60)
        memory[HOURS] = self._encode_hour(second // 3600)
        memory[DAY_OF_WEEK] = encode((weekday_of_day(days) + self._weekday) % 7 + 1)
        memory[DAY] = encode(day)
        memory[MONTH] = encode(month)
        memory[YEAR] = encode(year % 100)
        memory[CENTURY] = encode(year // 100)

    def _commit(self) -> None:
        """Run on from the time in the registers. What is no date counts on from
        the nearest one; the fraction of the second stays."""
        decode, memory = self._decode, self._memory
        days = day_of_date(
            decode(memory[CENTURY]) * 100 + decode(memory[YEAR]),
            min(max(decode(memory[MONTH]), 1), 12),
            decode(memory[DAY]),
        )
        second = (
            self._decode_hour(memory[HOURS]) * 3600
            + decode(memory[MINUTES]) * 60
            + decode(memory[SECONDS])
        )
        weekday = decode(memory[DAY_OF_WEEK]) - 1
        days += second // 86_400
        self._weekday = (weekday - weekday_of_day(days)) % 7 if 0 <= weekday < 7 else 0
        seconds = days * 86_400 + second % 86_400
        self._offset += (seconds - self._now() // NS) * NS
        self._seen = self._now()

    def _write_time(self, register: int, value: int) -> None:
        if self._halted():
            self._memory[register] = value
            return
        self._latch()
        self._memory[register] = value
        self._commit()

    def _write_a(self, value: int) -> None:
        was_held, was_halted = self._divider_held(), self._halted()
        if not was_halted:
            self._latch()
        self._memory[REGISTER_A] = value
        if was_held and not self._divider_held():
            self._offset += HALF_SECOND - self._now() % NS
            self._seen = self._now()
        if was_halted and not self._halted():
            self._commit()

    def _write_b(self, value: int) -> None:
        was_halted = self._halted()
        if not was_halted:
            self._latch()
        if value & B_SET:
            value &= ~B_UIE  # "the UIE bit is cleared ... by the SET bit going high"
        self._memory[REGISTER_B] = value
        if was_halted and not self._halted():
            self._commit()

    # Interrupts

    def _period(self) -> int:
        """Ticks of the 32.768 kHz time base between periodic flags; 0: none."""
        rate = self._memory[REGISTER_A] & A_RATE
        if rate == 0 or self._divider_held():
            return 0
        return 1 << (rate - 1 if rate > 2 else rate + 6)  # rates 1, 2 are 256 and 128 Hz

    def _catch_up(self) -> None:
        """Set the flags of what has happened since the last look."""
        seen, self._seen = self._seen, self._now()
        if self._seen <= seen:
            return
        period = self._period()
        if period:
            scale = NS * period
            if self._seen * TIME_BASE_HZ // scale != seen * TIME_BASE_HZ // scale:
                self._memory[REGISTER_C] |= C_PF
        before, now = seen // NS, self._seen // NS
        if now != before and not self._halted():
            self._memory[REGISTER_C] |= C_UF
            alarm = self._next_alarm(before)
            if alarm is not None and alarm <= now:
                self._memory[REGISTER_C] |= C_AF

    def _alarm_matches(self) -> tuple[list[int], list[int], list[int]]:
        """The hours, minutes and seconds at which the alarm goes off."""
        hour, minute, second = (
            self._memory[register] for register in (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM)
        )
        sixty = [self._encode(value) for value in range(60)]
        any_hour, any_minute, any_second = (
            alarm & DONT_CARE == DONT_CARE for alarm in (hour, minute, second)
        )
        return (
            [v for v in range(24) if any_hour or self._encode_hour(v) == hour],
            [v for v, code in enumerate(sixty) if any_minute or code == minute],
            [v for v, code in enumerate(sixty) if any_second or code == second],
        )

    def _next_alarm(self, after: int) -> int | None:
        """The first second later than ``after`` that the alarm matches; None: never."""
        hours, minutes, seconds = self._alarm_matches()
        if not (hours and minutes and seconds):
            return None
        day, of_day = divmod(after + 1, 86_400)
        hour, minute, second = of_day // 3600, of_day // 60 % 60, of_day % 60
        start = day * 86_400
        if hour in hours:
            if minute in minutes:
                for match in seconds:
                    if match >= second:
                        return start + hour * 3600 + minute * 60 + match
            for match in minutes:
                if match > minute:
                    return start + hour * 3600 + match * 60 + seconds[0]
        first = minutes[0] * 60 + seconds[0]
        for match in hours:
            if match > hour:
                return start + match * 3600 + first
        return start + 86_400 + hours[0] * 3600 + first

    def _read_flags(self) -> int:
        """Register C; reading it clears it and lets the line go."""
        self._catch_up()
        flags = self._memory[REGISTER_C]
        if flags & self._memory[REGISTER_B]:
            flags |= C_IRQF
        self._memory[REGISTER_C] = 0
        self._update()
        return flags

    def _alarm_fired(self) -> None:
        self._catch_up()
        self._update()

    def _update(self) -> None:
        """Drive the line; wait for the next flag that would raise it."""
        level = bool(self._memory[REGISTER_C] & self._memory[REGISTER_B])
        if level != self._level:
            self._level = level
            self._irq8(level)
        waits = self._next_wanted()
        if waits is None:
            self._alarm.cancel()
        else:
            self._alarm.arm(self._clock.now() + max(1, waits - self._now()))

    def _next_wanted(self) -> int | None:
        """The clock's time of the next enabled flag that is not set yet."""
        wanted = self._memory[REGISTER_B] & ~self._memory[REGISTER_C]
        now = self._now()
        times = []
        period = self._period()
        if wanted & B_PIE and period:
            tick = now * TIME_BASE_HZ // (NS * period) + 1
            times.append(-(-tick * NS * period // TIME_BASE_HZ))  # rounded up
        if not self._halted():
            if wanted & B_UIE:
                times.append((now // NS + 1) * NS)
            if wanted & B_AIE:
                alarm = self._next_alarm(now // NS)
                if alarm is not None:
                    times.append(alarm * NS)
        return min(times, default=None)

    # Life

    def reset(self) -> None:
        """The RESET pin: interrupts off. A battery keeps time and memory."""
        self._index = 0
        self._memory[REGISTER_B] &= ~(B_PIE | B_AIE | B_UIE | B_SQWE)
        self._memory[REGISTER_C] = 0
        self._update()

    def state(self) -> RtcState:
        return RtcState(
            index=self._index,
            memory=bytes(self._memory),
            offset=self._offset,
            weekday=self._weekday,
            seen=self._seen,
        )

    def restore(self, state: RtcState) -> None:
        self._index = state.index
        self._memory = bytearray(state.memory)
        self._offset = state.offset
        self._weekday = state.weekday
        self._seen = state.seen
        level = bool(self._memory[REGISTER_C] & self._memory[REGISTER_B])
        self._level = not level  # so that the line is driven
        self._update()
