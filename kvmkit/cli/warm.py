"""``kvmkit run --warm -- COMMAND``: the command in a guest that was booted before."""

from __future__ import annotations

import os
import sys

from kvmkit.cli.console import Stopped, stopping_signals
from kvmkit.cli.session import QUIET, find_kernel, report
from kvmkit.errors import GuestEnded, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmkit.cli.options import Parsed
    from kvmkit.guest.client import Session
    from kvmkit.snapshot.ready import ReadyVM

__all__ = ["COMPATIBLE", "run"]

COMPATIBLE = frozenset(
    ("kernel", "params", "mem", "cpus", "name", "engine", "timeout", "hang_timeout", "env", "cwd",
     "user", "warm", "help", "console", "no_reboot", "config", "dump_config", "no_wait")
)  # fmt: skip
"""The options that go with ``--warm``."""

_PIECE = 16 << 10
_MOST_WAITING = 64 << 10


def run(options: Parsed) -> int:
    """Run the command; its exit status. Raises UsageError for what does not go with it."""
    if not options.rest:
        raise UsageError("--warm runs a command", "kvmkit run --warm -- uname -a")
    odd = [name for name, value in options.values.items() if value and name not in COMPATIBLE]
    if odd:
        raise UsageError(f"--warm does not go with --{odd[0].replace('_', '-')}")
    with stopping_signals(lambda: None) as signals:
        vm: ReadyVM | None = None
        try:
            vm = _start(options)
            return _attend(options, vm)
        except Stopped as stopped:
            return 128 + stopped.number
        except GuestEnded as ended:
            report(ended.ending, command=True, fresh_line=True)
            return ended.exit_code
        finally:
            signals.last()
            if vm is not None:
                vm.close()


def _start(options: Parsed) -> ReadyVM:
    from kvmkit.snapshot.warm import warm_vm

    more = {} if options["mem"] is None else {"memory": options["mem"]}
    return warm_vm(
        find_kernel(options["kernel"], options.words, True),
        name=options["name"],
        timeout=options["timeout"],
        cmdline=" ".join([QUIET, *options["params"]]),
        cpus=options["cpus"],
        engine=options["engine"],
        **more,
    )


def _attend(options: Parsed, vm: ReadyVM) -> int:
    """Hand over the command, carry its streams, give its status."""
    from _queue import SimpleQueue
    from time import time

    from kvmkit.guest.instructions import order_records

    output: SimpleQueue[tuple[int, bytes] | None] = SimpleQueue()
    # the guest's time of day is that of its boot
    vm.execute(["date", "-s", f"@{time():.0f}"])
    env = dict(word.partition("=")[::2] for word in options["env"])
    order = order_records(options.rest or [], env, options["cwd"], mode="pipe",
                          user=options["user"])  # fmt: skip
    vm.on_end(lambda ending: output.put(None))
    session = vm.begin(order, lambda *piece: output.put(piece), lambda _: output.put(None))
    _feed(vm, session)
    while (piece := output.get()) is not None:
        stream, data = piece
        descriptor = 2 if stream == 2 else 1
        while data:
            data = data[os.write(descriptor, data) :]
    if session.status is not None:
        return session.status
    ending = vm.ending
    if ending is not None:
        report(ending, command=True, fresh_line=True)
        return ending.exit_code
    print(f"kvmkit: {session.problem}", file=sys.stderr)
    return 127


def _feed(vm: ReadyVM, session: Session) -> None:
    """Our input is the command's, on a thread of its own; a terminal's is not."""
    from _thread import start_new_thread
    from time import sleep

    def feed() -> None:
        while not session.ended:
            try:
                data = os.read(0, _PIECE)
            except OSError:
                data = b""
            with vm.board.lock:
                if not data:
                    session.close_input()
                    return
                session.write(data)
            while session.backlog > _MOST_WAITING and not session.ended:
                sleep(0.005)

    if os.isatty(0):
        with vm.board.lock:
            session.close_input()
    else:
        start_new_thread(_quietly, (feed,))


def _quietly(action: object) -> None:
    try:
        action()  # type: ignore[operator]
    except Exception:
        pass  # the VM is closed
