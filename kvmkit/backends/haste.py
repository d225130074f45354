"""Writing on the spot, as long as that goes quickly.

A write to the page cache takes microseconds, and a thread's wake-up many times
that. But the kernel makes writers wait when too much is dirty, and Linux's file
systems do not all take RWF_NOWAIT for it (pwritev2(2)). So what takes long is not
tried again for a while.
"""

from __future__ import annotations

from time import perf_counter_ns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Haste"]

LONG = 2_000_000
"""Nanoseconds that a write on the spot may take."""
PENANCE = 500
"""Writes that are not done on the spot after one that took long."""
LARGEST = 2 << 20
"""Bytes that are written on the spot at most."""


class Haste:
    """Decides for one file."""

    __slots__ = ("_wait",)

    def __init__(self) -> None:
        self._wait = 0

    def write(
        self,
        write: Callable[[int, Sequence[memoryview]], None],
        offset: int,
        buffers: Sequence[memoryview],
    ) -> bool:
        """Do ``write(offset, buffers)`` if that is quick; else False."""
        if self._wait:
            self._wait -= 1
            return False
        if sum(map(len, buffers)) > LARGEST:
            return False
        start = perf_counter_ns()
        write(offset, buffers)
        if perf_counter_ns() - start > LONG:
            self._wait = PENANCE
        return True
