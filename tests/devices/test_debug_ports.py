"""POST code, debug console, exit port and reset control."""

from __future__ import annotations

import pytest

from kvmkit.devices.debug_ports import DebugConsole, ExitPort, PostCode
from kvmkit.devices.reset_control import ResetControl


def test_post_code_is_a_latch() -> None:
    """The last byte written can be read, and is kept in the state."""
    post, copy = PostCode(), PostCode()
    post.write(0, 1, 0x42)
    copy.restore(post.state())
    assert post.read(0, 1) == copy.read(0, 1) == post.code == 0x42
    post.reset()
    assert post.code == 0


def test_debug_console_prints_and_tells_it_is_there() -> None:
    """Bytes written come out; a read gives 0xe9."""
    printed = bytearray()
    console = DebugConsole(printed.extend)
    for character in b"hi":
        console.write(0, 1, character)
    assert printed == b"hi"
    assert console.read(0, 1) == 0xE9


@pytest.mark.parametrize(("size", "value", "status"), [(1, 7, 7), (4, 0x1_03, 3), (2, 0, 0)])
def test_exit_port_ends_with_the_low_byte(size: int, value: int, status: int) -> None:
    """A write of any size ends the machine with its low eight bits."""
    ended: list[int] = []
    ExitPort(ended.append).write(0, size, value)
    assert ended == [status]


def test_reset_needs_bit_2_to_rise() -> None:
    """Choosing the kind of reset does nothing; raising RST_CPU resets, once."""
    resets: list[None] = []
    control = ResetControl(lambda: resets.append(None))
    control.write(0, 1, 0x02)
    assert not resets
    control.write(0, 1, 0x06)
    control.write(0, 1, 0x06)
    assert len(resets) == 1
    assert control.read(0, 1) == 0x06
    control.reset()
    control.write(0, 1, 0xFF)
    assert len(resets) == 2


def test_reset_control_round_trip() -> None:
    """The state is the register."""
    control, copy = ResetControl(lambda: None), ResetControl(lambda: None)
    control.write(0, 1, 0x0A)
    copy.restore(control.state())
    assert copy.read(0, 1) == 0x0A
    assert copy.state() == control.state()
