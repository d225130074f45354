"""What the guest's first process is told: ``/kvmkit/instructions``.

Records ``KEY=VALUE``, each ended by a NUL; the keys are in ``agent/setup.h`` and
``agent/order.h``. An order to a guest that already runs is made of the same
records (``docs/guest-protocol.md``).
"""

from __future__ import annotations

from kvmkit.errors import UsageError
from kvmkit.frozen import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "MODES",
    "Mount",
    "agent_instructions",
    "instructions",
    "instructions_archive",
    "order_records",
]

VERSION = "kvmkit-agent=1"

MODES = ("tty", "pipe", "null")
"""What the command's standard input and output are.

``tty``: a terminal, for a person; ``pipe``: bytes in both directions, on the console
with input encoded by :func:`kvmkit.guest.console_input.encode_input`; ``null``:
bytes out, no input."""

_LIMIT = (4 << 20) - 1  # INSTRUCTIONS_MAX in setup.h


class Mount(Record):
    """Something the guest mounts: mount(8)'s words."""

    target: str
    type: str = "none"
    source: str = "none"
    options: str = ""


def check_text(what: str, text: str) -> str:
    """The text; UsageError if it has a NUL, which no argument of a program can hold."""
    if "\0" in text:
        raise UsageError(f"{what} cannot hold a NUL character: {text!r}")
    return text


def check_variables(env: Mapping[str, str]) -> None:
    """UsageError for what cannot be an environment variable."""
    for name, value in env.items():
        if not name or "=" in name:
            raise UsageError(f"not a name for an environment variable: {name!r}")
        check_text("a variable's name", name)
        check_text(f"the variable {name}", value)


def order_records(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    *,
    mode: str = "null",
    user: str | None = None,
    groups: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
) -> list[tuple[str, str]]:
    """The records that say which program to run, and how.

    ``user`` is a name of the guest or ``UID[:GID]``, ``size`` the terminal's rows
    and columns. Raises UsageError for what no program can be given.
    """
    if not argv or not argv[0]:
        raise UsageError("a command needs the name of a program")
    if mode not in MODES:
        raise UsageError(f"the mode of a command is one of {', '.join(MODES)}, not {mode!r}")
    check_variables(env or {})
    records = [("arg", check_text("an argument", word)) for word in argv]
    records += [("env", f"{name}={value}") for name, value in (env or {}).items()]
    if cwd is not None:
        records.append(("cwd", check_text("a directory", cwd)))
    if user is not None:
        records.append(("user", check_text("a user", user)))
    if groups is not None:
        records.append(("groups", ",".join(map(str, groups))))
    if size is not None:
        records += [("rows", str(size[0])), ("columns", str(size[1]))]
    records.append(("mode", mode))
    return records


def instructions(records: Iterable[tuple[str, str]]) -> bytes:
    """The file's contents. Raises UsageError when they are longer than a guest takes."""
    lines = [VERSION, *(f"{key}={value}" for key, value in records)]
    data = "".join(f"{line}\0" for line in lines).encode(errors="surrogateescape")
    if len(data) > _LIMIT:
        raise UsageError(f"a command and its environment have at most {_LIMIT} bytes in all")
    return data


def agent_instructions(
    *,
    hostname: str | None = None,
    vsock: int | None = None,
    link: str | None = None,
    mounts: Iterable[Mount] = (),
    root: str | None = None,
    env: Mapping[str, str] | None = None,
) -> bytes:
    """For a guest that takes its orders over a link: a console port, and vsock if told so.

    ``vsock`` is the port to listen at, ``link`` a device instead of the console port;
    ``mounts`` are made in their order, then ``root`` becomes the root directory.
    """
    check_variables(env or {})
    records = [("mode", "agent")]
    records += [("env", f"{name}={value}") for name, value in (env or {}).items()]
    words = (("hostname", hostname), ("link", link), ("root", root))
    records += [(key, check_text(key, value)) for key, value in words if value is not None]
    if vsock is not None:
        records.append(("vsock", str(vsock)))
    for mount in mounts:
        for key, value in (
            ("mount", mount.target),
            ("type", mount.type),
            ("source", mount.source),
            ("options", mount.options),
        ):
            records.append((key, check_text(f"a mount's {key}", value)))
    return instructions(records)


def instructions_archive(data: bytes) -> bytes:
    """The archive that brings the guest its instructions, behind all others."""
    from kvmkit.guest.cpio import Archive

    archive = Archive()
    archive.file("kvmkit/instructions", data)
    return archive.finish()
