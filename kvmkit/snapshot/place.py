"""A directory that changes as a whole: made aside, then put in its place.

A crash at any moment leaves the old directory or the new one. Where there is an old
one the two change places in one step (renameat2(2), ``RENAME_EXCHANGE``).
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT, ENOSYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["put_directory", "remove_directory", "sync", "write_file"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MARK = ".new"


def put_directory(path: str, names: Sequence[str], fill: Callable[[str], None]) -> None:
    """Let ``fill(aside)`` write the files ``names`` into a directory, and put it at ``path``.

    An older directory there is removed. Raises OSError, and what ``fill`` raises;
    nothing has changed then.
    """
    _clean(path, names)
    aside = f"{path}.{os.getpid()}{_MARK}"
    try:
        os.makedirs(aside, 0o700)
        fill(aside)
        sync(aside)
        _exchange(aside, path)
    finally:
        remove_directory(aside, names)
    sync(os.path.dirname(path))


def remove_directory(path: str, names: Sequence[str]) -> None:
    """Remove the files ``names`` and then the directory, if nothing else is in it."""
    for name in names:
        try:
            os.unlink(os.path.join(path, name))
        except OSError:
            pass
    try:
        os.rmdir(path)
    except OSError:
        pass


def write_file(path: str, data: bytes) -> None:
    """Make a file that is on the disk when this returns. Raises OSError."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: str) -> None:
    """Let a directory's entries be on the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exchange(aside: str, path: str) -> None:
    if not os.path.lexists(path):
        os.rename(aside, path)
        return
    from ctypes import CDLL, c_uint, get_errno

    try:
        call = CDLL(None, use_errno=True).renameat2
    except AttributeError:
        error = ENOSYS
    else:
        names = os.fsencode(aside), os.fsencode(path)
        done = call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], c_uint(_RENAME_EXCHANGE))
        error = get_errno() if done else 0
    if error in (EINVAL, ENOSYS):  # a file system or C library that cannot: in two steps
        old = f"{aside}.old"
        os.rename(path, old)
        os.rename(aside, path)
        os.rename(old, aside)
    elif error == ENOENT:
        os.rename(aside, path)
    elif error:
        raise OSError(error, os.strerror(error), path)


def _clean(path: str, names: Sequence[str]) -> None:
    """Remove what processes that were killed have left aside."""
    folder, name = os.path.split(path)
    try:
        entries = os.listdir(folder)
    except OSError:
        return
    for entry in entries:
        number = entry.removeprefix(f"{name}.").removesuffix(_MARK)
        if entry == f"{name}.{number}{_MARK}" and number.isdecimal() and not _lives(int(number)):
            remove_directory(os.path.join(folder, entry), names)


def _lives(pid: int) -> bool:
    return pid == os.getpid() or os.path.exists(f"/proc/{pid}")
