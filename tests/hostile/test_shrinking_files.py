"""Files that become shorter while they are mapped: SIGBUS for whoever looks at what is gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmkit.boot.cache import fetch
from kvmkit.boot.files import map_file, steady
from kvmkit.errors import BadKernel, FileTrouble

SIZE = 1 << 20


def shrunk(path: Path, left: int) -> tuple[memoryview, os.stat_result]:
    """A mapping of a file of which ``left`` bytes are left."""
    path.write_bytes(b"x" * SIZE)
    mapped = map_file(path, BadKernel, "the kernel")
    os.truncate(path, left)
    return mapped


@pytest.mark.parametrize("left", [0, 4096, SIZE - 4096])
def test_steady_copy_of_what_is_gone(tmp_path: Path, left: int) -> None:
    """An error, where looking would have ended the process."""
    data, _ = shrunk(tmp_path / "file", left)
    with pytest.raises(FileTrouble, match="became shorter"):
        steady([data[:4096], data[4096:]])


@pytest.mark.parametrize("cached", [False, True])
def test_kernel_that_a_build_writes_anew(tmp_path: Path, cached: bool) -> None:
    """One clear line, with and without a cache."""
    data, status = shrunk(tmp_path / "bzImage", 4096)
    with pytest.raises(FileTrouble, match="became shorter"):
        fetch(data, status, tmp_path / "cache" if cached else None)


def test_steady_copy_is_the_pieces_in_order() -> None:
    """More of them than one system call takes, empty ones among them."""
    pieces = [memoryview(bytes((n % 256,)) * (n % 3)) for n in range(3000)]
    assert bytes(steady(pieces)) == b"".join(pieces)
    assert bytes(steady([])) == b""
