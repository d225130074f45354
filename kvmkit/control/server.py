"""The QMP server of a VM (QEMU ``docs/interop/qmp-spec.rst``), in the VM's event loop.

Nothing here blocks. What a client sends is read a piece at a time; what it does
not read is kept up to a limit, beyond which no more commands are taken from it,
and events that still find no room end the connection. A client in trouble is
nobody's trouble but its own.
"""

from __future__ import annotations

from select import EPOLLHUP

from kvmkit.board.loop import READABLE, WRITABLE
from kvmkit.control.commands import CommandFailed, Commands, version
from kvmkit.control.schema import COMMANDS, check_members
from kvmkit.control.wire import BadInput, InputSplitter, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any

    from kvmkit.board.board import Board
    from kvmkit.control.stream import ConsoleStream
    from kvmkit.events import Event
    from kvmkit.vm import VM

__all__ = ["Client", "Server"]

MOST_CLIENTS = 64
READ_SIZE = 1 << 14
ENOUGH = 1 << 17
"""Bytes a client leaves unread before no more commands are taken from it."""
TOO_MUCH = 1 << 20
"""Bytes a client leaves unread before it is dropped."""
_RETRY = 100_000_000  # ns after which accept(2) is tried again when descriptors ran out

_SHUTDOWN_CAUSES = {
    "POWERED_OFF": "guest-shutdown",
    "EXITED": "guest-shutdown",
    "REBOOT": "guest-reset",
    "PANIC": "guest-panic",
    "KILLED": "host-qmp-quit",
    "TIMED_OUT": "host-ui",
}


class Server:
    """Answers QMP clients of ``vm`` at the ``listener`` socket, on its I/O thread."""

    def __init__(self, vm: VM, board: Board, listener: socket) -> None:
        self.vm = vm
        self.board = board
        self.loop = loop = board.loop
        self.closing = False
        self.commands = Commands(vm)
        self.clients: list[Client] = []
        self._listener = listener
        self._retry = board.host_clock.timer(lambda: loop.call_soon(self._listen))
        vm.on(None, self._event)
        self._listen()

    def _listen(self) -> None:
        self.loop.watch(self._listener.fileno(), READABLE, self.answer)

    def answer(self, events: int) -> None:
        """Let in who stands at the door."""
        from _socket import socket

        while True:
            try:
                fd, _ = self._listener._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptors left: look again later, not all the time
                self.loop.unwatch(self._listener.fileno())
                with self.board.lock:
                    self._retry.arm(self.board.host_clock.now() + _RETRY)
                return
            connection = socket(fileno=fd)
            connection.setblocking(False)
            if len(self.clients) >= MOST_CLIENTS:
                self._make_room()
            self.clients.append(Client(self, connection))
            self.clients[-1].greet()

    def _make_room(self) -> None:
        """Let the one go who was silent longest; those that never spoke first."""
        idle = min(self.clients, key=lambda client: (client.ready, client.last_heard))
        idle.drop()

    def gone(self, client: Client) -> None:
        """A client tells that its connection is closed."""
        if client in self.clients:
            self.clients.remove(client)

    def _event(self, event: Event) -> None:
        """A VM's event as QMP's."""
        kind = event.kind
        if kind == "shutdown":
            assert event.ending is not None
            reason = _SHUTDOWN_CAUSES.get(event.ending.kind.name, "host-error")
            self.tell("SHUTDOWN", event.time, {"guest": event.guest, "reason": reason})
        elif kind == "reset":
            reason = "guest-reset" if event.guest else "host-qmp-system-reset"
            self.tell("RESET", event.time, {"guest": event.guest, "reason": reason})
        elif kind == "panic":
            self.tell("GUEST_PANICKED", event.time, {"action": "poweroff"})
        else:
            self.tell(kind.upper(), event.time)

    def tell(self, name: str, when: float, data: dict[str, Any] | None = None) -> None:
        """Send an event to every client that listens."""
        seconds = int(when)
        stamp = {"seconds": seconds, "microseconds": int((when - seconds) * 1e6)}
        message: dict[str, Any] = {"timestamp": stamp, "event": name}
        if data is not None:
            message["data"] = data
        line = encode(message)
        for client in tuple(self.clients):
            if client.ready:
                client.send(line)

    def close(self) -> None:
        """Let all clients go, with what they can take at once. When the loop has stopped."""
        self.closing = True
        self.vm.off(self._event)
        self.commands.close()
        for client in tuple(self.clients):
            client.finish()


