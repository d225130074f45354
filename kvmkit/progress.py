"""Progress of something slow, on stderr, and silence about what is quick."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["Progress"]

PATIENCE = 1.0
"""Seconds that may pass without a word."""


class Progress:
    """Call it with what is being done, as often as you like; close it at the end.

    On a terminal one line is written over and over and wiped out at the end.
    Elsewhere each step gets a line, once: what follows a colon (how far it is)
    is left out.
    """

    def __init__(self, out: TextIO | None = None, patience: float = PATIENCE) -> None:
        self._out = sys.stderr if out is None else out
        self._start = time.monotonic() + patience
        self._terminal = self._out.isatty()
        self._shown = ""

    def __call__(self, text: str) -> None:
        """Show ``text``, unless it is early or shown already."""
        if time.monotonic() < self._start:
            return
        if not self._terminal:
            text = text.partition(":")[0]
        if text == self._shown:
            return
        self._shown = text
        if self._terminal:
            self._put(f"\r\x1b[K{text[: self._width()]}")
        else:
            self._put(f"{text}\n")

    def close(self) -> None:
        """Wipe the line out."""
        if self._terminal and self._shown:
            self._put("\r\x1b[K")
        self._shown = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _width(self) -> int:
        try:
            return max(os.get_terminal_size(self._out.fileno()).columns - 1, 10)
        except (OSError, ValueError):
            return 79

    def _put(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
