"""The 8259A pair against Intel's datasheet (231468)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices.pic import Elcr, PicPair
from kvmkit.devices.pic_chip import PicChip, PicChipState
from tests.devices.fakes import RecordingLine

SPURIOUS_7 = 0x27
SPURIOUS_15 = 0x2F

EOI = 0x20
ROTATE_ON_EOI = 0xA0
READ_IRR, READ_ISR, POLL = 0x0A, 0x0B, 0x0C
SET_SPECIAL_MASK, CLEAR_SPECIAL_MASK = 0x68, 0x48


class Rig:
    """The pair, initialised as a PC's, and the driver's side of it."""

    def __init__(self, icw4: int = 0x01, icw4_secondary: int = 0x01) -> None:
        self.intr = RecordingLine()
        self.pair = PicPair(self.intr)
        initialise(self.pair.primary, 0x11, 0x20, 0x04, icw4)
        initialise(self.pair.secondary, 0x11, 0x28, 0x02, icw4_secondary)

    def raised(self) -> bool:
        return self.intr.level

    def pulse(self, irq: int) -> None:
        """A new edge on a line, which stays up."""
        self.pair.set_line(irq, False)
        self.pair.set_line(irq, True)

    def command(self, value: int) -> None:
        self.pair.primary.write(0, 1, value)

    def registers(self) -> tuple[int, int]:
        """IRR and ISR of the primary."""
        self.command(READ_IRR)
        irr = self.pair.primary.read(0, 1)
        self.command(READ_ISR)
        return irr, self.pair.primary.read(0, 1)


def initialise(chip: PicChip, *words: int) -> None:
    """ICW1 to the first port, the others to the second."""
    chip.write(0, 1, words[0])
    for word in words[1:]:
        chip.write(1, 1, word)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# --- initialisation ---


def test_masked_before_initialisation() -> None:
    """An uninitialised pair interrupts nobody."""
    intr = RecordingLine()
    pair = PicPair(intr)
    pair.set_line(0, True)
    assert not intr.level and pair.primary.read(1, 1) == 0xFF


def test_initialisation_sequence(rig: Rig) -> None:
    """ICW1 clears the mask, and ICW2's upper bits are the vector's."""
    assert rig.pair.primary.read(1, 1) == 0
    initialise(rig.pair.primary, 0x11, 0x37, 0x04, 0x01)
    rig.pulse(3)
    assert rig.pair.acknowledge() == 0x33


def test_icw3_and_icw4_are_optional() -> None:
    """Single mode has no ICW3, IC4 = 0 no ICW4; the next word is OCW1."""
    chip = PicChip(RecordingLine(), 0, master=True)
    initialise(chip, 0x12, 0x40, 0xA5)
    assert chip.read(1, 1) == 0xA5
    initialise(chip, 0x10, 0x40, 0x04, 0xA6)
    assert chip.read(1, 1) == 0xA6
    initialise(chip, 0x13, 0x40, 0x01, 0xA7)
    assert chip.read(1, 1) == 0xA7


def test_icw1_forgets_edges(rig: Rig) -> None:
    """After ICW1 an input must go low and high again to be seen."""
    rig.pulse(4)
    initialise(rig.pair.primary, 0x11, 0x20, 0x04, 0x01)
    assert not rig.raised()
    rig.pulse(4)
    assert rig.raised()


# --- requests ---


def test_edge_interrupt(rig: Rig) -> None:
    """IRR, ISR, EOI: the line staying high does not interrupt again."""
    rig.pulse(4)
    assert rig.raised() and rig.registers() == (0x10, 0)
    assert rig.pair.acknowledge() == 0x24
    assert not rig.raised() and rig.registers() == (0, 0x10)
    rig.command(EOI)
    assert not rig.raised() and rig.registers() == (0, 0)


def test_level_interrupt_by_elcr(rig: Rig) -> None:
    """An input that ELCR makes level comes again until its line falls."""
    rig.pair.elcr.write(0, 1, 0x20)
    rig.pair.set_line(5, True)
    assert rig.pair.acknowledge() == 0x25
    rig.command(EOI)
    assert rig.raised()
    rig.pair.set_line(5, False)
    assert not rig.raised()


def test_level_interrupts_by_icw1(rig: Rig) -> None:
    """LTIM makes every input level-triggered."""
    rig.pair.set_line(3, True)
    initialise(rig.pair.primary, 0x19, 0x20, 0x04, 0x01)
    assert rig.raised()


def test_elcr_registers(rig: Rig) -> None:
    """IRQ0, 1, 2, 8 and 13 cannot be level; both registers in one 2-byte access."""
    rig.pair.elcr.write(0, 2, 0xFFFF)
    assert rig.pair.elcr.read(0, 2) == 0xDEF8
    assert (rig.pair.elcr.read(0, 1), rig.pair.elcr.read(1, 1)) == (0xF8, 0xDE)
    rig.pair.elcr.write(1, 1, 0)
    assert rig.pair.elcr.state() == (0xF8, 0)
    rig.pair.elcr.reset()
    rig.pair.elcr.restore((0x08, 0x02))
    assert rig.pair.elcr.read(0, 2) == 0x0208


def test_mask(rig: Rig) -> None:
    """OCW1 holds a request back without forgetting it."""
    rig.pair.primary.write(1, 1, 0x10)
    rig.pulse(4)
    assert not rig.raised() and rig.registers()[0] == 0x10
    rig.pair.primary.write(1, 1, 0)
    assert rig.raised()


def test_priorities(rig: Rig) -> None:
    """IRQ0 is the highest; a lower input waits for the EOI, a higher one nests."""
    rig.pulse(4)
    assert rig.pair.acknowledge() == 0x24
    rig.pulse(5)
    assert not rig.raised()
    rig.pulse(1)
    assert rig.pair.acknowledge() == 0x21
    rig.command(EOI)
    assert rig.registers()[1] == 0x10
    rig.command(EOI)
    assert rig.pair.acknowledge() == 0x25


def test_request_that_goes_away_is_spurious_7(rig: Rig) -> None:
    """The acknowledge answers with IRQ7's vector and sets nothing in service."""
    rig.pulse(4)
    rig.pair.set_line(4, False)
    assert not rig.raised()
    assert rig.pair.acknowledge() == SPURIOUS_7
    assert rig.registers() == (0, 0)


