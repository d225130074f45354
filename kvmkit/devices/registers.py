"""Accesses wider than a register.

A byte-wide device on the ISA bus sees a wider access as byte accesses to
consecutive ports, lowest first (AT bus convention; PCI Local Bus 3.0,
section 3.7, leaves it to the bridge).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["read_bytes", "write_bytes"]


def read_bytes(read: Callable[[int], int], offset: int, size: int) -> int:
    """A ``size``-byte value put together from byte reads at ``offset`` and up."""
    value = 0
    for index in range(size):
        value |= (read(offset + index) & 0xFF) << (8 * index)
    return value


def write_bytes(write: Callable[[int, int], None], offset: int, size: int, value: int) -> None:
    """A ``size``-byte ``value`` handed out as byte writes at ``offset`` and up."""
    for index in range(size):
        write(offset + index, (value >> (8 * index)) & 0xFF)
