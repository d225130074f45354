"""How a local APIC accepts, ranks and hands out interrupts (Intel SDM vol. 3, 11.5-11.8).

IRR, ISR and TMR are Python integers of 256 bits, so that the highest vector is
one ``bit_length()``; the CPU is told only when "something is deliverable"
changes. The registers that software sees are in :mod:`kvmkit.devices.lapic`.
"""

from __future__ import annotations

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.apic_message import MODES, ApicMessage, DeliveryMode
from kvmkit.devices.lapic_timer import LapicTimer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from kvmkit.devices.device import Clock
else:
    Protocol = object  # typing takes 3 ms to import

__all__ = ["Cpu", "LapicCore"]

FIXED = DeliveryMode.FIXED
LOWEST_PRIORITY = DeliveryMode.LOWEST_PRIORITY
EXTINT = DeliveryMode.EXTINT


class Cpu(Protocol):
    """What a local APIC does to its CPU."""

    def interrupt(self, pending: bool) -> None:
        """The INTR signal: while True, the CPU asks ``acknowledge()`` when it can take one."""

    def nmi(self) -> None:
        """A non-maskable interrupt."""

    def init(self) -> None:
        """INIT: reset and wait for a start-up message."""

    def startup(self, vector: int) -> None:
        """Start-up message: begin at ``vector << 12`` if waiting for it; else ignore it."""

    def smi(self) -> None:
        """A system-management interrupt."""


