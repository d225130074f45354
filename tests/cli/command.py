"""Running the kvmkit command as a user does, for the tests of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 120

Result = subprocess.CompletedProcess[str]


def environment(**more: str) -> dict[str, str]:
    """This process's environment with this checkout's kvmkit."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def kvmkit(*words: str | Path, stdin: str | None = None, **more: str) -> Result:
    """``kvmkit WORDS`` from start to end; keyword arguments are environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "kvmkit", *map(str, words)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(**more),
        check=False,
    )
