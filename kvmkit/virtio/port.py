"""A port of a console device: what the device and the host's end of the port ask of each other.

Virtio 1.2, section 5.3.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Protocol

    from kvmkit.virtio.console import Console
    from kvmkit.virtio.memory import Host

    class PortHost(Host, Protocol):
        """What surrounds a console: a board, or a test."""

        @property
        def paused(self) -> bool:
            """Whether nothing may reach the guest now; read under the lock."""

        def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
            """Call ``callback(events)`` on the I/O thread, without the lock, when ``fd`` has
            one of ``events`` (epoll(7)); 0 for none. From any thread."""

    class PortBackend(Protocol):
        """The host's end of a port. All methods are called with the lock under which
        devices run, and must not block; :meth:`Port.kick` tells that one would answer
        differently now."""

        def attach(self, port: Port) -> None:
            """This is the guest's end."""

        def open(self, host: PortHost) -> None:
            """The machine is there, and will start. Raises a KvmkitError if that cannot be."""

        def room(self) -> int:
            """How many bytes it would take now; a positive number means: one request,
            of whatever size up to :data:`REQUEST_MAX`."""

        def take(self, data: bytes) -> None:
            """The guest's bytes."""

        def pending(self) -> int:
            """How many bytes it has for the guest."""

        def give(self, most: int) -> bytes:
            """The next of them."""

        def guest_opened(self, is_open: bool) -> None:
            """The guest has opened its end, or closed it; what was for it is void then."""

        def end(self) -> None:
            """The guest has ended: nothing more will come, or be fetched."""

        def close(self) -> None:
            """The machine is gone."""


__all__ = ["REQUEST_MAX", "Port"]

REQUEST_MAX: Final = 4 << 20
"""Bytes in one request; Linux sends up to 32 KiB, and a pipe's contents by splice(2)."""


class Port:
    """A port, as its backend has it."""

    def __init__(self, console: Console, ident: int, name: str, backend: PortBackend) -> None:
        self.console = console
        self.ident = ident
        self.name = name
        self.backend = backend
        self.receive = 2 * ident + 2 if ident else 0
        """The queue of buffers to the guest."""
        self.transmit = self.receive + 1
        self.ready = False
        """Whether the guest's driver knows the port."""
        self.guest_open = False
        self.host_open = True
        self.closing = False
        """The guest has closed it, but the backend has no room for all it wrote before."""
        self._kicked = False
        backend.attach(self)

    def kick(self) -> None:
        """The backend has something to give, or room again; from any thread."""
        console = self.console
        if console.transport is not None and not self._kicked:
            self._kicked = True
            console.call_soon(self._serve)

    def _serve(self) -> None:
        self._kicked = False
        self.console.serve(self)

    def set_open(self, is_open: bool) -> None:
        """The host's end is open, or not; from any thread. It is at first."""
        console = self.console
        if console.transport is None:
            self.host_open = is_open
        else:
            console.call_soon(lambda: console.set_host_open(self, is_open))
