"""What happens to a VM, for callbacks: stop, resume, reset, powerdown, panic, shutdown.

The board tells its observers and its power switch tells the end, on whatever
thread finds out; :class:`Events` passes both on to the I/O thread, where no lock
is held, in the order in which they happened.
"""

from __future__ import annotations

from time import time

from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmkit.board.board import Board
    from kvmkit.board.power import Ending

    Listener = Callable[["Event"], object]

__all__ = ["EVENTS", "Event", "Events"]

EVENTS = ("stop", "resume", "reset", "powerdown", "panic", "shutdown")
"""``panic`` comes before the ``shutdown`` it leads to; ``shutdown`` is every VM's last."""


class Event(Record):
    """One event. ``time`` is in seconds since 1970; ``ending`` says how a VM ended."""

    kind: str
    time: float
    guest: bool = False
    """Whether the guest asked for it."""
    ending: Ending | None = None


class Events:
    """The listeners of one VM, by kind of event."""

    def __init__(self) -> None:
        self._listeners: list[tuple[str | None, Listener]] = []
        self._board: Board | None = None

    def add(self, kind: str | None, listener: Listener) -> None:
        """Call ``listener(event)`` for events of ``kind``, all for None. From any thread."""
        self._listeners = [*self._listeners, (kind, listener)]

    def remove(self, listener: Listener) -> None:
        """Undo every :meth:`add` of ``listener``. From any thread."""
        self._listeners = [entry for entry in self._listeners if entry[1] != listener]

    def watch(self, board: Board) -> None:
        """Hear of what happens to ``board``; before it starts."""
        self._board = board
        board.observers.append(self._observed)
        board.power.on_end(self._ended)

    def _observed(self, kind: str, guest: bool) -> None:
        self._hand_over(Event(kind, time(), guest))

    def _ended(self, ending: Ending) -> None:
        from kvmkit.board.power import EndKind

        host = (EndKind.KILLED, EndKind.TIMED_OUT, EndKind.ENGINE_ERROR)
        guest = ending.kind not in host
        now = time()
        if ending.kind is EndKind.PANIC:
            self._hand_over(Event("panic", now, guest, ending))
        self._hand_over(Event("shutdown", now, guest, ending))

    def _hand_over(self, event: Event) -> None:
        if self._listeners and self._board is not None:
            self._board.loop.call_soon(lambda: self._tell(event))

    def _tell(self, event: Event) -> None:
        for kind, listener in self._listeners:
            if kind is None or kind == event.kind:
                try:
                    listener(event)
                except Exception:  # a user's mistake is no defect of the machine
                    import sys

                    sys.excepthook(*sys.exc_info())
