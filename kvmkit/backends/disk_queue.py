"""Threads that do a disk's blocking work, and tell when it is done."""

from __future__ import annotations

from collections import deque
from threading import Condition, Lock, Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Work = tuple[Callable[[], None], Callable[[OSError | None], None]]

__all__ = ["DiskQueue"]

THREADS = 4


class DiskQueue:
    """``submit(work, done)`` runs ``work()`` on a thread, then ``done(error)`` there.

    ``work`` may raise OSError; anything else it raises is passed on as EIO, and the
    thread lives on. Several works run at once: an order between them is the
    submitter's affair, as it is between requests to a disk. Threads are made when
    there is more to do than threads that wait.
    """

    def __init__(self, name: str, threads: int = THREADS) -> None:
        self._name = name
        self._most = threads
        self._lock = Lock()  # guards all that follows
        self._more = Condition(self._lock)
        self._less = Condition(self._lock)
        self._queue: deque[Work] = deque()
        self._threads: list[Thread] = []
        self._waiting = 0  # threads without work
        self._running = 0  # works on a thread
        self._open = 0  # works submitted and not yet told to be done
        self._closing = False

    def submit(self, work: Callable[[], None], done: Callable[[OSError | None], None]) -> None:
        """From any thread; returns at once. Raises RuntimeError after :meth:`close`."""
        with self._lock:
            if self._closing:
                raise RuntimeError("the disk is closed")
            self._open += 1
            self._queue.append((work, done))
            if self._waiting >= len(self._queue):
                self._more.notify()
            elif len(self._threads) < self._most:
                number = len(self._threads)
                thread = Thread(target=self._run, name=f"{self._name}-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def drain(self) -> None:
        """Wait until nothing is under way, and everybody has been told."""
        with self._lock:
            self._less.wait_for(lambda: not self._open)

    def settle(self) -> None:
        """Wait until no ``work`` runs. One that has not begun yet, or a ``done``, may follow."""
        with self._lock:
            self._less.wait_for(lambda: not self._running)

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return self._open > 0

    def close(self) -> None:
        """Finish what was submitted, and end the threads. Callable twice."""
        with self._lock:
            self._closing = True
            self._more.notify_all()
        while self._threads:
            self._threads.pop().join()

    def _run(self) -> None:
        while (item := self._take()) is not None:
            work, done = item
            error = _outcome(work)
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._less.notify_all()
            try:
                done(error)
            finally:
                with self._lock:
                    self._open -= 1
                    if not self._open:
                        self._less.notify_all()

    def _take(self) -> Work | None:
        """The next work; None at the end."""
        with self._lock:
            while not self._queue:
                if self._closing:
                    return None
                self._waiting += 1
                self._more.wait()
                self._waiting -= 1
            self._running += 1
            return self._queue.popleft()


def _outcome(work: Callable[[], None]) -> OSError | None:
    """Run it; what went wrong, if anything."""
    try:
        work()
    except OSError as error:
        return error
    except Exception as error:
        return OSError(5, f"{type(error).__name__}: {error}")
    return None
