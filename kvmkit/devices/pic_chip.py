"""One 8259A programmable interrupt controller (Intel 231468-003, "8259A").

Two registers, A0 = 0 and 1. Initialisation command words ICW1-4 set it up,
operation command words OCW1-3 run it. Each input's trigger mode comes from
ICW1 or, in a PC with EISA or PCI, from the edge/level control register (ELCR).
"""

from __future__ import annotations

from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PicChip", "PicChipState"]

# ICW1, A0 = 0 with bit 4 set.
ICW1 = 1 << 4
ICW1_IC4 = 1 << 0  # ICW4 follows
ICW1_SINGLE = 1 << 1  # no cascade, no ICW3
ICW1_LEVEL = 1 << 3  # every input is level-triggered

# ICW2, A0 = 1: the upper bits of the vector.
ICW2_VECTOR = 0xF8

# ICW4, A0 = 1.
ICW4_AUTO_EOI = 1 << 1
ICW4_SPECIAL_FULLY_NESTED = 1 << 4

# OCW2, A0 = 0 with bits 3 and 4 clear: R, SL, EOI in bits 7-5, a level in bits 2-0.
OCW2_CLEAR_ROTATE_AUTO = 0
OCW2_EOI = 1
OCW2_NOTHING = 2
OCW2_SPECIFIC_EOI = 3
OCW2_SET_ROTATE_AUTO = 4
OCW2_ROTATE_EOI = 5
OCW2_SET_PRIORITY = 6
OCW2_ROTATE_SPECIFIC_EOI = 7

# OCW3, A0 = 0 with bit 3 set.
OCW3 = 1 << 3
OCW3_READ_ISR = 1 << 0
OCW3_READ = 1 << 1
OCW3_POLL = 1 << 2
OCW3_SPECIAL_MASK = 1 << 5
OCW3_SET_SPECIAL_MASK = 1 << 6

POLL_INTERRUPT = 1 << 7

READY, WANT_ICW2, WANT_ICW3, WANT_ICW4 = range(4)


class PicChipState(Record):
    """One 8259A. ``latch`` holds the edges that were seen; ``step`` the ICW that comes next."""

    lines: int = 0
    latch: int = 0
    elcr: int = 0
    imr: int = 0xFF  # undefined at power-on; masked harms nobody
    isr: int = 0
    step: int = READY
    icw1: int = 0
    icw2: int = 0
    icw3: int = 0
    icw4: int = 0
    lowest: int = 7  # the input of lowest priority
    rotate_auto: bool = False
    special_mask: bool = False
    poll: bool = False
    read_isr: bool = False


