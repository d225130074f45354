"""The local APIC of one CPU, xAPIC and x2APIC (Intel SDM vol. 3, chapter 11).

This file is the registers: the MMIO page of xAPIC (table 11-1), the MSRs of
x2APIC (11.12), IA32_APIC_BASE with its mode changes, and addressing. What
happens to an interrupt is in :mod:`~kvmkit.devices.lapic_core`, the timer in
:mod:`~kvmkit.devices.lapic_timer`.
"""

from __future__ import annotations

from kvmkit.devices import lapic_registers as reg
from kvmkit.devices.apic_message import (
    BROADCAST,
    MODES,
    XAPIC_BROADCAST,
    ApicMessage,
    DeliveryMode,
    Shorthand,
)
from kvmkit.devices.lapic_core import FIXED, LOWEST_PRIORITY, Cpu, LapicCore
from kvmkit.devices.lapic_registers import LapicState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmkit.devices.device import Clock

__all__ = ["Cpu", "LapicState", "LocalApic"]

CACHED_COMMANDS = 256

Command = tuple[ApicMessage, Shorthand]


class LocalApic(LapicCore):
    """The local APIC of the CPU with APIC ID ``ident``; ID 0 is the bootstrap CPU.

    ``send`` carries its messages, ``broadcast_eoi`` its level-triggered ends of
    interrupt; ``tsc`` reads the guest's TSC, which runs at ``tsc_hz``; ``bus_hz``
    clocks the timer; ``pic_acknowledge`` is the 8259A's vector for ExtINT.
    """

    __slots__ = ("_commands", "_dfr", "_icr", "_ldr", "_send", "_x2apic", "ident",
                 "physical_bits", "readdressed")  # fmt: skip

    def __init__(
        self, ident: int, clock: Clock, cpu: Cpu,
        send: Callable[[LocalApic, ApicMessage, Shorthand], None],
        broadcast_eoi: Callable[[int], None], *,
        tsc: Callable[[], int], tsc_hz: int, bus_hz: int = 1_000_000_000,
        pic_acknowledge: Callable[[], int] | None = None, physical_bits: int = 52,
    ) -> None:  # fmt: skip
        super().__init__(
            clock, cpu, broadcast_eoi,
            tsc=tsc, tsc_hz=tsc_hz, bus_hz=bus_hz, pic_acknowledge=pic_acknowledge,
        )  # fmt: skip
        self.ident = ident
        self.physical_bits = physical_bits
        """MAXPHYADDR of the CPU: higher bits in IA32_APIC_BASE fault."""
        self.readdressed: Callable[[], None] = _nobody
        """Called when the destinations that reach this APIC change."""
        self._send = send
        self._commands: dict[int, Command | None] = {}
        self._power_on()

    # --- what others ask ---

    @property
    def base(self) -> int:
        """The guest-physical address of the MMIO page."""
        return self._base & ~0xFFF

    @property
    def enabled(self) -> bool:
        """IA32_APIC_BASE's global enable."""
        return bool(self._base & reg.BASE_ENABLE)

    @property
    def x2apic(self) -> bool:
        """In x2APIC mode: the registers are MSRs, the MMIO page is gone."""
        return self._x2apic

    @property
    def software_enabled(self) -> bool:
        """Fixed interrupts are accepted: enabled globally and by software (11.4.7.2)."""
        return self.enabled and bool(self._svr & reg.SVR_ENABLE)

    @property
    def pending(self) -> bool:
        """What ``Cpu.interrupt`` was last told."""
        return self._pending

    def accepts(self, message: ApicMessage) -> bool:
        """Whether the message's destination includes this APIC (11.6.2, 11.12.10)."""
        if not self._base & reg.BASE_ENABLE:
            return False
        destination = message.destination
        if destination == BROADCAST:
            return True
        if self._x2apic:
            if not message.logical:
                return destination == self.ident
            ldr = self._logical_x2apic()
            return destination >> 16 == ldr >> 16 and bool(destination & ldr & 0xFFFF)
        if destination == XAPIC_BROADCAST:
            return True
        if not message.logical:
            return destination == self.ident & 0xFF
        logical = self._ldr >> 24
        model = self._dfr & reg.DFR_MODEL
        if model == reg.DFR_FLAT:
            return destination <= 0xFF and bool(destination & logical)
        if model == reg.DFR_CLUSTER:
            return destination >> 4 == logical >> 4 and bool(destination & logical & 0xF)
        return False

    def _logical_x2apic(self) -> int:
        return (self.ident >> 4) << 16 | 1 << (self.ident & 0xF)

    def tsc_changed(self) -> None:
        """The guest's TSC was set: moves an armed TSC deadline."""
        self._timer.tsc_changed()

    def virtual_wire(self) -> None:
        """Set up what firmware hands an operating system: the 8259A through LINT0, NMI on LINT1.

        MultiProcessor Specification 1.4, 3.6.2.2; the board calls it for the
        bootstrap CPU after a reset, in firmware's place.
        """
        self._write_register(reg.SVR, reg.SVR_ENABLE | 0x0F)
        self._write_register(reg.LVT_LINT0, DeliveryMode.EXTINT << reg.LVT_MODE_SHIFT)
        self._write_register(reg.LVT_LINT1, DeliveryMode.NMI << reg.LVT_MODE_SHIFT)

    # --- MSRs ---

    def read_msr(self, index: int) -> int | None:
        """RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register; None is #GP."""
        if index == reg.MSR_TSC_DEADLINE:
            return self._timer.deadline
        if index == reg.MSR_APIC_BASE:
            return self._base
        if not self._x2apic or not reg.MSR_X2APIC <= index < reg.MSR_X2APIC_END:
            return None
        offset = index - reg.MSR_X2APIC << 4
        if offset == reg.ICR_LOW:
            return self._icr
        if offset in (reg.EOI, reg.SELF_IPI, reg.APR, reg.RRD, reg.DFR, reg.ICR_HIGH):
            return None
        return self._read_register(offset)

    def write_msr(self, index: int, value: int) -> bool:
        """WRMSR of the same registers; False is #GP."""
        if index == reg.MSR_EOI:
            if not self._x2apic or value:
                return False
            self._end_of_interrupt()
            return True
        if index == reg.MSR_TSC_DEADLINE:
            self._timer.set_deadline(value)
            return True
        if index == reg.MSR_ICR:
            if not self._x2apic or value & reg.ICR_X2APIC_RESERVED:
                return False
            self._icr = value
            self._command(value)
            return True
        if index == reg.MSR_APIC_BASE:
            return self._write_base(value)
        if not self._x2apic or not reg.MSR_X2APIC <= index < reg.MSR_X2APIC_END:
            return False
        offset = index - reg.MSR_X2APIC << 4
        reserved = reg.X2APIC_RESERVED.get(offset)
        if reserved is None or value & reserved:
            return False
        self._write_register(offset, value)
        return True

    def _write_base(self, value: int) -> bool:
        # IA32_APIC_BASE and the modes' state diagram (11.12.5, figure 11-27).
        allowed = (1 << self.physical_bits) - 1 & ~0xFFF
        if value & ~(allowed | reg.BASE_BSP | reg.BASE_X2APIC | reg.BASE_ENABLE):
            return False
        was, now = self._base, value
        enable, x2apic = now & reg.BASE_ENABLE, now & reg.BASE_X2APIC
        if x2apic and not (enable and was & reg.BASE_ENABLE):
            return False  # invalid, or from disabled straight to x2APIC
        if was & reg.BASE_X2APIC and enable and not x2apic:
            return False  # x2APIC is left through disabled only
        self._base = value
        self._x2apic = bool(x2apic)
        if was & reg.BASE_ENABLE and not enable:
            self._clear()
        if x2apic and not was & reg.BASE_X2APIC:
            self._icr = 0
        if (was ^ now) & (reg.BASE_X2APIC | reg.BASE_ENABLE):
            self._commands.clear()
            self._update_extint()
            self.readdressed()
        return True

    # --- the MMIO page ---

    def read(self, offset: int, size: int) -> int:
        """Read the xAPIC page; only the 4 bytes at each multiple of 16 hold anything."""
        if not self._base & reg.BASE_ENABLE or self._x2apic:
            return (1 << 8 * size) - 1
        within = offset & 0xF
        if within + min(size, 4) > 4:
            return 0
        offset &= 0xFF0
        if offset == reg.ICR_LOW:
            value: int | None = self._icr & 0xFFFFFFFF
        elif offset == reg.ICR_HIGH:
            value = self._icr >> 32
        elif offset == reg.ID:
            value = (self.ident & 0xFF) << 24
        else:
            value = self._read_register(offset)
        if value is None:
            self._error(reg.ESR_ILLEGAL_REGISTER)
            return 0
        return value >> 8 * within & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the xAPIC page; anything but an aligned 4-byte write is ignored (11.4.1)."""
        if size != 4 or offset & 0xF or not self._base & reg.BASE_ENABLE or self._x2apic:
            return
        if offset == reg.EOI:
            self._end_of_interrupt()
        elif offset == reg.ICR_LOW:
            self._icr = self._icr >> 32 << 32 | value & reg.ICR_WRITABLE
            self._command(self._icr)
        elif offset == reg.ICR_HIGH:
            self._icr = (value & 0xFF000000) << 32 | self._icr & 0xFFFFFFFF
        elif offset == reg.LDR:
            self._ldr = value & 0xFF000000
            self.readdressed()
        elif offset == reg.DFR:
            self._dfr = value | ~reg.DFR_MODEL & 0xFFFFFFFF
            self.readdressed()
        elif offset != reg.SELF_IPI and offset in reg.X2APIC_RESERVED:
            self._write_register(offset, value)
        elif offset == reg.SELF_IPI or self._read_register(offset) is None:
            self._error(reg.ESR_ILLEGAL_REGISTER)

    # --- registers of both modes ---

    def _read_register(self, offset: int) -> int | None:
        # The registers by MMIO offset; None where there is none.
        if offset in self._lvt:
            return self._lvt[offset]
        if reg.ISR <= offset < reg.ESR:
            bits = (self._isr, self._tmr, self._irr)[offset - reg.ISR >> 7]
            return bits >> (offset >> 4 & 7) * 32 & 0xFFFFFFFF
        if offset == reg.CURRENT_COUNT:
            return self._timer.current()
        if offset == reg.LDR:
            return self._logical_x2apic() if self._x2apic else self._ldr
        registers = {
            reg.ID: self.ident,
            reg.VERSION: reg.VERSION_VALUE,
            reg.TPR: self._tpr,
            reg.APR: 0,  # not supported since the Pentium 4
            reg.PPR: self._ppr,
            reg.EOI: 0,
            reg.RRD: 0,
            reg.DFR: self._dfr,
            reg.SVR: self._svr,
            reg.ESR: self._esr,
            reg.INITIAL_COUNT: self._timer.initial,
            reg.DIVIDE: self._timer.divide,
        }
        return registers.get(offset)

    def _write_register(self, offset: int, value: int) -> None:
        # A register of X2APIC_RESERVED; in xAPIC mode reserved bits are ignored.
        if offset in self._lvt:
            self._set_lvt(offset, value)
        elif offset == reg.TPR:
            self._set_tpr(value & 0xFF)
        elif offset == reg.SVR:
            self._set_svr(value)
        elif offset == reg.ESR:
            self._esr, self._errors = self._errors, 0
        elif offset == reg.INITIAL_COUNT:
            self._timer.set_initial(value)
        elif offset == reg.DIVIDE:
            self._timer.set_divide(value)
        elif offset == reg.SELF_IPI:
            self._send_self(value)

    # --- interrupt commands ---

    def _command(self, value: int) -> None:
        # Send what the ICR says; a guest uses few values, so what they mean is kept.
        try:
            command = self._commands[value]
        except KeyError:
            command = self._decode(value)
            if len(self._commands) >= CACHED_COMMANDS:
                self._commands.clear()
            self._commands[value] = command
        if command is None:
            self._error(reg.ESR_SEND_ILLEGAL_VECTOR)
        else:
            self._send(self, command[0], command[1])

    def _decode(self, value: int) -> Command | None:
        # An ICR value; None if a fixed or lowest-priority message has a vector below 16.
        mode = MODES[value >> reg.ICR_MODE_SHIFT & 7]
        vector = value & reg.ICR_VECTOR
        if vector < 16 and mode in (FIXED, LOWEST_PRIORITY):
            return None
        # Level and trigger mode mean something for INIT only (11.6.1).
        trigger_level = bool(value & reg.ICR_LEVEL) and mode is DeliveryMode.INIT
        level = bool(value & reg.ICR_ASSERT) or not trigger_level
        logical = bool(value & reg.ICR_LOGICAL)
        if self._x2apic:
            destination = value >> reg.ICR_X2APIC_DESTINATION_SHIFT
            message = ApicMessage(destination, logical, mode, vector, level, trigger_level)
        else:
            destination = value >> reg.ICR_XAPIC_DESTINATION_SHIFT
            message = ApicMessage.addressed(
                destination, logical, mode, vector, level, trigger_level
            )
        return message, Shorthand(value >> reg.ICR_SHORTHAND_SHIFT & 3)

    def _send_self(self, vector: int) -> None:
        # SELF IPI (11.12.11): fixed, edge, here.
        if vector < 16:
            self._error(reg.ESR_SEND_ILLEGAL_VECTOR)
        else:
            self._accept(vector, False)

    # --- reset and state ---

    def _clear(self) -> None:
        super()._clear()
        self._ldr = self._icr = 0
        self._dfr = reg.DFR_RESET

    def initialise(self) -> None:
        """The APIC's part of INIT: registers as at power-up, mode and ID kept."""
        super().initialise()
        self.readdressed()

    def _power_on(self) -> None:
        bootstrap = reg.BASE_BSP if self.ident == 0 else 0
        self._base = reg.BASE_DEFAULT | reg.BASE_ENABLE | bootstrap
        self._x2apic = False
        self._commands.clear()
        self._clear()
        self._update_extint()

    def reset(self) -> None:
        """Go to the power-on state (11.4.7.1): xAPIC, disabled by software."""
        self._power_on()
        self.readdressed()

    def state(self) -> LapicState:
        """The whole state."""
        return LapicState(
            base=self._base, timer=self._timer.state(), tpr=self._tpr, ldr=self._ldr,
            dfr=self._dfr, svr=self._svr, isr=self._isr, tmr=self._tmr, irr=self._irr,
            esr=self._esr, errors=self._errors, icr=self._icr, lvt=tuple(self._lvt.values()),
            lint0=self._lint[0], lint1=self._lint[1], extint=self._extint_message,
        )  # fmt: skip

    def restore(self, state: LapicState) -> None:
        """Become ``state``; tells the CPU if what is pending differs."""
        self._base = state.base
        self._x2apic = bool(state.base & reg.BASE_X2APIC)
        self._commands.clear()
        self._tpr, self._ldr, self._dfr, self._svr = state.tpr, state.ldr, state.dfr, state.svr
        self._isr, self._tmr, self._irr = state.isr, state.tmr, state.irr
        self._esr, self._errors, self._icr = state.esr, state.errors, state.icr
        self._lvt = dict(zip(reg.LVT_WRITABLE, state.lvt, strict=True))
        self._timer.restore(state.timer, self._lvt[reg.LVT_TIMER])
        self._lint = [state.lint0, state.lint1]
        self._extint_message = state.extint
        self._update_extint()
        self.readdressed()


def _nobody() -> None:
    pass
