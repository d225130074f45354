"""Taking a list of buffers apart."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Cursor"]


class Cursor:
    """Goes through ``buffers`` from the first byte to the last."""

    __slots__ = ("_at", "_buffers", "_inside", "left")

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = buffers
        self._at = 0
        self._inside = 0
        self.left = sum(map(len, buffers))
        """Bytes that were not taken."""

    def take(self, size: int) -> list[memoryview]:
        """The next ``size`` bytes, which must be there."""
        if size == self.left and not self._at and not self._inside:
            self.left = 0
            self._at = len(self._buffers)
            return list(self._buffers)
        self.left -= size
        parts = []
        while size:
            view = self._buffers[self._at]
            part = view[self._inside : self._inside + size]
            size -= len(part)
            self._inside += len(part)
            if self._inside == len(view):
                self._at += 1
                self._inside = 0
            if len(part):
                parts.append(part)
        return parts
