"""A file descriptor that output goes to without ever blocking the machine.

Setting O_NONBLOCK on a descriptor that was handed to us would set it for
everybody who shares it, the user's shell above all (fcntl(2)). A terminal or
pipe is opened a second time instead (``/proc/self/fd``, proc(5)), which gives a
description of our own; sockets take a flag with each call; files never block.
"""

from __future__ import annotations

import os
import stat
import time
from errno import ECONNRESET, EIO, EPIPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

__all__ = ["DescriptorSink"]

_GONE = frozenset({EPIPE, EIO, ECONNRESET})  # pipe, terminal, socket: its reader has gone
_PIPE_BUF = 4096  # a pipe that polls writable takes this much at once (pipe(7))


class DescriptorSink:
    """Output to ``descriptor``, which stays its owner's to close."""

    __slots__ = ("_own", "_socket", "_step", "backlog", "broken", "fd", "trouble", "waiting")

    def __init__(self, descriptor: int) -> None:
        self.fd = descriptor
        """What to wait on until there is room."""
        self.backlog = bytearray()
        """What could not be written yet."""
        self.broken = False
        """Nobody reads any more; output is dropped."""
        self.trouble: OSError | None = None
        """Why nobody takes it, if it is not that the reader has gone: a full disk."""
        self.waiting = False
        """For the owner: somebody waits for :attr:`fd` to be writable."""
        self._own = False
        self._socket: socket | None = None
        self._step = 1 << 16
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            import socket  # late: few outputs are one

            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif not stat.S_ISREG(mode) and os.get_blocking(descriptor):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self.fd = os.open(f"/proc/self/fd/{descriptor}", flags)
                self._own = True
            except OSError:
                self._step = 0  # ask before each write

    def write(self, data: bytes) -> bool:
        """Write ``data`` after what is left from before; True if something is still left."""
        if not self.broken:
            self.backlog += data
            del self.backlog[: self._some(self.backlog)]
        return bool(self.backlog)

    def drop(self) -> None:
        """Give up: forget what is left, and drop what comes."""
        self.broken = True
        self.backlog.clear()

    def close(self, patience: float | None) -> None:
        """Write what is left, for at most ``patience`` seconds, and let go of the descriptor.

        None waits until the reader has taken all or has gone.
        """
        if self.backlog and not self.broken:
            import select

            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            limit = None if patience is None else time.monotonic() + patience
            while self.write(b""):
                left = None if limit is None else limit - time.monotonic()
                if left is not None and left <= 0:
                    break
                poll.poll(None if left is None else left * 1000)
        self.drop()
        if self._own:
            self._own = False
            os.close(self.fd)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _some(self, data: bytearray) -> int:
        """Write what goes without waiting; returns how much, all of it once nobody reads."""
        done = 0
        try:
            while done < len(data):
                done += self._write(bytes(data[done : done + (self._step or _PIPE_BUF)]))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:  # nobody will ever take it
            self.broken = True
            if error.errno not in _GONE:
                self.trouble = error
            return len(data)
        return done

    def _write(self, data: bytes) -> int:
        if self._socket is not None:
            import socket  # late: few outputs are one

            return self._socket.send(data, socket.MSG_DONTWAIT)
        if not self._step:
            import select

            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            if not poll.poll(0):
                raise BlockingIOError
        return os.write(self.fd, data)
