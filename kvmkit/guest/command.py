"""The command a guest is to run, as an archive next to the initramfs.

The kernel unpacks several concatenated cpio archives one after the other, so
the large one with busybox stays the same (and in the cache) for all commands.
The agent finds one file of this one, ``/kvmkit/instructions``
(:mod:`kvmkit.guest.instructions`); the shell script that stands in where there is
no agent finds two:

``/kvmkit/command``
    a POSIX shell script that sets the environment and the working directory
    and replaces itself by the program; POSIX.1-2017, Shell, 2.2.2 (quoting)
    and 2.8.2 (exit status 126 and 127).
``/kvmkit/mode``
    how the console is to be set: ``tty``, ``pipe`` or ``null``.
"""

from __future__ import annotations

from kvmkit.guest.cpio import Archive
from kvmkit.guest.instructions import MODES, instructions, order_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MODES", "command_archive"]


def _is_plain(name: str) -> bool:
    # A shell can only set variables with such names; env(1) and programs know others.
    return name.isascii() and name.isidentifier()


def _quote(text: str) -> str:
    # Within single quotes nothing is special but the quote itself.
    return "'" + text.replace("'", "'\\''") + "'"


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
    records = order_records(argv, env, cwd, mode=mode)
    archive = Archive()
    for path, content in (files or {}).items():
        archive.file(path, content, 0o755)
    archive.file("kvmkit/instructions", instructions(records))
    script = _script(argv, env or {}, cwd)
    archive.file("kvmkit/command", script.encode(errors="surrogateescape"))
    archive.file("kvmkit/mode", mode.encode() + b"\n")
    return archive.finish()


def _script(argv: Sequence[str], env: Mapping[str, str], cwd: str) -> str:
    lines = [f"export {name}={_quote(value)}" for name, value in env.items() if _is_plain(name)]
    # "./" keeps a directory called "-" from meaning something else; CDPATH is not set.
    directory = cwd if cwd.startswith("/") else "./" + cwd
    lines.append(f"cd {_quote(directory)} || exit 126")
    program = _quote(argv[0])
    missing = _quote(f"{argv[0]}: not found in the guest")
    there = f"[ -e {program} ]" if "/" in argv[0] else f"command -v {program} > /dev/null"
    lines.append(f"{there} || {{ echo {missing} >&2; exit 127; }}")
    lines.append("exec " + " ".join(_quote(word) for word in argv))
    return "\n".join(lines) + "\n"
