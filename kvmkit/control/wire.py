"""QMP's framing: JSON values one after the other on a stream (QEMU ``docs/interop/qmp-spec.rst``).

A value ends where its brackets close; line ends between values mean nothing.
After text that cannot be JSON, reading goes on at the next line, so a client
that writes one command per line loses only the bad one. Byte 0xFF throws away
what was begun, as QEMU's parser does.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BadInput", "InputSplitter", "encode"]

LONGEST = 1 << 20
"""Bytes of one command, at most."""
DEEPEST = 64
"""Brackets within brackets, at most; no command needs more than five."""

_SPACE = b" \t\r\n"
_OPEN, _CLOSE = b"[{", b"]}"
_QUOTE, _BACKSLASH, _NEWLINE, _FLUSH = 0x22, 0x5C, 0x0A, 0xFF


class BadInput(Exception):
    """What came is not a JSON value; the text is for the client."""


class InputSplitter:
    """Takes bytes, gives JSON values and, in their place, what was wrong with others."""

    def __init__(self) -> None:
        self._value = bytearray()
        self._depth = 0
        self._text = False  # within quotes
        self._escaped = False
        self._skip = False  # until the line ends
        self._scalar = False  # a bare word or number, which ends at a space

    def feed(self, data: bytes) -> list[Any | BadInput]:
        """The values that ``data`` completes, in order."""
        found: list[Any | BadInput] = []
        for byte in data:
            if self._skip:
                self._skip = byte != _NEWLINE
            elif byte == _FLUSH:
                self._forget()
            elif self._text:
                self._in_text(byte, found)
            elif byte in _SPACE:
                if self._scalar:
                    found.append(self._finish())
                elif self._depth:
                    self._value.append(byte)
            else:
                self._take(byte, found)
            if len(self._value) > LONGEST:
                found.append(BadInput(f"JSON parse error, a value of more than {LONGEST} bytes"))
                self._forget()
                self._skip = byte != _NEWLINE
        return found

    def _take(self, byte: int, found: list[Any | BadInput]) -> None:
        """A byte outside of text, no space."""
        self._value.append(byte)
        if byte == _QUOTE:
            self._text = True
            self._scalar = False
        elif byte in _OPEN:
            self._depth += 1
            if self._scalar or self._depth > DEEPEST:
                what = "nested too deeply" if self._depth > DEEPEST else "invalid word"
                found.append(self._fail(what))
        elif byte in _CLOSE:
            self._depth -= 1
            if self._depth < 0:
                found.append(self._fail("unexpected closing bracket"))
            elif not self._depth:
                found.append(self._finish())
        elif not self._depth:
            self._scalar = True

    def _in_text(self, byte: int, found: list[Any | BadInput]) -> None:
        self._value.append(byte)
        if byte < 0x20:
            found.append(self._fail("control character in text"))
            self._skip = byte != _NEWLINE
        elif self._escaped:
            self._escaped = False
        elif byte == _BACKSLASH:
            self._escaped = True
        elif byte == _QUOTE:
            self._text = False
            if not self._depth:
                found.append(self._finish())

    def _finish(self) -> Any | BadInput:
        """The value collected."""
        data = bytes(self._value)
        self._forget()
        try:
            return json.loads(data.decode(), parse_constant=_no_constant)
        except UnicodeDecodeError:
            return BadInput("JSON parse error, invalid UTF-8")
        except (ValueError, RecursionError) as error:
            return BadInput(f"JSON parse error, {error}")

    def _fail(self, what: str) -> BadInput:
        self._forget()
        self._skip = True
        return BadInput(f"JSON parse error, {what}")

    def _forget(self) -> None:
        self._value.clear()
        self._depth = 0
        self._text = self._escaped = self._scalar = False


def encode(message: dict[str, Any]) -> bytes:
    """One message as QEMU sends it: a line of ASCII."""
    return json.dumps(message, separators=(", ", ": ")).encode() + b"\r\n"


def _no_constant(word: str) -> object:
    raise ValueError(f"invalid word {word}")
