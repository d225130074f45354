"""What virtio asks of the guest's memory and of its surroundings."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol
else:
    Protocol = object  # typing takes 3 ms to import

__all__ = ["GuestRam", "Host", "QueueError"]


class QueueError(Exception):
    """The driver broke a rule of a ring; the text says which.

    Raised inside this room and by devices for requests that make no sense at all;
    the transport turns it into DEVICE_NEEDS_RESET.
    """


class GuestRam(Protocol):
    """The guest's memory as a bus master sees it; the board's GuestMemory is one."""

    def read(self, address: int, size: int) -> bytes:
        """A copy of ``size`` bytes. Raises GuestAddressError outside RAM."""

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data``. Raises GuestAddressError outside RAM."""

    def view(self, address: int, size: int) -> memoryview:
        """The memory itself, writable, as bytes. Raises GuestAddressError outside RAM."""

    def written(self, address: int, size: int) -> None:
        """Somebody other than a CPU wrote there through a view.

        To be called after the write and before the guest can learn of it, so that
        a CPU engine that keeps translated code forgets what it made of the old
        bytes. :meth:`write` does it by itself.
        """


class Host(Protocol):
    """What surrounds a device: the board, or a test."""

    @property
    def ram(self) -> GuestRam:
        """The guest's memory."""

    def call(self, action: Callable[[], None]) -> None:
        """Run ``action`` now, with the lock under which devices run; not from a device."""

    def call_soon(self, action: Callable[[], None]) -> None:
        """Run ``action`` with that lock a little later, from any thread."""

    def warn(self, text: str) -> None:
        """Log one line about what a guest did wrong."""
