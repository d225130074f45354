"""16550A serial port.

National Semiconductor PC16550D, "Universal Asynchronous Receiver/Transmitter
with FIFOs" (June 1995), section 8 (registers) and 8.4 to 8.6 (interrupts and
FIFO operation).

What differs from the chip, because there is no wire with a speed behind it:

- A character is sent the instant it is written, whatever the divisor and the
  word length say: THRE and TEMT are always set, and the interrupt "transmitter
  holding register empty" follows each write at once.
- The character timeout (four character times without a read) has passed as
  soon as a character waits below the trigger level.
- The interrupt pin is the chip's own. PCs gate it with OUT2 outside the chip;
  guests written for virtual machines often leave MCR at 0, so we do not.
"""

from __future__ import annotations

from kvmkit.devices.registers import read_bytes, write_bytes
from kvmkit.devices.serial_registers import (
    DIVISOR_9600,
    FCR_CLEAR_RX,
    FCR_ENABLE,
    FCR_KEPT,
    FCR_TRIGGER_SHIFT,
    FIFO_SIZE,
    IER,
    IER_BITS,
    IER_EDSSI,
    IER_ELSI,
    IER_ERBFI,
    IER_ETBEI,
    IIR_DATA,
    IIR_FCR,
    IIR_FIFOS,
    IIR_LINE_STATUS,
    IIR_MODEM,
    IIR_NONE,
    IIR_THR_EMPTY,
    IIR_TIMEOUT,
    LCR,
    LCR_BREAK,
    LCR_DLAB,
    LSR,
    LSR_BI,
    LSR_CLEARED_BY_READ,
    LSR_DR,
    LSR_ERRORS,
    LSR_FIFO_ERROR,
    LSR_IDLE,
    LSR_OE,
    MCR,
    MCR_BITS,
    MCR_DTR,
    MCR_LOOP,
    MCR_OUT1,
    MCR_OUT2,
    MCR_RTS,
    MSR,
    MSR_CONNECTED,
    MSR_CTS,
    MSR_DCD,
    MSR_DELTAS,
    MSR_DSR,
    MSR_INPUTS,
    MSR_RI,
    RBR_THR,
    SCR,
    TRIGGER_LEVELS,
)
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmkit.devices.device import Line

__all__ = ["FIFO_SIZE", "Serial", "SerialState"]

_BYTE = tuple(bytes((value,)) for value in range(256))


class SerialState(Record):
    """A 16550A at rest. ``received`` holds characters, oldest first, each with
    the line status bits that come with it in bits 15-8."""

    ier: int
    fcr: int
    lcr: int
    mcr: int
    lsr: int
    msr: int
    scr: int
    divisor: int
    inputs: int
    thr_empty: bool
    burst: bool
    received: tuple[int, ...]


