"""The messages local APICs, I/O APICs and MSIs send to each other.

Intel SDM vol. 3, 11.6.1 (interrupt command register) and 11.11 (message
signalled interrupts); 82093AA datasheet, 3.2.4 (redirection table). A message
names its destination, what to do there (the delivery mode) and the vector.
"""

from __future__ import annotations

from kvmkit.frozen import Record
from kvmkit.named import NamedInt

__all__ = ["BROADCAST", "MODES", "ApicMessage", "DeliveryMode", "Shorthand"]

BROADCAST = 0xFFFFFFFF
"""The physical destination that means every local APIC, in xAPIC and x2APIC mode."""

XAPIC_BROADCAST = 0xFF

# MSI address (SDM vol. 3, 11.11.1).
MSI_DESTINATION_SHIFT = 12
MSI_REDIRECTION_HINT = 1 << 3
MSI_LOGICAL = 1 << 2

# MSI data (SDM vol. 3, 11.11.2).
MSI_VECTOR = 0xFF
MSI_MODE_SHIFT = 8
MSI_ASSERT = 1 << 14
MSI_LEVEL = 1 << 15


class DeliveryMode(NamedInt):
    """What the destination does: bits 8-10 of ICR, LVT, redirection entry and MSI data."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    RESERVED = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


MODES = tuple(DeliveryMode)
"""The delivery modes by number: cheaper than ``DeliveryMode(number)``."""


class Shorthand(NamedInt):
    """Bits 18-19 of the ICR: a destination that needs no address."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


class ApicMessage(Record):
    """One interrupt message.

    ``destination`` is an APIC ID, or a logical destination when ``logical``:
    8 bits from xAPIC, I/O APIC and MSI, 32 bits from x2APIC. ``level`` is
    assert (True) or de-assert; ``trigger_level`` is level (True) or edge.
    """

    destination: int
    logical: bool
    mode: DeliveryMode
    vector: int
    level: bool = True
    trigger_level: bool = False

    @classmethod
    def addressed(
        cls, destination: int, logical: bool, mode: DeliveryMode, vector: int,
        level: bool = True, trigger_level: bool = False,
    ) -> ApicMessage:  # fmt: skip
        """A message from a source with 8-bit destinations, where physical 0xFF is everyone."""
        if destination == XAPIC_BROADCAST and not logical:
            destination = BROADCAST
        return cls(destination, logical, mode, vector, level, trigger_level)

    @classmethod
    def from_msi(cls, address: int, data: int) -> ApicMessage:
        """The message that a write of ``data`` to ``address`` (0xFEEx_xxxx) stands for.

        Reserved bits are ignored. The redirection hint asks for the one
        destination of lowest priority, as the delivery mode of that name does.
        """
        mode = MODES[data >> MSI_MODE_SHIFT & 7]
        if address & MSI_REDIRECTION_HINT and mode is DeliveryMode.FIXED:
            mode = DeliveryMode.LOWEST_PRIORITY
        trigger_level = bool(data & MSI_LEVEL)
        return cls.addressed(
            address >> MSI_DESTINATION_SHIFT & 0xFF,
            bool(address & MSI_LOGICAL),
            mode,
            data & MSI_VECTOR,
            # An edge has no de-assert (figure 11-14: level is "x" then).
            not trigger_level or bool(data & MSI_ASSERT),
            trigger_level,
        )
