"""Threads whose start an exception interrupted.

``Thread.start`` waits for the new thread; a signal's handler may raise in the middle
of that (Ctrl-C while a VM starts). The thread runs then, or is about to, but cannot be
joined yet: Python says that it was not started.
"""

from __future__ import annotations

from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Thread

__all__ = ["join"]

_PATIENCE = 0.5  # seconds; a thread that has not come up by then never will


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
