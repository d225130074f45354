"""A port of a guest's console device as a stream of bytes in this process.

``VM.port(name)`` gives one. The guest's program opens ``/dev/virtio-ports/NAME``; the
device that moves the bytes is :mod:`kvmkit.virtio.console`.
"""

from __future__ import annotations

from collections import deque
from threading import Condition, Lock, Thread
from time import monotonic

from kvmkit.errors import CommandTimeout, KvmkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from kvmkit.virtio.port import Port, PortHost

__all__ = ["CAPACITY", "PortClosed", "PortStream"]

CAPACITY = 64 << 10
"""Bytes that wait at the host's end, in each direction, before a writer has to."""


class PortClosed(KvmkitError, BrokenPipeError):
    """Nobody will take what is written: an end of the port was closed, or the VM is gone."""

    exit_code = 109


class PortStream:
    """The host's end of a port; for any thread.

    Each time the guest opens the port is a conversation of its own: its end is an
    empty :meth:`read`. What is written while the guest has the port closed waits for
    the next; what the guest has not taken when it closes it is void.
    """

    def __init__(self, name: str, *, capacity: int = CAPACITY) -> None:
        self.name = name
        self._capacity = capacity
        self._lock = Lock()  # guards all below; never held while another is taken
        self._changed = Condition(self._lock)
        self._from_guest: deque[bytes] = deque()  # an empty one is a conversation's end
        self._unread = 0
        self._to_guest = bytearray()
        self._guest_open = False
        self._closes = 0
        self._ended = False
        self._port: Port | None = None

    # The user's side

    @property
    def guest_open(self) -> bool:
        """Whether a program in the guest has it open."""
        return self._guest_open

    def wait_open(self, timeout: float | None = None) -> bool:
        """Wait until the guest has it open; False after ``timeout`` seconds, or at the VM's end."""
        with self._lock:
            self._changed.wait_for(lambda: self._guest_open or self._ended, timeout)
            return self._guest_open

    def read(self, size: int = CAPACITY, timeout: float | None = None) -> bytes:
        """The guest's next bytes, at most ``size``; waits until there are some.

        ``b""`` when the guest has closed the port (once for each time), and for ever
        after :meth:`close` or the VM's end. Raises CommandTimeout after ``timeout`` seconds.
        """
        with self._lock:
            if not self._changed.wait_for(lambda: self._from_guest or self._ended, timeout):
                raise CommandTimeout(f"the port {self.name}: no data in {timeout:g} seconds")
            full = self._unread >= self._capacity
            data = self._next(size)
            has_room = full and self._unread < self._capacity
        if has_room:
            self._kick()
        return data

    def _next(self, size: int) -> bytes:
        """From what the guest wrote; b"" at a conversation's end, or if there is no more."""
        if not self._from_guest:
            return b""
        data = self._from_guest.popleft()
        if len(data) > size:
            self._from_guest.appendleft(data[size:])
            data = data[:size]
        self._unread -= len(data)
        return data

    def write(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        """Send ``data``; waits until the last of it is in the buffer of :data:`CAPACITY` bytes.

        Raises CommandTimeout after ``timeout`` seconds, and PortClosed when the guest
        closes the port meanwhile, or the port or the VM is closed: part of ``data`` may have
        been sent then.
        """
        source = memoryview(data).cast("B")
        limit = None if timeout is None else monotonic() + timeout
        done = 0
        with self._lock:
            closes = self._closes
        while True:
            with self._lock:
                left = None if limit is None else max(0.0, limit - monotonic())
                in_time = self._changed.wait_for(
                    lambda: (
                        self._ended
                        or self._closes != closes
                        or len(self._to_guest) < self._capacity
                    ),
                    left,
                )
                if not in_time:
                    raise CommandTimeout(
                        f"the port {self.name}: the guest took {done} of {len(source)} bytes "
                        f"in {timeout:g} seconds"
                    )
                if self._ended or self._closes != closes:
                    who = "is closed" if self._ended else "was closed by the guest"
                    raise PortClosed(f"the port {self.name} {who}")
                part = source[done : done + self._capacity - len(self._to_guest)]
                self._to_guest += part
                done += len(part)
            self._kick()
            if done == len(source):
                return

    def listen(self, listener: Callable[[bytes], object]) -> None:
        """Give what the guest writes to ``listener``, on a thread of the port's own, instead
        of :meth:`read`; ``b""`` when the guest has closed the port, and at the end. As long
        as it is busy the guest's writer waits."""

        def run() -> None:
            while not self._ended or self._from_guest:
                listener(self.read())

        Thread(target=run, name=f"port-{self.name}", daemon=True).start()

    def close(self) -> None:
        """Hang up: the guest's program finds the port without a host. Callable twice."""
        self.end()
        port = self._port
        if port is not None:
            port.set_open(False)
            port.kick()  # what the guest still writes is dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # kvmkit.virtio.port.PortBackend

    def end(self) -> None:
        """See PortBackend: readers get what is left, writers an error."""
        with self._lock:
            self._ended = True
            self._guest_open = False
            self._to_guest.clear()
            self._changed.notify_all()

    def open(self, host: PortHost) -> None:
        """See PortBackend."""

    def attach(self, port: Port) -> None:
        """See PortBackend."""
        self._port = port

    def room(self) -> int:
        """See PortBackend. After :meth:`close` it takes all, and drops it."""
        return self._capacity if self._ended else self._capacity - self._unread

    def take(self, data: bytes) -> None:
        """See PortBackend."""
        with self._lock:
            if self._ended or not data:
                return
            self._from_guest.append(data)
            self._unread += len(data)
            self._changed.notify_all()

    def pending(self) -> int:
        """See PortBackend."""
        return len(self._to_guest)

    def give(self, most: int) -> bytes:
        """See PortBackend."""
        with self._lock:
            data = bytes(self._to_guest[:most])
            del self._to_guest[:most]
            self._changed.notify_all()
        return data

    def guest_opened(self, is_open: bool) -> None:
        """See PortBackend."""
        with self._lock:
            if self._ended:
                return
            self._guest_open = is_open
            if not is_open:
                self._to_guest.clear()
                self._closes += 1
                if not (self._from_guest and not self._from_guest[-1]):  # one end is enough
                    self._from_guest.append(b"")
            self._changed.notify_all()

    def _kick(self) -> None:
        if self._port is not None:
            self._port.kick()