class LapicCore:
    """Interrupt acceptance, priorities, end of interrupt and the local vector table."""

    __slots__ = (
        "_base", "_broadcast_eoi", "_cpu", "_errors", "_esr", "_extint", "_extint_message",
        "_irr", "_isr", "_lint", "_lvt", "_pending", "_pic_acknowledge", "_ppr", "_svr",
        "_timer", "_tmr", "_tpr",
    )  # fmt: skip

    def __init__(
        self, clock: Clock, cpu: Cpu, broadcast_eoi: Callable[[int], None], *,
        tsc: Callable[[], int], tsc_hz: int, bus_hz: int,
        pic_acknowledge: Callable[[], int] | None,
    ) -> None:  # fmt: skip
        self._cpu = cpu
        self._broadcast_eoi = broadcast_eoi
        self._pic_acknowledge = pic_acknowledge
        self._timer = LapicTimer(clock, self._timer_expired, tsc, tsc_hz, bus_hz)
        self._base = 0
        self._lint = [False, False]  # the pins' levels; wires, so no reset changes them
        self._extint = False  # the CPU shall ask the 8259A
        self._pending = False
        self._clear()

    def _clear(self) -> None:
        # The registers after power-up and after INIT (11.4.7.1, 11.4.7.3).
        self._irr = self._isr = self._tmr = 0
        self._tpr = self._ppr = 0
        self._svr = reg.SVR_RESET
        self._esr = self._errors = 0
        self._lvt = dict.fromkeys(reg.LVT_WRITABLE, reg.LVT_RESET)
        self._extint_message = False
        self._timer.reset()

    # --- the CPU's side ---

    def acknowledge(self) -> int | None:
        """The vector to deliver now, or None when nothing is deliverable.

        It moves from IRR to ISR (11.8.4). An external interrupt, which the
        priorities do not hold back, comes first; its vector is the 8259A's.
        """
        if self._extint:
            return self._acknowledge_extint()
        irr = self._irr
        vector = irr.bit_length() - 1
        if vector >> 4 <= self._ppr >> 4:
            return None
        bit = 1 << vector
        self._irr = irr ^ bit
        self._isr |= bit
        # Its class is above that of TPR and ISR, and the rest of IRR is not above it.
        self._ppr = vector & 0xF0
        self._pending = False
        self._cpu.interrupt(False)
        return vector

    def _acknowledge_extint(self) -> int | None:
        self._extint_message = False
        vector = None if self._pic_acknowledge is None else self._pic_acknowledge()
        self._update_extint()
        return vector

    @property
    def priority(self) -> int:
        """The processor-priority register: what lowest-priority delivery compares."""
        return self._ppr

    @property
    def cr8(self) -> int:
        """CR8: the class bits of the task priority (11.8.6)."""
        return self._tpr >> 4

    def set_cr8(self, value: int) -> None:
        """The CPU wrote CR8; bits above 3 are ignored."""
        self._set_tpr(value << 4 & 0xF0)

    def _set_tpr(self, value: int) -> None:
        if value != self._tpr:
            self._tpr = value
            self._refresh()

    def _end_of_interrupt(self) -> None:
        # Drop the highest vector in service (11.8.5).
        isr = self._isr
        if not isr:
            return
        vector = isr.bit_length() - 1
        bit = 1 << vector
        self._isr = isr = isr ^ bit
        in_service = isr.bit_length() - 1
        tpr = self._tpr
        ppr = self._ppr = tpr if in_service >> 4 <= tpr >> 4 else in_service & 0xF0
        if not self._pending and (self._irr.bit_length() - 1) >> 4 > ppr >> 4:
            self._pending = True
            self._cpu.interrupt(True)
        if self._tmr & bit:
            self._end_of_level(vector)

    def _end_of_level(self, vector: int) -> None:
        for pin, register in enumerate((reg.LVT_LINT0, reg.LVT_LINT1)):
            entry = self._lvt[register]
            if entry & reg.LVT_REMOTE_IRR and entry & reg.LVT_VECTOR == vector:
                self._lvt[register] = entry & ~reg.LVT_REMOTE_IRR
                self._service_lint_level(pin)
        if not self._svr & reg.SVR_SUPPRESS_EOI:
            self._broadcast_eoi(vector)

    def _refresh(self) -> None:
        # PPR from TPR and ISR (11.8.3.1), then whether anything is deliverable.
        in_service = self._isr.bit_length() - 1
        tpr = self._tpr
        ppr = self._ppr = tpr if in_service >> 4 <= tpr >> 4 else in_service & 0xF0
        pending = self._extint or (self._irr.bit_length() - 1) >> 4 > ppr >> 4
        if pending != self._pending:
            self._pending = pending
            self._cpu.interrupt(pending)

    # --- interrupts that arrive ---

    def _accept(self, vector: int, trigger_level: bool) -> bool:
        # A fixed interrupt for this CPU; False when it is not taken.
        if not self._svr & reg.SVR_ENABLE:
            return False
        if vector < 16:
            self._error(reg.ESR_RECEIVE_ILLEGAL_VECTOR)
            return False
        bit = 1 << vector
        if trigger_level:
            self._tmr |= bit
        elif self._tmr & bit:
            self._tmr ^= bit
        self._irr |= bit
        if not self._pending and vector >> 4 > self._ppr >> 4:
            self._pending = True
            self._cpu.interrupt(True)
        return True

    def deliver(self, message: ApicMessage) -> bool:
        """Take a message whose destination is this APIC; False when it is not accepted."""
        mode = message.mode
        if mode is FIXED or mode is LOWEST_PRIORITY:
            if message.trigger_level and not message.level:
                return True  # a level that goes away needs nothing from us
            return self._accept(message.vector, message.trigger_level)
        if mode is DeliveryMode.NMI:
            self._cpu.nmi()
        elif mode is DeliveryMode.INIT:
            # The de-assert only synchronised arbitration IDs, which are gone since the Pentium 4.
            if message.level or not message.trigger_level:
                self._init()
        elif mode is DeliveryMode.STARTUP:
            self._cpu.startup(message.vector)
        elif mode is DeliveryMode.SMI:
            self._cpu.smi()
        elif mode is EXTINT:
            self._extint_message = True
            self._update_extint()
        else:
            return False
        return True

    def initialise(self) -> None:
        """The APIC's part of INIT: registers as at power-up, mode and ID kept (11.4.7.3)."""
        self._clear()
        self._update_extint()

    def _init(self) -> None:
        self.initialise()
        self._cpu.init()

    def _error(self, bit: int) -> None:
        # Record an error; the first of its kind since ESR was written interrupts (11.5.3).
        if self._errors & bit:
            return
        self._errors |= bit
        entry = self._lvt[reg.LVT_ERROR]
        if not entry & reg.LVT_MASKED:
            self._accept(entry & reg.LVT_VECTOR, False)

    # --- local interrupts ---

    def raise_local(self, register: int) -> None:
        """An event of a local source: LVT_THERMAL, LVT_PMC, LVT_CMCI of lapic_registers.

        A performance counter's entry masks itself (11.5.1).
        """
        entry = self._lvt[register]
        if register == reg.LVT_PMC:
            self._lvt[register] = entry | reg.LVT_MASKED
        self._deliver_local(entry)

    def _timer_expired(self) -> None:
        entry = self._lvt[reg.LVT_TIMER]
        if not entry & reg.LVT_MASKED:
            self._accept(entry & reg.LVT_VECTOR, False)

    def _deliver_local(self, entry: int) -> None:
        if entry & reg.LVT_MASKED:
            return
        mode = MODES[entry >> reg.LVT_MODE_SHIFT & 7]
        if mode is FIXED:
            self._accept(entry & reg.LVT_VECTOR, False)
        elif mode is DeliveryMode.NMI:
            self._cpu.nmi()
        elif mode is DeliveryMode.SMI:
            self._cpu.smi()
        elif mode is DeliveryMode.INIT:
            self._init()
        elif mode is EXTINT:
            self._extint_message = True
            self._update_extint()

    def set_lint0(self, level: bool) -> None:
        """The LINT0 pin, which the 8259A's INTR is wired to. Asserted is True at any polarity."""
        self._set_lint(0, level)

    def set_lint1(self, level: bool) -> None:
        """The LINT1 pin, which the board's NMI is wired to."""
        self._set_lint(1, level)

    def _set_lint(self, pin: int, level: bool) -> None:
        rising = level and not self._lint[pin]
        self._lint[pin] = level
        if not self._base & reg.BASE_ENABLE:
            # Without the APIC the pins are the CPU's INTR and NMI (11.4.3).
            if pin == 1 and rising:
                self._cpu.nmi()
        else:
            entry = self._lvt[(reg.LVT_LINT0, reg.LVT_LINT1)[pin]]
            mode = MODES[entry >> reg.LVT_MODE_SHIFT & 7]
            if mode is FIXED and entry & reg.LVT_LEVEL:
                self._service_lint_level(pin)
            elif mode is not EXTINT and rising:
                self._deliver_local(entry)
        self._update_extint()

    def _service_lint_level(self, pin: int) -> None:
        # A level-triggered fixed entry interrupts once until its EOI.
        register = (reg.LVT_LINT0, reg.LVT_LINT1)[pin]
        entry = self._lvt[register]
        held_back = entry & (reg.LVT_MASKED | reg.LVT_REMOTE_IRR) or not entry & reg.LVT_LEVEL
        if self._lint[pin] and not held_back and self._accept(entry & reg.LVT_VECTOR, True):
            self._lvt[register] = entry | reg.LVT_REMOTE_IRR

    def _set_lvt(self, register: int, value: int) -> None:
        # Change a vector-table entry; masked while the APIC is disabled by software (11.4.7.2).
        value &= reg.LVT_WRITABLE[register]
        if not self._svr & reg.SVR_ENABLE:
            value |= reg.LVT_MASKED
        if value & reg.LVT_LEVEL:
            value |= self._lvt[register] & reg.LVT_REMOTE_IRR
        if register == reg.LVT_TIMER:
            self._timer.set_lvt(value)  # may deliver what is due, by the old entry
        self._lvt[register] = value
        if register in (reg.LVT_LINT0, reg.LVT_LINT1):
            if value >> reg.LVT_MODE_SHIFT & 7 == FIXED:
                self._service_lint_level(int(register == reg.LVT_LINT1))
            self._update_extint()

    def _set_svr(self, value: int) -> None:
        self._svr = value & reg.SVR_WRITABLE
        if not self._svr & reg.SVR_ENABLE:
            for register, entry in self._lvt.items():
                self._set_lvt(register, entry)

    def _update_extint(self) -> None:
        # The 8259A reaches the CPU through a LINT entry in ExtINT mode, or around a disabled APIC.
        if self._base & reg.BASE_ENABLE:
            wired = any(
                level and entry >> reg.LVT_MODE_SHIFT & 7 == EXTINT and not entry & reg.LVT_MASKED
                for level, entry in zip(
                    self._lint, (self._lvt[reg.LVT_LINT0], self._lvt[reg.LVT_LINT1]), strict=True
                )
            )
        else:
            wired = self._lint[0]
        self._extint = self._pic_acknowledge is not None and (wired or self._extint_message)
        self._refresh()
