"""A CPU goes on with the flags it had, between a comparison and its jump as well."""

from __future__ import annotations

import pytest

from kvmkit.frozen import replace
from kvmkit.vm import make_engine
from tests.board.machine import POWER_OFF, REAL_MODE, make_board
from tests.snapshot.test_engines import ENGINES, need

CF, PF, AF, ZF, SF, DF, OF = 1, 4, 0x10, 0x40, 0x80, 0x400, 0x800

TELL = b"\x9c\x58\xba\xf8\x03\xee\x88\xe0\xee"  # pushf; pop ax; to COM1: al, then ah
JUMP = b"\x74\x02\xeb\xfe"  # jz over; here: jmp here


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flags", [0, ZF, CF | OF, PF | AF | SF, DF, CF | PF | AF | ZF | SF | DF])
def test_restored_flags_are_the_guests(engine, flags):
    """What PUSHF finds first is what was restored."""
    need(engine)
    entry = replace(REAL_MODE, rflags=flags | 2)
    board = make_board(make_engine(engine, 1), TELL + POWER_OFF, entry=entry)
    try:
        board.start()
        assert board.power.wait(10) is not None
    finally:
        board.close()
    assert int.from_bytes(board.serial.console.log[:2], "little") == flags | 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_jump_sees_the_restored_flags(engine):
    """Stopped behind the comparison."""
    need(engine)
    entry = replace(REAL_MODE, rflags=ZF | 2)
    board = make_board(make_engine(engine, 1), JUMP + POWER_OFF, entry=entry)
    try:
        board.start()
        assert board.power.wait(10) is not None
    finally:
        board.close()
