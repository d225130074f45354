"""i8042: controller commands, reset, and devices that are not there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.devices.i8042 import I8042
from tests.devices.fakes import RecordingLine

OBF, AUX, TIMEOUT = 0x01, 0x20, 0x40


class Keyboardless:
    """A controller with its surroundings."""

    def __init__(self) -> None:
        self.irq1 = RecordingLine()
        self.irq12 = RecordingLine()
        self.resets = 0
        self.i8042 = I8042(self.irq1, self.irq12, self._reset)

    def _reset(self) -> None:
        self.resets += 1

    def command(self, command: int, *data: int) -> None:
        self.i8042.command.write(0, 1, command)
        for byte in data:
            self.i8042.data.write(0, 1, byte)

    def irq1_high(self) -> bool:
        return self.irq1.level

    def status(self) -> int:
        return self.i8042.command.read(0, 1)

    def data(self) -> int:
        return self.i8042.data.read(0, 1)


@pytest.mark.parametrize(
    ("command", "answer"), [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00), (0x20, 0x65), (0xD0, 0xC3)]
)
def test_commands_that_answer(command: int, answer: int) -> None:
    """Self-test, port tests, command byte and output port have their values."""
    machine = Keyboardless()
    machine.command(command)
    assert machine.status() & OBF
    assert machine.data() == answer
    assert not machine.status() & OBF


def test_command_byte_can_be_written() -> None:
    """What 0x60 writes 0x20 reads, without the two unused bits."""
    machine = Keyboardless()
    machine.command(0x60, 0xFF)
    machine.command(0x20)
    assert machine.data() == 0x77


def test_ports_are_turned_off_and_on() -> None:
    """0xad, 0xae, 0xa7, 0xa8 change the command byte's disable bits."""
    machine = Keyboardless()
    machine.command(0xAD)
    machine.command(0xA8)
    machine.command(0x20)
    assert machine.data() & 0x30 == 0x10
    machine.command(0xAE)
    machine.command(0xA7)
    machine.command(0x20)
    assert machine.data() & 0x30 == 0x20


def test_keyboard_command_times_out() -> None:
    """A byte for the keyboard comes back as 0xfe with the time-out bit and IRQ 1."""
    machine = Keyboardless()
    machine.i8042.data.write(0, 1, 0xED)
    assert machine.status() & (OBF | AUX | TIMEOUT) == OBF | TIMEOUT
    assert machine.irq1_high()
    assert machine.data() == 0xFE
    assert not machine.status() & TIMEOUT
    assert not machine.irq1_high()


def test_mouse_command_times_out() -> None:
    """A byte for the auxiliary device does so on its side, with IRQ 12 if enabled."""
    machine = Keyboardless()
    machine.command(0x60, 0x47)
    machine.command(0xD4, 0xF2)
    assert machine.status() & (OBF | AUX | TIMEOUT) == OBF | AUX | TIMEOUT
    assert (machine.irq1.level, machine.irq12.level) == (False, True)
    assert machine.data() == 0xFE


def test_buffer_loopbacks() -> None:
    """0xd2 and 0xd3 put a byte in the buffer as if a device had sent it."""
    machine = Keyboardless()
    machine.command(0xD3, 0xA5)
    assert machine.status() & (OBF | AUX) == OBF | AUX
    assert machine.data() == 0xA5
    machine.command(0xD2, 0x5A)
    assert machine.status() & (OBF | AUX) == OBF
    assert machine.data() == 0x5A


@pytest.mark.parametrize(("command", "resets"), [(0xFE, 1), (0xF0, 1), (0xFF, 0), (0xFD, 0)])
def test_pulsing_bit_0_resets(command: int, resets: int) -> None:
    """Commands 0xf0 to 0xff pulse the lines whose bit is 0; line 0 is the CPU's reset."""
    machine = Keyboardless()
    machine.command(command)
    assert machine.resets == resets


def test_output_port_gates_a20_and_resets() -> None:
    """0xd1 sets A20, and bit 0 low resets."""
    machine = Keyboardless()
    gates = [machine.i8042.a20]
    machine.command(0xD1, 0xDD)
    gates.append(machine.i8042.a20)
    assert machine.resets == 0
    machine.command(0xD1, 0xDE)
    gates.append(machine.i8042.a20)
    assert gates == [True, False, True]
    assert machine.resets == 1


def test_self_test_and_data_write_show_in_status() -> None:
    """The system flag is set; the command flag tells which port was written last."""
    machine = Keyboardless()
    machine.command(0xAA)
    assert machine.status() & 0x0C == 0x0C
    machine.i8042.data.write(0, 1, 0)
    assert machine.status() & 0x08 == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(), st.booleans(), st.integers(0, 3), st.sampled_from([1, 2, 4]),
            st.integers(0, 255),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_any_accesses_and_state_round_trip(
    steps: list[tuple[bool, bool, int, int, int]],
) -> None:
    """No access raises; the state's copy has the same state and lines."""
    machine, copy = Keyboardless(), Keyboardless()
    for to_command, is_read, offset, size, value in steps:
        port = machine.i8042.command if to_command else machine.i8042.data
        if is_read:
            assert 0 <= port.read(offset, size) < 1 << 8 * size
        else:
            port.write(offset, size, value)
    copy.i8042.restore(machine.i8042.state())
    assert copy.i8042.state() == machine.i8042.state()
    assert (copy.irq1.level, copy.irq12.level) == (machine.irq1.level, machine.irq12.level)
    machine.i8042.reset()
    assert machine.i8042.state() == Keyboardless().i8042.state()