class PicChip:
    """An 8259A whose INT output is ``output``.

    ``elcr_writable`` are the inputs whose trigger mode may be changed; a
    ``master`` (its SP pin is high) has slaves at the inputs that ICW3 names.
    The output is called on every change of its level.
    """

    def __init__(self, output: Callable[[bool], None], elcr_writable: int, *, master: bool) -> None:
        self._output = output
        self._elcr_writable = elcr_writable
        self._master = master
        self._int = False
        self._lines = self._latch = self._elcr = 0
        self._imr = 0xFF
        self._isr = 0
        self._step = READY
        self._icw1 = self._icw2 = self._icw3 = self._icw4 = 0
        self._lowest = 7
        self._rotate_auto = self._special_mask = self._poll = self._read_isr = False

    # --- inputs and output ---

    def set_line(self, pin: int, level: bool) -> None:
        """Set input ``pin`` (0-7)."""
        bit = 1 << pin
        if level:
            if not self._lines & bit:
                self._lines |= bit
                self._latch |= bit
        else:
            # "The IR inputs must remain high until after the first INTA": a request that
            # goes away before is none, and the acknowledge finds the default IR7.
            self._lines &= ~bit
            self._latch &= ~bit
        self._update()

    @property
    def irr(self) -> int:
        """The interrupt request register: latched edges, and levels that are there."""
        levels = 0xFF if self._icw1 & ICW1_LEVEL else self._elcr
        return self._lines & (self._latch | levels)

    def _highest(self, bits: int) -> int:
        # The rank of the highest priority in `bits`: 0 is the highest, 8 is none.
        rotated = (bits << 8 | bits) >> (self._lowest + 1 & 7) & 0xFF
        return (rotated & -rotated).bit_length() - 1 if rotated else 8

    def _pending(self) -> int | None:
        # The input whose interrupt may be acknowledged now.
        requests = self.irr & ~self._imr
        if not requests:
            return None
        request = self._highest(requests)
        in_service = self._isr
        if self._special_mask:
            in_service &= ~self._imr
        if self._icw4 & ICW4_SPECIAL_FULLY_NESTED:
            # A slave in service does not lock out its own further requests: at the same
            # rank the comparison below must let them pass.
            rank = self._highest(in_service)
            pin = self._pin(rank)
            if rank == request and self._has_slave(pin):
                return pin
        return self._pin(request) if request < self._highest(in_service) else None

    def _pin(self, rank: int) -> int:
        return self._lowest + 1 + rank & 7

    def _has_slave(self, pin: int) -> bool:
        return self._master and not self._icw1 & ICW1_SINGLE and bool(self._icw3 >> pin & 1)

    def _update(self) -> None:
        self._set_output(self._pending() is not None)

    def _set_output(self, level: bool) -> None:
        if level != self._int:
            self._int = level
            self._output(level)

    @property
    def interrupt(self) -> bool:
        """The level of the INT output."""
        return self._int

    def acknowledge(self) -> tuple[int, bool]:
        """The INTA sequence: the vector, and whether a slave is to supply it.

        When the request is gone, the answer is IR7's vector without the
        in-service bit: a spurious interrupt.
        """
        pin = self._take()
        if pin is None:
            return self._icw2 & ICW2_VECTOR | 7, False
        return self._icw2 & ICW2_VECTOR | pin, self._has_slave(pin)

    def _take(self) -> int | None:
        # Move the request of highest priority into service.
        pin = self._pending()
        if pin is not None:
            bit = 1 << pin
            self._latch &= ~bit
            if not self._icw4 & ICW4_AUTO_EOI:
                self._isr |= bit
            elif self._rotate_auto:
                self._lowest = pin
        # INT falls with INTA and rises again for what is left: an edge for the master.
        self._set_output(False)
        self._update()
        return pin

    # --- registers ---

    def read(self, offset: int, size: int) -> int:
        """A0 = 0: IRR or ISR as OCW3 chose; A0 = 1: IMR. After a poll command: its answer."""
        if self._poll:
            self._poll = False
            pin = self._take()
            return 0 if pin is None else POLL_INTERRUPT | pin
        if offset & 1:
            return self._imr
        return self._isr if self._read_isr else self.irr

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a command word."""
        value &= 0xFF
        if offset & 1:
            self._write_data(value)
        elif value & ICW1:
            self._initialise(value)
        elif value & OCW3:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value >> 5, value & 7)
        self._update()

    def _initialise(self, value: int) -> None:
        # What ICW1 clears ("Initialization Command Words 1 and 2", a-f); edges must come again.
        self._latch = 0
        self._imr = self._isr = 0
        self._lowest = 7
        self._special_mask = self._read_isr = self._poll = self._rotate_auto = False
        self._icw1 = value
        self._icw4 = 0
        self._step = WANT_ICW2

    def _write_data(self, value: int) -> None:
        if self._step == READY:
            self._imr = value  # OCW1
            return
        if self._step == WANT_ICW2:
            self._icw2 = value
            self._step = WANT_ICW4 if self._icw1 & ICW1_SINGLE else WANT_ICW3
        elif self._step == WANT_ICW3:
            self._icw3 = value
            self._step = WANT_ICW4
        else:
            self._icw4 = value
            self._step = READY
        if self._step == WANT_ICW4 and not self._icw1 & ICW1_IC4:
            self._step = READY

    def _write_ocw3(self, value: int) -> None:
        if value & OCW3_SET_SPECIAL_MASK:
            self._special_mask = bool(value & OCW3_SPECIAL_MASK)
        if value & OCW3_POLL:
            self._poll = True
        elif value & OCW3_READ:
            self._read_isr = bool(value & OCW3_READ_ISR)

    def _write_ocw2(self, command: int, pin: int) -> None:
        if command in (OCW2_CLEAR_ROTATE_AUTO, OCW2_SET_ROTATE_AUTO):
            self._rotate_auto = command == OCW2_SET_ROTATE_AUTO
        elif command == OCW2_SET_PRIORITY:
            self._lowest = pin
        elif command != OCW2_NOTHING:
            if command in (OCW2_EOI, OCW2_ROTATE_EOI):
                # In special mask mode a masked bit is not cleared by a non-specific EOI.
                bits = self._isr & ~self._imr if self._special_mask else self._isr
                rank = self._highest(bits)
                if rank == 8:
                    return
                pin = self._pin(rank)
            self._isr &= ~(1 << pin)
            if command in (OCW2_ROTATE_EOI, OCW2_ROTATE_SPECIFIC_EOI):
                self._lowest = pin

    @property
    def elcr(self) -> int:
        """The inputs that are level-triggered."""
        return self._elcr

    def set_elcr(self, value: int) -> None:
        """Write the edge/level control register; inputs that must be edges stay so."""
        self._elcr = value & self._elcr_writable
        self._update()

    # --- reset and state ---

    def reset(self) -> None:
        """Go to the power-on state; the inputs are wires and keep their level."""
        self.restore(PicChipState(lines=self._lines))

    def state(self) -> PicChipState:
        """The whole state."""
        return PicChipState(
            self._lines, self._latch, self._elcr, self._imr, self._isr, self._step,
            self._icw1, self._icw2, self._icw3, self._icw4, self._lowest,
            self._rotate_auto, self._special_mask, self._poll, self._read_isr,
        )  # fmt: skip

    def restore(self, state: PicChipState) -> None:
        """Become ``state`` and drive the output."""
        self._lines, self._latch = state.lines, state.latch
        self._elcr, self._imr, self._isr = state.elcr, state.imr, state.isr
        self._step = state.step
        self._icw1, self._icw2 = state.icw1, state.icw2
        self._icw3, self._icw4 = state.icw3, state.icw4
        self._lowest, self._rotate_auto = state.lowest, state.rotate_auto
        self._special_mask, self._poll = state.special_mask, state.poll
        self._read_isr = state.read_isr
        self._update()
