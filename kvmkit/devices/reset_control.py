"""Reset control register, I/O port 0xcf9.

The register of Intel's PIIX and ICH bridges (82371SB PIIX3, section 2.5.4.2,
"RC"; ICH9, section 13.7.5, "RST_CNT") that the ACPI FADT's reset register
points at: bit 2 going from 0 to 1 resets, bit 1 chooses a hard reset. A board
without a warm state resets fully in either case.
"""

from __future__ import annotations

from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

__all__ = ["ResetControl", "ResetControlState"]

SYS_RST: Final = 0x02  # 1: hard reset when RST_CPU rises
RST_CPU: Final = 0x04  # rising: reset
FULL_RST: Final = 0x08  # 1: power-cycle too
BITS: Final = SYS_RST | RST_CPU | FULL_RST


class ResetControlState(Record):
    """The register's value."""

    value: int


class ResetControl:
    """The register, 1 port. ``reset`` is called when the guest asks for a reset."""

    __slots__ = ("_reset", "_value")

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        return self._value if offset == 0 else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset:
            return
        risen = value & ~self._value & RST_CPU
        self._value = value & BITS
        if risen:
            self._reset()

    def reset(self) -> None:
        """All bits 0."""
        self._value = 0

    def state(self) -> ResetControlState:
        return ResetControlState(self._value)

    def restore(self, state: ResetControlState) -> None:
        self._value = state.value
