"""What carries interrupt messages between a machine's local APICs, I/O APIC and devices.

Intel SDM vol. 3, 11.6 (IPIs), 11.6.2.4 (lowest priority), 11.8.5 (EOI broadcast).
"""

from __future__ import annotations

from operator import attrgetter

from kvmkit.devices.apic_message import ApicMessage, DeliveryMode, Shorthand
from kvmkit.devices.ioapic import IoApic
from kvmkit.devices.lapic import LocalApic
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ApicBus", "ApicBusState"]

LOWEST_PRIORITY = DeliveryMode.LOWEST_PRIORITY

CACHED_DESTINATIONS = 1024

_ident = attrgetter("ident")


class ApicBusState(Record):
    """``last`` is the APIC ID that took the last lowest-priority message, -1 at first."""

    last: int = -1


class ApicBus:
    """Delivers messages.

    Hand ``send`` and ``broadcast_eoi`` to each local APIC, ``deliver`` to the I/O APIC.
    """

    def __init__(self) -> None:
        self.ioapic: IoApic | None = None
        """Who hears ends of interrupt; the board sets it."""
        self._apics: list[LocalApic] = []
        self._receivers: dict[int, tuple[LocalApic, ...]] = {}
        self._last = -1

    @property
    def apics(self) -> Sequence[LocalApic]:
        """The local APICs, by APIC ID."""
        return self._apics

    def add(self, apic: LocalApic) -> None:
        """Put a local APIC on the bus. Raises ValueError if its ID is taken."""
        if any(other.ident == apic.ident for other in self._apics):
            raise ValueError(f"two local APICs with ID {apic.ident}")
        self._apics.append(apic)
        self._apics.sort(key=_ident)
        apic.readdressed = self._receivers.clear
        self._receivers.clear()

    def msi(self, address: int, data: int) -> bool:
        """A device writes ``data`` to ``address`` (0xFEEx_xxxx); False when nobody takes it."""
        return self.deliver(ApicMessage.from_msi(address, data))

    def deliver(self, message: ApicMessage) -> bool:
        """Bring a message to its destinations; False when nobody takes it."""
        receivers = self._receivers.get(message.destination << 1 | message.logical)
        if receivers is None:
            receivers = self._find(message)
        if message.mode is LOWEST_PRIORITY:
            return self._deliver_lowest(message, receivers)
        taken = False
        for apic in receivers:
            if apic.deliver(message):
                taken = True
        return taken

    def send(self, sender: LocalApic, message: ApicMessage, shorthand: Shorthand) -> None:
        """An interrupt command of ``sender`` (11.6.1)."""
        if not shorthand:
            self.deliver(message)
        elif shorthand is Shorthand.SELF:
            sender.deliver(message)
        else:
            receivers = tuple(
                apic for apic in self._apics
                if apic.enabled and (apic is not sender or shorthand is Shorthand.ALL)
            )  # fmt: skip
            if message.mode is LOWEST_PRIORITY:
                self._deliver_lowest(message, receivers)
                return
            for apic in receivers:
                apic.deliver(message)

    def broadcast_eoi(self, vector: int) -> None:
        """A local APIC ended a level-triggered interrupt."""
        if self.ioapic is not None:
            self.ioapic.eoi(vector)

    def _find(self, message: ApicMessage) -> tuple[LocalApic, ...]:
        # Who a destination means; kept until an APIC's address changes.
        receivers = tuple(apic for apic in self._apics if apic.accepts(message))
        if len(self._receivers) >= CACHED_DESTINATIONS:
            self._receivers.clear()
        self._receivers[message.destination << 1 | message.logical] = receivers
        return receivers

    def _deliver_lowest(self, message: ApicMessage, receivers: Sequence[LocalApic]) -> bool:
        # To the one of lowest processor priority; equals take turns.
        able = [apic for apic in receivers if apic.software_enabled]
        if not able:
            return False
        lowest = min(apic.priority >> 4 for apic in able)
        able = [apic for apic in able if apic.priority >> 4 == lowest]
        chosen = next((apic for apic in able if apic.ident > self._last), able[0])
        self._last = chosen.ident
        return chosen.deliver(message)

    def reset(self) -> None:
        """Power on; the APICs are reset by who owns them."""
        self._last = -1

    def state(self) -> ApicBusState:
        """The whole state: the APICs have their own."""
        return ApicBusState(self._last)

    def restore(self, state: ApicBusState) -> None:
        """Become ``state``."""
        self._last = state.last