class Serial:
    """One 16550A, 8 ports.

    ``line`` is the interrupt pin. ``output`` takes each character sent, one
    byte at a time; batching is the caller's. ``on_room`` is called, if given,
    when the guest has emptied the receiver or starts to listen: the time to
    :meth:`receive` more. It may call :meth:`receive` itself.
    """

    __slots__ = (
        "_burst", "_divisor", "_fcr", "_ier", "_inputs", "_lcr", "_level", "_line", "_lsr",
        "_mcr", "_msr", "_on_quiet", "_on_room", "_output", "_plain", "_quiet", "_received",
        "_scr", "_thr_empty",
    )  # fmt: skip

    def __init__(
        self,
        line: Line,
        output: Callable[[bytes], None],
        on_room: Callable[[], None] | None = None,
    ) -> None:
        self._line = line
        self._output = output
        self._on_room = on_room
        self._level = False
        self._scr = 0
        self._divisor = DIVISOR_9600
        self._inputs = MSR_CONNECTED
        self._received: list[int] = []
        self._on_quiet: Callable[[bool], None] | None = None
        self._quiet = False
        self._power_on()

    def _power_on(self) -> None:
        """Master reset (table III). Scratch, divisor and modem inputs keep theirs."""
        self._ier = self._fcr = self._lcr = self._mcr = 0
        self._lsr = LSR_IDLE
        self._msr = self._inputs
        self._thr_empty = False  # a THRE interrupt is latched
        self._burst = False  # the guest has read nothing since it last wrote THR
        self._plain = True  # a write to offset 0 goes out: neither DLAB nor loopback
        self._received.clear()

    # The host's side

    @property
    def listening(self) -> bool:
        """Whether the guest has enabled the receiver's interrupt. What comes
        earlier is taken, but most drivers throw it away when they start."""
        return bool(self._ier & IER_ERBFI)

    def room(self) -> int:
        """How many characters :meth:`receive` would take now; 0 in loopback."""
        if self._mcr & MCR_LOOP:
            return 0
        return max(0, self._capacity() - len(self._received))

    def receive(self, data: bytes) -> int:
        """Characters from the wire; takes what fits and returns how many that were."""
        taken = min(self.room(), len(data))
        if taken:
            self._received.extend(data[:taken])
            self._show_top()
            self._update()
        return taken

    def receive_break(self) -> bool:
        """A break condition on the wire; False if there was no room for it."""
        if not self.room():
            return False
        self._push(LSR_BI << 8)
        self._update()
        return True

    def set_modem_inputs(self, inputs: int) -> None:
        """Drive CTS, DSR, RI and DCD: the ``MSR_`` bits of those asserted."""
        self._inputs = inputs & MSR_INPUTS
        self._refresh_modem()
        self._update()

    def watch_quiet(self, on_quiet: Callable[[bool], None]) -> None:
        """Tell ``on_quiet`` now, and at each change, whether the port is quiet: a
        read of LSR gives :data:`LSR_IDLE` and does nothing else, a write of THR is
        output and nothing else. Somebody else may do both meanwhile."""
        self._on_quiet = on_quiet
        self._quiet = False
        self._note_quiet()

    def transmit_quietly(self, data: bytes) -> None:
        """What the guest wrote to THR while the port was quiet."""
        self._output(data)

    def _note_quiet(self) -> None:
        if self._on_quiet is None:
            return
        quiet = self._plain and self._lsr == LSR_IDLE and not self._ier & IER_ETBEI
        if quiet != self._quiet:
            self._quiet = quiet
            self._burst = False
            self._on_quiet(quiet)

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        if size == 1:
            if offset == LSR:  # hot: once for each character of a polled console
                self._burst = False
                if self._lsr & LSR_CLEARED_BY_READ:
                    return self._read_line_status()
                return self._lsr
            return self._read(offset)
        return read_bytes(self._read, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 1:
            if offset == RBR_THR and self._plain:  # hot: each character sent
                self._output(_BYTE[value & 0xFF])
                if self._ier & IER_ETBEI:
                    self._sent()
                return
            self._write(offset, value & 0xFF)
            return
        write_bytes(self._write, offset, size, value)

    def _read(self, offset: int) -> int:
        self._burst = False
        if offset == RBR_THR:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._read_data()
        if offset == IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if offset == IIR_FCR:
            return self._read_identification()
        if offset == LCR:
            return self._lcr
        if offset == MCR:
            return self._mcr
        if offset == LSR:
            return self._read_line_status()
        if offset == MSR:
            value = self._msr
            self._msr &= ~MSR_DELTAS
            self._update()
            return value
        return self._scr if offset == SCR else 0xFF

    def _write(self, offset: int, value: int) -> None:
        if offset == RBR_THR:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                self._transmit(value)
        elif offset == IER:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF | value << 8
            else:
                self._enable(value & IER_BITS)
        elif offset == IIR_FCR:
            self._write_fifo_control(value)
        elif offset == LCR:
            self._write_line_control(value)
        elif offset == MCR:
            self._write_modem_control(value & MCR_BITS)
        elif offset == SCR:
            self._scr = value
        # LSR is for factory tests, MSR read-only: no effect

    # Transmitter

    def _transmit(self, value: int) -> None:
        if self._mcr & MCR_LOOP:
            self._push(value)
        else:
            self._output(_BYTE[value])
        self._sent()

    def _sent(self) -> None:
        """The holding register was filled and is empty again (8.6, IIR bit 1).

        The pin falls and rises, as an edge-triggered controller must see it,
        but once for a run of writes: the chip too is silent until its FIFO is
        empty.
        """
        if self._thr_empty and not self._burst:
            self._thr_empty = False
            self._update()
        self._thr_empty = self._burst = True
        self._update()

    def _enable(self, ier: int) -> None:
        risen = ier & ~self._ier
        self._ier = ier
        if risen & IER_ETBEI:
            self._thr_empty = True  # the register is empty now, and always
        self._update()
        if risen & IER_ERBFI and not self._received:
            self._room_again()

    # Receiver

    def _capacity(self) -> int:
        return FIFO_SIZE if self._fcr & FCR_ENABLE else 1

    def _push(self, character: int) -> None:
        """Into the receiver; overrun keeps a full FIFO but not a full RBR (8.4, bit 1)."""
        if len(self._received) >= self._capacity():
            self._lsr |= LSR_OE
            if self._fcr & FCR_ENABLE:
                return
            self._received.clear()
        self._received.append(character)
        if character > 0xFF and self._fcr & FCR_ENABLE:
            self._lsr |= LSR_FIFO_ERROR
        self._show_top()

    def _show_top(self) -> None:
        """Line status tells of the character at the top of the FIFO (8.4)."""
        if not self._received:
            self._lsr &= ~LSR_DR
            return
        top = self._received[0]
        self._received[0] = top & 0xFF
        self._lsr |= LSR_DR | top >> 8

    def _read_data(self) -> int:
        if not self._received:
            return 0
        value = self._received.pop(0) & 0xFF
        self._show_top()
        self._update()
        if not self._received:
            self._room_again()
        return value

    def _read_line_status(self) -> int:
        value = self._lsr
        self._lsr &= ~LSR_CLEARED_BY_READ
        if any(character > 0xFF for character in self._received):
            self._lsr |= LSR_FIFO_ERROR
        self._update()
        return value

    def _write_fifo_control(self, value: int) -> None:
        """FCR; its other bits count only together with the enable bit (8.5)."""
        kept = value & FCR_KEPT if value & FCR_ENABLE else 0
        toggled = (kept ^ self._fcr) & FCR_ENABLE
        self._fcr = kept
        if toggled or (kept and value & FCR_CLEAR_RX):
            self._clear_receiver()
        self._update()

    def _clear_receiver(self) -> None:
        had = bool(self._received)
        self._received.clear()
        self._lsr &= ~(LSR_DR | LSR_FIFO_ERROR)
        if had:
            self._update()
            self._room_again()

    def _room_again(self) -> None:
        if self._on_room is not None:
            self._on_room()

    # Line and modem control

    def _write_line_control(self, value: int) -> None:
        break_begins = value & ~self._lcr & LCR_BREAK
        self._lcr = value
        self._plain = not (value & LCR_DLAB or self._mcr & MCR_LOOP)
        if break_begins and self._mcr & MCR_LOOP:
            self._push(LSR_BI << 8)
        self._update()

    def _write_modem_control(self, value: int) -> None:
        left_loop = self._mcr & ~value & MCR_LOOP
        self._mcr = value
        self._plain = not (value & MCR_LOOP or self._lcr & LCR_DLAB)
        self._refresh_modem()
        self._update()
        if left_loop and not self._received:
            self._room_again()

    def _refresh_modem(self) -> None:
        """Inputs of the modem status register, from outside or looped back (8.8)."""
        inputs = self._inputs
        if self._mcr & MCR_LOOP:
            inputs = (
                (MSR_CTS if self._mcr & MCR_RTS else 0)
                | (MSR_DSR if self._mcr & MCR_DTR else 0)
                | (MSR_RI if self._mcr & MCR_OUT1 else 0)
                | (MSR_DCD if self._mcr & MCR_OUT2 else 0)
            )
        before = self._msr & MSR_INPUTS
        changed = before ^ inputs
        changed &= ~(inputs & MSR_RI)  # TERI: the trailing edge of RI only
        self._msr = inputs | self._msr & MSR_DELTAS | changed >> 4

    # Interrupts

    def _cause(self) -> int:
        """IIR bits 3-0: the cause of the highest priority (table IV)."""
        ier = self._ier
        if ier & IER_ELSI and self._lsr & LSR_ERRORS:
            return IIR_LINE_STATUS
        if ier & IER_ERBFI and self._received:
            if not self._fcr & FCR_ENABLE:
                return IIR_DATA
            trigger = TRIGGER_LEVELS[self._fcr >> FCR_TRIGGER_SHIFT]
            return IIR_DATA if len(self._received) >= trigger else IIR_TIMEOUT
        if ier & IER_ETBEI and self._thr_empty:
            return IIR_THR_EMPTY
        if ier & IER_EDSSI and self._msr & MSR_DELTAS:
            return IIR_MODEM
        return IIR_NONE

    def _read_identification(self) -> int:
        cause = self._cause()
        if cause == IIR_THR_EMPTY:
            self._thr_empty = False
            self._update()
        return cause | (IIR_FIFOS if self._fcr & FCR_ENABLE else 0)

    def _update(self) -> None:
        level = self._cause() != IIR_NONE
        if level != self._level:
            self._level = level
            self._line(level)
        self._note_quiet()

    # Life

    def reset(self) -> None:
        """Master reset; what was received and not read is lost."""
        had_no_room = self._received or self._mcr & MCR_LOOP
        self._power_on()
        self._update()
        if had_no_room:
            self._room_again()

    def state(self) -> SerialState:
        return SerialState(
            ier=self._ier,
            fcr=self._fcr,
            lcr=self._lcr,
            mcr=self._mcr,
            lsr=self._lsr,
            msr=self._msr,
            scr=self._scr,
            divisor=self._divisor,
            inputs=self._inputs,
            thr_empty=self._thr_empty,
            burst=self._burst,
            received=tuple(self._received),
        )

    def restore(self, state: SerialState) -> None:
        self._ier = state.ier
        self._fcr = state.fcr
        self._lcr = state.lcr
        self._mcr = state.mcr
        self._lsr = state.lsr
        self._msr = state.msr
        self._scr = state.scr
        self._divisor = state.divisor
        self._inputs = state.inputs
        self._thr_empty = state.thr_empty
        self._burst = state.burst
        self._received[:] = state.received
        self._plain = not (state.lcr & LCR_DLAB or state.mcr & MCR_LOOP)
        self._level = self._cause() != IIR_NONE
        self._line(self._level)
        self._note_quiet()
