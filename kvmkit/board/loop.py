"""The I/O thread: one epoll loop for everything a VM waits for outside its CPUs.

File descriptors of backends, timers of clocks, and calls handed over from
other threads. Callbacks run on the thread named ``io`` with no lock held; one
that touches a device takes the board's lock itself. Timer callbacks are the
clock's affair and run under that lock.
"""

from __future__ import annotations

import os
import select
from _thread import allocate_lock, get_ident
from collections import deque
from threading import Thread

from kvmkit.threads import join, leave_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmkit.board.clock import BoardClock

__all__ = ["READABLE", "WRITABLE", "EventLoop"]

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

_FINE = 20_000_000
"""Below this many nanoseconds a wait is timed by the microsecond, not by epoll's millisecond."""

_SELECT_LIMIT = 1024  # FD_SETSIZE

_LONGEST = 3600_000_000_000
"""Nanoseconds after which it looks again in any case: epoll_wait(2) takes 24 days at most."""


class EventLoop:
    """One loop; ``run`` occupies the calling thread, ``start`` makes one.

    ``failed`` hears of an exception a callback let out. The loop goes on.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._clocks: list[BoardClock] = []
        self._watched: dict[int, Callable[[int], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = allocate_lock()  # guards _woken and _closed
        self._woken = False
        self._stopping = False
        self._closed = False
        self._thread: Thread | None = None
        self._ident = 0
        self._epoll = select.epoll()
        self._wake_fd = -1
        try:
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._wake_fd, READABLE)
        except BaseException:
            self.close()
            raise

    # File descriptors; on the loop's thread, or before it runs

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` whenever ``fd`` has one of ``events`` (READABLE, WRITABLE).

        Watching a descriptor that is watched replaces what was asked for.
        Raises PermissionError for a descriptor epoll does not take (a regular
        file), which never blocks anyway.
        """
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``; before it is closed. Harmless when it is not watched."""
        if self._watched.pop(fd, None) is not None and not self._closed:
            try:
                self._epoll.unregister(fd)
            except OSError:  # closed already
                pass

    # Time

    def add_clock(self, clock: BoardClock) -> None:
        """Run this clock's timers on the loop."""
        self._clocks.append(clock)
        clock.changed = self.wake

    # From any thread

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` on the loop's thread. Dropped once the loop is closed."""
        self._calls.append(callback)
        self.wake()

    def wake(self) -> None:
        """Make the loop look at its clocks and calls again."""
        if self._woken or get_ident() == self._ident:
            return
        with self._lock:
            if not self._closed and not self._woken and self._wake_fd >= 0:
                self._woken = True
                os.eventfd_write(self._wake_fd, 1)

    @property
    def inside(self) -> bool:
        """Whether the caller is the loop's thread."""
        return get_ident() == self._ident

    # Life

    def start(self) -> None:
        """Run on a thread of the loop's own."""
        self._thread = Thread(target=self._run_beside, name="io", daemon=True)
        self._thread.start()

    def _run_beside(self) -> None:
        leave_signals()
        self.run()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self._ident = get_ident()
        try:
            while not self._stopping:
                self._turn()
            self._run_calls()
        finally:
            self._ident = 0

    def stop(self) -> None:
        """End :meth:`run` after the calls already handed over; waits for the thread."""
        self._stopping = True
        self.wake()
        thread = self._thread
        if thread is not None and not self.inside:
            join(thread)
            self._thread = None

    def close(self) -> None:
        """Stop and free the loop's descriptors; watched ones stay open. Callable twice."""
        if not self._closed:
            self.stop()
            with self._lock:
                self._closed = True
                self._epoll.close()
                if self._wake_fd >= 0:
                    os.close(self._wake_fd)
            self._watched.clear()
            self._calls.clear()

    # One turn

    def _turn(self) -> None:
        for fd, events in self._wait(self._timeout()):
            if fd == self._wake_fd:
                with self._lock:
                    self._woken = False
                    os.eventfd_read(fd)
                continue
            callback = self._watched.get(fd)
            if callback is not None:  # it may have gone in this turn
                try:
                    callback(events)
                except Exception as error:
                    self._failed(error)
        for clock in self._clocks:
            clock.run_due()
        self._run_calls()

    def _timeout(self) -> int | None:
        """Nanoseconds until the next timer; None for as long as it takes."""
        shortest = None
        if self._calls:
            return 0
        for clock in self._clocks:
            deadline = clock.next_deadline()
            if deadline is not None:
                left = max(0, deadline - clock.now())
                shortest = left if shortest is None else min(shortest, left)
        return shortest

    def _wait(self, timeout: int | None) -> list[tuple[int, int]]:
        """The ready descriptors; sleeps for one at most ``timeout`` nanoseconds."""
        epoll = self._epoll
        if timeout is None:
            return epoll.poll()
        if timeout < _FINE and epoll.fileno() < _SELECT_LIMIT:
            # An epoll descriptor is itself readable when it has events (epoll(7)).
            if timeout and not select.select([epoll], [], [], timeout / 1e9)[0]:
                return []
            return epoll.poll(0)
        return epoll.poll(min(timeout, _LONGEST) / 1e9)

    def _run_calls(self) -> None:
        for _ in range(len(self._calls)):
            callback = self._calls.popleft()
            try:
                callback()
            except Exception as error:
                self._failed(error)
