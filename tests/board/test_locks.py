"""The lock order that kvmkit/board/__init__.py states."""

from __future__ import annotations

import threading
import time

import pytest

import kvmkit.board.board as board_module
from tests.board.fake_engine import FakeEngine, out, say
from tests.board.machine import make_board


class WatchedLock:
    """An RLock that notes when a thread takes a lower lock while it holds a higher one."""

    held = threading.local()
    wrong: list[str] = []

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.rank = 0

    def acquire(self, blocking: bool = True) -> bool:
        mine = self.held.__dict__.setdefault("ranks", [])
        if mine and max(mine) > self.rank and self.rank not in mine:
            self.wrong.append(f"{threading.current_thread().name}: {self.rank} under {mine}")
        taken = self._lock.acquire(blocking)
        if taken:
            mine.append(self.rank)
        return taken

    def release(self) -> None:
        self.held.ranks.remove(self.rank)
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.fixture
def watched(monkeypatch):
    WatchedLock.wrong = []
    monkeypatch.setattr(board_module, "RLock", WatchedLock)
    return WatchedLock


def test_lock_order_holds_through_a_machines_life(watched):
    """Console, reset, pause, input, samples, hang watch, panic: control before lock."""
    panic = b"Kernel panic - not syncing: x\n---[ end Kernel panic - not syncing: x ]---\n"
    runs = []

    def script(bus):
        runs.append(1)
        say(b"boot\nlogin: ")(bus)
        time.sleep(0.05)
        out(0xCF9, 6)(bus) if len(runs) < 3 else say(panic)(bus)

    board = make_board(FakeEngine(script), hang_timeout=0.2)
    board.control.rank, board.lock.rank = 1, 2
    board.start()
    for _ in range(5):
        board.pause()
        board.resume()
        board.serial.input.feed(b"x")
        board.power_button()
        board.sample()
    board.reset()
    ending = board.power.wait(5)
    board.close()
    assert ending is not None
    assert watched.wrong == []


def test_a_wrong_order_is_noticed(watched):
    """The watch itself works."""
    high, low = WatchedLock(), WatchedLock()
    high.rank, low.rank = 2, 1
    with high, low:
        pass
    assert len(watched.wrong) == 1
