"""Ethernet frames on a stream socket, each behind its length: 32 bits, big-endian.

What passt(1) speaks, and QEMU's ``-netdev stream`` (QEMU manual, "Invocation").
"""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from kvmkit.virtio.net_backend import NetHost, Station

__all__ = ["FrameStream"]

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT

LENGTH_SIZE: Final = 4
IOV_MAX: Final = 1024
FRAME_MIN: Final = 14
FRAME_MAX: Final = 65535 + 18
BUFFER_SIZE: Final = 512 << 10
"""What is read at a time at most."""


class FrameStream:
    """The connected stream socket ``fd``, which belongs to this object from now on.

    ``ended(reason)`` is called once, on the I/O thread, when the other side goes;
    the station's link is down then.
    """

    features = 0
    header = False
    shared = False

    def __init__(
        self, fd: int, *, mtu: int = 1500, ended: Callable[[str], None] | None = None
    ) -> None:
        self.fd = fd
        self.mtu = mtu
        self._ended = ended
        os.set_blocking(fd, False)
        self._view = memoryview(bytearray(BUFFER_SIZE))
        self._filled = 0  # bytes in the buffer
        self._frames: list[memoryview] = []  # in the buffer, not taken yet
        self._used = 0  # bytes up to the end of these frames
        self._rest = b""  # of a frame that was sent in part
        self._events = 0
        self._reading = False
        self._writing = False  # waits for room
        self._gone = False

    # For the card

    def open(self, host: NetHost, station: Station) -> None:
        """See :class:`~kvmkit.virtio.net_backend.NetBackend`, as with all that follows."""
        self._host = host
        self._station = station

    def negotiated(self, features: int) -> None:
        """Nothing depends on it."""

    def send(self, frames: Sequence[Sequence[memoryview]]) -> int:
        """Send what the socket takes; the rest of the last one waits here."""
        if self._gone:
            return len(frames)
        if self._rest:
            return 0
        pieces: list[bytes | memoryview] = []
        ends = []
        total = 0
        for frame in frames:
            size = sum(map(len, frame))
            pieces.append(size.to_bytes(LENGTH_SIZE, "big"))
            pieces += frame
            total += LENGTH_SIZE + size
            ends.append(total)
        try:
            done = os.writev(self.fd, pieces[:IOV_MAX])
        except BlockingIOError:
            done = 0
        except OSError:  # it has gone, which reading finds, too
            return len(frames)
        if done == total:
            return len(frames)
        sent = 0
        while sent < len(ends) and ends[sent] <= done:
            sent += 1
        if done > (ends[sent - 1] if sent else 0):
            self._rest = b"".join(pieces)[done : ends[sent]]
            sent += 1
        self._writing = True
        self._host.call_soon(self._watch)
        return sent

    def resume(self) -> None:
        """Read on, first what is here already."""
        self._host.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._gone and not self._reading:
            self._reading = True
            if self._deliver():
                self._watch()

    def close(self) -> None:
        """Close the socket."""
        fd, self.fd = self.fd, -1
        self._gone = True
        if fd >= 0:
            if self._events:
                self._host.watch(fd, 0, self._hear)
            os.close(fd)

    # From the other side; on the I/O thread, mostly without the board's lock

    def _watch(self) -> None:
        wanted = READABLE * self._reading | WRITABLE * self._writing
        if wanted != self._events and not self._gone:
            self._events = wanted
            self._host.watch(self.fd, wanted, self._hear)

    def _hear(self, events: int) -> None:
        if self._gone:
            return
        if events & WRITABLE and self._writing:
            self._host.call(self._flush)
        if self._reading and events & ~WRITABLE:
            self._read()
        elif events & select.EPOLLHUP:
            self._leave("")

    def _flush(self) -> None:
        try:
            self._rest = self._rest[os.write(self.fd, self._rest) :] if self._rest else b""
        except BlockingIOError:
            return
        except OSError:
            self._rest = b""
        if not self._rest:
            self._writing = False
            self._station.writable()
            self._watch()

    def _read(self) -> None:
        try:
            count = os.readv(self.fd, [self._view[self._filled :]])
        except BlockingIOError:
            return
        except OSError as error:
            self._leave(error.strerror or "")
            return
        if not count:
            self._leave("")
            return
        self._filled += count
        self._cut()
        self._deliver()

    def _cut(self) -> None:
        """Find the frames in the buffer."""
        view, at, end = self._view, 0, self._filled
        frames = []
        while end - at >= LENGTH_SIZE:
            size = int.from_bytes(view[at : at + LENGTH_SIZE], "big")
            if size > FRAME_MAX:
                self._leave(f"it sent a frame of {size} bytes")
                return
            following = at + LENGTH_SIZE + size
            if following > end:
                break
            if size >= FRAME_MIN:
                frames.append(view[at + LENGTH_SIZE : following])
            at = following
        self._frames = frames
        self._used = at

    def _deliver(self) -> bool:
        """Give frames to the card; whether all were taken. If not, reading stops."""
        frames = self._frames
        if frames:
            taken = self._station.receive(frames)
            if taken < len(frames):
                self._frames = frames[taken:]
                self._reading = False
                self._watch()
                return False
        self._frames = []
        left = self._filled - self._used
        if self._used:
            self._view[:left] = self._view[self._used : self._filled]
            self._filled, self._used = left, 0
        return True

    def _leave(self, reason: str) -> None:
        """The other side has gone."""
        if self._gone:
            return
        self._gone = True
        self._host.watch(self.fd, 0, self._hear)
        self._events = 0
        self._rest = b""
        self._station.set_link(False)
        if self._ended is not None:
            self._ended(reason)
