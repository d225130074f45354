"""The user's kernel and initrd files, mapped read-only."""

from __future__ import annotations

import mmap
import os
import stat
from errno import EFAULT

from kvmkit.errors import FileTrouble, KvmkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["map_file", "map_open_file", "steady"]

_MOST_PIECES = 1024  # IOV_MAX


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


def steady(pieces: Sequence[memoryview]) -> memoryview:
    """A copy of pieces of a mapped file, one after the other.

    A mapped file that somebody makes shorter, as a build does that writes it anew, is
    a SIGBUS for whoever looks at what is gone, and the end of the process. The kernel
    looks for us, and says EFAULT. Raises FileTrouble then.
    """
    size = sum(len(piece) for piece in pieces)
    if not size:
        return memoryview(b"")
    descriptor = os.memfd_create("kvmkit-copy", os.MFD_CLOEXEC)
    try:
        for first in range(0, len(pieces), _MOST_PIECES):
            rest = list(pieces[first : first + _MOST_PIECES])
            while rest:
                done = os.writev(descriptor, rest)
                while rest and done >= len(rest[0]):
                    done -= len(rest.pop(0))
                if rest:
                    rest[0] = rest[0][done:]
        return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
    except OSError as problem:
        if problem.errno == EFAULT:
            raise FileTrouble("a file became shorter while it was read", "Try again.") from None
        raise FileTrouble(f"no memory for a copy of a file: {problem.strerror}") from None
    finally:
        os.close(descriptor)


def _reason(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem)
