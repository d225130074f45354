"""The main thread while a VM runs: keys to the guest, signals, the prompt.

Output goes from the VM's own threads straight to the terminal, and piped input
from the pipe to them; what is left for the main thread is the keyboard, the
escape key and signals, which Python delivers here anyway.
"""

from __future__ import annotations

import os
from select import POLLIN, poll
from time import monotonic

from kvmkit.backends.escape import HELP, EscapeKeys
from kvmkit.cli.monitor import PROMPT, LineEditor, Monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Self

    from kvmkit.backends.terminal import Terminal
    from kvmkit.cli.monitor import Steerable
else:
    import _signal as signal  # without its enumerations: 1.5 ms of a start

__all__ = ["Console", "Stopped", "stopping_signals"]

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LEAVE_PROMPT = b"\x04"  # Ctrl-d


INSISTING = 1.0
"""Seconds after which the same signal once more means: never mind cleaning up."""


class Stopped(BaseException):
    """A signal asks this process to end. Not an error, and nothing to catch but at the top."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class stopping_signals:
    """In this block SIGINT, SIGTERM and SIGHUP raise :class:`Stopped`, once.

    Another one, a second or more after the first, while that is being dealt with ends
    the process on the spot, after ``last_words`` (restoring the terminal). What comes
    sooner is the same wish: timeout(1) tells the process and then its group.
    """

    def __init__(self, last_words: Callable[[], None]) -> None:
        self._last_words = last_words
        self._seen = False
        self._first = 0.0

    def __enter__(self) -> Self:
        for number in STOPPING:
            # nohup's choice to ignore SIGHUP stays
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number in STOPPING:
            if signal.getsignal(number) == self._stop:
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, default)

    def last(self) -> None:
        """We are cleaning up: a signal interrupts nothing more; one that insists ends us."""
        self._seen = True
        self._first = self._first or monotonic()

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        now = monotonic()
        if self._seen:
            if now < self._first + INSISTING:
                return
            self._last_words()
            os._exit(128 + number)
        self._seen = True
        self._first = now
        raise Stopped(number)


class Console:
    """Joins a terminal and a VM until :meth:`end` is called.

    ``send`` takes bytes for the guest's console; ``resized`` rows and columns. ``woken``
    is called whenever the terminal was woken, ``signalled`` for a signal that would stop
    us: it is true when the guest was sent the signal instead.
    """

    def __init__(
        self,
        terminal: Terminal,
        vm: Steerable,
        send: Callable[[bytes], None],
        resized: Callable[[int, int], None] | None = None,
        woken: Callable[[], None] | None = None,
        signalled: Callable[[int], bool] | None = None,
    ) -> None:
        self._terminal = terminal
        self._vm = vm
        self._send = send
        self._resized = resized
        self._woken = woken
        self._signalled = signalled
        self._keys = EscapeKeys()
        self._editor: LineEditor | None = None
        self._monitor = Monitor(vm)
        self._poll = poll()
        self._reading = False
        self._ended = False
        self._signals: list[int] = []
        self._stopping_since = 0.0

    def end(self) -> None:
        """Make :meth:`serve` return. Any thread."""
        self._ended = True
        self._terminal.wake()

    def serve(self) -> None:
        """Pass keys and act on signals until :meth:`end`. Raises :class:`Stopped`."""
        wake = self._terminal.wake_descriptor
        self._poll.register(wake, POLLIN)
        if not self._terminal.is_tty:
            # no event asked for: poll(2) tells nevertheless when a pipe's reader has gone
            self._poll.register(self._terminal.output, 0)
        before = self._note_signals()
        try:
            self._attend()
            while not self._ended:
                ready = [descriptor for descriptor, _ in self._poll.poll()]
                if wake in ready:
                    self._terminal.woken()
                    self._handle_signals()
                    if self._woken is not None:
                        self._woken()
                elif self._terminal.output in ready and not self._terminal.is_tty:
                    raise Stopped(signal.SIGPIPE)
                elif self._reading:
                    self._read()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note_signals(self) -> dict[int, Any]:
        """Handlers that only take notes: what they ask for is done between two polls,
        never in the middle of a call into the VM that holds its lock."""
        before = {}
        for number in (*STOPPING, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[int(number)] = signal.signal(number, self._note)
        return before

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number in STOPPING:
            now = monotonic()
            if number in self._signals:
                if now < self._stopping_since + INSISTING:
                    return
                self._terminal.restore()  # we hang, and the user insists
                os._exit(128 + number)
            self._stopping_since = now
        self._signals.append(number)
        self._terminal.wake()

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals[0]
            if number in STOPPING:
                if self._signalled is None or not self._signalled(number):
                    raise Stopped(number)
            elif number == signal.SIGTSTP:
                self._suspend()
            elif number == signal.SIGCONT:
                # after SIGSTOP, which cannot be handled, the shell has changed the terminal
                self._terminal.restore()
                self._attend()
            elif self._resized is not None:
                size = self._terminal.size()
                if size is not None:
                    self._resized(*size)
            del self._signals[0]

    def _attend(self) -> None:
        """Take the keyboard if it is ours; a background job leaves it alone."""
        self._terminal.raw()
        if self._terminal.is_tty and self._terminal.foreground and not self._reading:
            self._poll.register(self._terminal.input, POLLIN)
            self._reading = True

    def _ignore_input(self) -> None:
        if self._reading:
            self._poll.unregister(self._terminal.input)
            self._reading = False

    def _read(self) -> None:
        if not self._terminal.foreground:
            self._ignore_input()
            return
        data = self._terminal.read()
        if not data:
            raise Stopped(signal.SIGHUP)
        for part in self._keys.feed(data):
            if isinstance(part, bytes):
                self._typed(part)
            else:
                self._act(part)

    def _typed(self, data: bytes) -> None:
        if self._editor is None:
            self._send(data)
            return
        if data == _LEAVE_PROMPT:
            self._close_monitor()
            return
        lines, echo = self._editor.feed(data)
        self._say(echo)
        for line in lines:
            answer = self._monitor.execute(line)
            if answer:
                self._say(answer + "\n")
            self._say(PROMPT)

    def _act(self, action: str) -> None:
        if action == "quit":
            self._say("\nkvmkit: VM ended by Ctrl-a x\n")
            self._vm.kill()
        elif action == "help":
            self._say("\n" + HELP)
        elif self._editor is None:
            self._editor = LineEditor()
            self._say("\nhelp lists the commands; Ctrl-a c goes back to the guest\n" + PROMPT)
        else:
            self._close_monitor()

    def _close_monitor(self) -> None:
        if self._editor is not None:
            self._editor = None
            self._say("\n")

    def _say(self, text: str) -> None:
        """Our own words in the middle of the guest's; the terminal mostly turns \\n into \\r\\n."""
        text = text.replace("\r\n", "\n")
        if self._terminal.raw_output:
            text = text.replace("\n", "\r\n")
        self._terminal.write(text.encode())

    def _suspend(self) -> None:
        """Stop as a shell's job does: the VM stands, the terminal is the shell's."""
        was_running = not self._vm.paused
        if was_running:
            self._vm.pause()
        self._terminal.restore()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # here the process stands until SIGCONT
        signal.signal(signal.SIGTSTP, handler)
        if was_running:
            self._vm.resume()
        self._attend()
