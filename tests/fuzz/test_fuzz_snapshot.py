"""A few seconds of the snapshots' fuzzer, so that it stays runnable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("fuzz_snapshot.py")


def test_fuzz_snapshot_finds_nothing_in_a_short_run(tmp_path: Path) -> None:
    """Some thousand mutated state files give states or clear errors."""
    pytest.importorskip("atheris", reason="atheris is not installed (pip install atheris)")
    root = str(HARNESS.parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, str(HARNESS), str(tmp_path / "corpus"), "-runs=4000", "-max_len=8000",
         f"-artifact_prefix={tmp_path}/"],
        env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 4000 runs" in done.stderr
