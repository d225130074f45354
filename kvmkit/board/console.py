"""A serial line's host side: the guest's output to whoever wants it, typed bytes to the guest.

The chip hands over single bytes, on a vCPU's thread and under the board's lock.
They are collected and put out at the end of each line, or some milliseconds
after a byte that no newline follows (a prompt, an echo). Nothing here blocks
while the lock is held; when a reader is slow, :attr:`ConsoleOutput.clogged`
says so and the bus slows the guest down.
"""

from __future__ import annotations

import os

from kvmkit.board.loop import READABLE, WRITABLE
from kvmkit.board.sink import DescriptorSink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from kvmkit.board.clock import BoardClock
    from kvmkit.board.loop import EventLoop
    from kvmkit.devices.serial import Serial

    Sink = int | Callable[[bytes], object]

__all__ = ["LOG_SIZE", "ConsoleInput", "ConsoleOutput"]

LOG_SIZE = 256 << 10
"""Bytes of output kept for a look after the end."""

BACKLOG = 1 << 20
"""Bytes a slow reader may be behind before the guest is slowed down."""

_PROMPT_DELAY = 4_000_000  # ns of host time a byte may wait for the rest of its line
_BATCH = 4096
_INPUT_HELD = 64 << 10
_SETTLE = 10_000_000  # ns of guest time after which a driver has set up the port


