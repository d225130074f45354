"""Threads beside the program's own: without signals, and joined whatever happened.

A signal for the process may come in on any thread that does not block it. Python
then takes a note for the main thread, but does not wake that one: a main thread that
waits in poll(2) would not hear of it.

``Thread.start`` waits for the new thread; a signal's handler may raise in the middle
of that (Ctrl-C while a VM starts). The thread runs then, or is about to, but cannot be
joined yet: Python says that it was not started.
"""

from __future__ import annotations

from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Thread

__all__ = ["join", "leave_signals"]

_PATIENCE = 0.5  # seconds; a thread that has not come up by then never will


_FAULTS = {4, 5, 7, 8, 11}  # SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV: the thread's own
_LIBRARY = {32, 33}  # glibc's


def leave_signals() -> None:
    """Leave all signals to the program's other threads; on the thread itself."""
    from _signal import (  # type: ignore[import-not-found]  # signal takes 1 ms
        SIG_BLOCK,
        pthread_sigmask,
    )

    pthread_sigmask(SIG_BLOCK, set(range(1, 65)) - _FAULTS - _LIBRARY)


def join(thread: Thread, timeout: float | None = None) -> bool:
    """Wait for the thread's end; at most ``timeout`` seconds. False if it runs on.

    A thread that never came up has ended.
    """
    limit = monotonic() + _PATIENCE
    while True:
        try:
            thread.join(timeout)
            return not thread.is_alive()
        except RuntimeError:
            if thread.ident is None and monotonic() > limit:
                return True
            sleep(0.001)
