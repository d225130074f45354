"""A connection that has become the guest's console: the output so far, then both ways raw.

A reader that falls behind does not slow the guest down: what it misses is
replaced by a line that says how much that was.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.control.server import Client

__all__ = ["ConsoleStream"]

MOST_UNREAD = 1 << 19
"""Bytes a reader may be behind."""
MOST_TYPED = 1 << 14
"""Typed bytes the guest may leave before no more are taken from the client."""
_LOOK_AGAIN = 20_000_000  # ns


class ConsoleStream:
    """The console as ``client`` sees it; without ``typing`` what it sends is dropped."""

    def __init__(self, client: Client, *, typing: bool) -> None:
        self._client = client
        self._typing = typing
        board = client.server.board
        self._board = board
        self._fresh = bytearray()  # under the board's lock: from the tap to the loop's thread
        self._told = False
        self._missed = 0
        self._open = False
        self._again = board.host_clock.timer(
            lambda: board.loop.call_soon(lambda: None if self._closed else self._client._watch())
        )
        self._closed = False

    def open(self) -> bytes:
        """Begin to listen; returns what the guest has written so far."""
        self._open = True
        return self._board.serial.console.attach(self._tap)

    def begin(self, log: bytes) -> None:
        """Send the output so far, and from now on the new."""
        self._client.send(log)
        self._told = False
        self._pass_on()

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        if self._open:
            self._open = False
            self._board.serial.console.detach(self._tap)
            with self._board.lock:
                self._again.cancel()

    # From the guest

    def _tap(self, data: bytes) -> None:
        """Under the board's lock, on a CPU's thread."""
        self._fresh += data
        if len(self._fresh) > MOST_UNREAD:
            self._missed += len(self._fresh) - MOST_UNREAD
            del self._fresh[:-MOST_UNREAD]
        if not self._told:
            self._told = True
            self._board.loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        if self._closed:
            return
        with self._board.lock:
            self._told = False
            if self._client.unsent > MOST_UNREAD:
                return  # room() comes back
            data = bytes(self._fresh)
            self._fresh.clear()
            missed, self._missed = self._missed, 0
        if missed:
            data = b"\r\n[kvmkit: %d bytes were not shown]\r\n" % missed + data
        if data:
            self._client.send(data)

    def room(self) -> None:
        """The client has read something."""
        self._pass_on()

    # To the guest

    @property
    def full(self) -> bool:
        """Whether the guest must take typed bytes before more are read; looks again by itself."""
        if not self._typing or self._board.serial.input.held < MOST_TYPED:
            return False
        with self._board.lock:
            if self._again.deadline is None:
                self._again.arm(self._board.host_clock.now() + _LOOK_AGAIN)
        return True

    def typed(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._typing:
            self._board.serial.input.feed(data)
