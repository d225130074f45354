"""What the guest tells us about itself, on a serial line of its own: ``kvmkit: WORD ...``.

``kvmkit: exit N`` is a command's exit status; ``kvmkit: ready`` says that the
command is about to start and its input may come. Other words are passed on.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Listener = Callable[[str, str], None]

__all__ = ["GuestReports"]

_MARK = b"kvmkit: "
_LONGEST = 256
_MOST_DIGITS = 6


class GuestReports:
    """Reads the lines that COM4 carries; ``exited`` is called with each exit status, 0 to 255."""

    def __init__(self, exited: Callable[[int], None]) -> None:
        self._exited = exited
        self._listeners: list[Listener] = []
        self._line = bytearray()

    def listen(self, listener: Listener) -> None:
        """Call ``listener(word, rest)`` for each report, also for exit statuses.

        It runs on a vCPU's thread under the board's lock, and must be quick.
        """
        self._listeners.append(listener)

    def write(self, data: bytes) -> None:
        """Take bytes from the guest; lines that are no report are passed over."""
        for byte in data:
            if byte not in b"\r\n":
                if len(self._line) < _LONGEST:
                    self._line.append(byte)
            elif self._line:
                line = bytes(self._line)
                self._line.clear()
                if line.startswith(_MARK):
                    self._tell(line.removeprefix(_MARK).decode(errors="replace"))

    def _tell(self, report: str) -> None:
        word, _, rest = report.partition(" ")
        for listener in self._listeners:
            listener(word, rest)
        if word == "exit" and rest.isascii() and rest.isdigit() and len(rest) <= _MOST_DIGITS:
            self._exited(int(rest) & 0xFF)

    def reset(self) -> None:
        """Forget an unfinished line."""
        self._line.clear()
