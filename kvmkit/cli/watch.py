"""``--watch``: the same view again and again, in place on a terminal."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["repeat"]

_HOME = "\x1b[H"
_CLEAR_LINE = "\x1b[K"
_CLEAR_BELOW = "\x1b[J"


def repeat(view: Callable[[], str], interval: float) -> int:
    """Print ``view()`` every ``interval`` seconds until Ctrl-C; 0.

    On a terminal each replaces the one before (ECMA-48, CUP and EL); elsewhere
    they follow one another with an empty line in between.
    """
    from time import sleep

    terminal = sys.stdout.isatty()
    first = True
    try:
        while True:
            text = view()
            if terminal:
                start = "\x1b[2J" if first else ""
                lines = "".join(f"{line}{_CLEAR_LINE}\n" for line in text.splitlines())
                sys.stdout.write(f"{start}{_HOME}{lines}{_CLEAR_BELOW}")
            else:
                sys.stdout.write(f"{text}\n" if first else f"\n{text}\n")
            sys.stdout.flush()
            first = False
            sleep(interval)
    except KeyboardInterrupt:
        return 0
