"""A few seconds of random code on the software CPU (see fuzz_soft_cpu.py)."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.soft

ROUNDS = 150


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_code_harms_nobody(seed: int) -> None:
    """Whatever runs, in any mode: stops work, and memory outside the guest's stays as it was."""
    if find_spec("kvmkit.engine.soft._core") is None:
        pytest.skip("the software CPU's core (kvmkit.engine.soft._core) is not built")
    from tests.fuzz.fuzz_soft_cpu import Fuzz

    fuzz = Fuzz(seed)
    try:
        for _ in range(ROUNDS):
            fuzz.round()
        fuzz.check()
    finally:
        fuzz.close()
