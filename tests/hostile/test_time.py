"""Times that are too long, and timers that never stop."""

from __future__ import annotations

import threading

import pytest

from kvmkit.board.clock import BoardClock
from kvmkit.board.loop import EventLoop


@pytest.mark.parametrize("deadline", [1 << 61, 1 << 63, 1 << 70])
def test_loop_sleeps_for_a_timer_in_centuries(deadline: int) -> None:
    """And does what else it is asked to meanwhile."""
    failures: list[Exception] = []
    loop = EventLoop(failures.append)
    clock = BoardClock(threading.RLock())
    loop.add_clock(clock)
    clock.timer(lambda: None).arm(deadline)
    loop.start()
    done = threading.Event()
    try:
        for _ in range(3):
            loop.call_soon(done.set)
            assert done.wait(2)
            done.clear()
    finally:
        loop.close()
    assert failures == []
