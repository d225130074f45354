"""A disk against a bytearray that should be the same."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

__all__ = ["Model", "acts", "pattern"]

SECTOR = 512


def pattern(seed: int, size: int) -> bytes:
    """Bytes that tell where they come from."""
    word = (seed * 2654435761 & 0xFFFF_FFFF).to_bytes(4, "little")
    return (word * (size // 4 + 1))[:size]


class Model:
    """Does the same to the disk and to ``data``; what is read must agree."""

    def __init__(self, disk: Any, data: bytes) -> None:
        self.disk = disk
        self.data = bytearray(data)
        self.unknown: set[int] = set()
        """Sectors that were discarded: they read as before, or as zeroes."""

    def write(self, sector: int, count: int, seed: int, cut: int = 0) -> None:
        data = pattern(seed, count * SECTOR)
        cut = min(cut, len(data))
        parts = [memoryview(data[:cut]), memoryview(data[cut:])]
        if not seed % 2 or not self.disk.write_now(sector * SECTOR, parts):
            self.disk.write(sector * SECTOR, parts)
        self.data[sector * SECTOR : (sector + count) * SECTOR] = data
        self.unknown -= set(range(sector, sector + count))

    def zero(self, sector: int, count: int, *, unmap: bool) -> None:
        self.disk.write_zeroes(sector * SECTOR, count * SECTOR, unmap=unmap)
        self.data[sector * SECTOR : (sector + count) * SECTOR] = bytes(count * SECTOR)
        self.unknown -= set(range(sector, sector + count))

    def discard(self, sector: int, count: int) -> None:
        self.disk.discard(sector * SECTOR, count * SECTOR)
        self.unknown |= set(range(sector, sector + count))

    def check(self, sector: int, count: int, cut: int = 0, *, now: bool = False) -> None:
        """Read into two buffers, over rubbish."""
        memory = memoryview(bytearray(b"\xa5" * (count * SECTOR)))
        parts = [memory[:cut], memory[cut:]]
        if not now or not self.disk.read_now(sector * SECTOR, parts):
            self.disk.read(sector * SECTOR, parts)
        for index in range(count):
            here = sector + index
            found = bytes(memory[index * SECTOR : (index + 1) * SECTOR])
            expected = bytes(self.data[here * SECTOR : (here + 1) * SECTOR])
            if here in self.unknown and found != expected:
                assert found == bytes(SECTOR)
                self.data[here * SECTOR : (here + 1) * SECTOR] = found
            else:
                assert found == expected, f"sector {here}"

    def check_all(self) -> None:
        step = 128
        sectors = len(self.data) // SECTOR
        for sector in range(0, sectors, step):
            self.check(sector, min(step, sectors - sector))

    def act(self, kind: str, sector: int, count: int, seed: int) -> None:
        """One of :func:`acts`, cut to the disk's size."""
        sectors = len(self.data) // SECTOR
        sector %= sectors
        count = min(count, sectors - sector)
        if kind == "write":
            self.write(sector, count, seed, seed * 100)
        elif kind == "zero":
            self.zero(sector, count, unmap=bool(seed & 1))
        elif kind == "discard":
            self.discard(sector, count)
        elif kind == "flush":
            self.disk.flush()
        else:
            self.check(sector, count, min(seed * 100, count * SECTOR), now=bool(seed & 1))


def acts(most: int = 40, longest: int = 300) -> Any:
    """Lists of what to do to a disk."""
    return st.lists(
        st.tuples(
            st.sampled_from(
                ["write", "write", "write", "read", "read", "zero", "discard", "flush"]
            ),
            st.integers(0, 1 << 20),
            st.integers(1, 9) | st.integers(1, longest),
            st.integers(1, 255),
        ),
        max_size=most,
    )
