"""The port and memory buses."""

from __future__ import annotations

from threading import RLock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.board.bus import BoardBus, BusOverlap, TracingBus


class Registers:
    """A device that is plain bytes, and notes the accesses it gets."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(range(size))
        self.log: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("r", offset, size))
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("w", offset, size))
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")

    def reset(self) -> None: ...
    def state(self) -> None: ...
    def restore(self, state: object) -> None: ...


class Broken(Registers):
    def read(self, offset: int, size: int) -> int:
        raise KeyError("broken")

    def write(self, offset: int, size: int, value: int) -> None:
        raise KeyError("broken")


def make_bus() -> BoardBus:
    def fail(error: Exception) -> None:
        raise AssertionError("no device may fail here") from error

    return BoardBus(RLock(), fail)


def test_nobody_answers_with_all_ones():
    """Reads of empty places are all ones in their width, writes vanish."""
    bus = make_bus()
    bus.port_write(0x1234, 4, 5)
    bus.memory_write(0xD000_0000, 8, 5)
    assert [bus.port_read(0x1234, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    assert bus.memory_read(0xD000_0000, 8) == (1 << 64) - 1


def test_byte_device_gets_wide_accesses_in_bytes():
    """A 32-bit access to an 8-bit device is four, low address first."""
    bus, device = make_bus(), Registers(8)
    bus.map_ports(0x3F8, 8, device)
    assert bus.port_read(0x3F8, 4) == 0x03020100
    assert device.log == [("r", 0, 1), ("r", 1, 1), ("r", 2, 1), ("r", 3, 1)]


def test_access_over_the_end_is_split():
    """The part that is nobody's reads as ones."""
    bus, device = make_bus(), Registers(4)
    bus.map_ports(0x600, 4, device, sizes=(1, 2, 4))
    assert bus.port_read(0x602, 4) == 0xFFFF0302
    bus.port_write(0x603, 2, 0xBBAA)
    assert device.bytes[3] == 0xAA


def test_two_devices_share_a_port_by_size():
    """0xcf8 as 32 bits is one device, 0xcf9 as 8 bits another."""
    bus, address, reset = make_bus(), Registers(4), Registers(1)
    bus.map_ports(0xCF8, 4, address, sizes=(4,))
    bus.map_ports(0xCF9, 1, reset)
    bus.port_write(0xCF8, 4, 0x80001234)
    bus.port_write(0xCF9, 1, 6)
    assert (address.log, reset.log) == ([("w", 0, 4)], [("w", 0, 1)])


def test_last_port_wraps():
    """A wide access at 0xffff goes on at port 0."""
    bus, device = make_bus(), Registers(1)
    bus.map_ports(0, 1, device)
    assert bus.port_read(0xFFFF, 2) == 0x00FF


def test_overlap_is_an_error():
    """No two devices at one place, and a failed mapping changes nothing."""
    bus, device = make_bus(), Registers(8)
    bus.map_ports(0x60, 1, device)
    with pytest.raises(BusOverlap):
        bus.map_ports(0x5E, 8, device)
    assert bus.port_read(0x5E, 1) == 0xFF
    bus.map_memory(0x1000, 0x1000, device)
    for start in (0x1FFF, 0x1000, 0x800):
        with pytest.raises(BusOverlap):
            bus.map_memory(start, 0x1000, device)
    bus.map_memory(0x2000, 1, device)
    bus.map_memory(0xFFF, 1, device)


@pytest.mark.parametrize(("base", "length"), [(-1, 4), (0, 0), ((1 << 52) - 1, 2)])
def test_ranges_that_do_not_exist_are_refused(base, length):
    """Empty ranges and those beyond what a CPU can address."""
    with pytest.raises(BusOverlap):
        make_bus().map_memory(base, length, Registers(8))


