"""The I/O APIC against the 82093AA datasheet."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices.apic_message import BROADCAST, ApicMessage, DeliveryMode
from kvmkit.devices.ioapic import EOI, LEVEL, LOGICAL, MASKED, REMOTE_IRR, SELECT, WINDOW, IoApic


class Rig:
    """An I/O APIC, its messages, and the driver's side."""

    def __init__(self) -> None:
        self.sent: list[ApicMessage] = []
        self.taken = True
        self.chip = IoApic(self._deliver, 24, 3)

    def _deliver(self, message: ApicMessage) -> bool:
        self.sent.append(message)
        return self.taken

    def get(self, index: int) -> int:
        self.chip.write(SELECT, 4, index)
        return self.chip.read(WINDOW, 4)

    def set(self, index: int, value: int) -> None:
        self.chip.write(SELECT, 4, index)
        self.chip.write(WINDOW, 4, value)

    def route(self, pin: int, low: int, destination: int = 0) -> None:
        self.set(0x11 + 2 * pin, destination << 24)
        self.set(0x10 + 2 * pin, low)

    def vectors(self) -> list[int]:
        return [message.vector for message in self.sent]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_registers_after_reset(rig: Rig) -> None:
    """ID as wired, version 0x20 with 24 entries, every entry masked, the select register 0."""
    assert rig.chip.read(SELECT, 4) == 0
    assert (rig.get(0), rig.get(1), rig.get(2)) == (3 << 24, 0x00170020, 3 << 24)
    assert [rig.get(0x10 + n) for n in range(48)] == [MASKED, 0] * 24


def test_reserved_registers_read_zero(rig: Rig) -> None:
    """Indices and offsets that do not exist read 0 and take writes silently."""
    for index in (3, 0xF, 0x40, 0xFF):
        rig.set(index, 0xFFFFFFFF)
        assert rig.get(index) == 0
    rig.chip.write(0x20, 4, 1)
    assert rig.chip.read(0x20, 4) == 0 and rig.chip.read(0x4, 4) == 0


def test_id_has_four_bits(rig: Rig) -> None:
    """The ID register keeps bits 24-27; version and arbitration are read-only."""
    for index in (0, 1, 2):
        rig.set(index, 0xFFFFFFFF)
    assert (rig.get(0), rig.get(1)) == (0xF << 24, 0x00170020)


def test_entry_keeps_writable_bits_only(rig: Rig) -> None:
    """Delivery status, remote IRR and reserved bits cannot be set by software."""
    rig.set(0x10, 0xFFFFFFFF)
    rig.set(0x11, 0xFFFFFFFF)
    assert (rig.get(0x10), rig.get(0x11)) == (0x1AFFF, 0xFF000000)


def test_edge_is_delivered_once(rig: Rig) -> None:
    """An unmasked edge pin sends one message per rising edge."""
    rig.route(4, 0x34, 2)
    for level in (True, True, False, True):
        rig.chip.set_line(4, level)
    assert rig.sent == [ApicMessage(2, False, DeliveryMode.FIXED, 0x34)] * 2


def test_masked_edge_is_lost(rig: Rig) -> None:
    """Unmasking an edge pin that is high sends nothing (3.2.4, interrupt mask)."""
    rig.route(4, MASKED | 0x34)
    rig.chip.set_line(4, True)
    rig.route(4, 0x34)
    assert rig.sent == []


def test_masked_level_waits(rig: Rig) -> None:
    """Unmasking a level pin that is asserted delivers."""
    rig.chip.set_line(17, True)
    rig.route(17, LEVEL | 0x51)
    assert rig.sent == [ApicMessage(0, False, DeliveryMode.FIXED, 0x51, True, True)]
    assert rig.get(0x10 + 34) == LEVEL | REMOTE_IRR | 0x51


def test_level_comes_again_after_eoi(rig: Rig) -> None:
    """Remote IRR holds a level back until its EOI, which delivers what is still asserted."""
    rig.route(17, LEVEL | 0x51)
    rig.chip.set_line(17, True)
    rig.chip.set_line(17, False)
    rig.chip.set_line(17, True)
    assert rig.vectors() == [0x51]
    rig.chip.eoi(0x52)
    assert rig.vectors() == [0x51]
    rig.chip.eoi(0x51)
    assert rig.vectors() == [0x51, 0x51]
    rig.chip.set_line(17, False)
    rig.chip.eoi(0x51)
    assert rig.vectors() == [0x51, 0x51] and not rig.get(0x10 + 34) & REMOTE_IRR


def test_eoi_reaches_every_pin_of_the_vector(rig: Rig) -> None:
    """Pins that share a vector are ended together."""
    for pin in (17, 18):
        rig.route(pin, LEVEL | 0x51)
        rig.chip.set_line(pin, True)
        rig.chip.set_line(pin, False)
    rig.chip.eoi(0x51)
    assert not (rig.get(0x10 + 34) | rig.get(0x10 + 36)) & REMOTE_IRR


def test_eoi_register(rig: Rig) -> None:
    """Version 0x20 has a directed EOI at offset 0x40."""
    rig.route(17, LEVEL | 0x51)
    rig.chip.set_line(17, True)
    rig.chip.write(EOI, 4, 0x51)
    assert rig.vectors() == [0x51, 0x51]


