"""What a device is, and what it is handed.

A device is a pure object: registers behind ``read`` and ``write``, interrupt
lines and a clock handed in, one frozen state record that is its whole truth.
It knows no bus, no thread, no CPU engine and no file descriptor; the board
calls it, one call at a time, under the board's lock.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol, TypeAlias
else:
    Protocol = object  # typing takes 3 ms to import

__all__ = ["Clock", "Device", "Line", "Timer"]

Line: TypeAlias = "Callable[[bool], None]"
"""An interrupt or other signal line: call it with the new level. Calling it
with the level it has is allowed and does nothing."""


class Timer(Protocol):
    """A one-shot alarm of the board's clock."""

    @property
    def deadline(self) -> int | None:
        """When it fires, in nanoseconds of :meth:`Clock.now`; None if not armed."""

    def arm(self, deadline: int) -> None:
        """Fire once at ``deadline`` (ns of guest time); replaces an earlier deadline.

        A deadline that has passed fires as soon as possible, never inside this call.
        """

    def cancel(self) -> None:
        """Do not fire. Harmless when not armed."""


class Clock(Protocol):
    """The one source of time for devices."""

    def now(self) -> int:
        """Nanoseconds of guest time: monotonic, from 0 at power-on, stopped while paused."""

    def wall(self) -> int:
        """Nanoseconds since 1970-01-01 00:00 UTC."""

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A new, unarmed timer that calls ``callback`` under the board's lock."""


class Device(Protocol):
    """A set of registers on a bus.

    ``offset`` counts from the start of the range it was mapped at, in bytes;
    ``size`` is 1, 2, 4 or 8 bytes; ``value`` is unsigned and fits ``size``.
    The offset and the value are the guest's: any combination may come.
    """

    def read(self, offset: int, size: int) -> int:
        """The value the guest sees, ``size`` bytes wide."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a value from the guest."""

    def reset(self) -> None:
        """Go to the power-on state."""

    def state(self) -> Any:
        """The whole state, as a record of plain values (:class:`kvmkit.frozen.Record`)."""

    def restore(self, state: Any) -> None:
        """Become ``state``; lines are driven and timers armed as it says."""
