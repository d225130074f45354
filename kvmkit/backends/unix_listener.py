"""A Unix socket at a path of the user's that waits for connections (unix(7))."""

from __future__ import annotations

import os
import stat
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, socket
from errno import EADDRINUSE, ECONNREFUSED

from kvmkit.errors import FileTrouble, UsageError

__all__ = ["UnixListener", "unix_stream"]

LONGEST_PATH = 107  # sun_path without its zero byte
BACKLOG = 128


def unix_stream() -> socket:
    """A socket that is not connected and does not block."""
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)


class UnixListener:
    """Bound to ``path``, in place of a socket there that nobody listens on any more.

    Raises FileTrouble when that is not possible, UsageError for a path too long.
    """

    def __init__(self, path: str) -> None:
        if not 0 < len(os.fsencode(path)) <= LONGEST_PATH or "\0" in path:
            raise UsageError(f"a socket's path is 1 to {LONGEST_PATH} bytes, not {path!r}")
        self.path = path
        self.socket = unix_stream()
        try:
            self._bind()
            self._place: tuple[int, int] | None = _place(path)
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.socket.close()
            raise FileTrouble(f"{path}: the socket cannot be made: {error.strerror}") from None

    def _bind(self) -> None:
        try:
            self.socket.bind(self.path)
        except OSError as error:
            if error.errno != EADDRINUSE or not _is_stale(self.path):
                raise
            os.unlink(self.path)
            self.socket.bind(self.path)

    def fileno(self) -> int:
        """What to wait on."""
        return self.socket.fileno()

    def accept(self) -> socket | None:
        """The next connection, which does not block; None if there is none."""
        try:
            fd, _ = self.socket._accept()  # type: ignore[attr-defined]  # as socket.accept does
        except OSError:
            return None
        os.set_blocking(fd, False)
        return socket(AF_UNIX, SOCK_STREAM, 0, fd)

    def close(self) -> None:
        """Close it and remove the path, if it is still ours. Callable twice."""
        self.socket.close()
        place, self._place = self._place, None
        try:
            if place is not None and _place(self.path) == place:
                os.unlink(self.path)
        except OSError:
            pass


def _place(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _is_stale(path: str) -> bool:
    """Whether it is a socket that nobody listens on."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    probe = unix_stream()
    try:
        return bool(probe.connect_ex(path) == ECONNREFUSED)
    finally:
        probe.close()
