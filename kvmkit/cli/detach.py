"""``kvmkit run --detach``: a VM in the background, once it is up.

The process forks before anything of the VM exists. The child becomes a session
of its own (setsid(2)) and boots; the parent waits for its word on a pipe: up, or
the reason why not. From then on the VM has no terminal and no output but its log.
"""

from __future__ import annotations

import os
import sys

from kvmkit.errors import GuestEnded, KvmkitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmkit.cli.options import Parsed

__all__ = ["detach"]

_UP = b"up "
_FAILED = b"no "
_DIED = 125


def detach(options: Parsed) -> int:
    """Start the VM, wait until it is up, print its name; 0. The reason's exit code if it fails."""
    if not options["detach"]:
        raise UsageError("--no-wait goes with --detach")
    if options["console"] == "tty":
        options.values["console"] = "none"
    read, write = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(read)
        os._exit(_in_background(options, write))
    os.close(write)
    try:
        word = _read_all(read)
    except BaseException:  # Ctrl-C while it boots
        import signal

        os.kill(child, signal.SIGTERM)
        raise
    finally:
        os.close(read)
    if word.startswith(_UP):
        print(word.removeprefix(_UP).decode())
        return 0
    code, _, text = word.removeprefix(_FAILED).decode(errors="replace").partition(" ")
    if not code.isdigit():
        code, text = str(_DIED), "the VM's process died while it started"
    message, _, hint = text.partition("\0")
    error = KvmkitError(message, hint)
    error.exit_code = int(code)
    if error.exit_code == 0:  # it ended well before it was seen up: a command that was quick
        print(f"kvmkit: {message}", file=sys.stderr)
        return 0
    first, *detail = message.split("\n")
    if detail:
        print("\n".join(f"  {line}" for line in detail), file=sys.stderr)
    raise _with(error, first)


def _with(error: KvmkitError, message: str) -> KvmkitError:
    error.args = (message,)
    return error


def _read_all(fd: int) -> bytes:
    pieces = []
    while piece := os.read(fd, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def _in_background(options: Parsed, tell: int) -> int:
    """The child's life; its exit code."""
    from kvmkit.cli.console import Stopped, stopping_signals

    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    told = False

    def say(word: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            try:
                os.write(tell, word)
            except OSError:  # the parent was killed
                pass
            os.close(tell)

    try:
        with stopping_signals(lambda: None):
            code = _live(options, null, say)
    except Stopped as stopped:
        code = 128 + stopped.number
    except KvmkitError as error:
        code = error.exit_code
        detail = error.ending.detail if isinstance(error, GuestEnded) else ""
        text = f"{error}\n{detail}".rstrip("\n")
        say(_FAILED + f"{code} {text}\0{error.hint}".encode(errors="replace"))
    except BaseException as error:
        code = _DIED
        say(_FAILED + f"{code} internal error: {type(error).__name__}: {error}".encode())
    return code


def _live(options: Parsed, null: int, say: Callable[[bytes], None]) -> int:
    import gc

    from kvmkit.backends.terminal import Terminal
    from kvmkit.cli.session import Stage

    with Terminal(null, null) as terminal, Stage(options, terminal) as stage:
        vm = stage.make_vm()
        try:
            stage.prepare(vm)
            vm.start()
            gc.enable()
            if not options["no_wait"]:
                vm.wait_for("up")
            say(_UP + vm.name.encode())
            os.dup2(null, 2)
            vm.wait()
        finally:
            vm.close()
        return vm.ending.exit_code if vm.ending is not None else 0
