"""Guards for tests that run guests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

LIMIT = 20.0
"""Seconds one test may take; a guest that never exits would hold KVM_RUN for ever."""


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """End a test that hangs, in the guest or in Python."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took more than {LIMIT} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
