"""Stand-ins for what a device is handed: a clock the test turns, lines that remember."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["FakeClock", "FakeTimer", "RecordingLine"]


class FakeTimer:
    """A timer of :class:`FakeClock`."""

    def __init__(self, clock: FakeClock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self.callback = callback
        self._deadline: int | None = None
        self.armed = 0
        """How often ``arm`` was called."""

    @property
    def deadline(self) -> int | None:
        return self._deadline

    def arm(self, deadline: int) -> None:
        self._deadline = deadline
        self.armed += 1

    def cancel(self) -> None:
        self._deadline = None


class FakeClock:
    """A clock that stands still until :meth:`advance`."""

    def __init__(self, now: int = 0, wall: int = 1_700_000_000_000_000_000) -> None:
        self._now = now
        self._start = now
        self._wall = wall
        self.timers: list[FakeTimer] = []

    def now(self) -> int:
        return self._now

    def wall(self) -> int:
        return self._wall + self._now - self._start

    def timer(self, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self, callback)
        self.timers.append(timer)
        return timer

    def advance(self, nanoseconds: int) -> None:
        """Go on, firing every timer at its time and in order."""
        end = self._now + nanoseconds
        while True:
            due = [t for t in self.timers if t.deadline is not None and t.deadline <= end]
            if not due:
                break
            timer = min(due, key=lambda t: t.deadline or 0)
            self._now = max(self._now, timer.deadline or 0)
            timer.cancel()
            timer.callback()
        self._now = end


class RecordingLine:
    """A line that knows its level and remembers every change."""

    def __init__(self) -> None:
        self.level = False
        self.changes: list[bool] = []

    def __call__(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self.changes.append(level)

    @property
    def rises(self) -> int:
        """How often it went up."""
        return self.changes.count(True)
