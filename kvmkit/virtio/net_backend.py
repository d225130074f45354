"""What a network card and the network behind it ask of each other.

Frames are Ethernet frames without preamble and check sequence. They wait in one
place only, with a bound: a card that has no buffers, or a network that is full,
says so, and the other side stops until it is told to go on.
"""

from __future__ import annotations

from kvmkit.virtio.memory import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol
else:
    Protocol = object

__all__ = ["NetBackend", "NetHost", "Station"]


class NetHost(Host, Protocol):
    """The board around a card: :class:`kvmkit.board.devices.BoardHost`, or a test."""

    @property
    def paused(self) -> bool:
        """Whether nothing may reach the guest now; read under the lock."""

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` on the I/O thread, without the lock, when ``fd`` has one
        of ``events`` (epoll(7)); 0 for none. From any thread."""


class Station(Protocol):
    """The card, as a network sees it."""

    mac: bytes

    def receive(self, frames: Sequence[memoryview]) -> int:
        """Give frames to the guest, with the virtio header before each if the backend has
        headers; how many were taken. The rest may come again after
        :meth:`NetBackend.resume`. On the I/O thread, without the lock."""

    def writable(self) -> None:
        """There is room again after a ``send`` that took less than all. Under the lock."""

    def set_link(self, up: bool) -> None:
        """The cable was plugged in, or out. From any thread, without the lock."""


class NetBackend(Protocol):
    """A network, as a card sees it."""

    features: int
    """The device features that it carries, as a mask: checksums and segments to complete."""
    header: bool
    """Whether frames have ``struct virtio_net_hdr`` (12 bytes) before them."""
    shared: bool
    """Whether frames may arrive that are for other stations."""
    mtu: int
    """The largest packet in bytes, without the Ethernet header."""

    def open(self, host: NetHost, station: Station) -> None:
        """Get ready, before the machine starts. Raises a KvmkitError if that cannot be."""

    def negotiated(self, features: int) -> None:
        """The driver has chosen these features. Under the lock."""

    def send(self, frames: Sequence[Sequence[memoryview]]) -> int:
        """Send frames, each in parts; how many were taken, which includes those that are
        lost. If not all, ``station.writable`` is called later. Under the lock."""

    def resume(self) -> None:
        """The card takes frames again. From any thread."""

    def close(self) -> None:
        """Free everything; the board has stopped. Callable twice."""
