"""A note that a snapshot's memory was checked, and has not been touched since.

Reading all of a large memory takes longer than going on from it. So who has read it,
or written it, notes which file that was: its inode, size, times, and the digest of the
state that says what belongs in it. A copy, and any write since, is another file and
is read again; stat(2), ``st_ctim``, which no program can set back.
"""

from __future__ import annotations

import os

__all__ = ["STAMP", "is_stamped", "stamp"]

STAMP = "checked"
"""The note's name in a snapshot's directory."""

_GRAIN = 50_000_000
"""Nanoseconds. A file that changed less than a tick before the note may change again in it."""


def stamp(path: str, fd: int, digest: str) -> None:
    """Note that the memory ``fd`` of the snapshot ``path`` is what was saved."""
    from time import time_ns

    try:
        with open(os.path.join(path, STAMP), "w", encoding="ascii") as file:
            file.write(f"{_facts(fd, digest)} {time_ns()}\n")
    except OSError:
        pass  # a snapshot that is only ours to read: it is checked each time


def is_stamped(path: str, fd: int, digest: str) -> bool:
    """Whether that was noted and still holds."""
    try:
        with open(os.path.join(path, STAMP), encoding="ascii") as file:
            facts, _, moment = file.read(512).strip().rpartition(" ")
        changed = os.fstat(fd).st_ctime_ns
        return facts == _facts(fd, digest) and changed + _GRAIN < int(moment)
    except (OSError, ValueError):
        return False


def _facts(fd: int, digest: str) -> str:
    s = os.fstat(fd)
    return f"{s.st_dev:x} {s.st_ino} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {digest}"