# --- cascade ---


def test_secondary_interrupt(rig: Rig) -> None:
    """IRQ8-15 come through IRQ2, in service in both chips, and need both EOIs."""
    rig.pulse(12)
    assert rig.registers()[0] == 0x04
    assert rig.pair.acknowledge() == 0x2C
    assert rig.registers() == (0, 0x04)
    rig.pulse(14)
    rig.command(EOI)
    assert not rig.raised()  # the secondary still serves IRQ12
    rig.pair.secondary.write(0, 1, EOI)
    assert rig.pair.acknowledge() == 0x2E


def test_secondary_ranks_above_irq3(rig: Rig) -> None:
    """IRQ8-15 have IRQ2's priority."""
    rig.pulse(3)
    rig.pulse(15)
    assert rig.pair.acknowledge() == 0x2F


def test_spurious_15(rig: Rig) -> None:
    """When the secondary's request goes away during the acknowledge, IRQ2 is in service alone."""
    rig.pulse(12)
    # The primary freezes its request with the first INTA; the secondary's is gone by the second.
    vector, cascaded = rig.pair.primary.acknowledge()
    rig.pair.set_line(12, False)
    assert cascaded and vector == 0x22
    assert rig.pair.secondary.acknowledge() == (SPURIOUS_15, False)
    assert rig.registers()[1] == 0x04


def test_irq2_has_no_line(rig: Rig) -> None:
    """IRQ2 and numbers outside 0-15 are ignored."""
    before = rig.pair.state()
    for irq in (2, 16, -1):
        rig.pair.set_line(irq, True)
    assert rig.pair.state() == before


