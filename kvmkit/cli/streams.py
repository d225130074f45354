"""Standard streams of a program in the guest: pipes and files, no terminal.

One thread moves everything: what the guest's agent sends, this process's input, what
its readers take, and signals. Nothing here waits for a reader while another stream
could go on: pipes are opened once more without blocking, which leaves the descriptions
that we share with other processes as they are (open(2), O_NONBLOCK).
"""

from __future__ import annotations

import os
from collections import deque
from errno import EPIPE
from select import POLLIN, POLLOUT, poll
from stat import S_ISCHR, S_ISFIFO, S_ISREG

from kvmkit.cli.console import Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from kvmkit.cli.guest_command import GuestCommand
else:
    import _signal as signal

__all__ = ["Sink", "Streams"]

PASSED_ON: tuple[int, ...] = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip

READ_MOST = 64 << 10
BACKLOG = 256 << 10
"""Bytes of input that wait here for the guest."""

PIECE = 4096
"""PIPE_BUF of pipe(7): what can be written without waiting once poll(2) says so."""


class Sink:
    """One output: what waits for its reader."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.trouble = ""
        """Why bytes were lost."""
        self.broken = False
        """Whether nobody reads any more."""
        self.waiting: deque[bytes] = deque()
        self._own = -1
        self._most = PIECE
        try:
            kind = os.fstat(descriptor).st_mode
            if S_ISFIFO(kind) or (S_ISCHR(kind) and os.isatty(descriptor)):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
                self._own = os.open(f"/proc/self/fd/{descriptor}", flags)
            if self._own >= 0 or S_ISREG(kind):
                self._most = 1 << 30
        except PermissionError:
            pass  # another user's terminal: in pieces
        except OSError as error:
            self.trouble = error.strerror or str(error)

    def flush(self) -> int:
        """Write what can be written now; how many bytes were taken, or are lost."""
        done = 0
        try:
            while self.waiting:
                data = self.waiting[0]
                target = self._own if self._own >= 0 else self.descriptor
                lost = self.trouble or self.broken
                size = len(data) if lost else os.write(target, data[: self._most])
                done += size
                self.waiting.popleft()
                if size < len(data):
                    self.waiting.appendleft(data[size:])
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno == EPIPE:
                self.broken = True
            else:
                self.trouble = error.strerror or str(error)
            return done + self.flush()
        return done

    def close(self) -> None:
        """Let go of what is ours."""
        own, self._own = self._own, -1
        if own >= 0:
            os.close(own)


class Streams:
    """Joins ``command`` and descriptors 0 (``input``, None for none), 1 and 2 to its end."""

    def __init__(
        self,
        command: GuestCommand,
        wake: int,
        rouse: Callable[[], None],
        calm: Callable[[], None],
        input: int | None,
    ) -> None:
        self._command = command
        self._wake = wake
        self._rouse = rouse
        self._calm = calm
        self._input = input
        self._sinks = {1: Sink(1), 2: Sink(2)}
        self._signals: list[int] = []
        self._poll = poll()
        self._asked: dict[int, int] = {}
        command.on_output = self._put

    @property
    def trouble(self) -> str:
        """Why output was lost, or nothing."""
        return self._sinks[1].trouble or self._sinks[2].trouble

    def serve(self) -> None:
        """Until the program has ended and all it wrote is where it belongs, or the guest
        has ended. Raises Stopped for a signal that is for us, and when nobody reads."""
        before: dict[int, Any] = {}
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[int(number)] = signal.signal(number, self._note)
        try:
            self._ask(self._wake, POLLIN)
            self._command.attend()
            while not self._command.ended or any(sink.waiting for sink in self._sinks.values()):
                self._turn()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for sink in self._sinks.values():
                sink.close()

    def _turn(self) -> None:
        command = self._command
        if self._input is not None:
            self._ask(self._input, POLLIN if command.wants_input(BACKLOG) else None)
        for number, sink in self._sinks.items():
            # no event asked for: poll(2) tells nevertheless when a pipe's reader has gone
            dead = sink.broken or sink.trouble
            self._ask(number, None if dead else POLLOUT if sink.waiting else 0)
        for descriptor, events in self._poll.poll():
            if descriptor == self._wake:
                self._calm()
                self._pass_signals()
                command.attend()
            elif descriptor == self._input:
                self._read()
            elif events & POLLOUT:
                self._flush(descriptor)
            else:
                self._sinks[descriptor].broken = True
                self._check(descriptor)

    def _ask(self, descriptor: int, events: int | None) -> None:
        asked = self._asked.get(descriptor)
        if events == asked:
            return
        if events is None:
            del self._asked[descriptor]
            self._poll.unregister(descriptor)
        else:
            self._asked[descriptor] = events
            self._poll.register(descriptor, events)

    def _read(self) -> None:
        assert self._input is not None
        try:
            data = os.read(self._input, READ_MOST)
        except BlockingIOError:  # somebody has made it so
            return
        except OSError:
            data = b""
        if data:
            self._command.write(data)
        else:
            self._ask(self._input, None)
            self._input = None
            self._command.close_input()

    def _put(self, stream: int, data: bytes) -> None:
        if data:
            sink = self._sinks[stream]
            sink.waiting.append(data)
            if len(sink.waiting) == 1:
                self._flush(stream)

    def _flush(self, stream: int) -> None:
        size = self._sinks[stream].flush()
        if size:
            self._command.taken(stream, size)
        self._check(stream)

    def _check(self, stream: int) -> None:
        """A reader that has gone ends us, as it would end a program here."""
        if stream == 1 and self._sinks[1].broken:
            raise Stopped(signal.SIGPIPE)

    # Signals

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        self._rouse()

    def _pass_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if not self._command.signal(number):
                raise Stopped(number)
