"""``kvmkit snapshot restore``: one VM that goes on, and who sits in front of it."""

from __future__ import annotations

import os

from kvmkit.backends.terminal import Terminal
from kvmkit.cli.console import Console, Stopped, stopping_signals
from kvmkit.cli.session import HASTE, report
from kvmkit.errors import FileTrouble
from kvmkit.vm import VM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.cli.options import Parsed

__all__ = ["restore"]


def restore(options: Parsed) -> int:
    """Go on, attend, report; the exit code."""
    with Terminal() as terminal, stopping_signals(terminal.restore) as signals:
        console_file = _open(options["console"])
        try:
            target = terminal.output if options["console"] == "tty" else console_file
            vm = VM.restore(
                options.words[0],
                engine=options["engine"],
                name=options["name"],
                console=target,
                kernel_log=options["kernel_log"],
                timeout=options["timeout"],
                check=not options["no_check"],
            )
            console = Console(terminal, vm, vm.send, lambda *size: _resize(vm, *size))
            vm.on_end(lambda ending: console.end())
            patience: float | None = HASTE
            code: int | None = None
            try:
                vm.start()
                if terminal.is_tty and options["console"] == "tty":
                    vm.board.serial.console.add_tap(terminal.note)
                console.serve()
                patience = None
            except Stopped as stopped:
                code = 128 + stopped.number
            finally:
                signals.last()
                vm.close(patience)
        finally:
            if console_file is not None:
                os.close(console_file)
        terminal.restore()
    ending = vm.ending
    if code is not None or ending is None:
        return code or 0
    log = vm.console_log
    report(ending, command=False, fresh_line=not terminal.is_tty or log.endswith(b"\n") or not log)
    return ending.exit_code


def _open(where: str) -> int | None:
    if where in ("tty", "none"):
        return None
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY
        return os.open(where, flags, 0o644)
    except OSError as error:
        raise FileTrouble(f"{where}: the console's file: {error.strerror}") from None


def _resize(vm: VM, rows: int, columns: int) -> None:
    """As ``kvmkit run`` tells it: a line on COM3, if the guest listens there."""
    port = vm.board.serial.ports[2]
    with vm.board.lock:
        if port.listening:
            port.receive(f"{rows} {columns}\n".encode())
