"""JSON (RFC 8259) without the standard library's wrapping of it.

``json`` imports regular expressions, which take 5 ms; its scanner in C needs none.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["parse"]

_SPACE = " \t\n\r"


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError or RecursionError for what is none."""
    start = len(text) - len(text.lstrip(_SPACE))
    try:
        from _json import make_scanner

        scan: Any = make_scanner
        value, end = scan(_Context)(text, start)
        if not text[end:].strip(_SPACE):
            return value
    except (ImportError, StopIteration, SystemError, ValueError):
        pass  # the scanner counts on json for its words: without it, it fails without any
    from json import loads

    return loads(text, parse_constant=_no_number)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


class _Context:
    """What the scanner is to do; see ``json.JSONDecoder``."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_no_number)
    memo: dict[str, str] = {}