def test_special_fully_nested_mode() -> None:
    """The secondary in service does not lock out its own higher requests."""
    rig = Rig(icw4=0x11)
    rig.pulse(12)
    rig.pair.acknowledge()
    rig.pulse(9)
    assert rig.raised() and rig.pair.acknowledge() == 0x29
    rig.pulse(3)
    assert not rig.raised()


def test_fully_nested_mode_locks_the_secondary_out(rig: Rig) -> None:
    """Without it they wait for the primary's EOI."""
    rig.pulse(12)
    rig.pair.acknowledge()
    rig.pulse(9)
    assert not rig.raised()
    rig.command(EOI)
    assert rig.pair.acknowledge() == 0x29


# --- ends of interrupt and rotation ---


def test_specific_eoi(rig: Rig) -> None:
    """It clears the bit it names."""
    rig.pulse(4)
    rig.pair.acknowledge()
    rig.pulse(1)
    rig.pair.acknowledge()
    rig.command(0x64)
    assert rig.registers()[1] == 0x02


def test_stray_eoi(rig: Rig) -> None:
    """With nothing in service an EOI, also a rotating one, changes nothing."""
    before = rig.pair.state()
    rig.command(EOI)
    rig.command(ROTATE_ON_EOI)
    rig.command(0x40)
    assert rig.pair.state() == before


def test_auto_eoi() -> None:
    """With AEOI nothing is in service after the acknowledge."""
    rig = Rig(icw4=0x03)
    rig.pulse(4)
    assert rig.pair.acknowledge() == 0x24 and rig.registers() == (0, 0)


def test_auto_eoi_in_the_secondary_makes_an_edge_for_each() -> None:
    """Two requests of the secondary are two edges at IRQ2."""
    rig = Rig(icw4=0x03, icw4_secondary=0x03)
    rig.pulse(9)
    rig.pulse(12)
    assert [rig.pair.acknowledge(), rig.pair.acknowledge()] == [0x29, 0x2C]


def test_rotation_in_auto_eoi() -> None:
    """With rotation in AEOI the input that was served becomes the lowest."""
    rig = Rig(icw4=0x03)
    rig.command(0x80)
    for irq in (3, 4):
        rig.pulse(irq)
    assert rig.pair.acknowledge() == 0x23
    rig.pulse(3)
    assert [rig.pair.acknowledge(), rig.pair.acknowledge()] == [0x24, 0x23]
    rig.command(0x00)
    rig.pulse(4)
    rig.pair.acknowledge()
    assert rig.pair.state().primary.lowest == 3


def test_rotate_on_eoi(rig: Rig) -> None:
    """The ended input becomes the lowest: of 3 and 4, 4 is served next (figure 12)."""
    rig.pulse(3)
    rig.pair.acknowledge()
    rig.pulse(3)
    rig.pulse(4)
    rig.command(ROTATE_ON_EOI)
    assert rig.pair.acknowledge() == 0x24


def test_rotate_on_specific_eoi(rig: Rig) -> None:
    """The input it names is ended and becomes the lowest."""
    rig.pulse(5)
    rig.pair.acknowledge()
    rig.command(0xE5)
    assert rig.registers()[1] == 0 and rig.pair.state().primary.lowest == 5


def test_set_priority(rig: Rig) -> None:
    """With 5 the lowest, 6 is the highest."""
    rig.command(0xC5)
    for irq in (0, 5, 6):
        rig.pulse(irq)
    vectors = []
    for _ in range(3):
        vectors.append(rig.pair.acknowledge())
        rig.command(EOI)
    assert vectors == [0x26, 0x20, 0x25]


# --- special mask, poll, reading ---


