"""The I/O APIC: interrupt lines in, messages to local APICs out.

Intel 82093AA datasheet (290566), section 3, as version 0x20 of the ICH family
has it: the EOI register of ICH datasheets ("APIC EOI Register", offset 0x40)
and end-of-interrupt messages that name a vector.
"""

from __future__ import annotations

from kvmkit.devices.apic_message import MODES, ApicMessage, DeliveryMode
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IoApic", "IoApicState"]

# Memory-mapped registers (3.1).
SELECT = 0x00
WINDOW = 0x10
EOI = 0x40

# Indirect registers (3.2).
INDEX_ID = 0x00
INDEX_VERSION = 0x01
INDEX_ARBITRATION = 0x02
INDEX_REDIRECTION = 0x10

ID_SHIFT = 24
ID_MASK = 0xF << ID_SHIFT
VERSION = 0x20

# Redirection table entry (3.2.4).
VECTOR = 0xFF
MODE_SHIFT = 8
LOGICAL = 1 << 11
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
DESTINATION_SHIFT = 56

WRITABLE = 0xFF << DESTINATION_SHIFT | 0x1AFFF & ~(1 << 12)
"""All but delivery status and remote IRR, which are read-only, and reserved bits."""

LOW_HALF = 0xFFFFFFFF


class IoApicState(Record):
    """``redirections`` are the 64-bit entries, ``lines`` the levels, bit n is pin n."""

    ident: int
    select: int
    redirections: tuple[int, ...]
    lines: int


class IoApic:
    """An I/O APIC with ``pins`` lines whose messages go to ``deliver``.

    ``deliver`` returns False when no local APIC took the message: a level
    interrupt then stays pending here.
    """

    def __init__(
        self, deliver: Callable[[ApicMessage], bool | None], pins: int = 24, ident: int = 0
    ) -> None:
        self._deliver = deliver
        self._pins = pins
        self._reset_ident = ident & 0xF
        self._lines = 0
        self._ident = self._select = 0
        self._levels = 0  # pins whose entry is level-triggered
        self._waiting = 0  # pins with remote IRR set
        self._entries = [MASKED] * pins
        self._messages = [ApicMessage(0, False, DeliveryMode.FIXED, 0)] * pins
        self.reset()

    # --- lines ---

    def set_line(self, pin: int, level: bool) -> None:
        """Set a pin; True asks for an interrupt, whatever the entry's polarity says.

        A pin that does not exist is ignored.
        """
        if not 0 <= pin < self._pins:
            return
        bit = 1 << pin
        if not level:
            self._lines &= ~bit
        elif not self._lines & bit:
            self._lines |= bit
            # A masked edge is lost (3.2.4, interrupt mask); a masked level waits in _lines.
            if not self._entries[pin] & MASKED:
                self._service(pin)

    def eoi(self, vector: int) -> None:
        """A level-triggered interrupt was ended; delivers again what is still asserted."""
        if not self._waiting:
            return
        for pin in range(self._pins):
            entry = self._entries[pin]
            if self._waiting >> pin & 1 and entry & VECTOR == vector:
                self._entries[pin] = entry & ~REMOTE_IRR
                self._waiting &= ~(1 << pin)
                self._service_level(pin)

    def _service(self, pin: int) -> None:
        # An unmasked pin that was asserted.
        if self._levels >> pin & 1:
            self._service_level(pin)
        else:
            self._deliver(self._messages[pin])

    def _service_level(self, pin: int) -> None:
        # Remote IRR holds a level interrupt back from acceptance until its EOI.
        bit = 1 << pin
        if (
            self._lines & self._levels & bit
            and not self._entries[pin] & (MASKED | REMOTE_IRR)
            and self._deliver(self._messages[pin]) is not False
        ):
            self._entries[pin] |= REMOTE_IRR
            self._waiting |= bit

    # --- registers ---

    def read(self, offset: int, size: int) -> int:
        """Read the select register or the selected one; everything else is 0."""
        if offset == SELECT:
            value = self._select
        elif offset == WINDOW:
            value = self._read_index(self._select)
        else:
            value = 0
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register at its offset; reserved offsets are ignored."""
        if offset == SELECT:
            self._select = value & 0xFF
        elif offset == WINDOW:
            self._write_index(self._select, value & LOW_HALF)
        elif offset == EOI:
            self.eoi(value & VECTOR)

    def _read_index(self, index: int) -> int:
        if index in (INDEX_ID, INDEX_ARBITRATION):
            return self._ident << ID_SHIFT
        if index == INDEX_VERSION:
            return VERSION | self._pins - 1 << 16
        pin = index - INDEX_REDIRECTION >> 1
        if not 0 <= pin < self._pins:
            return 0
        return self._entries[pin] >> 32 * (index & 1) & LOW_HALF

    def _write_index(self, index: int, value: int) -> None:
        if index == INDEX_ID:
            self._ident = (value & ID_MASK) >> ID_SHIFT
            return
        pin = index - INDEX_REDIRECTION >> 1
        if not 0 <= pin < self._pins:
            return
        old = self._entries[pin]
        entry = value << 32 | old & LOW_HALF if index & 1 else old & ~LOW_HALF | value
        entry &= WRITABLE
        if entry & LEVEL:
            entry |= old & REMOTE_IRR
        # A switch to edge clears remote IRR: how drivers end an interrupt without an EOI register.
        self._set_entry(pin, entry)
        self._service_level(pin)

    def _set_entry(self, pin: int, entry: int) -> None:
        # Store an entry with what follows from it.
        bit = 1 << pin
        mode = MODES[entry >> MODE_SHIFT & 7]
        # SMI, NMI, INIT and ExtINT are edges whatever the trigger mode says (3.2.4, delivery mode).
        level = bool(entry & LEVEL) and mode <= DeliveryMode.LOWEST_PRIORITY
        self._entries[pin] = entry
        self._levels = self._levels | bit if level else self._levels & ~bit
        self._waiting = self._waiting | bit if entry & REMOTE_IRR else self._waiting & ~bit
        self._messages[pin] = ApicMessage.addressed(
            entry >> DESTINATION_SHIFT, bool(entry & LOGICAL), mode, entry & VECTOR, True, level
        )

    # --- reset and state ---

    def reset(self) -> None:
        """Go to the power-on state: every entry masked. Lines are wires and keep their level."""
        self._set_all(self._reset_ident, 0, (MASKED,) * self._pins)

    def _set_all(self, ident: int, select: int, entries: tuple[int, ...]) -> None:
        self._ident = ident
        self._select = select
        for pin, entry in enumerate(entries):
            self._set_entry(pin, entry)

    def state(self) -> IoApicState:
        """The whole state."""
        return IoApicState(self._ident, self._select, tuple(self._entries), self._lines)

    def restore(self, state: IoApicState) -> None:
        """Become ``state``; no message is sent."""
        self._lines = state.lines
        self._set_all(state.ident, state.select, state.redirections)
