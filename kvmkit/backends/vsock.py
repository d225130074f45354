"""The host's end of a guest's sockets (AF_VSOCK): Unix sockets, as Firecracker has them.

A program of the host connects to the VM's socket and says ``CONNECT <port>\\n``; when
a program of the guest listens there, it gets ``OK <port of the host>\\n``, and from then on
both talk to each other. When a program of the guest connects to the host (address 2), port
*P*, it talks to who listens at the VM's socket's path with ``_P`` behind it.

Specified by example: Firecracker, ``docs/vsock.md``.
"""

from __future__ import annotations

import select
from _socket import MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR

from kvmkit.backends.unix_listener import LONGEST_PATH, UnixListener, unix_stream
from kvmkit.errors import CommandTimeout, FileTrouble, KvmkitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

    from kvmkit.virtio.port import PortHost
    from kvmkit.virtio.vsock import Vsock
    from kvmkit.virtio.vsock_connection import Connection, Peer

__all__ = ["VsockHub", "VsockRefused", "connect"]

INPUT = 64 << 10
"""Bytes of a host's program that wait for the guest."""

GREETING_MAX = 32
PEERS_MAX = 1024
PORT_MAX = 0xFFFF_FFFF

_OVER = select.EPOLLHUP | select.EPOLLERR
_SEND, _BOTH = 2, 3  # flags of SHUTDOWN
_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL


class VsockRefused(KvmkitError, ConnectionRefusedError):
    """Nobody listens at that port of the guest."""

    exit_code = 109


class VsockHub:
    """The Unix socket at ``path`` and those beside it."""

    def __init__(self, path: str) -> None:
        if len(path.encode()) + len(f"_{PORT_MAX}") > LONGEST_PATH:
            raise UsageError(
                f"a vsock path is at most {LONGEST_PATH - 11} bytes, "
                f"as port numbers are put behind it: {path!r}"
            )
        self.path = path
        self.device: Vsock
        self.host: PortHost
        self.peers: set[SocketPeer] = set()
        self._listener: UnixListener | None = None

    # kvmkit.virtio.vsock.Hub

    def open(self, device: Vsock, host: PortHost) -> None:
        """See Hub. Raises FileTrouble when the socket cannot be made."""
        self.device, self.host = device, host
        self._listener = UnixListener(self.path)
        host.watch(self._listener.fileno(), select.EPOLLIN, self._ready)

    def answer(self, port: int) -> Peer | None:
        """See Hub: whoever listens at the path of that port."""
        if len(self.peers) >= PEERS_MAX:
            return None
        sock = unix_stream()
        try:
            sock.connect(f"{self.path}_{port}")
        except OSError:  # nobody, or he has too many waiting already
            sock.close()
            return None
        return SocketPeer(self, sock)

    def begun(self, connection: Connection, peer: Peer) -> None:
        """See Hub."""
        assert isinstance(peer, SocketPeer)
        peer.connection = connection
        peer.open = True
        connection.accept()
        peer.update_soon()

    def close(self) -> None:
        """See Hub."""
        for peer in list(self.peers):
            peer.drop()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _ready(self, events: int) -> None:
        self.host.call(self._accept)

    def _accept(self) -> None:
        sock = None if self._listener is None else self._listener.accept()
        if sock is None:
            return
        if len(self.peers) >= PEERS_MAX:
            sock.close()
            return
        SocketPeer(self, sock).update_soon()


