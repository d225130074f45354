"""A command's exit status, told by the guest on a serial line: ``kvmkit: exit N``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ExitLine"]

_MARK = b"kvmkit: exit "
_LONGEST = 256


class ExitLine:
    """Reads the line that COM4 carries; ``exited`` is called with each status, 0 to 255."""

    def __init__(self, exited: Callable[[int], None]) -> None:
        self._exited = exited
        self._line = bytearray()

    def write(self, data: bytes) -> None:
        """Take bytes from the guest; anything but the agreed line is passed over."""
        for byte in data:
            if byte not in b"\r\n":
                if len(self._line) < _LONGEST:
                    self._line.append(byte)
                continue
            line = bytes(self._line)
            self._line.clear()
            status = line.removeprefix(_MARK).strip()
            if line.startswith(_MARK) and status.isdigit() and len(status) < 6:
                self._exited(int(status) & 0xFF)

    def reset(self) -> None:
        """Forget an unfinished line."""
        self._line.clear()
