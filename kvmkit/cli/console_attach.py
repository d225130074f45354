"""``kvmkit console``: sit down at a running VM's console, and get up again."""

from __future__ import annotations

import os

from kvmkit.cli.options import Command, Option
from kvmkit.cli.vms import NAME, one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from kvmkit.backends.terminal import Terminal
    from kvmkit.control.client import VmClient
    from kvmkit.control.listing import RunningVm

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    "kvmkit console",
    "Attach this terminal to a running VM's console, with the output so far.",
    (
        NAME,
        Option("--no-replay", "", "do not show the output so far"),
        Option("--read-only", "", "only look"),
    ),
    words="[NAME]",
    most_words=None,
    complete="vm",
    notes="""
Ctrl-a d  detach, the VM runs on    Ctrl-a x  end the VM
Ctrl-a a  send Ctrl-a               Ctrl-a h  these keys
Several may be attached to one VM at the same time.
""",
)

_KEYS = {ord("h"): "help", ord("?"): "help", ord("x"): "quit", ord("d"): "detach"}

_HELP = """\
Ctrl-a d    detach; the VM runs on
Ctrl-a x    end the VM
Ctrl-a a    send Ctrl-a to the guest (also Ctrl-a Ctrl-a)
Ctrl-a h    this help
"""


def main(arguments: Sequence[str]) -> int:
    """Attach until the VM ends or the user detaches; 0."""
    options = COMMAND.parse(arguments)
    if options is None:
        return 0
    from kvmkit.backends.terminal import Terminal
    from kvmkit.cli.console import Stopped, stopping_signals
    from kvmkit.control.client import VmClient

    vm = one(options)
    with VmClient(vm) as client:
        typing = not options["read_only"]
        replay = not options["no_replay"]
        client.execute("kvmkit-console", input=typing, replay=replay)
        with Terminal() as terminal, stopping_signals(terminal.restore):
            try:
                _Attached(vm, client, terminal, typing=typing).serve()
            except Stopped as stopped:
                return 128 + stopped.number
    return 0


class _Attached:
    """The terminal and the connection joined."""

    def __init__(
        self, vm: RunningVm, client: VmClient, terminal: Terminal, *, typing: bool
    ) -> None:
        from kvmkit.backends.escape import EscapeKeys

        self._vm = vm
        self._client = client
        self._terminal = terminal
        self._typing = typing
        self._keys = EscapeKeys(_KEYS)
        self._unsent = bytearray()

    def serve(self) -> None:
        """Pass bytes both ways until the end."""
        import signal
        from select import POLLIN, POLLOUT, poll

        terminal, socket = self._terminal, self._client.socket
        socket.setblocking(False)
        if terminal.is_tty:
            terminal.raw()
            signal.signal(signal.SIGWINCH, lambda *_: terminal.wake())
            self._resize()
            self._say(f"\nkvmkit: attached to {self._vm.address}, Ctrl-a d detaches\n")
        terminal.write(self._client.take_rest())
        waiter = poll()
        waiter.register(terminal.wake_descriptor, POLLIN)
        reading = True
        while True:
            waiter.register(socket, POLLIN | (POLLOUT if self._unsent else 0))
            if reading and not self._unsent:
                waiter.register(terminal.input, POLLIN)
            elif reading:
                waiter.unregister(terminal.input)
            ready = dict(waiter.poll())
            if terminal.wake_descriptor in ready:
                terminal.woken()
                self._resize()
            if socket.fileno() in ready and not self._exchange():
                if terminal.is_tty:
                    self._say(f"\nkvmkit: {self._vm.address} has ended\n")
                return
            if terminal.input in ready:
                data = terminal.read()
                if not data:
                    if terminal.is_tty:
                        return
                    reading = False
                    waiter.unregister(terminal.input)
                elif not self._typed(data):
                    return

    def _exchange(self) -> bool:
        """Some bytes each way; False once the VM has gone."""
        socket = self._client.socket
        try:
            if self._unsent:
                del self._unsent[: socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            return False
        try:
            data = socket.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._terminal.note(data)
        self._terminal.write(data)
        return bool(data)

    def _typed(self, data: bytes) -> bool:
        """What the user typed or piped; False when he detaches."""
        parts: list[Any] = self._keys.feed(data) if self._terminal.is_tty else [data]
        for part in parts:
            if isinstance(part, bytes):
                if self._typing:
                    self._unsent += part
            elif part == "help":
                self._say("\n" + _HELP)
            elif part == "quit":
                from kvmkit.control.steer import tell

                tell(self._vm, "quit")
            else:
                self._say(f"\nkvmkit: detached from {self._vm.address}\n")
                return False
        return True

    def _resize(self) -> None:
        """Tell the guest the window's size, on a connection of its own."""
        size = self._terminal.size()
        if size is None or not self._typing:
            return
        from kvmkit.control.steer import tell
        from kvmkit.errors import KvmkitError

        try:
            tell(self._vm, "kvmkit-resize", rows=size[0], columns=size[1])
        except KvmkitError:
            pass  # it has ended, which the console will show

    def _say(self, text: str) -> None:
        os.write(2, text.replace("\n", "\r\n").encode())
