"""The user's terminal as the guest's console.

Input in raw mode, so that every key reaches the guest (termios(3)); output that
never blocks the VM for good; and the terminal as it was before, however the
process ends short of SIGKILL: :meth:`Terminal.restore` is called on leaving the
``with`` block, at interpreter exit and by :func:`kvmkit.cli.console.serve` on
every stopping signal. Input and output may as well be pipes or files.
"""

from __future__ import annotations

import os
from select import POLLOUT, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Terminal"]

_WRITE_MOST = 4096
"""Bytes per write: a pipe that polls writable takes PIPE_BUF without blocking (pipe(7))."""

_PATIENCE_MS = 100
"""How often a write that waits for its reader looks whether it should give up."""


class Terminal:
    """Descriptors ``input`` and ``output`` as a console; use it in a ``with`` block.

    ``write`` may be called from any thread, everything else from the main thread.
    """

    def __init__(self, input: int = 0, output: int = 1) -> None:
        self.input = input
        self.is_tty = os.isatty(input)
        self.broken = False
        """The reader of the output is gone."""
        self._output = output
        self._own_output = _reopen(output)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._giving_up = False
        self._saved: list[object] | None = None
        self._modes = _PrivateModes() if os.isatty(output) else None

    def __enter__(self) -> Self:
        import atexit

        atexit.register(self.restore)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def wake_descriptor(self) -> int:
        """Becomes readable when :meth:`wake` was called; for ``poll``."""
        return self._wake

    def wake(self) -> None:
        """Make :attr:`wake_descriptor` readable. Any thread."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def woken(self) -> None:
        """Make :attr:`wake_descriptor` wait for the next :meth:`wake`."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def give_up(self) -> None:
        """Drop what the reader of the output has not taken, now and from now on. Any thread."""
        self._giving_up = True

    @property
    def foreground(self) -> bool:
        """Whether keys typed now are for this process (tcgetpgrp(3)); true for a pipe."""
        if not self.is_tty:
            return True
        try:
            return os.tcgetpgrp(self.input) == os.getpgrp()
        except OSError:
            return False

    def raw(self) -> None:
        """Every key to us, none acted on by the line discipline.

        Nothing happens without a terminal, and in the background, where changing
        the terminal would stop the process. Output processing stays on, so that
        a plain newline of ours or of the guest begins a line.
        """
        if not self.is_tty or self._saved is not None or not self.foreground:
            return
        import termios as t

        saved = t.tcgetattr(self.input)
        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = saved
        iflag &= ~(t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
        lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
        cc = list(cc)
        cc[t.VMIN], cc[t.VTIME] = 1, 0
        t.tcsetattr(self.input, t.TCSANOW, [iflag, oflag, cflag, lflag, ispeed, ospeed, cc])
        self._saved = saved

    def restore(self) -> None:
        """The terminal as it was before :meth:`raw`. Harmless when it was not called."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        import signal
        import termios

        # a background process that sets attributes is stopped by SIGTTOU unless it blocks it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            if self._modes is not None:
                self.write(self._modes.undo())
            termios.tcsetattr(self.input, termios.TCSANOW, saved)  # type: ignore[arg-type]
        except termios.error:
            pass  # the terminal has gone away
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def size(self) -> tuple[int, int] | None:
        """Rows and columns, or None where there is no terminal."""
        try:
            columns, rows = os.get_terminal_size(self._output)
        except OSError:
            return None
        return (rows, columns) if rows and columns else None

    def write(self, data: bytes) -> None:
        """Put out all of ``data``; waits while the reader is slow, drops it when he is gone."""
        if self._modes is not None:
            self._modes.note(data)
        view = memoryview(data)
        while view and not self.broken:
            try:
                view = view[os.write(self._own_output, view[:_WRITE_MOST]) :]
            except BlockingIOError:
                if not self._wait_writable():
                    return
            except OSError:
                self.broken = True
                self.wake()

    def read(self) -> bytes:
        """What was typed; b"" at the end of input or when the terminal has gone away."""
        try:
            return os.read(self.input, _WRITE_MOST)
        except OSError:
            return b""

    def close(self) -> None:
        """Restore the terminal and free what is ours. Callable twice."""
        if self._wake < 0:
            return
        import atexit

        self.restore()
        atexit.unregister(self.restore)
        if self._own_output != self._output:
            os.close(self._own_output)
            self._own_output = self._output
        os.close(self._wake)
        self._wake = -1

    def _wait_writable(self) -> bool:
        """Wait for room; False when there is no point in waiting."""
        waiting = poll()
        waiting.register(self._own_output, POLLOUT)
        while not self._giving_up:
            if waiting.poll(_PATIENCE_MS):
                return True
        return False


def _reopen(output: int) -> int:
    """``output`` as an open file of our own that does not block, where that can be had.

    O_NONBLOCK belongs to the open file (fcntl(2)), which the shell shares with
    us: it is never set on the one we were given. Files need no such care.
    """
    import stat

    mode = os.fstat(output).st_mode
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        return output
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{output}", flags)
    except OSError:
        return output


class _PrivateModes:
    """The DEC private modes a guest has set, to be undone if it ends in the middle of an editor.

    xterm, "Control Sequences", DECSET: ESC [ ? number ; number h, and l for reset.
    """

    _DEFAULT_SET = frozenset((7, 25))  # auto-wrap, cursor shown
    _LEAVE_ALONE = frozenset((3, 6, 12))

    def __init__(self) -> None:
        self.changed: set[int] = set()
        self._tail = b""

    def note(self, data: bytes) -> None:
        """Follow what the guest puts out; sequences may come in pieces."""
        if b"\x1b" not in data and not self._tail:
            return
        data = self._tail + data
        self._tail = b""
        for piece in data.split(b"\x1b[?")[1:]:
            numbers = piece[:24].lstrip(b"0123456789;")
            end = len(piece[:24]) - len(numbers)
            final = piece[end : end + 1]
            if final in (b"h", b"l"):
                self._switch(piece[:end], final == b"h")
        at = data.rfind(b"\x1b")
        if at >= 0 and len(data) - at < 24 and not data[at:].rstrip(b"0123456789;?[\x1b"):
            self._tail = data[at:]

    def _switch(self, numbers: bytes, on: bool) -> None:
        for number in numbers.split(b";"):
            mode = int(number or 0) if len(number) < 6 else 0
            if mode in self._LEAVE_ALONE or not mode:
                continue
            if on == (mode in self._DEFAULT_SET):
                self.changed.discard(mode)
            else:
                self.changed.add(mode)

    def undo(self) -> bytes:
        """What sets all of them back, and the text attributes with them; b"" if none is changed."""
        modes, self.changed = sorted(self.changed), set()
        if not modes:
            return b""
        parts = [f"\x1b[?{mode}{'h' if mode in self._DEFAULT_SET else 'l'}" for mode in modes]
        return "".join([*parts, "\x1b[0m"]).encode()
