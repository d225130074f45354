"""Threads that do a disk's blocking work, and tell when it is done."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Condition, Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Work = tuple[Callable[[], None], Callable[[OSError | None], None]]

__all__ = ["DiskQueue"]


class DiskQueue:
    """``submit(work, done)`` runs ``work()`` on a thread, then ``done(error)`` there.

    ``work`` may raise OSError. Several works run at once: an order between them is
    the submitter's affair, as it is between requests to a disk.
    """

    def __init__(self, name: str, threads: int = 2) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._open = 0
        self._idle = Condition()
        self._threads = [
            Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        self._started = False

    def submit(self, work: Callable[[], None], done: Callable[[OSError | None], None]) -> None:
        """From any thread; returns at once."""
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()
        with self._idle:
            self._open += 1
        self._queue.put((work, done))

    def drain(self) -> None:
        """Wait until nothing is under way."""
        with self._idle:
            self._idle.wait_for(lambda: not self._open)

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return self._open > 0

    def close(self) -> None:
        """Finish what was submitted, and end the threads. Callable twice."""
        if self._started:
            self._started = False
            for _ in self._threads:
                self._queue.put(None)
            for thread in self._threads:
                thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, done = item
            error = None
            try:
                work()
            except OSError as trouble:
                error = trouble
            try:
                done(error)
            finally:
                with self._idle:
                    self._open -= 1
                    if not self._open:
                        self._idle.notify_all()
