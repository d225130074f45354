"""What a guest has switched on in the user's terminal, so that it can be switched off again.

A guest that ends in the middle of an editor leaves the alternate screen, a
hidden cursor or mouse reports behind. xterm, "Control Sequences", DECSET: ESC [ ?
numbers h sets private modes, and with a final l resets them.
"""

from __future__ import annotations

__all__ = ["PrivateModes"]

_START = b"\x1b[?"
_LONGEST = 32
_SET_BY_DEFAULT = frozenset((7, 25))  # auto-wrap, cursor shown
_UNDONE = _SET_BY_DEFAULT | frozenset(
    (
        1,  # application cursor keys
        5,  # reverse video
        9, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016,  # mouse and focus reports
        47, 1047, 1049,  # alternate screen
        2004,  # bracketed paste
    )
)  # fmt: skip


class PrivateModes:
    """Follows a stream of output; :meth:`undo` is what puts the terminal right."""

    __slots__ = ("_tail", "changed")

    def __init__(self) -> None:
        self.changed: set[int] = set()
        self._tail = b""

    def note(self, data: bytes) -> None:
        """See the next piece of output; a sequence may be cut anywhere."""
        if not self._tail and b"\x1b" not in data:
            return
        text = self._tail + data
        for piece in text.split(_START)[1:]:
            piece = piece[:_LONGEST]
            end = len(piece) - len(piece.lstrip(b"0123456789;"))
            if piece[end : end + 1] in (b"h", b"l"):
                self._switch(piece[:end], piece[end : end + 1] == b"h")
        last = text.rfind(b"\x1b")
        tail = text[last:] if last >= 0 else b""
        unfinished = _START.startswith(tail) or (
            tail.startswith(_START) and not tail[len(_START) :].strip(b"0123456789;")
        )
        self._tail = tail if unfinished and len(tail) < _LONGEST else b""

    def _switch(self, numbers: bytes, on: bool) -> None:
        for number in numbers.split(b";"):
            mode = int(number) if number and len(number) < 6 else 0
            if mode not in _UNDONE:
                continue
            if on == (mode in _SET_BY_DEFAULT):
                self.changed.discard(mode)
            else:
                self.changed.add(mode)

    def undo(self) -> bytes:
        """What sets all of them back, and the text's colours with them; b"" if none is changed."""
        modes = sorted(self.changed)
        self.changed.clear()
        if not modes:
            return b""
        parts = [f"\x1b[?{mode}{'h' if mode in _SET_BY_DEFAULT else 'l'}" for mode in modes]
        return "".join([*parts, "\x1b[0m"]).encode()
