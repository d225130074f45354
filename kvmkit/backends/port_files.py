"""Ports of a guest's console device that end at file descriptors or at a Unix socket.

The other ends are programs that may be slow or go away; nothing here waits for them.
"""

from __future__ import annotations

import os
import select

from kvmkit.backends.ports import CAPACITY
from kvmkit.board.sink import DescriptorSink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from kvmkit.backends.unix_listener import UnixListener
    from kvmkit.virtio.port import Port, PortHost

__all__ = ["DescriptorPort", "SocketPort"]

_OVER = select.EPOLLHUP | select.EPOLLERR


class DescriptorPort:
    """The guest's bytes go to descriptor ``sink``, and come from ``source``; either may be None.

    Both stay the caller's to close, after the VM.
    """

    def __init__(self, source: int | None, sink: int | None) -> None:
        self._source = -1
        self._sink: DescriptorSink | None = None
        self._sinks_to = sink
        self._wanted_source = source
        self._polls = True
        self._over = True  # nothing more comes from the source
        self._input = bytearray()  # for the guest
        self._watched: dict[int, int] = {}
        self._port: Port
        self._host: PortHost | None = None
        self._soon = False

    # kvmkit.virtio.port.PortBackend

    def attach(self, port: Port) -> None:
        """See PortBackend."""
        self._port = port

    def open(self, host: PortHost) -> None:
        """See PortBackend."""
        self._host = host
        if self._sinks_to is not None:
            self._sink = DescriptorSink(self._sinks_to)
        if self._wanted_source is not None:
            self._source = self._wanted_source
            self._over = False
            self._polls = _polls(self._source)
        self._watch()

    def room(self) -> int:
        """See PortBackend."""
        return CAPACITY if self._sink is None else CAPACITY - len(self._sink.backlog)

    def take(self, data: bytes) -> None:
        """See PortBackend."""
        if self._sink is not None:
            self._sink.write(data)
            if self._sink.backlog or self._sink.broken:
                self._update_soon()

    def pending(self) -> int:
        """See PortBackend."""
        if not self._input and not self._polls:
            self._read()
        return len(self._input)

    def give(self, most: int) -> bytes:
        """See PortBackend."""
        data = bytes(self._input[:most])
        del self._input[:most]
        if self._polls:
            self._update_soon()
        return data

    def guest_opened(self, is_open: bool) -> None:
        """See PortBackend. What was read already is for whoever opens the port next."""
        if not is_open:
            self._update_soon()

    def end(self) -> None:
        """See PortBackend."""

    def close(self) -> None:
        """See PortBackend. What the guest wrote gets two seconds to be read."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close(2.0)

    # The I/O thread. All waiting begins and ends there, so that none outlives its descriptor.

    def _update_soon(self) -> None:
        if self._host is not None and not self._soon:
            self._soon = True
            self._host.call_soon(self._update)

    def _update(self) -> None:
        self._soon = False
        self._watch()

    def _watch(self) -> None:
        """Wait for what would help."""
        wanted: dict[int, int] = {}
        if not self._over and self._polls and len(self._input) < CAPACITY:
            wanted[self._source] = select.EPOLLIN
        if self._sink is not None and self._sink.backlog:
            wanted[self._sink.fd] = wanted.get(self._sink.fd, 0) | select.EPOLLOUT
        self._want(wanted)

    def _want(self, wanted: dict[int, int]) -> None:
        host = self._host
        if host is None:
            return
        for fd in self._watched.keys() - wanted.keys():
            host.watch(fd, 0, _ignore)
        for fd, events in wanted.items():
            if self._watched.get(fd) != events:
                host.watch(fd, events, lambda found, fd=fd: self._ready(fd, found))  # type: ignore[misc]
        self._watched = wanted

    def _ready(self, fd: int, events: int) -> None:
        assert self._host is not None
        self._host.call(lambda: self._serve(fd, events))

    def _serve(self, fd: int, events: int) -> None:
        """Under the lock: ``fd`` has ``events``."""
        if fd == self._source and events & ~select.EPOLLOUT:
            self._read()
        if self._sink is not None and self._sink.backlog:
            self._sink.write(b"")
        self._watch()
        self._port.kick()

    def _read(self) -> None:
        """More from the source, which has some, or its end."""
        room = CAPACITY - len(self._input)
        if self._over or room <= 0:
            return
        try:
            data = os.read(self._source, room)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._input += data
        self._over = not data


class SocketPort(DescriptorPort):
    """A Unix socket at ``path``: whoever connects, one at a time, has the host's end open."""

    def __init__(self, path: str) -> None:
        super().__init__(None, None)
        self.path = path
        self._listener: UnixListener | None = None
        self._client: socket | None = None
        self._hung_up = False

    def attach(self, port: Port) -> None:
        """See PortBackend. Nobody has connected yet."""
        super().attach(port)
        port.set_open(False)

    def open(self, host: PortHost) -> None:
        """See PortBackend. Raises FileTrouble or UsageError for a path where no socket can be."""
        from kvmkit.backends.unix_listener import UnixListener

        self._host = host
        self._listener = UnixListener(self.path)
        self._watch()

    def room(self) -> int:
        """See PortBackend: without a client, the guest's bytes wait in the guest."""
        return super().room() if self._client is not None else 0

    def close(self) -> None:
        """See PortBackend."""
        super().close()
        if self._client is not None:
            self._client.close()
        if self._listener is not None:
            self._listener.close()

    def _update(self) -> None:
        self._soon = False
        self._settle()

    def _watch(self) -> None:
        if self._client is None:
            if self._listener is not None:
                self._want({self._listener.fileno(): select.EPOLLIN})
        elif self._over and not (self._sink is not None and self._sink.backlog):
            # He may read on; one always hears of the hang-up.
            self._want({} if self._hung_up else {self._source: select.EPOLLMSG})
        else:
            super()._watch()

    def _serve(self, fd: int, events: int) -> None:
        if self._client is None:
            self._accept()
            return
        if fd != self._source:
            return
        super()._serve(fd, events)
        self._hung_up |= bool(events & _OVER) and self._over
        self._settle()

    def _accept(self) -> None:
        assert self._listener is not None
        client = self._listener.accept()
        if client is None:
            return
        self._client = client
        self._source = client.fileno()
        self._sink = DescriptorSink(self._source)
        self._over = self._hung_up = False
        self._watch()
        self._port.set_open(True)
        self._port.kick()

    def _settle(self) -> None:
        """Let go of a client that has gone, once the guest has what he sent."""
        busy = self._input and self._port.guest_open
        if (
            self._client is None
            or busy
            or not (self._hung_up or (self._sink is not None and self._sink.broken))
        ):
            self._watch()
            return
        self._want({})
        self._input.clear()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.drop()
            sink.close(0)
        self._client.close()
        self._client = None
        self._source = -1
        self._port.set_open(False)
        self._watch()


def _polls(fd: int) -> bool:
    """Whether one can wait for it: a file is always ready (epoll_ctl(2), EPERM)."""
    with select.epoll() as probe:
        try:
            probe.register(fd, 0)
        except PermissionError:
            return False
    return True


def _ignore(events: int) -> None:
    """Hears of nothing."""
