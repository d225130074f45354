"""Every test in this room runs guests on the software CPU; none may hang."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from importlib.util import find_spec
from types import FrameType

import pytest

LIMIT = 30.0
"""Seconds one test may take."""


@pytest.fixture(autouse=True)
def needs_core() -> None:
    """Skip where the C core has not been built."""
    if find_spec("kvmkit.engine.soft._core") is None:
        pytest.skip("the software CPU's core (kvmkit.engine.soft._core) is not built")


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
