"""What each QMP command does. All run on the I/O thread, and none waits for a client.

A handler takes the checked arguments and returns the answer's ``return`` member;
:class:`CommandFailed` becomes its ``error``.
"""

from __future__ import annotations

import os
from base64 import b64encode

from kvmkit import __version__
from kvmkit.control import schema
from kvmkit.errors import KvmkitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from kvmkit.board.board import Board
    from kvmkit.control.look import Counters
    from kvmkit.vm import VM

    Arguments = dict[str, Any]

__all__ = ["CommandFailed", "Commands", "version"]

_NMI_MESSAGE = 4 << 8  # delivery mode NMI (SDM vol. 3, 11.11.2)
_MSI_ADDRESS = 0xFEE0_0000
_MOST_MEMORY = 1 << 18
_MOST_TYPED = 1 << 16
_RESIZE_PORT = 2  # COM3, where our guests' init listens
_BREAK_AND_KEY = 2


class CommandFailed(Exception):
    """The command cannot be done; the text is for the client, ``kind`` QMP's error class."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.kind = kind


class Commands:
    """The commands on ``vm``; ``handlers`` by name."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._counters: Counters | None = None
        self.handlers: dict[str, Callable[[Arguments], Any]] = {
            "query-status": lambda _: self._status(),
            "query-name": lambda _: {"name": vm.name},
            "query-version": lambda _: version(),
            "query-cpus-fast": lambda _: self._cpus(),
            "query-kvm": lambda _: {
                "enabled": vm.engine == "kvm",
                "present": os.path.exists("/dev/kvm"),
            },
            "query-target": lambda _: {"arch": "x86_64"},
            "query-memory-size-summary": lambda _: {"base-memory": self._board.ram.size},
            "query-block": lambda _: [],
            "query-commands": lambda _: [{"name": name} for name in schema.COMMANDS],
            "query-events": lambda _: [{"name": name} for name in schema.EVENTS],
            "query-qmp-schema": lambda _: schema.introspect(),
            "stop": lambda _: self._switch(self._board.pause),
            "cont": lambda _: self._continue(),
            "system_reset": lambda _: self._switch(self._board.reset),
            "system_powerdown": lambda _: self._switch(self._board.power_button),
            "inject-nmi": lambda _: self._inject_nmi(),
            "quit": lambda _: self._switch(vm.kill),
            "human-monitor-command": self._human,
            "kvmkit-info": lambda _: self.info(),
            "kvmkit-rename": self._rename,
            "kvmkit-powerdown": lambda _: {"heard": vm.powerdown()},
            "kvmkit-log": self._log,
            "kvmkit-send": self._send,
            "kvmkit-resize": self._resize,
            "kvmkit-stat": lambda _: self._stat(),
            "kvmkit-debug": lambda _: self._debug(),
            "kvmkit-sysrq": self._sysrq,
            "kvmkit-memory": self._memory,
            "kvmkit-snapshot": self._snapshot,
        }

    def execute(self, name: str, arguments: Arguments) -> Any:
        """Carry out a command of the schema; raises CommandFailed."""
        wrong = schema.check_members(arguments, schema.COMMANDS[name][0])
        if wrong:
            raise CommandFailed(wrong)
        try:
            return self.handlers[name](arguments)
        except KvmkitError as error:
            raise CommandFailed(str(error)) from None

    @property
    def _board(self) -> Board:
        return self._vm.board

    def _switch(self, action: Callable[[], object]) -> dict[str, Any]:
        action()
        return {}

    def state(self) -> str:
        """QEMU's RunState."""
        from kvmkit.board.power import EndKind

        ending = self._vm.ending
        if ending is not None:
            states = {EndKind.PANIC: "guest-panicked", EndKind.ENGINE_ERROR: "internal-error"}
            return states.get(ending.kind, "shutdown")
        return "paused" if self._vm.paused else "running"

    def _status(self) -> dict[str, Any]:
        state = self.state()
        return {"status": state, "running": state == "running"}

    def _continue(self) -> dict[str, Any]:
        if self._vm.ending is not None:
            raise CommandFailed(f"the VM has ended: {self._vm.ending.reason}")
        return self._switch(self._board.resume)

    def _cpus(self) -> list[dict[str, Any]]:
        threads = [thread.native_id for thread in getattr(self._board.engine, "threads", ())]
        count = len(self._board.engine.vcpus)
        if len(threads) != count:  # one thread for all, on the software CPU
            threads = (threads or [os.getpid()])[:1] * count
        return [
            {
                "cpu-index": index,
                "qom-path": f"/machine/unattached/cpu[{index}]",
                "thread-id": threads[index],
                "props": {"socket-id": 0, "core-id": index, "thread-id": 0},
                "target": "x86_64",
            }
            for index in range(count)
        ]

    def _inject_nmi(self) -> dict[str, Any]:
        """To every CPU, as QEMU does it; by message, which works while they run."""
        board = self._board
        for index in range(len(board.engine.vcpus)):
            with board.lock:
                board.chips.msi(_MSI_ADDRESS | index << 12, _NMI_MESSAGE)
        return {}

    def _human(self, arguments: Arguments) -> str:
        from kvmkit.control.human import answer

        return answer(self._vm, self, arguments["command-line"], arguments.get("cpu-index"))

    # Ours

    def info(self) -> dict[str, Any]:
        """The VM in numbers."""
        vm, board = self._vm, self._board
        assert vm.control is not None
        found = {
            "name": vm.name,
            "pid": os.getpid(),
            "version": __version__,
            "state": self.state(),
            "kernel": os.path.abspath(vm.kernel),
            "command-line": vm.cmdline,
            "engine": vm.engine,
            "cpus": board.config.cpus,
            "memory": board.ram.size,
            "memory-used": board.ram.resident(),
            "uptime": vm.control.uptime,
            "guest-time": board.clock.now() / 1e9,
            "directory": vm.control.claim.path,
        }
        ending = vm.ending
        if ending is not None:
            found["ending"] = {
                "kind": ending.kind.name.lower().replace("_", "-"),
                "reason": ending.reason,
                "detail": ending.detail,
                "exit-code": ending.exit_code,
            }
        return found

    def _rename(self, arguments: Arguments) -> dict[str, Any]:
        self._vm.rename(arguments["name"])
        return {}

    def _log(self, arguments: Arguments) -> dict[str, Any]:
        serial = self._board.serial
        line = serial.kernel_log if arguments.get("source") == "kernel" else serial.console
        return {"data": b64encode(line.log).decode(), "total": line.count}

    def _send(self, arguments: Arguments) -> dict[str, Any]:
        entry = self._board.serial.input
        data = arguments["data"].encode(errors="surrogatepass")
        if entry.held + len(data) > _MOST_TYPED:
            raise CommandFailed(f"the guest has not taken the last {entry.held} bytes yet")
        entry.feed(data)
        return {}

    def _resize(self, arguments: Arguments) -> dict[str, Any]:
        """A line "rows columns" on COM3, if the guest listens there."""
        rows, columns = arguments["rows"], arguments["columns"]
        if not (0 < rows < 10_000 and 0 < columns < 10_000):
            raise CommandFailed("rows and columns are numbers from 1 to 9999")
        port = self._board.serial.ports[_RESIZE_PORT]
        with self._board.lock:
            if port.listening:
                port.receive(f"{rows} {columns}\n".encode())
        return {}

    def _stat(self) -> dict[str, Any]:
        if self._counters is None:
            from kvmkit.control.look import Counters

            self._counters = Counters(self._board)
        return self._counters.read()

    def close(self) -> None:
        """Let go of what commands have opened."""
        if self._counters is not None:
            self._counters.close()

    def _debug(self) -> list[dict[str, Any]]:
        from kvmkit.control.look import debug_cpus

        return debug_cpus(self._board)

    def _sysrq(self, arguments: Arguments) -> dict[str, Any]:
        """A break on the console and the key (Linux ``admin-guide/sysrq.rst``)."""
        key = arguments["key"].encode(errors="replace")
        if len(key) != 1 or not key.isalnum():
            raise CommandFailed(f"a SysRq key is a letter or digit, not {arguments['key']!r}")
        board = self._board
        port = board.serial.ports[0]
        with board.lock:
            heard = port.listening and port.room() >= _BREAK_AND_KEY and port.receive_break()
            if heard:
                port.receive(key)
        return {"heard": heard}

    def _snapshot(self, arguments: Arguments) -> dict[str, Any]:
        path = arguments["path"]
        if not os.path.isabs(path) or "\0" in path:
            raise CommandFailed(f"expected an absolute path, found {path!r}")
        if self._vm.ending is not None:
            raise CommandFailed(f"the VM has ended: {self._vm.ending.reason}")
        self._vm.snapshot(path)
        return {}

    def _memory(self, arguments: Arguments) -> dict[str, Any]:
        size, address = arguments["size"], arguments["address"]
        if not 0 < size <= _MOST_MEMORY:
            raise CommandFailed(f"the size is 1 to {_MOST_MEMORY} bytes, not {size}")
        if not 0 <= address < 1 << 64:
            raise CommandFailed(f"no address is {address:#x}")
        index = arguments.get("cpu-index", 0)
        if not 0 <= index < len(self._board.engine.vcpus):
            raise CommandFailed(f"there is no CPU {index}")
        if arguments.get("virtual"):
            data = self._vm.vcpus[index].read(address, size)
        else:
            data = self._board.ram.read(address, size)
        return {"data": b64encode(data).decode()}


def version() -> dict[str, Any]:
    """VersionInfo; the numbers are kvmkit's own."""
    numbers = [int(part) for part in __version__.split(".")[:3] if part.isdigit()]
    major, minor, micro = (*numbers, 0, 0, 0)[:3]
    return {
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": f"kvmkit-{__version__}",
    }
