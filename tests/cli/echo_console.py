"""A program for the console's tests: a guest that echoes, on this process's terminal.

Prints READY and its process number once the keyboard is its own. Words on the command line choose
how it ends: ``raise`` throws an exception out of the first key.
"""

from __future__ import annotations

import os
import sys

from kvmkit.backends.terminal import Terminal
from kvmkit.cli.console import Console, Stopped, stopping_signals


class ReadyConsole(Console):
    """A console that tells the test when keys and signals are attended to."""

    told = False

    def _attend(self) -> None:
        super()._attend()
        if not self.told:
            self.told = True
            self._terminal.write(f"READY {os.getpid()}.\n".encode())


class EchoVm:
    """What the console needs of a VM, and the guest's side of the line in one."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.console = ReadyConsole(terminal, self, self.typed, self.resized)
        self.paused = False
        self.status = 0

    def typed(self, data: bytes) -> None:
        if "raise" in sys.argv:
            raise RuntimeError("thrown by the test")
        self.say(f"<{data!r}>")

    def resized(self, rows: int, columns: int) -> None:
        self.say(f"<size {rows}x{columns}>")

    def say(self, text: str) -> None:
        self.terminal.note(text.encode())
        self.terminal.write(text.encode() + b"\r\n")

    def describe(self) -> str:
        return "an echo"

    def pause(self) -> None:
        self.paused = True
        self.say("<pause>")

    def resume(self) -> None:
        self.paused = False
        self.say("<resume>")

    def reset(self) -> None:
        self.say("<reset>")

    def powerdown(self) -> bool:
        self.say("<powerdown>")
        return True

    def kill(self) -> None:
        self.console.end()


def main() -> int:
    with Terminal() as terminal, stopping_signals(terminal.restore):
        vm = EchoVm(terminal)
        if "modes" in sys.argv:
            vm.say("\x1b[?1049h\x1b[?25l")
        try:
            vm.console.serve()
        except Stopped as stopped:
            return 128 + stopped.number
        return vm.status


if __name__ == "__main__":
    sys.exit(main())
