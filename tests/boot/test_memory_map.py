"""The e820 table."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.boot.memory_map import E820_RAM, E820_RESERVED, contains, memory_map, total, usable

RANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=6)


def test_memory_map_of_a_pc() -> None:
    """Low RAM, the reserved megabyte's end, RAM to 3 GiB, configuration window, RAM above."""
    table = memory_map(
        [(0, 3 << 30), (4 << 30, 1 << 30)], [(0x9_FC00, 0x6_0400), (0xE000_0000, 0x1000_0000)]
    )

    assert table == [
        (0, 0x9_FC00, E820_RAM),
        (0x9_FC00, 0x6_0400, E820_RESERVED),
        (0x10_0000, (3 << 30) - 0x10_0000, E820_RAM),
        (0xE000_0000, 0x1000_0000, E820_RESERVED),
        (4 << 30, 1 << 30, E820_RAM),
    ]


def _bytes(ranges: list[tuple[int, int]]) -> set[int]:
    return {at for start, size in ranges for at in range(start, start + size)}


@settings(deadline=None)
@given(RANGES, RANGES)
def test_usable_is_ram_without_reserved(
    ram: list[tuple[int, int]], reserved: list[tuple[int, int]]
) -> None:
    """Byte for byte, and sorted without overlaps."""
    free = usable(ram, reserved)

    assert _bytes(free) == _bytes(ram) - _bytes(reserved)
    assert total(free) == len(_bytes(free))
    assert free == sorted(free)


@settings(deadline=None)
@given(RANGES, RANGES)
def test_memory_map_has_no_overlaps(
    ram: list[tuple[int, int]], reserved: list[tuple[int, int]]
) -> None:
    """Each byte has one type at most."""
    table = memory_map(ram, reserved)

    ends = [start + size for start, size, _ in table[:-1]]
    assert all(end <= entry[0] for end, entry in zip(ends, table[1:], strict=True))
    assert all(size > 0 for _, size, _ in table)


def test_contains_wants_one_range() -> None:
    """A hole in the middle counts."""
    assert contains([(0, 10), (20, 10)], 20, 10)
    assert not contains([(0, 10), (20, 10)], 5, 20)
