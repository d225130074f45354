"""The console port that the guest's agent opens, for a host that has one thread for it.

Bytes of the guest wait here until :meth:`AgentPort.receive` fetches them, and the
guest's writer waits when they are too many. What is sent waits without a limit: the
agent's protocol has windows of its own (``docs/guest-protocol.md``), and a host that
had to wait for room while the guest waits for it would wait for ever.
"""

from __future__ import annotations

from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmkit.virtio.port import Port, PortHost

__all__ = ["AgentPort"]

_MOST_UNREAD = 256 << 10


class AgentPort:
    """The host's end; ``wake`` is called on any thread when there is something to fetch."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = allocate_lock()
        self._from_guest: list[bytes] = []
        self._unread = 0
        self._to_guest = bytearray()
        self._port: Port | None = None
        self.closed = False
        """Whether the guest has closed the port since it had opened it, or has ended."""

    # The user's side

    def send(self, data: bytes) -> None:
        """Bytes for the guest."""
        with self._lock:
            self._to_guest += data
        self._kick()

    def receive(self) -> bytes:
        """All that the guest has written since the last time."""
        with self._lock:
            data = b"".join(self._from_guest)
            self._from_guest.clear()
            full, self._unread = self._unread >= _MOST_UNREAD, 0
        if full:
            self._kick()
        return data

    def _kick(self) -> None:
        if self._port is not None:
            self._port.kick()

    # kvmkit.virtio.port.PortBackend

    def attach(self, port: Port) -> None:
        """See PortBackend."""
        self._port = port

    def open(self, host: PortHost) -> None:
        """See PortBackend."""

    def room(self) -> int:
        """See PortBackend."""
        return _MOST_UNREAD - self._unread

    def take(self, data: bytes) -> None:
        """See PortBackend."""
        with self._lock:
            self._from_guest.append(data)
            self._unread += len(data)
        self._wake()

    def pending(self) -> int:
        """See PortBackend."""
        return len(self._to_guest)

    def give(self, most: int) -> bytes:
        """See PortBackend."""
        with self._lock:
            data = bytes(self._to_guest[:most])
            del self._to_guest[:most]
        return data

    def guest_opened(self, is_open: bool) -> None:
        """See PortBackend."""
        if not is_open:
            with self._lock:
                self._to_guest.clear()
            self.end()

    def end(self) -> None:
        """See PortBackend."""
        self.closed = True
        self._wake()

    def close(self) -> None:
        """See PortBackend."""
