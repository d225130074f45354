"""Ports for debugging: POST code, debug console, exit.

- 0x80, the POST code port of the IBM PC AT (Technical Reference, "POST error
  codes"): a latch. Linux also writes to it to waste a microsecond.
- 0xe9, the debug console of Bochs and QEMU (``-debugcon``): a byte written is
  a character printed; a read gives 0xe9, which tells a guest it is there.
- 0xf4, the exit port of QEMU (``isa-debug-exit``) with a simpler rule: the
  value written, its low 8 bits, is the status the virtual machine ends with.
"""

from __future__ import annotations

from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

__all__ = ["DebugConsole", "ExitPort", "PostCode", "PostCodeState"]

DEBUG_CONSOLE_PRESENT: Final = 0xE9


class PostCodeState(Record):
    """The last code written."""

    code: int


class PostCode:
    """The POST code latch, 1 port; :attr:`code` is the last byte written."""

    __slots__ = ("code",)

    def __init__(self) -> None:
        self.code = 0

    def read(self, offset: int, size: int) -> int:
        return self.code

    def write(self, offset: int, size: int, value: int) -> None:
        self.code = value & 0xFF

    def reset(self) -> None:
        """Code 0."""
        self.code = 0

    def state(self) -> PostCodeState:
        return PostCodeState(self.code)

    def restore(self, state: PostCodeState) -> None:
        self.code = state.code


class DebugConsole:
    """The debug console, 1 port. ``output`` takes the bytes as they are written."""

    __slots__ = ("_output",)

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output

    def read(self, offset: int, size: int) -> int:
        return DEBUG_CONSOLE_PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        self._output(bytes((value & 0xFF,)))

    def reset(self) -> None:
        """Nothing to do: it has no state."""

    def state(self) -> None:
        return None

    def restore(self, state: None) -> None:
        """Nothing to do: it has no state."""


class ExitPort:
    """The exit port, 1 to 4 ports. ``exit`` is called with the status, 0 to 255."""

    __slots__ = ("_exit",)

    def __init__(self, exit: Callable[[int], None]) -> None:
        self._exit = exit

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._exit(value & 0xFF)

    def reset(self) -> None:
        """Nothing to do: it has no state."""

    def state(self) -> None:
        return None

    def restore(self, state: None) -> None:
        """Nothing to do: it has no state."""
