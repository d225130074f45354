"""The ``kvmkit`` command: find the sub-command, run it, turn errors into exit codes.

This module imports nothing at its top level, and only the chosen sub-command's
module later: the time from process start to the guest's first instruction is
counted in milliseconds.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "main", "module_of"]

COMMANDS = {
    "run": "boot a kernel, to a shell or to run one command in it",
    "list": "the VMs that run on this host",
    "console": "attach to a running VM's console",
    "log": "what a VM has written to its console",
    "stop": "have a guest shut down",
    "kill": "end VMs at once",
    "pause": "stop the virtual CPUs of VMs",
    "resume": "let paused VMs go on",
    "reset": "press the reset button of VMs",
    "stat": "a VM's counters: exits, interrupts, accesses",
    "debug": "registers, code and stack of a VM's CPUs",
    "rename": "give a running VM another name",
    "snapshot": "save running VMs in directories, and go on from there",
    "image": "fetch, list and remove kernels and other guest parts",
    "cache": "the booted guests that kvmkit run --warm keeps",
    "doctor": "say which CPU engine will be used, why, and what is missing",
    "completion": "print the completion script for bash, zsh or fish",
    "version": "print the version",
}
"""Each sub-command is the module :func:`module_of` names, with a ``main(arguments)``."""

_USAGE = "usage: kvmkit COMMAND [options]   (kvmkit COMMAND --help tells more)"

EXIT_INTERNAL = 125
EXIT_SIGNAL = 128
_SIGINT, _SIGPIPE = 2, 13


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: the process's own); the exit code.

    The codes are listed in ``docs/exit-codes.md``.
    """
    import sys

    words = list(sys.argv[1:] if arguments is None else arguments)
    _fill_standard_descriptors()
    try:
        code = _dispatch(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_SIGNAL + _SIGINT
    except BrokenPipeError:
        _drop_output()
        return EXIT_SIGNAL + _SIGPIPE
    except Exception as error:
        return _explain(error)


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in COMMANDS:
        # not importlib: it is not loaded yet, and the import statement needs a constant
        module = __import__(module_of(name), fromlist=["main"])
        code: int = module.main(words[1:])
        return code
    if name in ("-h", "--help", "help"):
        if len(words) > 1 and words[1] in COMMANDS:
            return _dispatch([words[1], "--help"])
        print(_overview())
        return 0 if words else 2
    if name in ("-V", "--version"):
        return _dispatch(["version", *words[1:]])
    from kvmkit.cli.options import closest
    from kvmkit.errors import UsageError

    if name.startswith("-"):
        what, known = "option", ["--help", "--version"]
    else:
        what, known = "command", list(COMMANDS)
    raise UsageError(
        f"unknown {what} {name!r}, expected one of {', '.join(known)}",
        closest(name, known, "did you mean 'kvmkit {}'?") or "see kvmkit --help",
    )


def module_of(name: str) -> str:
    """The module of a sub-command; ``console`` is taken by what ``run`` does with a terminal."""
    return f"kvmkit.cli.{'console_attach' if name == 'console' else name}"


def _overview() -> str:
    lines = [_USAGE, "", "Boots Linux kernels on /dev/kvm or on a software CPU.", ""]
    lines += [f"  {name:<12} {text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        "First steps:",
        "  kvmkit image pull linux-image-cloud-amd64 busybox-static",
        "  kvmkit run                  boot to a shell; Ctrl-a x ends it",
        "  kvmkit run -- uname -a      run one command, end with its exit status",
    ]
    return "\n".join(lines)


def _explain(error: Exception) -> int:
    """Tell ``error`` on stderr and give its exit code."""
    import os

    from kvmkit.errors import FileTrouble, KvmkitError

    if isinstance(error, KvmkitError):
        code, text, hint = error.exit_code, str(error), error.hint
    elif isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        code, text, hint = FileTrouble.exit_code, f"{place}{error.strerror or error}", ""
    else:
        code, text = EXIT_INTERNAL, f"internal error: {type(error).__name__}: {error}"
        hint = "this is a bug in kvmkit; set KVMKIT_TRACEBACK=1 and report what it prints"
    if os.environ.get("KVMKIT_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    _say(text, hint)
    return code


def _say(text: str, hint: str) -> None:
    """One line for the error and one for the hint; a closed stderr is no further trouble."""
    import os

    line = " ".join(text.split())
    message = f"kvmkit: {line}\n" + (f"  hint: {' '.join(hint.split())}\n" if hint else "")
    try:
        os.write(2, message.encode(errors="surrogateescape"))
    except OSError:
        pass


def _fill_standard_descriptors() -> None:
    """Open what the caller has closed, or a file of ours would become stdin, stdout or stderr."""
    import os

    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _drop_output() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail again."""
    import os

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    raise SystemExit(main())
