"""Guest time: the one door through which time enters a board.

Nanoseconds from power-on that stand still while the VM is paused, and a heap
of one-shot timers. The clock has no thread. Whoever waits for the machine asks
:meth:`BoardClock.next_deadline`, sleeps until then and calls
:meth:`BoardClock.run_due`: the I/O thread's loop with KVM, the engine's own
thread on the software CPU.
"""

from __future__ import annotations

import time
from _heapq import heapify, heappop, heappush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Entry = tuple[int, int, "BoardTimer"]

# _heapq is what heapq imports its functions from; the rest of heapq costs 0.5 ms to import.

__all__ = ["BoardClock", "BoardTimer"]


class BoardTimer:
    """A one-shot alarm; see :class:`kvmkit.devices.device.Timer`."""

    __slots__ = ("_callback", "_clock", "_ticket", "deadline")

    def __init__(self, clock: BoardClock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self._ticket = 0  # of the heap entry that counts; older ones are void
        self.deadline: int | None = None
        """When it fires, in nanoseconds of guest time; None if not armed."""

    def arm(self, deadline: int) -> None:
        """Fire once at ``deadline``; replaces an earlier deadline."""
        if deadline != self.deadline:
            self._clock._arm(self, deadline)

    def cancel(self) -> None:
        """Do not fire. Harmless when not armed."""
        if self.deadline is not None:
            self._clock._cancel(self)


class BoardClock:
    """Keeps the promise of :class:`kvmkit.devices.device.Clock`.

    ``lock`` is the board's: held around every timer's callback, and while the
    heap changes. ``monotonic`` and ``wall`` are the host's clocks, in
    nanoseconds; a replayed run hands in its own. Unless ``running``, time stands
    at 0 until :meth:`resume`. ``changed`` is called, under
    the lock, when a deadline earlier than all others was armed, or time starts
    to run again: whoever sleeps until :meth:`next_deadline` must look again.
    """

    def __init__(
        self,
        lock: AbstractContextManager[object],
        *,
        monotonic: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
        running: bool = True,
    ) -> None:
        self._lock = lock
        self._monotonic = monotonic
        self._wall = wall
        self._zero = monotonic()  # host time of guest time 0
        self._stopped = None if running else 0  # guest time while paused
        self._heap: list[Entry] = []
        self._tickets = 0
        self._armed = 0
        self._next: int | None = None
        self.changed: Callable[[], None] = _nobody_waits
        self.failed: Callable[[Exception], None] = _defect
        """Hears of an exception that a timer's callback let out: a defect of its device."""

    def now(self) -> int:
        """Nanoseconds of guest time."""
        stopped = self._stopped
        return self._monotonic() - self._zero if stopped is None else stopped

    def wall(self) -> int:
        """Nanoseconds since 1970-01-01 00:00 UTC. Runs on while the VM is paused."""
        return self._wall()

    def timer(self, callback: Callable[[], None]) -> BoardTimer:
        """A new, unarmed timer that calls ``callback`` under the board's lock."""
        return BoardTimer(self, callback)

    @property
    def paused(self) -> bool:
        """Whether guest time stands still."""
        return self._stopped is not None

    def pause(self) -> None:
        """Stop guest time. Harmless when it stands."""
        with self._lock:
            self._stopped = self.now()

    def stand_at(self, now: int) -> None:
        """Let guest time stand at ``now`` nanoseconds: where a snapshot was taken."""
        with self._lock:
            self._stopped = now

    def resume(self, at: int | None = None) -> None:
        """Let guest time run on, from ``at`` nanoseconds if given (a restored snapshot)."""
        with self._lock:
            self._zero = self._monotonic() - (self.now() if at is None else at)
            self._stopped = None
            self.changed()

    def next_deadline(self) -> int | None:
        """Guest time at which the next timer is due; None if none is, or time stands still."""
        return self._next if self._stopped is None else None

    def run_due(self) -> None:
        """Fire every timer whose time has come, in order of their deadlines."""
        # A timer armed by a callback for a time that has passed waits for the
        # next call: a guest that asks for a timer every 0 ns gets no endless
        # loop out of us.
        if self._next is None or self._stopped is not None:
            return
        with self._lock:
            now = self.now()
            last = self._tickets
            heap = self._heap
            late: list[Entry] = []
            while heap and heap[0][0] <= now:
                entry = heappop(heap)
                _, ticket, timer = entry
                if ticket != timer._ticket:
                    continue
                if ticket > last:
                    late.append(entry)
                    continue
                timer.deadline = None
                timer._ticket = 0
                self._armed -= 1
                try:
                    timer._callback()
                except Exception as error:
                    self.failed(error)
            for entry in late:
                heappush(heap, entry)
            self._look()

    # Timers

    def _arm(self, timer: BoardTimer, deadline: int) -> None:
        with self._lock:
            if timer.deadline is None:
                self._armed += 1
            self._tickets += 1
            timer._ticket = self._tickets
            timer.deadline = deadline
            heappush(self._heap, (deadline, timer._ticket, timer))
            if len(self._heap) > 64 + 2 * self._armed:
                self._heap[:] = [entry for entry in self._heap if entry[1] == entry[2]._ticket]
                heapify(self._heap)
            before = self._next
            self._look()
            if before is None or deadline < before:
                self.changed()

    def _cancel(self, timer: BoardTimer) -> None:
        with self._lock:
            if timer.deadline is not None:
                self._armed -= 1
                timer.deadline = None
                timer._ticket = 0
                self._look()

    def _look(self) -> None:
        """Drop void entries from the top of the heap and note the next deadline."""
        heap = self._heap
        while heap and heap[0][1] != heap[0][2]._ticket:
            heappop(heap)
        self._next = heap[0][0] if heap else None


def _nobody_waits() -> None:
    """Default of ``BoardClock.changed``."""


def _defect(error: Exception) -> None:
    """Default of ``BoardClock.failed``."""
    raise error