class SocketPeer:
    """A connection's end at a Unix socket: one that we connected, or whose first line we expect."""

    def __init__(self, hub: VsockHub, sock: socket) -> None:
        self.hub = hub
        self.connection: Connection | None = None
        self.open = False
        """Whether the guest is at the other end."""
        self._sock = sock
        self._fd = sock.fileno()
        self._input = bytearray()  # for the guest
        self._output = bytearray()  # of the guest
        self._asked = False  # the first line was understood
        self._read_end = False
        self._hung_up = False
        self._guest_end = False
        self._dead = False
        self._watched = 0
        self._soon = False
        hub.peers.add(self)

    # kvmkit.virtio.vsock_connection.Peer

    def connected(self, connection: Connection) -> None:
        """See Peer."""
        self.open = True
        try:
            self._sock.send(b"OK %d\n" % connection.host_port, _FLAGS)
        except OSError:
            connection.shut(_BOTH)
        self.update_soon()

    def take(self, data: bytes) -> None:
        """See Peer."""
        if self._output:
            self._output += data
            return
        done = self._send(data)
        self._output += data[done:]
        if self._output:
            self.update_soon()
        if done and self.connection is not None:
            self.connection.taken(done)

    def take_end(self) -> None:
        """See Peer."""
        self._guest_end = True
        self.update_soon()

    def pending(self) -> int:
        """See Peer."""
        return len(self._input)

    def give(self, most: int) -> bytes:
        """See Peer."""
        data = bytes(self._input[:most])
        del self._input[:most]
        self.update_soon()
        return data

    def closed(self) -> None:
        """See Peer."""
        self.open = False
        self._dead = True
        self._input.clear()
        self.update_soon()

    # The I/O thread, with the lock. All waiting begins and ends there.

    def update_soon(self) -> None:
        """Wait for what would help, a little later; from any thread."""
        if not self._soon:
            self._soon = True
            self.hub.host.call_soon(self._update)

    def _update(self) -> None:
        self._soon = False
        if self._fd < 0:
            return
        if not self._output:
            if self._dead:
                self.drop()
                return
            if self._guest_end:
                self._guest_end = False
                try:
                    self._sock.shutdown(SHUT_WR)
                except OSError:
                    pass
        wanted = 0
        if not self._read_end and not self._dead and self._has_room():
            wanted |= select.EPOLLIN
        if self._output:
            wanted |= select.EPOLLOUT
        if not wanted and self._read_end and not self._hung_up:
            wanted = select.EPOLLMSG  # one always hears of the hang-up
        self._watch(wanted)

    def _has_room(self) -> bool:
        if self.open or not self._asked:
            return len(self._input) < INPUT
        return False

    def _watch(self, wanted: int) -> None:
        if wanted != self._watched:
            self._watched = wanted
            self.hub.host.watch(self._fd, wanted, self._ready)

    def _ready(self, events: int) -> None:
        self.hub.host.call(lambda: self.hub.device.guard(lambda: self._serve(events)))

    def _serve(self, events: int) -> None:
        if self._fd < 0:
            return
        if events & ~select.EPOLLOUT and not self._read_end and not self._dead:
            self._read()
        if self._output:
            done = self._send(self._output)
            del self._output[:done]
            if self.connection is not None:
                self.connection.taken(done)
        if events & _OVER and (self._read_end or self._dead):
            self._hang_up()
        self._update()

    def _read(self) -> None:
        try:
            data = self._sock.recv(INPUT - len(self._input) if self._asked else GREETING_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._input += data
        if not data:
            self._read_end = True
        if not self._asked and self.connection is None:
            self._greet()
        elif self.connection is not None:
            if data:
                self.connection.ready()
            else:
                self.connection.shut(_SEND)

    def _greet(self) -> None:
        """``CONNECT <port>``."""
        line, newline, rest = bytes(self._input).partition(b"\n")
        if not newline and len(line) < GREETING_MAX and not self._read_end:
            return
        word, _, number = line.partition(b" ")
        port = int(number) if number.isdigit() and len(number) <= len(str(PORT_MAX)) else -1
        self._asked = True
        self._input[:] = rest
        if newline and word.upper() == b"CONNECT" and 0 <= port <= PORT_MAX:
            self.connection = self.hub.device.connect(port, self)
            if self.connection is not None and self._read_end:
                self.connection.shut(_SEND)
        if self.connection is None:
            self._dead = True

    def _send(self, data: bytes | bytearray) -> int:
        """Hand on what goes; all of it, to nobody, once the program has gone."""
        if self._hung_up:
            return len(data)
        try:
            return self._sock.send(data, _FLAGS)
        except BlockingIOError:
            return 0
        except OSError:
            self._hang_up()
            return len(data)

    def _hang_up(self) -> None:
        if not self._hung_up:
            self._hung_up = True
            self._output.clear()
            if self.connection is not None:
                self.connection.shut(_BOTH)

    def drop(self) -> None:
        """Close the socket."""
        if self._fd >= 0:
            self._watch(0)
            self._fd = -1
            self._sock.close()
            self.hub.peers.discard(self)


def connect(path: str, port: int, timeout: float | None = None) -> Any:
    """A blocking ``socket.socket`` to ``port`` of the guest whose VM's socket is at ``path``.

    Raises VsockRefused when nobody listens there, CommandTimeout after ``timeout`` seconds,
    FileTrouble when there is no VM.
    """
    import socket

    client = socket.socket(socket.AF_UNIX)
    try:
        client.settimeout(timeout)
        client.connect(path)
        client.sendall(b"CONNECT %d\n" % port)
        answer = b""
        while not answer.endswith(b"\n"):
            byte = client.recv(1)  # not one more: what follows is the program's
            if not byte:
                raise VsockRefused(f"nobody listens at port {port} of the guest")
            answer += byte
        client.settimeout(None)
    except BaseException as error:
        client.close()
        if isinstance(error, TimeoutError):
            raise CommandTimeout(f"port {port} of the guest does not answer") from None
        if isinstance(error, OSError) and not isinstance(error, KvmkitError):
            raise FileTrouble(f"{path}: no VM's socket: {error.strerror}") from None
        raise
    return client
