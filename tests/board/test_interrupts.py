"""From lines to chips."""

from __future__ import annotations

from threading import RLock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.board import layout
from kvmkit.board.bus import BoardBus
from kvmkit.board.clock import BoardClock
from kvmkit.board.interrupts import KernelChips, Pins
from kvmkit.board.model_chips import ModelChips


class Kernel:
    """What is called of the KVM engine."""

    def __init__(self):
        self.calls = []

    def set_line(self, gsi, level):
        self.calls.append((gsi, level))

    def msi(self, address, data):
        self.calls.append((address, data))


class FakeCpu:
    """The wires a local APIC has to its CPU."""

    def __init__(self):
        self.intr = False
        self.events = []

    def interrupt(self, pending):
        self.intr = pending

    def nmi(self):
        self.events.append("nmi")

    def init(self):
        self.events.append("init")

    def startup(self, vector):
        self.events.append(("startup", vector))

    def smi(self):
        self.events.append("smi")


@pytest.fixture
def model():
    cpus = [FakeCpu(), FakeCpu()]
    chips = ModelChips(BoardClock(RLock()), cpus, tsc=[lambda: 0] * 2, tsc_hz=10**9)
    bus = BoardBus(RLock(), lambda error: pytest.fail(str(error)))
    chips.map(bus)
    return chips, bus, cpus


def test_shared_line_stays_up_until_all_let_go():
    """Wired-or, and repeated levels change nothing."""
    kernel = Kernel()
    chips = KernelChips(kernel)
    one, two = chips.line(17), chips.line(17)
    for line, level in ((one, True), (one, True), (two, True), (one, False), (two, False)):
        line(level)
    assert kernel.calls == [(17, True), (17, False)]


def test_isa_interrupt_0_is_kvms_gsi_0():
    """KVM routes it to the I/O APIC's pin 2 itself."""
    kernel = Kernel()
    KernelChips(kernel).isa_line(0)(True)
    KernelChips(kernel).isa_line(4)(True)
    KernelChips(kernel).msi(0xFEE00000, 0x31)
    assert kernel.calls == [(0, True), (4, True), (0xFEE00000, 0x31)]


@pytest.mark.parametrize("number", [-1, 24])
def test_pins_that_do_not_exist_are_refused(number):
    """0 to 23, and 0 to 15 on the ISA bus."""
    with pytest.raises(ValueError):
        Pins(lambda gsi, level: None).line(number)
    with pytest.raises(ValueError):
        Pins(lambda gsi, level: None).isa_line(number)


@given(steps=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40))
@settings(deadline=None)
def test_pin_is_the_or_of_its_lines(steps):
    """Whatever the lines do in whatever order, each pin's level is their or, told once."""
    told: list[tuple[int, bool]] = []
    pins = Pins(lambda gsi, level: told.append((gsi, level)))
    lines = [pins.line(20 + number % 2) for number in range(6)]
    levels = [False] * 6
    for number, level in steps:
        lines[number](level)
        levels[number] = level
        for pin in (0, 1):
            last = next((said for gsi, said in reversed(told) if gsi == 20 + pin), False)
            assert last == any(levels[pin::2])
    for pin in (20, 21):
        mine = [said for gsi, said in told if gsi == pin]
        assert mine == [index % 2 == 0 for index in range(len(mine))]


def test_isa_line_goes_to_the_8259a_through_the_virtual_wire(model):
    """Before anybody has set up the I/O APIC: INTR, LINT0, ExtINT on CPU 0."""
    chips, bus, cpus = model
    for port, value in ((0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x21, 0xEF)):
        bus.port_write(port, 1, value)
    chips.isa_line(4)(True)
    assert (cpus[0].intr, cpus[1].intr) == (True, False)
    assert chips.apics[0].acknowledge() == 0x34


def test_isa_line_goes_to_its_pin_of_the_io_apic(model):
    """A redirection entry for pin 4 sends vector 0x41 to CPU 1."""
    chips, bus, cpus = model
    chips.apics[1].write(0xF0, 4, 0x1FF)
    for index, value in ((0x10 + 2 * 4 + 1, 1 << 24), (0x10 + 2 * 4, 0x41)):
        bus.memory_write(layout.IOAPIC, 4, index)
        bus.memory_write(layout.IOAPIC + 0x10, 4, value)
    chips.isa_line(4)(True)
    assert (cpus[1].intr, chips.apics[1].acknowledge()) == (True, 0x41)


def test_timer_interrupt_is_pin_2(model):
    """The PIT's ISA 0 arrives at pin 2, as the MADT says."""
    chips, bus, _ = model
    chips.apics[0].write(0xF0, 4, 0x1FF)
    bus.memory_write(layout.IOAPIC, 4, 0x10 + 2 * 2)
    bus.memory_write(layout.IOAPIC + 0x10, 4, 0x50)
    chips.isa_line(0)(True)
    assert chips.apics[0].acknowledge() == 0x50


def test_level_line_is_delivered_again_after_the_end_of_interrupt(model):
    """The EOI is broadcast to the I/O APIC, which sees the line still up."""
    chips, bus, _ = model
    chips.apics[0].write(0xF0, 4, 0x1FF)
    bus.memory_write(layout.IOAPIC, 4, 0x10 + 2 * 17)
    bus.memory_write(layout.IOAPIC + 0x10, 4, 0x8061)
    line = chips.line(17)
    line(True)
    first = chips.apics[0].acknowledge()
    chips.apics[0].write(0xB0, 4, 0)
    second = chips.apics[0].acknowledge()
    line(False)
    chips.apics[0].write(0xB0, 4, 0)
    assert (first, second, chips.apics[0].acknowledge()) == (0x61, 0x61, None)


def test_message_of_a_device_reaches_the_cpu_it_names(model):
    """MSI: address names the CPU, data the vector."""
    chips, _, cpus = model
    chips.apics[1].write(0xF0, 4, 0x1FF)
    chips.msi(0xFEE01000, 0x77)
    assert (cpus[1].intr, chips.apics[1].acknowledge()) == (True, 0x77)


def test_chips_after_reset_are_as_new(model):
    """Lines that are still asserted are told to the chips again."""
    chips, bus, _ = model
    new = {name: chip.state() for name, chip in chips.devices().items()}
    bus.port_write(0x21, 1, 0x55)
    chips.apics[0].write(0xF0, 4, 0x1EE)
    chips.msi(0xFEE00000, 0x77)
    for chip in chips.devices().values():
        chip.reset()
    chips.reset_done()
    states = {name: chip.state() for name, chip in chips.devices().items()}
    assert {name for name in new if new[name] != states[name]} <= {"pit"}  # its phase