def test_unmapped_range_is_nobodys_again():
    """BARs come and go."""
    bus, device = make_bus(), Registers(16)
    bus.map_memory(0xC000_0000, 16, device)
    bus.map_ports(0xC000, 16, device)
    bus.unmap_memory(0xC000_0000)
    bus.unmap_memory(0xC000_0000)
    bus.unmap_ports(0xC000, 16)
    assert bus.memory_read(0xC000_0000, 4) == 0xFFFFFFFF
    assert bus.port_read(0xC000, 1) == 0xFF


def test_frozen_bus_answers_nobody():
    """Between the guest's wish for a reset and the reset nothing reaches a device."""
    bus, device = make_bus(), Registers(8)
    bus.map_ports(0x60, 8, device)
    bus.map_memory(0x1000, 8, device)
    bus.freeze()
    bus.port_write(0x60, 1, 1)
    bus.memory_write(0x1000, 4, 1)
    assert (bus.port_read(0x60, 2), bus.memory_read(0x1000, 2)) == (0xFFFF, 0xFFFF)
    bus.thaw()
    assert bus.port_read(0x60, 1) == 0
    assert device.log == [("r", 0, 1)]


def test_defect_of_a_device_is_reported_and_survived():
    """An exception goes to the board, and the guest sees an empty place."""
    errors: list[Exception] = []
    bus = BoardBus(RLock(), errors.append)
    bus.map_ports(0x60, 1, Broken(1))
    bus.map_memory(0x1000, 8, Broken(8))
    bus.port_write(0x60, 1, 0)
    bus.memory_write(0x1000, 8, 0)
    assert (bus.port_read(0x60, 1), bus.memory_read(0x1000, 8)) == (0xFF, (1 << 64) - 1)
    assert [type(error) for error in errors] == [KeyError] * 4


def test_device_answer_is_cut_to_its_width():
    """A model's stray high bits do not reach the guest."""
    bus = make_bus()
    device = Registers(8)
    device.read = lambda offset, size: -1  # type: ignore[method-assign]
    bus.map_ports(0x60, 1, device)
    assert bus.port_read(0x60, 1) == 0xFF


def test_trace_tells_every_access():
    """A tracing bus passes on and tells."""
    seen: list[tuple[str, int, int, int]] = []
    bus = make_bus()
    bus.map_ports(0x60, 8, Registers(8))
    traced = TracingBus(bus, lambda *access: seen.append(access))
    traced.port_read(0x61, 1)
    traced.port_write(0x60, 1, 9)
    traced.memory_read(0x5000, 2)
    traced.memory_write(0x5000, 1, 3)
    assert seen == [
        ("in", 0x61, 1, 1),
        ("out", 0x60, 1, 9),
        ("load", 0x5000, 2, 0xFFFF),
        ("store", 0x5000, 1, 3),
    ]


RANGES = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.integers(1, 12),
        st.sets(st.sampled_from((1, 2, 4, 8)), min_size=1).map(lambda sizes: sizes | {1}),
    ),
    max_size=6,
)
ACCESSES = st.lists(
    st.tuples(st.integers(0, 80), st.sampled_from((1, 2, 4, 8)), st.integers(0, (1 << 64) - 1)),
    max_size=12,
)


@given(ranges=RANGES, accesses=ACCESSES)
@settings(deadline=None)
def test_memory_bus_is_an_array_of_bytes(ranges, accesses):
    """Whatever devices are there and however accesses fall, each byte keeps what was written."""
    bus = make_bus()
    bus.freeze()
    bus.thaw()
    model: dict[int, int] = {}
    for start, length, sizes in ranges:
        try:
            device = Registers(length)
            bus.map_memory(start, length, device, sizes=sizes)
            model.update({start + index: index for index in range(length)})
        except BusOverlap:
            assert any(start <= place < start + length for place in model)
    for address, size, value in accesses:
        value &= (1 << 8 * size) - 1
        bus.memory_write(address, size, value)
        for index, byte in enumerate(value.to_bytes(size, "little")):
            if address + index in model:
                model[address + index] = byte
        expected = bytes(model.get(address + index, 0xFF) for index in range(size))
        assert bus.memory_read(address, size) == int.from_bytes(expected, "little")
