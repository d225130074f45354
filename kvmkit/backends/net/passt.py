"""The host's network without privileges, through passt(1).

passt turns the guest's packets into sockets of its own and back, as a program of
the host's user that asks for nothing. It is started here with one end of a socket
pair, and ends when the other end is closed, also if this process is killed.

The guest has a fixed address (:data:`GUEST`); the router's address is the host
itself, whose loopback services answer there, and :data:`DNS` is the host's first
name server.
"""

from __future__ import annotations

import os

from kvmkit.backends.net.publish import Published
from kvmkit.backends.net.stream import FRAME_MAX, FrameStream
from kvmkit.backends.net.trouble import NetworkTrouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmkit.virtio.net_backend import NetHost, Station

__all__ = ["DNS", "GUEST", "PREFIX", "ROUTER", "Passt"]

GUEST: Final = "10.0.2.15"
ROUTER: Final = "10.0.2.2"
DNS: Final = "10.0.2.3"
PREFIX: Final = 24
"""The same addresses as in QEMU's user networking, which people know by heart."""

MTU: Final = 65520
"""passt's own default: few, large packets."""

SOCKET_BUFFER: Final = 4 << 20
READY_TIMEOUT: Final = 5.0
"""Seconds that passt may take to answer its first frame; it takes 0.01."""
END_TIMEOUT: Final = 1.0

_SAID_MAX = 64 << 10
_NOISE = ("Failed to send", "Don't run as root")


class Passt(FrameStream):
    """A network through passt, which is started at once.

    Raises NetworkTrouble when it is not installed, or a port of ``publish`` is in
    use; other reasons for it to end are found in :meth:`open`.
    """

    def __init__(
        self, *, publish: Sequence[Published] = (), mtu: int = MTU, program: str = "passt"
    ) -> None:
        path = _find(program)
        for one in publish:
            _check_free(one)
        self._process = 0
        self._said = os.memfd_create("kvmkit-passt")
        try:
            ours, theirs = _socket_pair()
            try:
                words = _words(program, theirs, publish, mtu)
                self._process = _spawn(path, words, theirs, self._said)
            finally:
                os.close(theirs)
            super().__init__(ours, mtu=mtu, ended=self._has_ended)
        except BaseException:
            os.close(self._said)
            raise

    @property
    def process(self) -> int:
        """The process's number; 0 when it has ended."""
        return self._process

    def open(self, host: NetHost, station: Station) -> None:
        """Wait until it answers a question for the router's address (ARP, RFC 826).

        Raises NetworkTrouble if it ends instead, or is silent.
        """
        super().open(host, station)
        question = b"\xff" * 6 + station.mac + b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"
        question += station.mac + _packed(GUEST) + bytes(6) + _packed(ROUTER)
        try:
            os.write(self.fd, len(question).to_bytes(4, "big") + question)
            # The answer is not the guest's, but what comes after it is.
            size = int.from_bytes(self._read_exactly(4), "big")
            self._read_exactly(min(size, FRAME_MAX))
        except TimeoutError:
            raise NetworkTrouble("passt was started but does not answer") from None
        except OSError:
            self._reap()
            raise NetworkTrouble(
                f"passt ended: {self.said or 'it does not say why'}",
                "it needs a host with a network; --net none starts without one",
            ) from None

    def _read_exactly(self, size: int) -> bytes:
        """The next bytes. Raises TimeoutError, or another OSError at the end."""
        import select

        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        data = b""
        while len(data) < size:
            if not poll.poll(READY_TIMEOUT * 1000):
                raise TimeoutError
            more = os.read(self.fd, size - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return data

    @property
    def said(self) -> str:
        """The last line of what it has said."""
        text = os.pread(self._said, _SAID_MAX, 0).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines()]
        told = [line for line in lines if line and not line.startswith(_NOISE)]
        return told[-1] if told else ""

    def _has_ended(self, reason: str) -> None:
        said = reason or self.said
        self._host.warn(f"network: passt has ended{': ' if said else ''}{said}")

    def close(self) -> None:
        """End passt. Callable twice."""
        super().close()
        self._reap()
        said, self._said = self._said, -1
        if said >= 0:
            os.close(said)

    def _reap(self) -> None:
        """Have it end: its socket is closed, so it does so by itself, or is told to."""
        import signal
        import time

        process, self._process = self._process, 0
        if not process:
            return
        try:
            os.kill(process, signal.SIGTERM)
            deadline = time.monotonic() + END_TIMEOUT
            while os.waitpid(process, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    return
                time.sleep(0.001)
        except (ProcessLookupError, ChildProcessError):
            pass  # somebody waits for all children of this process


def _words(program: str, descriptor: int, publish: Sequence[Published], mtu: int) -> list[str]:
    words = [program, "--foreground", "--quiet", "--fd", str(descriptor), "--mtu", str(mtu)]
    words += ["--address", GUEST, "--netmask", str(PREFIX), "--gateway", ROUTER]
    words += ["--dns-forward", DNS]
    for one in publish:
        words += ["-u" if one.udp else "-t", f"{one.address}/{one.port}:{one.guest_port}"]
    return words


def _find(program: str) -> str:
    places = [os.path.dirname(program)] if "/" in program else os.get_exec_path()
    for place in places:
        path = f"{place}/{os.path.basename(program)}"
        if os.access(path, os.X_OK):
            return path
    raise NetworkTrouble(
        f"user-mode networking needs {program}, which is not installed",
        "apt install passt (dnf, pacman: the same name), or kvmkit run --net none",
    )


def _check_free(one: Published) -> None:
    """A clear word on a port that is taken; passt would only say that it failed."""
    import _socket

    kind = _socket.SOCK_DGRAM if one.udp else _socket.SOCK_STREAM
    probe = _socket.socket(_socket.AF_INET, kind)
    try:
        probe.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 0 if one.udp else 1)
        probe.bind((one.address, one.port))
    except OSError as error:
        raise NetworkTrouble(
            f"port {one.port} of {one.address} cannot be published: {error.strerror}"
        ) from None
    finally:
        probe.close()


def _socket_pair() -> tuple[int, int]:
    """Two connected descriptors; ``_socket`` saves the 4 ms that ``socket`` takes to import."""
    import _socket

    pair = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    for end in pair:
        end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, SOCKET_BUFFER)
    return pair[0].detach(), pair[1].detach()


def _spawn(path: str, words: list[str], descriptor: int, said: int) -> int:
    # A session of its own: Ctrl-c at the terminal is for the guest.
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, said, 2),
    ]
    os.set_inheritable(descriptor, True)
    try:
        return os.posix_spawn(path, words, os.environ, file_actions=actions, setsid=True)
    except OSError as error:
        raise NetworkTrouble(f"{path} cannot be started: {error.strerror}") from None


def _packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))
