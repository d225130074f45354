"""The small prompt behind ``Ctrl-a c``: look at the VM and steer it while it runs.

Each command is a method of :class:`kvmkit.vm.VM`; QEMU's names for them work too.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Steerable(Protocol):
        """What of a VM the prompt and the console use."""

        @property
        def paused(self) -> bool: ...

        def describe(self) -> str:
            """The VM in a few lines, for ``info``."""

        def pause(self) -> None: ...
        def resume(self) -> None: ...
        def reset(self) -> None: ...
        def powerdown(self) -> bool: ...
        def kill(self) -> None: ...


__all__ = ["PROMPT", "LineEditor", "Monitor"]

PROMPT = "(kvmkit) "

_COMMANDS = {
    "info": "what this VM is and does",
    "pause": "stop the virtual CPUs",
    "resume": "let them go on",
    "reset": "press the reset button",
    "powerdown": "press the power button: the guest shuts down if it listens",
    "quit": "end the VM at once",
    "help": "this list",
}
_ALIASES = {
    "stop": "pause",
    "cont": "resume",
    "c": "resume",
    "system_reset": "reset",
    "system_powerdown": "powerdown",
    "q": "quit",
    "?": "help",
    "h": "help",
}


class LineEditor:
    """One line typed in raw mode: echo, backspace, Ctrl-U, Ctrl-C; nothing more."""

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, data: bytes) -> tuple[list[str], str]:
        """The lines that ``data`` completes, and what to put out for it."""
        lines: list[str] = []
        echo = ""
        for byte in data:
            if byte in b"\r\n":
                lines.append(self._line.decode(errors="replace"))
                self._line.clear()
                echo += "\n"
            elif byte in b"\x7f\x08":
                if self._line:
                    del self._line[-1]
                    echo += "\b \b"
            elif byte in b"\x15\x03":
                echo += "\b \b" * len(self._line)
                self._line.clear()
            elif 0x20 <= byte < 0x7F:
                self._line.append(byte)
                echo += chr(byte)
        return lines, echo


class Monitor:
    """Carries out commands on ``vm``."""

    def __init__(self, vm: Steerable) -> None:
        self._vm = vm

    def execute(self, line: str) -> str:
        """The answer to one line, without a final newline; "" when there is nothing to say."""
        name = line.strip()
        name = _ALIASES.get(name, name)
        if not name:
            return ""
        if name not in _COMMANDS:
            return f"unknown command {name!r}; help lists them all"
        if name == "help":
            return "\n".join(f"{known:<10} {text}" for known, text in _COMMANDS.items())
        if name == "info":
            return self._vm.describe()
        if name == "powerdown":
            heard = self._vm.powerdown()
            return "power button pressed" if heard else "the guest does not listen to the button"
        action, answer = {
            "pause": (self._vm.pause, "paused"),
            "resume": (self._vm.resume, "running"),
            "reset": (self._vm.reset, "reset"),
            "quit": (self._vm.kill, ""),
        }[name]
        action()
        return answer
