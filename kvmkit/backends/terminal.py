"""The user's terminal as the guest's console.

Input in raw mode, so that every key reaches the guest (termios(3)), and the
terminal as it was before, however the process ends short of SIGKILL:
:meth:`Terminal.restore` is called on leaving the ``with`` block, at interpreter
exit and by :mod:`kvmkit.cli.console` for every stopping signal. Input and
output may as well be pipes or files; then there is nothing to change.
"""

from __future__ import annotations

import os

from kvmkit.backends.private_modes import PrivateModes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

__all__ = ["Terminal"]

_READ_MOST = 4096


class Terminal:
    """Descriptors ``input`` and ``output`` as a console; use it in a ``with`` block.

    :meth:`wake` and :meth:`note` may be called from any thread, everything else
    is for the main thread.
    """

    def __init__(self, input: int = 0, output: int = 1) -> None:
        self.input = input
        self.output = output
        self.is_tty = os.isatty(input) and os.isatty(output)
        """A person sits there. A terminal with redirected output is no console."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.raw_output = False
        """Whether :meth:`raw` is for output too: the guest ends its lines as a terminal's."""
        self._saved: list[Any] | None = None
        self._modes = PrivateModes()

    def __enter__(self) -> Self:
        import atexit

        atexit.register(self.restore)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Waking the main thread

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

    # Modes

    @property
    def foreground(self) -> bool:
        """Whether keys typed now are for this process (tcgetpgrp(3)); true for a pipe."""
        if not os.isatty(self.input):
            return True
        try:
            return os.tcgetpgrp(self.input) == os.getpgrp()
        except OSError:
            return False

    def raw(self) -> None:
        """Every key to us, none acted on by the line discipline.

        Nothing happens without a terminal, and in the background, where changing
        the terminal would stop the process. Output processing stays on, so that
        a plain newline of ours or of the guest begins a line, but for
        :attr:`raw_output`.
        """
        if not self.is_tty or self._saved is not None or not self.foreground:
            return
        import termios as t

        saved = t.tcgetattr(self.input)
        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = saved
        iflag &= ~(t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
        lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
        if self.raw_output:
            oflag &= ~t.OPOST
        cc = list(cc)
        cc[t.VMIN], cc[t.VTIME] = 1, 0
        self._saved = saved
        t.tcsetattr(self.input, t.TCSANOW, [iflag, oflag, cflag, lflag, ispeed, ospeed, cc])

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
            self.write(self._modes.undo())
            termios.tcsetattr(self.input, termios.TCSANOW, saved)
        except termios.error:
            pass  # the terminal has gone away
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def note(self, data: bytes) -> None:
        """See what the guest puts out, to undo an editor's screen modes at the end. Any thread."""
        self._modes.note(data)

    def size(self) -> tuple[int, int] | None:
        """Rows and columns, or None where there is no terminal."""
        try:
            columns, rows = os.get_terminal_size(self.output)
        except OSError:
            return None
        return (rows, columns) if rows and columns else None

    # Bytes

    def write(self, data: bytes) -> None:
        """Put out words of our own; dropped when nobody reads any more."""
        try:
            while data:
                data = data[os.write(self.output, data) :]
        except OSError:
            pass

    def read(self) -> bytes:
        """What was typed; b"" at the end of input or when the terminal has gone away."""
        try:
            return os.read(self.input, _READ_MOST)
        except OSError:
            return b""

    def close(self) -> None:
        """Restore the terminal and free what is ours. Callable twice."""
        if self._wake < 0:
            return
        import atexit

        self.restore()
        atexit.unregister(self.restore)
        wake, self._wake = self._wake, -1
        os.close(wake)
