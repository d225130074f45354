"""Devices that are added to a board: what they are handed, and where they go."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmkit.board.board import Board

__all__ = ["BoardHost"]


class BoardHost:
    """A board as its devices see it; keeps the promise of :class:`kvmkit.virtio.memory.Host`."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.ram = board.ram

    def call(self, action: Callable[[], None]) -> None:
        """Run ``action`` now, under the board's lock."""
        with self._board.lock:
            action()

    def call_soon(self, action: Callable[[], None]) -> None:
        """Run ``action`` on the I/O thread, under the board's lock."""
        self._board.loop.call_soon(lambda: self.call(action))

    def warn(self, text: str) -> None:
        """Log one line about what the guest did wrong."""
        self._board.warn(text)
