"""``kvmkit snapshot``: save running VMs in directories, and go on from there."""

from __future__ import annotations

from kvmkit.cli.options import Command, Option, closest
from kvmkit.cli.values import seconds
from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvmkit.cli.options import Parsed

__all__ = ["COMMAND", "SUBCOMMANDS", "main"]

COMMAND = Command(
    "kvmkit snapshot",
    "Save running VMs in directories, and go on from there.",
    words="save|restore|info|list|diff|check|rm",
    most_words=None,
    notes="""
  kvmkit snapshot save NAME DIR   save a running VM, which runs on
  kvmkit snapshot restore DIR     go on where a VM was saved
  kvmkit snapshot info DIR        what a snapshot is of
  kvmkit snapshot list [DIR]      the snapshots in a directory
  kvmkit snapshot diff A B        what differs: registers, devices, memory
  kvmkit snapshot check DIR       read all of it; exit code 115 if it is damaged
  kvmkit snapshot rm DIR...       remove

kvmkit snapshot save --help tells more, and so do the others.
""",
)

_JSON = Option("--json", "", "for programs")

SUBCOMMANDS = {
    "save": Command(
        "kvmkit snapshot save",
        "Save a running VM in a directory, in place of a snapshot there. It stands still\n"
        "meanwhile, and its clock with it, and then runs on.",
        words="NAME DIR",
        most_words=2,
        complete="vm",
    ),
    "restore": Command(
        "kvmkit snapshot restore",
        "Go on where a VM was saved. The snapshot stays as it is: any number of VMs may go\n"
        "on from one, at the same time.",
        (
            Option("--name", "NAME", "the VM's name"),
            Option(
                "--engine",
                "ENGINE",
                "auto (that it was saved on), kvm or soft; a VM goes\non on the other engine"
                " if it uses nothing that this\nlacks",
                default="auto",
                choices=("auto", "kvm", "soft"),
            ),
            Option(
                "--console",
                "WHERE",
                "the guest's first serial port: tty (this terminal,\n"
                "the default), none, or a file to write to",
                default="tty",
                complete="file",
            ),
            Option(
                "--kernel-log", "FILE", "write there what the guest writes to ttyS1",
                complete="file",
            ),
            Option("--timeout", "SECONDS", "end the VM after that time, with exit code 124",
                   convert=seconds),
            Option("--no-check", "", "do not read a memory that was not read before"),
        ),
        words="DIR",
        most_words=1,
        complete="file",
        notes="""
In the VM:  Ctrl-a x  end it    Ctrl-a c  kvmkit's prompt    Ctrl-a h  all keys

Ends as kvmkit run does. A snapshot that is damaged, or of another version, is
refused with exit code 115.
""",
    ),
    "info": Command(
        "kvmkit snapshot info", "Say what a snapshot is of.", (_JSON,), words="DIR", most_words=1,
        complete="file",
    ),
    "list": Command(
        "kvmkit snapshot list", "List the snapshots in a directory (default: this one).", (_JSON,),
        words="[DIR]", most_words=1, complete="file",
    ),
    "diff": Command(
        "kvmkit snapshot diff",
        "Say what differs between two snapshots. Exit code 0 if nothing does, 1 if something.",
        words="A B",
        most_words=2,
        complete="file",
    ),
    "check": Command(
        "kvmkit snapshot check", "Read all of a snapshot, and say whether it is whole.",
        words="DIR", most_words=1, complete="file",
    ),
    "rm": Command(
        "kvmkit snapshot rm", "Remove snapshots.", words="DIR...", most_words=None,
        complete="file",
    ),
}  # fmt: skip

_NEEDED = {"save": 2, "restore": 1, "info": 1, "list": 0, "diff": 2, "check": 1, "rm": 1}


def main(arguments: Sequence[str]) -> int:
    """Do what the first word says; the exit code. Raises a KvmkitError for what cannot be done."""
    word = arguments[0] if arguments else ""
    if word not in SUBCOMMANDS:
        if word.startswith("-") and COMMAND.parse(arguments[:1]) is None:
            return 0
        raise UsageError(
            f"expected one of {', '.join(SUBCOMMANDS)}, found {word!r}",
            closest(word, SUBCOMMANDS, "did you mean 'kvmkit snapshot {}'?")
            or "see kvmkit snapshot --help",
        )
    parsed = SUBCOMMANDS[word].parse(arguments[1:])
    if parsed is None:
        return 0
    if len(parsed.words) < _NEEDED[word]:
        raise UsageError(
            f"snapshot {word} expects {SUBCOMMANDS[word].words}",
            f"see kvmkit snapshot {word} --help",
        )
    return _action(word)(parsed)


def _action(word: str) -> Callable[[Parsed], int]:
    if word == "restore":
        from kvmkit.cli.snapshot_restore import restore

        return restore
    from kvmkit.cli import snapshot_files as files

    actions = {
        "save": files.save, "info": files.info, "list": files.listing, "diff": files.diff,
        "check": files.check, "rm": files.remove,
    }  # fmt: skip
    return actions[word]
