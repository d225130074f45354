"""Endings, and who tells the first."""

from __future__ import annotations

import threading

import pytest

from kvmkit.board.power import Ending, EndKind, Power

CODES = {
    EndKind.POWERED_OFF: 0,
    EndKind.REBOOT: 113,
    EndKind.PANIC: 110,
    EndKind.TRIPLE_FAULT: 111,
    EndKind.HUNG: 112,
    EndKind.TIMED_OUT: 124,
    EndKind.EXITED: 9,
    EndKind.KILLED: 0,
    EndKind.ENGINE_ERROR: 114,
}


@pytest.mark.parametrize("kind", list(EndKind))
def test_every_ending_has_a_code_and_a_reason(kind):
    """The documented exit codes; a reason of one line even when none was given."""
    ending = Ending(kind, status=9)
    assert ending.exit_code == CODES[kind]
    assert ending.reason and "\n" not in ending.reason
    assert ending.ok is (CODES[kind] == 0)


def test_exit_status_is_a_byte():
    """As a shell has it."""
    assert [Ending(EndKind.EXITED, status=number).exit_code for number in (0, 255, 256)] == [
        0, 255, 0,
    ]  # fmt: skip


def test_endings_are_values():
    """Equal by content, usable in sets, unchangeable."""
    one, same = Ending(EndKind.PANIC, "x", "y"), Ending(EndKind.PANIC, "x", "y")
    assert one == same and len({one, same}) == 1
    assert one != Ending(EndKind.PANIC, "x", "z")
    assert one != "x"
    with pytest.raises(AttributeError):
        one.kind = EndKind.HUNG  # type: ignore[misc]


def test_first_ending_wins_among_threads():
    """Of fifty at once exactly one is told to the listener."""
    power, heard = Power(), []
    power.on_end(heard.append)
    threads = [
        threading.Thread(target=power.end, args=(Ending(EndKind.EXITED, status=n),))
        for n in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == [power.ending]
    assert power.wait(0) is power.ending


def test_wait_gives_up():
    """None after the time given."""
    assert Power().wait(0.01) is None


def test_wait_wakes_at_the_end():
    """From another thread."""
    power = Power()
    threading.Timer(0.02, power.end, (Ending(EndKind.KILLED),)).start()
    assert power.wait(5) == Ending(EndKind.KILLED)