def test_special_mask_mode(rig: Rig) -> None:
    """A masked input in service does not hold back lower ones; its bit needs a specific EOI."""
    rig.pulse(4)
    rig.pair.acknowledge()
    rig.pair.primary.write(1, 1, 0x10)
    rig.pulse(6)
    assert not rig.raised()
    rig.command(SET_SPECIAL_MASK)
    assert rig.pair.acknowledge() == 0x26
    rig.command(EOI)
    rig.command(EOI)
    assert rig.registers()[1] == 0x10
    rig.command(CLEAR_SPECIAL_MASK)
    rig.command(0x64)
    assert rig.registers()[1] == 0


def test_poll(rig: Rig) -> None:
    """The read after a poll command acknowledges: bit 7 and the level, from either port."""
    rig.pulse(4)
    rig.command(POLL)
    assert rig.pair.primary.read(0, 1) == 0x84
    assert not rig.raised() and rig.registers() == (0, 0x10)
    rig.command(POLL)
    assert rig.pair.primary.read(1, 1) == 0
    assert rig.pair.primary.read(1, 1) == 0


def test_irr_is_read_after_initialisation(rig: Rig) -> None:
    """ICW1 selects IRR; a poll leaves the selection alone."""
    rig.command(READ_ISR)
    initialise(rig.pair.primary, 0x11, 0x20, 0x04, 0x01)
    rig.pulse(4)
    assert rig.pair.primary.read(0, 1) == 0x10


def test_reset_keeps_the_lines(rig: Rig) -> None:
    """Lines are wires; everything else is as at power-on."""
    rig.pair.set_line(4, True)
    rig.pair.reset()
    assert rig.pair.state().primary == PicChipState(lines=0x10)
    assert not rig.raised()


# --- properties ---

STEPS = st.one_of(
    st.tuples(st.just("line"), st.integers(0, 15), st.booleans()),
    st.tuples(st.just("primary"), st.integers(0, 1), st.integers(0, 255)),
    st.tuples(st.just("secondary"), st.integers(0, 1), st.integers(0, 255)),
    st.tuples(st.just("elcr"), st.integers(0, 1), st.integers(0, 255)),
    st.tuples(st.just("setup"), st.integers(0, 31), st.integers(0, 255)),
    st.tuples(st.just("acknowledge"), st.just(0), st.just(0)),
)


def drive(rig: Rig, step: tuple[str, int, int]) -> object:
    """One random thing that a guest or the wires do; returns what the guest saw."""
    name, first, second = step
    pair = rig.pair
    if name == "line":
        pair.set_line(first, bool(second))
    elif name == "setup":
        initialise(pair.primary, 0x11 | second & 8, second, 0x04, first)
    elif name == "acknowledge":
        return pair.acknowledge()
    else:
        ports = {"primary": pair.primary, "secondary": pair.secondary}
        port: PicChip | Elcr = ports.get(name, pair.elcr)
        port.write(first, 1, second)
        return port.read(first, 1)
    return None


@settings(deadline=None, max_examples=200)
@given(st.lists(STEPS, max_size=40), st.lists(STEPS, max_size=10))
def test_any_driver_and_a_round_trip(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    """Nothing raises; a restored pair is the same, drives the same and goes on the same."""
    first, second = Rig(), Rig()
    for step in before:
        drive(first, step)
    state = first.pair.state()
    second.intr.changes.clear()
    second.pair.restore(state)
    assert second.pair.state() == state
    assert second.raised() == first.raised()
    assert len(second.intr.changes) == first.raised()
    for step in after:
        assert drive(second, step) == drive(first, step)
        assert second.pair.state() == first.pair.state()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.booleans()), max_size=30))
def test_raised_line_has_a_vector(lines: list[tuple[int, bool]]) -> None:
    """While INTR is up the acknowledge finds a request; when it is down the answer is spurious."""
    rig = Rig()
    for irq, level in lines:
        rig.pair.set_line(irq, level)
    raised = rig.raised()
    vector = rig.pair.acknowledge()
    state = rig.pair.state()
    assert 0x20 <= vector <= 0x2F
    assert bool(state.primary.isr) == raised
