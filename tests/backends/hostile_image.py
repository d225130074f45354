"""An image that may be anything, used as a disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kvmkit.backends.disk import open_disk
from kvmkit.errors import FileTrouble, PermissionTrouble
from tests.backends.disk_model import SECTOR, pattern

__all__ = ["play_bytes", "play_image"]

KINDS = ("write", "read", "zero", "discard", "flush")


def play_image(path: Path, image: bytes, todo: Sequence[tuple[str, int, int, int]]) -> None:
    """Open it and do what ``todo`` says: it is refused in one line, or gives OSErrors.

    The directory of ``path`` must be empty, and has no other file afterwards.
    """
    path.write_bytes(image)
    try:
        disk = open_disk(str(path), format="qcow2")
    except (FileTrouble, PermissionTrouble) as error:
        assert "\n" not in str(error)
        return
    sectors = max(min(disk.size // SECTOR, 256), 1)
    for kind, sector, count, seed in todo:
        offset = sector % sectors * SECTOR
        size = min(count * SECTOR, disk.size - offset)
        try:
            if kind == "write":
                disk.write(offset, [memoryview(pattern(seed, size))])
            elif kind == "zero":
                disk.write_zeroes(offset, size, unmap=bool(seed & 1))
            elif kind == "discard":
                disk.discard(offset, size)
            elif kind == "flush":
                disk.flush()
            elif not seed & 1 or not disk.read_now(offset, [memoryview(bytearray(size))]):
                disk.read(offset, [memoryview(bytearray(size))])
        except OSError as error:
            assert error.errno
    try:
        disk.close()
    except OSError as error:
        assert error.errno
    assert os.listdir(path.parent) == [path.name]


def play_bytes(path: Path, data: bytes) -> None:
    """The same for a fuzzer: a number of requests, four bytes for each, then the image."""
    if not data:
        return
    count = data[0] % 16
    todo = [
        (KINDS[kind % len(KINDS)], sector, size * 4 + 1, seed)
        for kind, sector, size, seed in zip(*[iter(data[1 : 1 + 4 * count])] * 4, strict=False)
    ]
    play_image(path, data[1 + 4 * count :], todo)
