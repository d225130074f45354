"""Waiting for words on the console, as Expect does (Libes, "Exploring Expect")."""

from __future__ import annotations

import codecs
import re
from threading import Lock

from kvmkit.errors import CommandTimeout, GuestEnded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.board.board import Board
    from kvmkit.view import View

__all__ = ["ConsoleView"]

_KEPT = 1 << 20  # characters without a match that are kept
_SHOWN = 400


_STEP = 0.005


class ConsoleView:
    """The console of a running ``vm``: what it shows, and typing.

    :meth:`expect` begins with the first byte the guest wrote, as far as it is
    kept, and goes on after each match.
    """

    def __init__(self, vm: View, board: Board) -> None:
        self._vm = vm
        self._board = board
        self._lock = Lock()
        self._fresh = bytearray()
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with board.lock:
            self._fresh += board.serial.console.attach(self._tap)

    def _tap(self, data: bytes) -> None:
        with self._lock:
            self._fresh += data

    @property
    def log(self) -> bytes:
        """The last 256 KiB the guest wrote."""
        return self._board.serial.console.log

    def send(self, text: str | bytes) -> None:
        """Type ``text``; it waits until the guest takes it."""
        data = text.encode() if isinstance(text, str) else text
        self._board.serial.input.feed(data)

    def expect(self, pattern: str | re.Pattern[str], timeout: float | None = None) -> re.Match[str]:
        """Wait until the guest has written a match of the regular expression ``pattern``.

        Raises CommandTimeout, with what did come, after ``timeout`` seconds, and
        GuestPanic, TripleFault, GuestHang or GuestEnded when the VM ends before.
        """
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = self._search(pattern)
            if match is not None:
                found.append(match)
            return match is not None

        wanted = pattern if isinstance(pattern, str) else pattern.pattern
        try:
            self._vm.wait_until(look, timeout, wanted, _STEP)
        except CommandTimeout:
            tail = self._text[-_SHOWN:]
            raise CommandTimeout(
                f"the console did not show {wanted!r} within {timeout:g} s",
                f"it showed: {tail!r}" if tail else "it showed nothing",
            ) from None
        except GuestEnded as error:
            error.hint = error.hint or f"the console was expected to show {wanted!r}"
            raise
        return found[0]

    def _search(self, pattern: str | re.Pattern[str]) -> re.Match[str] | None:
        """The first match; what it ends is not looked at again."""
        with self._lock:
            data = bytes(self._fresh)
            self._fresh.clear()
        self._text = (self._text + self._decoder.decode(data))[-_KEPT:]
        match = re.search(pattern, self._text)
        if match is not None:
            self._text = self._text[match.end() :]
        return match
