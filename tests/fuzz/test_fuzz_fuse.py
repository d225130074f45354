"""A few seconds of the FUSE server's fuzzer, so that it stays runnable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("fuzz_fuse.py")


def test_fuzz_fuse_finds_nothing_in_a_short_run(tmp_path: Path) -> None:
    """Some thousand mutated guests read nothing outside and leave the server in order."""
    pytest.importorskip("atheris", reason="atheris is not installed (pip install atheris)")
    root = str(HARNESS.parents[2])

    done = subprocess.run(
        [sys.executable, str(HARNESS), str(tmp_path / "corpus"), "-runs=1500", "-max_len=3000",
         f"-artifact_prefix={tmp_path}/"],
        env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 1500 runs" in done.stderr
