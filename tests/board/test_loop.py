"""The I/O thread's event loop."""

from __future__ import annotations

import os
import threading
import time
from threading import RLock

import pytest

from kvmkit.board.clock import BoardClock
from kvmkit.board.loop import READABLE, WRITABLE, EventLoop


@pytest.fixture
def errors():
    return []


@pytest.fixture
def loop(errors):
    loop = EventLoop(errors.append)
    yield loop
    loop.close()


def wait_until(condition, seconds=5.0):
    """Whether ``condition()`` came true in time."""
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.0005)
    return condition()


def test_calls_run_in_order_on_the_thread_named_io(loop):
    """Handed over from another thread, before and after the start."""
    seen: list[tuple[str, str]] = []
    loop.call_soon(lambda: seen.append(("a", threading.current_thread().name)))
    loop.start()
    loop.call_soon(lambda: seen.append(("b", threading.current_thread().name)))
    assert wait_until(lambda: len(seen) == 2)
    assert seen == [("a", "io"), ("b", "io")]


def test_call_from_a_call_runs_in_the_next_turn(loop):
    """A call that hands over a call does not starve the loop."""
    seen: list[int] = []

    def again() -> None:
        seen.append(1)
        if len(seen) < 5:
            loop.call_soon(again)

    loop.call_soon(again)
    loop.start()
    assert wait_until(lambda: len(seen) == 5)


def test_descriptor_is_served_until_unwatched(loop):
    """Readable data calls back; after unwatch it does not."""
    read, write = os.pipe()
    got: list[bytes] = []

    def take(events: int) -> None:
        got.append(os.read(read, 100))
        if got[-1] == b"last":
            loop.unwatch(read)

    loop.watch(read, READABLE, take)
    loop.start()
    os.write(write, b"one")
    assert wait_until(lambda: got == [b"one"])
    os.write(write, b"last")
    assert wait_until(lambda: len(got) == 2)
    os.write(write, b"more")
    time.sleep(0.01)
    os.close(read)
    os.close(write)
    assert got == [b"one", b"last"]


def test_watching_again_replaces(loop):
    """The same descriptor with another wish and another callback."""
    read, write = os.pipe()
    seen: list[str] = []
    loop.watch(write, READABLE, lambda events: seen.append("read"))

    def ready(events: int) -> None:
        seen.append("write")
        loop.unwatch(write)

    loop.watch(write, WRITABLE, ready)
    loop.start()
    assert wait_until(lambda: seen == ["write"])
    os.close(read)
    os.close(write)


def test_regular_file_cannot_be_watched(loop, tmp_path):
    """epoll says so, and the caller decides."""
    with (tmp_path / "file").open("w+b") as file, pytest.raises(PermissionError):
        loop.watch(file.fileno(), READABLE, print)


def test_timers_fire_close_to_their_time(loop):
    """Well below the millisecond that epoll's timeout is counted in, usually."""
    clock = BoardClock(RLock())
    late: list[int] = []
    loop.add_clock(clock)
    loop.start()
    for _ in range(20):
        fired = threading.Event()
        timer = clock.timer(lambda event=fired: (late.append(clock.now()), event.set()))
        deadline = clock.now() + 1_300_000
        timer.arm(deadline)
        assert fired.wait(5)
        late[-1] -= deadline
    assert min(late) >= 0
    assert sorted(late)[len(late) // 2] < 1_000_000


def test_earlier_timer_shortens_the_sleep(loop):
    """A deadline armed from another thread while the loop sleeps for a later one."""
    clock = BoardClock(RLock())
    loop.add_clock(clock)
    clock.timer(lambda: None).arm(clock.now() + 60_000_000_000)
    loop.start()
    fired = threading.Event()
    clock.timer(fired.set).arm(clock.now() + 1_000_000)
    assert fired.wait(5)


def test_defect_in_a_callback_is_told_and_survived(loop, errors):
    """The loop goes on."""
    seen: list[int] = []
    loop.call_soon(lambda: seen.append(1 // 0))
    loop.call_soon(lambda: seen.append(1))
    loop.start()
    assert wait_until(lambda: seen == [1])
    assert [type(error) for error in errors] == [ZeroDivisionError]


def test_stop_carries_out_what_was_handed_over(loop):
    """Calls before the stop still run."""
    seen: list[int] = []
    loop.start()
    for number in range(100):
        loop.call_soon(lambda number=number: seen.append(number))
    loop.stop()
    assert seen == list(range(100))


def test_close_twice_and_use_afterwards_are_harmless():
    """Descriptors are gone; late wishes are dropped."""
    before = set(os.listdir("/proc/self/fd"))
    loop = EventLoop(lambda error: None)
    loop.start()
    loop.close()
    loop.close()
    loop.call_soon(lambda: None)
    loop.unwatch(0)
    assert set(os.listdir("/proc/self/fd")) == before


def test_idle_loop_sleeps(loop):
    """Nothing to do costs nothing."""
    loop.start()
    loop.call_soon(lambda: None)
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1
