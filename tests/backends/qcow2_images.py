"""Images made and judged by QEMU's own programs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["check", "create", "qemu_img", "raw_bytes", "requires_qemu_img"]

requires_qemu_img = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="no qemu-img (apt install qemu-utils)"
)


def qemu_img(*words: object) -> str:
    """Its output. Fails with what it says."""
    done = subprocess.run(
        ["qemu-img", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def create(
    path: Path, size: int, *, backing: Path | None = None, format: str = "", **options: object
) -> Path:
    """A new image; ``options`` are those of ``qemu-img create -o``."""
    words = ["create", "-q", "-f", "qcow2"]
    if backing is not None:
        words += ["-b", str(backing), "-F", format]
    if options:
        words += ["-o", ",".join(f"{key}={value}" for key, value in options.items())]
    qemu_img(*words, path, size)
    return path


def check(path: Path, *, leaks: bool = False) -> int:
    """No errors, says ``qemu-img check``; how many clusters leaked, 0 unless allowed."""
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", "--output=json", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert not found.get("corruptions") and not found["check-errors"], done.stderr[-500:]
    leaked = int(found.get("leaks", 0))
    assert leaks or not leaked, done.stderr[-500:]
    return leaked


def raw_bytes(path: Path, *, snapshot: str = "") -> bytes:
    """The disk as QEMU reads it."""
    target = path.with_name(path.name + ".raw")
    words = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    qemu_img("convert", "-f", "qcow2", "-O", "raw", *words, path, target)
    data = target.read_bytes()
    target.unlink()
    return data