class ConsoleOutput:
    """What a guest writes to one line.

    ``lock`` is the board's, ``host_clock`` one that runs while the VM is paused.
    ``clogged(bool)`` is called when a reader falls too far behind, and again
    when it has caught up.
    """

    def __init__(
        self,
        loop: EventLoop,
        lock: AbstractContextManager[object],
        host_clock: BoardClock,
        clogged: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._lock = lock
        self._clock = host_clock
        self._clogged = clogged
        self._pending = bytearray()
        self._log = bytearray()
        self._taps: list[Callable[[bytes], None]] = []
        self._descriptors: list[DescriptorSink] = []
        self._calls: list[Callable[[bytes], object]] = []
        self._unsent = bytearray()  # for the calls, which run on the loop's thread
        self._full = False
        self.trouble: OSError | None = None
        """Why output was lost, a full disk for instance; known after :meth:`close`."""
        self._emitted = 0
        self._tick = host_clock.timer(self._on_tick)
        self._fresh = False

    # Who listens; before the machine runs

    def add_sink(self, sink: Sink) -> None:
        """Put the output out to a file descriptor, or to a callable run on the I/O thread.

        The descriptor stays the caller's to close, after this object's.
        """
        if isinstance(sink, int):
            self._descriptors.append(DescriptorSink(sink))
        else:
            self._calls.append(sink)

    def add_tap(self, tap: Callable[[bytes], None]) -> None:
        """Show the output to ``tap``, which runs under the board's lock and must be quick."""
        self._taps.append(tap)

    def attach(self, tap: Callable[[bytes], None]) -> bytes:
        """Show all further output to ``tap``, as :meth:`add_tap` does; also while the machine runs.

        Returns what came before: :attr:`log`, with nothing missing or twice in between.
        """
        with self._lock:
            if self._pending:
                self._emit()
            self._taps = [*self._taps, tap]
            return bytes(self._log[-LOG_SIZE:])

    def detach(self, tap: Callable[[bytes], None]) -> None:
        """Undo :meth:`attach`. Harmless when it is not attached."""
        with self._lock:
            self._taps = [other for other in self._taps if other != tap]

    @property
    def log(self) -> bytes:
        """The last output, up to :data:`LOG_SIZE` bytes."""
        with self._lock:
            return bytes((self._log + self._pending)[-LOG_SIZE:])

    @property
    def count(self) -> int:
        """How many bytes the guest has sent since power-on."""
        return self._emitted + len(self._pending)

    # The device's side, under the board's lock

    def write(self, data: bytes) -> None:
        """Take what the guest sent."""
        pending = self._pending
        pending += data
        if data.endswith(b"\n") or len(pending) >= _BATCH:
            self._emit()
        elif self._tick.deadline is None:
            self._tick.arm(self._clock.now() + _PROMPT_DELAY)
        self._fresh = True

    def _on_tick(self) -> None:
        # One timer for as long as output goes on: arming one for every line
        # would wake the I/O thread for every line.
        if self._pending:
            self._emit()
        if self._fresh:
            self._fresh = False
            self._tick.arm(self._clock.now() + _PROMPT_DELAY)

    def _emit(self) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        self._emitted += len(data)
        self._log += data
        if len(self._log) > 2 * LOG_SIZE:
            del self._log[:-LOG_SIZE]
        for tap in self._taps:
            tap(data)
        for sink in self._descriptors:
            if sink.write(data) and not sink.waiting:
                sink.waiting = True
                self._loop.call_soon(lambda sink=sink: self._await_room(sink))  # type: ignore[misc]
        if self._calls:
            if not self._unsent:
                self._loop.call_soon(self._call_sinks)
            self._unsent += data
        self._measure()

    def _measure(self) -> None:
        behind = max([len(self._unsent), *(len(sink.backlog) for sink in self._descriptors)])
        full = behind > BACKLOG if not self._full else behind > BACKLOG // 2
        if full != self._full:
            self._full = full
            self._clogged(full)

    # The I/O thread's side

    def _await_room(self, sink: DescriptorSink) -> None:
        try:
            self._loop.watch(sink.fd, WRITABLE, lambda events: self._drain(sink))
        except OSError:  # not a descriptor that can be waited for: it takes all or fails
            sink.waiting = False
            sink.drop()

    def _drain(self, sink: DescriptorSink) -> None:
        with self._lock:
            if not sink.write(b""):
                self._loop.unwatch(sink.fd)
                sink.waiting = False
            self._measure()

    def _call_sinks(self) -> None:
        with self._lock:
            data = bytes(self._unsent)
            self._unsent.clear()
        for call in self._calls:
            call(data)
        with self._lock:
            self._measure()

    def close(self, patience: float | None = 2.0) -> None:
        """Put out what is left, waiting at most ``patience`` seconds for slow readers.

        None waits as long as they need.

        Once the loop has stopped. Callable twice.
        """
        with self._lock:
            self._tick.cancel()
            if self._pending:
                self._emit()
        if self._unsent:
            self._call_sinks()
        sinks, self._descriptors = self._descriptors, []
        for sink in sinks:
            sink.close(patience)
            self.trouble = self.trouble or sink.trouble
        self._calls = []


class ConsoleInput:
    """What is typed, held until the guest takes it.

    With ``hold``, bytes wait until the guest's driver listens: until it has
    enabled the receiver interrupt and then left the port alone for some
    milliseconds of ``clock``. Linux empties the FIFO several times while it opens
    the port, and what was typed or piped in before would be lost.
    """

    def __init__(
        self,
        loop: EventLoop,
        lock: AbstractContextManager[object],
        clock: BoardClock,
        *,
        hold: bool = False,
    ) -> None:
        self._loop = loop
        self._lock = lock
        self._clock = clock
        self._hold = hold
        self._settle = clock.timer(self._on_settled)
        self._settled = not hold
        self._given = False  # the guest has bytes it has not read
        self._serial: Serial | None = None
        self._held = bytearray()
        self._fd = -1
        self._watching = False
        self._pushing = False
        self._at_end: Callable[[], None] | None = None
        self._filter: Callable[[bytes], bytes] | None = None

    def connect(self, serial: Serial) -> None:
        """The port that receives; its ``on_room`` is :meth:`room`."""
        self._serial = serial

    @property
    def held(self) -> int:
        """How many typed bytes the guest has not taken yet."""
        return len(self._held)

    def feed(self, data: bytes) -> None:
        """Type ``data``. From any thread."""
        with self._lock:
            self._held += data
            self._push()

    def room(self) -> None:
        """The guest has emptied the receiver, or begins to listen. Under the board's lock."""
        if self._hold and not self._given:
            self._settled = False  # the driver sets up the port
        self._given = False
        self._push()

    def _on_settled(self) -> None:
        if self._serial is not None and self._serial.listening:
            self._settled = True
            self._push()

    def _push(self) -> None:
        """Give the guest what it has room for."""
        serial = self._serial
        if serial is None or self._pushing:
            return
        if not self._settled or (self._hold and not serial.listening):
            if serial.listening:
                self._settle.arm(self._clock.now() + _SETTLE)
            return
        self._pushing = True  # receiving may raise a line, and that call us again
        try:
            while self._held:
                taken = serial.receive(bytes(self._held[:64]))
                if not taken:
                    break
                self._given = True
                del self._held[:taken]
        finally:
            self._pushing = False
        if self._fd >= 0 and not self._watching and len(self._held) < _INPUT_HELD:
            self._loop.call_soon(self._listen)

    def attach(
        self,
        fd: int,
        *,
        at_end: Callable[[], None] | None = None,
        filter: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Take input from ``fd`` (a terminal, a pipe, a file), which stays the caller's.

        ``filter`` sees the bytes first and returns those for the guest;
        ``at_end`` is called at the end of the input. Both run on the I/O thread.
        """
        self._fd = fd
        self._at_end = at_end
        self._filter = filter
        self._loop.call_soon(self._listen)

    def detach(self) -> None:
        """Take nothing more from the descriptor. From any thread."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.call_soon(lambda: self._loop.unwatch(fd))

    def _listen(self) -> None:
        if self._fd < 0 or self._watching:
            return
        try:
            self._loop.watch(self._fd, READABLE, self._on_readable)
            self._watching = True
        except PermissionError:  # a regular file is always readable, and epoll takes none
            self._read()
            if self._fd >= 0 and len(self._held) < _INPUT_HELD:
                self._loop.call_soon(self._listen)

    def _on_readable(self, events: int) -> None:
        self._read()
        if len(self._held) >= _INPUT_HELD or self._fd < 0:
            self._pause()

    def _pause(self) -> None:
        if self._watching:
            self._watching = False
            if self._fd >= 0:
                self._loop.unwatch(self._fd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _BATCH)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # EIO: the terminal went away
            data = b""
        if not data:
            self._pause()
            self._fd = -1
            if self._at_end is not None:
                self._at_end()
            return
        if self._filter is not None:
            data = self._filter(data)
        if data:
            self.feed(data)