def test_eoi_while_masked_does_not_deliver(rig: Rig) -> None:
    """The line waits for the unmask."""
    rig.route(17, LEVEL | 0x51)
    rig.chip.set_line(17, True)
    rig.set(0x10 + 34, LEVEL | MASKED | 0x51)
    rig.chip.eoi(0x51)
    assert rig.vectors() == [0x51]
    rig.set(0x10 + 34, LEVEL | 0x51)
    assert rig.vectors() == [0x51, 0x51]


def test_switch_to_edge_clears_remote_irr(rig: Rig) -> None:
    """Masked, edge and back to level: how drivers end an interrupt without an EOI register."""
    rig.route(17, LEVEL | 0x51)
    rig.chip.set_line(17, True)
    rig.set(0x10 + 34, MASKED | 0x51)
    rig.set(0x10 + 34, LEVEL | 0x51)
    assert rig.vectors() == [0x51, 0x51]


def test_refused_level_stays_pending(rig: Rig) -> None:
    """When no local APIC takes it, remote IRR stays clear and the next chance delivers."""
    rig.taken = False
    rig.route(17, LEVEL | 0x51)
    rig.chip.set_line(17, True)
    assert not rig.get(0x10 + 34) & REMOTE_IRR
    rig.taken = True
    rig.set(0x10 + 34, LEVEL | 0x51)
    assert rig.get(0x10 + 34) & REMOTE_IRR


def test_logical_destination_and_lowest_priority(rig: Rig) -> None:
    """Destination mode and delivery mode come through."""
    rig.route(5, LOGICAL | 0x100 | 0x35, 0x0F)
    rig.chip.set_line(5, True)
    assert rig.sent == [ApicMessage(0x0F, True, DeliveryMode.LOWEST_PRIORITY, 0x35)]


def test_physical_ff_is_everyone(rig: Rig) -> None:
    """Destination 0xff is a broadcast in physical mode."""
    rig.route(5, 0x35, 0xFF)
    rig.chip.set_line(5, True)
    assert rig.sent[0].destination == BROADCAST


@pytest.mark.parametrize("mode", [2, 4, 5, 7])
def test_special_modes_are_edges(rig: Rig, mode: int) -> None:
    """SMI, NMI, INIT and ExtINT are edges, even when programmed as level."""
    rig.route(0, LEVEL | mode << 8)
    rig.chip.set_line(0, True)
    assert rig.sent == [ApicMessage(0, False, DeliveryMode(mode), 0)]
    assert not rig.get(0x10) & REMOTE_IRR


def test_pins_that_do_not_exist(rig: Rig) -> None:
    """They are ignored."""
    rig.chip.set_line(24, True)
    rig.chip.set_line(-1, True)
    assert rig.chip.state().lines == 0


def test_reset_keeps_the_lines(rig: Rig) -> None:
    """Lines are wires: a level that is there is seen after a reset."""
    rig.chip.set_line(17, True)
    rig.chip.reset()
    rig.route(17, LEVEL | 0x51)
    assert rig.vectors() == [0x51]


STEPS = st.one_of(
    st.tuples(
        st.just("write"),
        st.sampled_from([SELECT, WINDOW, EOI, 4, 0xFFF]),
        st.integers(0, 2**32 - 1),
    ),
    st.tuples(st.just("entry"), st.integers(0, 23), st.integers(0, 0x1FFFF)),
    st.tuples(st.just("line"), st.integers(0, 25), st.booleans()),
    st.tuples(st.just("eoi"), st.integers(0, 255), st.just(0)),
)


def drive(rig: Rig, step: tuple[str, int, int]) -> None:
    name, first, second = step
    if name == "write":
        for size in (1, 2, 4, 8):
            rig.chip.write(first, size, second & (1 << 8 * size) - 1)
            assert rig.chip.read(first, size) < 1 << 8 * size
    elif name == "entry":
        rig.set(0x10 + 2 * first, second)
    elif name == "line":
        rig.chip.set_line(first, bool(second))
    else:
        rig.chip.eoi(first)


@settings(deadline=None)
@given(st.lists(STEPS, max_size=40), st.lists(STEPS, max_size=10))
def test_any_driver_and_a_round_trip(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    """Nothing raises; a restored chip is the same, is silent, and goes on the same."""
    first, second = Rig(), Rig()
    for step in before:
        drive(first, step)
    second.chip.restore(first.chip.state())
    assert second.sent == [] and second.chip.state() == first.chip.state()
    first.sent.clear()
    for step in after:
        drive(first, step)
        drive(second, step)
    assert second.sent == first.sent and second.chip.state() == first.chip.state()


@settings(deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_an_asserted_level_is_never_forgotten(steps: list[tuple[str, int, int]]) -> None:
    """An asserted, unmasked level pin always has its interrupt on the way (remote IRR)."""
    rig = Rig()
    for step in steps:
        drive(rig, step)
        state = rig.chip.state()
        for pin, entry in enumerate(state.redirections):
            fixed = entry & LEVEL and entry >> 8 & 7 <= 1
            if state.lines >> pin & 1 and fixed and not entry & MASKED:
                assert entry & REMOTE_IRR
