"""A whole board becomes what another was, whatever a driver did to that one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.board import layout
from kvmkit.board.state import restore_board, state_of
from kvmkit.devices import lapic_registers as reg
from kvmkit.errors import BadSnapshot, KvmkitError
from kvmkit.frozen import Record, replace
from kvmkit.snapshot.records import decode, encode
from kvmkit.virtio.entropy import Entropy
from kvmkit.vm import make_engine
from tests.board.machine import MIB, make_board

pytestmark = pytest.mark.soft

CPUS = 2
ENDS_IT = (layout.RESET, layout.EXIT, *range(layout.EXIT - 3, layout.EXIT + 4), layout.PM1A_CONTROL)
PORTS = (
    0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x70, 0x71,
    layout.PM1A_EVENT, layout.PM1A_EVENT + 2, layout.GPE0, layout.GPE0 + 2, layout.POST_CODE,
    *(0x3F8 + n for n in range(8)), 0x2F9, 0x2FB, 0x3E9, 0x2E9, 0xCF8, 0xCFC, 0xCFE,
)  # fmt: skip
assert not set(PORTS) & set(ENDS_IT)
LAPIC_OFFSETS = (*(offset for offset in reg.X2APIC_RESERVED), reg.LDR, reg.DFR, reg.ICR_LOW)
VALUES = st.integers(0, 0xFFFFFFFF) | st.integers(0, 0xFF)
CONFIG = st.builds(
    lambda slot, register: 1 << 31 | slot << 11 | register << 2,
    st.integers(0, 2),
    st.integers(0, 63),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("port"), st.sampled_from(PORTS), VALUES),
        st.tuples(st.just("ioapic"), st.integers(0, 0x3F), VALUES),
        st.tuples(st.just("lapic"), st.sampled_from(LAPIC_OFFSETS), VALUES),
        st.tuples(st.just("line"), st.integers(0, 23), st.integers(0, 1)),
        st.tuples(st.just("config"), CONFIG, VALUES),
        st.tuples(st.just("msi"), st.integers(0, 0xFFFFF), VALUES),
        st.tuples(st.just("type"), st.integers(0, 255), st.just(0)),
        st.tuples(st.just("acknowledge"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 1 << 24), st.just(0)),
    ),
    max_size=40,
)


class Bench:
    """A board whose CPUs do not run, and a driver's hands on it."""

    def __init__(self) -> None:
        try:
            engine: Any = make_engine("soft", CPUS)
        except KvmkitError as error:
            pytest.skip(f"soft: {error}")
        self.board = make_board(engine, memory=2 * MIB)
        self.board.add_virtio(Entropy(bytes))
        clock: Any = self.board.clock
        clock._wall = lambda: 1_700_000_000_000_000_000 + clock.now()
        self.chips: Any = self.board.chips
        self.lines = [self.chips.line(gsi) for gsi in range(24)]

    def do(self, step: tuple[str, int, int]) -> None:
        """One thing that a guest or the world does."""
        name, first, second = step
        board = self.board
        with board.lock:
            if name == "port":
                size = 4 if first in (0xCF8, 0xCFC) else 1
                board.bus.port_write(first, size, second & (1 << 8 * size) - 1)
                board.bus.port_read(first, size)
            elif name == "ioapic":
                board.bus.memory_write(layout.IOAPIC, 4, first)
                board.bus.memory_write(layout.IOAPIC + 0x10, 4, second)
            elif name == "lapic":
                self.chips.apics[second & 1].write(first, 4, second)
            elif name == "line":
                self.lines[first](bool(second))
            elif name == "config":
                board.bus.port_write(0xCF8, 4, first)
                board.bus.port_write(0xCFC, 4, second)
            elif name == "msi":
                self.chips.msi(0xFEE00000 | first, second)
            elif name == "type":
                board.serial.ports[0].receive(bytes([first]))
            elif name == "acknowledge":
                self.chips.apics[first].acknowledge()
            else:
                board.clock.stand_at(board.clock.now() + first)

    def close(self) -> None:
        """Free it."""
        self.board.close()


def through_a_file(state: Record, like: Record) -> Any:
    """The state as a snapshot has it."""
    return decode(json.loads(json.dumps(encode(state))), "state", like)


@settings(deadline=None, max_examples=60)
@given(STEPS, STEPS)
def test_restoring_a_boards_state_is_the_identity(before, after):
    """Any state that a driver reached; and the copy then does what the first does."""
    first, second = Bench(), Bench()
    try:
        for step in before:
            first.do(step)
        for line in first.lines:  # the driver's hands are off when a snapshot is taken
            line(False)
        state = state_of(first.board)
        restore_board(second.board, through_a_file(state, state_of(second.board)))
        assert state_of(second.board) == state
        for step in after:
            first.do(step)
            second.do(step)
            assert state_of(second.board).devices == state_of(first.board).devices
    finally:
        first.close()
        second.close()


@pytest.fixture
def bench():
    """One board."""
    bench = Bench()
    yield bench
    bench.close()


def test_another_number_of_cpus_is_refused(bench):
    """With both numbers."""
    state = state_of(bench.board)
    with pytest.raises(BadSnapshot, match="the snapshot has 1 CPUs, this VM 2"):
        restore_board(bench.board, replace(state, cpus=state.cpus[:1]))


def test_a_device_that_is_not_there_is_named(bench):
    """Of the board's devices, either way round."""
    state = state_of(bench.board)
    more = {**state.devices, "flux": None}
    with pytest.raises(BadSnapshot, match="VM lacks the device 'flux'"):
        restore_board(bench.board, replace(state, devices=more))
    less = {name: each for name, each in state.devices.items() if name != "rtc"}
    with pytest.raises(BadSnapshot, match="snapshot lacks the device 'rtc'"):
        restore_board(bench.board, replace(state, devices=less))


def test_a_pci_device_that_is_not_there_is_named(bench):
    """A guest must not find its disk gone."""
    state = state_of(bench.board)
    bus = state.devices["pci"]
    less = {**state.devices, "pci": replace(bus, functions=bus.functions[:1])}
    with pytest.raises(BadSnapshot, match="snapshot lacks the device in PCI slot 1"):
        restore_board(bench.board, replace(state, devices=less))


NUMBERS = st.sampled_from([-1, 0, 1, 0xFF, 0xFFFF, "0x10000", hex((1 << 64) - 1), hex(1 << 255)])


def numbers_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in encoded JSON the numbers are."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int) or (isinstance(value, str) and value.startswith(("0x", "-0x"))):
        return [path]
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, str):
        return []
    return [found for key, item in items for found in numbers_in(item, (*path, key))]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_numbers_that_no_register_holds_end_nothing(data):
    """Any number anywhere in the state: restored, or refused as a snapshot."""
    bench = Bench()
    try:
        like = state_of(bench.board)
        encoded = json.loads(json.dumps(encode(like)))
        places = numbers_in(encoded)
        for _ in range(data.draw(st.integers(1, 3))):
            *path, last = places[data.draw(st.integers(0, len(places) - 1))]
            inner = encoded
            for key in path:
                inner = inner[key]
            inner[last] = data.draw(NUMBERS)
        try:
            restore_board(bench.board, decode(encoded, "state", like))
        except KvmkitError as error:
            assert str(error)
    finally:
        bench.close()
