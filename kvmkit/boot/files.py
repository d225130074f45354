"""The user's kernel and initrd files, mapped read-only."""

from __future__ import annotations

import mmap
import os
import stat

from kvmkit.errors import KvmkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["map_file", "map_open_file"]


def map_file(
    path: Path | str, error: type[KvmkitError], what: str
) -> tuple[memoryview, os.stat_result]:
    """A file's content and status. A pipe is read to its end.

    Raises ``error``, naming the file as ``what``, if it is missing, unreadable,
    empty or neither a file nor a pipe.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise error(f"{path}: {what} does not exist", "Check the path.") from None
    except PermissionError:
        raise error(
            f"{path}: {what} may not be read by you", f"sudo chmod a+r {path}, or use a copy."
        ) from None
    except (OSError, ValueError) as problem:
        raise error(f"{path}: {what} cannot be opened: {_reason(problem)}") from None
    try:
        return map_open_file(descriptor, path, error, what)
    finally:
        os.close(descriptor)


def map_open_file(
    descriptor: int, path: Path | str, error: type[KvmkitError], what: str
) -> tuple[memoryview, os.stat_result]:
    """As :func:`map_file`, for a descriptor, which stays open."""
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path}: {what} is a directory", "Name the file in it.")
        if stat.S_ISREG(status.st_mode):
            if status.st_size == 0:
                raise error(f"{path}: {what} is empty (0 bytes)")
            mapped = mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ)
            return memoryview(mapped), status
        if stat.S_ISFIFO(status.st_mode):
            with os.fdopen(os.dup(descriptor), "rb") as pipe:
                data = pipe.read()
            if not data:
                raise error(f"{path}: {what} is empty (0 bytes)")
            return memoryview(data), status
        raise error(f"{path}: {what} is neither a file nor a pipe")
    except (OSError, ValueError) as problem:
        raise error(f"{path}: {what} cannot be read: {_reason(problem)}") from None


def _reason(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem)