class Client:
    """One connection."""

    def __init__(self, server: Server, connection: socket) -> None:
        self.server = server
        self.ready = False
        """Capabilities are negotiated: it takes commands, and hears events."""
        self.last_heard = 0
        self.socket = connection
        self._fd = connection.fileno()
        self._out = bytearray()
        self._input = InputSplitter()
        self._waiting: list[Any] = []
        self._eof = False
        self._deaf = False  # it has gone, but what it said before counts
        self._closed = False
        self._stream: ConsoleStream | None = None
        self._watched = 0

    def greet(self) -> None:
        """The server speaks first."""
        self.send(encode({"QMP": {"version": version(), "capabilities": []}}))
        self._watch()

    # The connection

    def send(self, data: bytes) -> None:
        """Send as much as goes now, keep the rest; drop the client when that is too much."""
        if self._closed or self._deaf:
            return
        self._out += data
        self._flush()
        if len(self._out) > TOO_MUCH:
            self.drop()
        else:
            self._watch()

    @property
    def unsent(self) -> int:
        """Bytes it has not read yet."""
        return len(self._out)

    def _flush(self) -> None:
        from _socket import MSG_DONTWAIT, MSG_NOSIGNAL

        try:
            while self._out:
                piece = bytes(self._out[: 1 << 16])
                del self._out[: self.socket.send(piece, MSG_DONTWAIT | MSG_NOSIGNAL)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._deaf = True
            self._out.clear()

    def _watch(self) -> None:
        """Wait for what makes sense: room for what is kept, and words only while few are."""
        if self._closed or self.server.closing:
            return
        wanted = WRITABLE if self._out else 0
        full = len(self._out) > ENOUGH or bool(self._waiting)
        if self._stream is not None:
            full = self._stream.full
        if not full and not self._eof:
            wanted |= READABLE
        if wanted != self._watched:
            self._watched = wanted
            self.server.loop.watch(self._fd, wanted, self._on_events)

    def _on_events(self, events: int) -> None:
        if events & EPOLLHUP:
            self._deaf = True
            self._out.clear()
        elif events & WRITABLE:
            self._flush()
            if self._stream is not None and not self._closed:
                self._stream.room()
        if events & ~WRITABLE:
            self._read()
        self._work()

    def _read(self) -> None:
        try:
            data = self.socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._eof = True
            if self._stream is not None:
                self.drop()
            return
        self.last_heard = self.server.board.host_clock.now()
        if self._stream is not None:
            self._stream.typed(data)
        else:
            self._waiting += self._input.feed(data)

    def finish(self) -> None:
        """Send what goes at once, and close."""
        if self._stream is not None:
            self._stream.room()
        if not self._closed:
            self._flush()
        self.drop()

    def drop(self) -> None:
        """Close the connection. Callable twice."""
        if self._closed:
            return
        self._closed = True
        if self._stream is not None:
            self._stream.close()
        self._waiting.clear()
        self._out.clear()
        self.server.loop.unwatch(self._fd)
        self.socket.close()
        self.server.gone(self)

    # Commands

    def _work(self) -> None:
        """One command, then others get their turn."""
        if self._closed:
            return
        if self._waiting and len(self._out) <= ENOUGH and self._stream is None:
            self._take(self._waiting.pop(0))
            if self._waiting:
                self.server.loop.call_soon(self._work)
        elif self._eof and not self._out:
            self.drop()
        self._watch()

    def _take(self, value: Any) -> None:
        """One value from the client: answer it."""
        ident = {}
        after: Callable[[], None] | None = None
        try:
            if isinstance(value, BadInput):
                raise CommandFailed(str(value))
            if isinstance(value, dict) and "id" in value:
                ident = {"id": value["id"]}
            name, arguments = _parse(value)
            if not self.ready:
                result = self._negotiate(name, arguments)
            elif name == "kvmkit-console":
                result, after = self._attach(arguments)
            elif name == "qmp_capabilities":
                raise CommandFailed(
                    "Capabilities negotiation is already complete, command ignored",
                    "CommandNotFound",
                )
            elif name not in COMMANDS:
                raise _not_found(name)
            else:
                result = self.server.commands.execute(name, arguments)
            answer = {"return": result, **ident}
        except CommandFailed as error:
            answer = {"error": {"class": error.kind, "desc": str(error)}, **ident}
        except Exception as error:  # a defect of ours, which must not end the VM
            text = f"internal error: {type(error).__name__}: {error}"
            answer = {"error": {"class": "GenericError", "desc": text}, **ident}
        self.send(encode(answer))
        if after is not None and not self._closed:
            after()

    def _negotiate(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if name != "qmp_capabilities":
            if name not in COMMANDS:
                raise _not_found(name)
            raise CommandFailed(
                "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
            )
        wrong = check_members(arguments, COMMANDS[name][0])
        if not wrong and arguments.get("enable"):
            wrong = f"Capability '{arguments['enable'][0]}' is not offered"
        if wrong:
            raise CommandFailed(wrong)
        self.ready = True
        return {}

    def _attach(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
        """From the answer on, the connection is the guest's console."""
        from kvmkit.control.stream import ConsoleStream

        wrong = check_members(arguments, COMMANDS["kvmkit-console"][0])
        if wrong:
            raise CommandFailed(wrong)
        stream = ConsoleStream(self, typing=arguments.get("input", True))
        log = stream.open()
        if not arguments.get("replay", True):
            log = b""
        self.ready = False  # no events in between
        self._stream = stream
        self._waiting.clear()
        return {"log-bytes": len(log)}, lambda: stream.begin(log)


def _parse(value: Any) -> tuple[str, dict[str, Any]]:
    """The command's name and arguments; raises CommandFailed in QEMU's words."""
    if not isinstance(value, dict):
        raise CommandFailed("QMP input must be a JSON object")
    for key in value:
        if key not in ("execute", "arguments", "id"):
            raise CommandFailed(f"QMP input member '{key}' is unexpected")
    if "execute" not in value:
        raise CommandFailed("QMP input lacks member 'execute'")
    name, arguments = value["execute"], value.get("arguments", {})
    if not isinstance(name, str):
        raise CommandFailed("QMP input member 'execute' must be a string")
    if not isinstance(arguments, dict):
        raise CommandFailed("QMP input member 'arguments' must be an object")
    return name, arguments


def _not_found(name: str) -> CommandFailed:
    return CommandFailed(f"The command {name} has not been found", "CommandNotFound")
