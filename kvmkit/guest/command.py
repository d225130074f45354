"""The command a guest is to run, as an archive next to the initramfs.

The kernel unpacks several concatenated cpio archives one after the other, so
the large one with busybox stays the same (and in the cache) for all commands.
``init`` finds two files of this one:

``/kvmkit/command``
    a POSIX shell script that sets the environment and the working directory
    and replaces itself by the program; POSIX.1-2017, Shell, 2.2.2 (quoting)
    and 2.8.2 (exit status 126 and 127).
``/kvmkit/mode``
    how the console is to be set: ``tty``, ``pipe`` or ``null``.
"""

from __future__ import annotations

from kvmkit.errors import UsageError
from kvmkit.guest.cpio import Archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MODES", "command_archive"]

MODES = ("tty", "pipe", "null")
"""What the command's standard input and output are.

``tty``: a terminal, for a person; ``pipe``: bytes in both directions, input
encoded by :class:`kvmkit.guest.console_input.PipeInput`; ``null``: bytes out,
no input."""


def _quote(text: str) -> str:
    # Within single quotes nothing is special but the quote itself.
    return "'" + text.replace("'", "'\\''") + "'"


def _check_text(what: str, text: str) -> None:
    if "\0" in text:
        raise UsageError(f"{what} cannot hold a NUL character: {text!r}")


def _is_variable(name: str) -> bool:
    return name.isascii() and name.isidentifier()


def command_archive(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: str = "/root",
    *,
    mode: str = "null",
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """A cpio archive that makes ``init`` run ``argv`` and power off.

    ``env`` is added to the guest's environment, ``cwd`` is a directory of the
    guest, ``mode`` one of :data:`MODES`; ``files`` (path to content, made
    executable) come along. The guest reports 127 when there is no such
    program, 126 when it cannot be executed or ``cwd`` cannot be entered,
    128 + n when signal n ended it. Raises UsageError for what no shell can run.
    """
    if not argv or not argv[0]:
        raise UsageError("a command needs the name of a program")
    if mode not in MODES:
        raise UsageError(f"the mode of a command is one of {', '.join(MODES)}, not {mode!r}")
    lines = []
    for name, value in (env or {}).items():
        if not _is_variable(name):
            raise UsageError(f"not a name for an environment variable: {name!r}")
        _check_text(f"the variable {name}", value)
        lines.append(f"export {name}={_quote(value)}")
    for text in (*argv, cwd):
        _check_text("an argument", text)
    # "./" keeps a directory called "-" from meaning something else; CDPATH is not set.
    directory = cwd if cwd.startswith("/") else "./" + cwd
    lines.append(f"cd {_quote(directory)} || exit 126")
    program = _quote(argv[0])
    missing = _quote(f"{argv[0]}: not found in the guest")
    there = f"[ -e {program} ]" if "/" in argv[0] else f"command -v {program} > /dev/null"
    lines.append(f"{there} || {{ echo {missing} >&2; exit 127; }}")
    lines.append("exec " + " ".join(_quote(word) for word in argv))
    archive = Archive()
    for path, content in (files or {}).items():
        archive.file(path, content, 0o755)
    script = "\n".join(lines) + "\n"
    archive.file("kvmkit/command", script.encode(errors="surrogateescape"))
    archive.file("kvmkit/mode", mode.encode() + b"\n")
    return archive.finish()
