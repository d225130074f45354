"""What a VM talks to its guest through: ports, sockets, the balloon.

:class:`Peripherals` is the part of :class:`kvmkit.VM` with the devices that are made
when they are first asked for.
"""

from __future__ import annotations

from time import monotonic, sleep

from kvmkit.errors import UsageError
from kvmkit.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import Any

    from kvmkit.backends.ports import PortStream
    from kvmkit.board.config import BoardConfig
    from kvmkit.virtio.balloon import Balloon, BalloonStats
    from kvmkit.virtio.console import Console

__all__ = ["Peripherals"]

_POLL = 0.02  # seconds


class Peripherals(View):
    """A base of :class:`kvmkit.VM`."""

    if TYPE_CHECKING:
        _board_config: BoardConfig

        def add_device(self, device: Any, **options: Any) -> None: ...
        def on_end(self, listener: Callable[[Any], None]) -> None: ...

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._console: Console | None = None
        self._streams: dict[str, PortStream] = {}
        self._vsock_path = ""
        self._balloon: Balloon | None = None

    # Ports

    def port(self, name: str, listener: Callable[[bytes], object] | None = None) -> PortStream:
        """The port that the guest has as ``/dev/virtio-ports/NAME``: a stream of bytes.

        With ``listener``, what the guest writes is given to it (:meth:`PortStream.listen
        <kvmkit.backends.ports.PortStream.listen>`). Ports are made before :meth:`start
        <kvmkit.VM.start>`; UsageError for a new one after it.
        """
        stream = self._streams.get(name)
        if stream is None:
            from kvmkit.backends.ports import PortStream

            stream = PortStream(name)
            self._ports().add_port(name, stream)
            self._streams[name] = stream
        if listener is not None:
            stream.listen(listener)
        return stream

    def port_to_socket(self, name: str, path: str) -> None:
        """A port whose host's end is whoever connects to a Unix socket at ``path``, one at
        a time; before the start, which raises FileTrouble if the socket cannot be made."""
        from kvmkit.backends.port_files import SocketPort

        self._ports().add_port(name, SocketPort(path))

    def port_to_files(self, name: str, source: int | None, sink: int | None) -> None:
        """A port to descriptor ``sink`` and from ``source``, which stay the caller's to
        close; either may be None. Before the start."""
        from kvmkit.backends.port_files import DescriptorPort

        self._ports().add_port(name, DescriptorPort(source, sink))

    def _ports(self) -> Console:
        """The device with the ports."""
        if self._console is None:
            from kvmkit.virtio.console import Console

            console = Console()
            self.add_device(console)
            self.on_end(lambda ending: console.end())
            self._console = console
        elif self._board is not None:
            raise UsageError("ports are added before a VM starts")
        return self._console

    # Sockets

    def vsock(self, path: str, *, cid: int = 3) -> None:
        """Give the guest sockets (AF_VSOCK) with address ``cid``, the host's ends being Unix
        sockets: one at ``path`` to connect to the guest, and ``path_P`` for who listens
        for the guest at port P (``docs/vsock.md``). Before the start."""
        from kvmkit.backends.vsock import VsockHub
        from kvmkit.virtio.vsock import GUEST_CID_MAX, Vsock

        if not 2 < cid <= GUEST_CID_MAX:
            raise UsageError(f"a guest's vsock address is 3 to {GUEST_CID_MAX}, not {cid}")
        if self._vsock_path:
            raise UsageError("a VM has one vsock device")
        self.add_device(Vsock(cid, VsockHub(path)))
        self._vsock_path = path

    def vsock_connect(self, port: int, timeout: float | None = None) -> socket:
        """A socket to who listens at ``port`` in the guest.

        Raises VsockRefused when that is nobody, CommandTimeout after ``timeout`` seconds.
        """
        from kvmkit.backends.vsock import connect

        if not self._vsock_path:
            raise UsageError("this VM has no vsock device", "call vm.vsock(path) before the start")
        client: socket = connect(self._vsock_path, port, timeout)
        return client

    # Memory

    def add_balloon(self, *, deflate_on_oom: bool = True, reporting: bool = True) -> None:
        """Let the guest give memory back; before the start. Harmless when it can.

        With ``deflate_on_oom`` it may take back what it gave rather than end programs;
        with ``reporting`` it tells all the time what it does not use.
        """
        if self._balloon is None:
            from kvmkit.virtio.balloon import Balloon

            balloon = Balloon(deflate_on_oom=deflate_on_oom, reporting=reporting)
            self.add_device(balloon)
            self._balloon = balloon

    def balloon(self, size: int | str, timeout: float = 0) -> int:
        """Let the guest keep ``size`` of its memory (bytes, or text as ``"512M"``).

        Waits until it does, ``timeout`` seconds at most, and returns the bytes it has then.
        Before the start it adds the device (:meth:`add_balloon`). Raises UsageError for
        more than the guest's memory, and when it has no balloon.
        """
        from kvmkit.vm import memory_size

        whole = self._board_config.memory
        wanted = memory_size(size)
        if not 0 < wanted <= whole:
            raise UsageError(f"the guest's memory is {whole} bytes, it cannot keep {wanted}")
        if self._balloon is None and self._board is None:
            self.add_balloon()
        balloon = self._known_balloon()
        balloon.set_target(whole - wanted)
        limit = monotonic() + timeout
        while balloon.actual != balloon.target and monotonic() < limit and not self.ending:
            sleep(_POLL)
        return whole - balloon.actual

    def balloon_stats(self, timeout: float = 1.0) -> BalloonStats:
        """What the guest says of its memory, now; of earlier if it does not answer within
        ``timeout`` seconds. Raises UsageError when it has no balloon."""
        return self._known_balloon().ask(timeout)

    def _known_balloon(self) -> Balloon:
        if self._balloon is None:
            raise UsageError("this VM has no balloon", "call vm.add_balloon() before the start")
        return self._balloon
