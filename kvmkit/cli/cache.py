"""``kvmkit cache``: the guests that ``kvmkit run --warm`` keeps."""

from __future__ import annotations

from kvmkit.cli.options import Command, closest
from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND", "SUBCOMMANDS", "main"]

COMMAND = Command(
    "kvmkit cache",
    "The guests that kvmkit run --warm keeps, booted, in $XDG_CACHE_HOME/kvmkit/warm.\n"
    "They take 1 GiB at most; what was not used for the longest time goes first.",
    words="list|clear",
    most_words=None,
)

SUBCOMMANDS = {
    "list": Command("kvmkit cache list", "List them."),
    "clear": Command("kvmkit cache clear", "Remove them all."),
}


def main(arguments: Sequence[str]) -> int:
    """Do what the first word says, list without one; 0."""
    word = arguments[0] if arguments else "list"
    if word not in SUBCOMMANDS:
        if word.startswith("-") and COMMAND.parse(arguments[:1]) is None:
            return 0
        raise UsageError(
            f"expected one of {', '.join(SUBCOMMANDS)}, found {word!r}",
            closest(word, SUBCOMMANDS, "did you mean 'kvmkit cache {}'?")
            or "see kvmkit cache --help",
        )
    if SUBCOMMANDS[word].parse(arguments[1:]) is None:
        return 0
    from kvmkit.snapshot.warm import clear

    if word == "clear":
        print(f"removed {clear()}")
    else:
        _list()
    return 0


def _list() -> None:
    from time import localtime, strftime

    from kvmkit.cli.vms import bytes_text, table
    from kvmkit.errors import KvmkitError
    from kvmkit.snapshot.format import Snapshot
    from kvmkit.snapshot.warm import kept

    rows = []
    for each in kept():
        kernel, size = "not restorable", ""
        try:
            with Snapshot(f"{each.path}/snapshot") as snapshot:
                kernel = snapshot.config["kernel"]
                size = f"{bytes_text(snapshot.memory)}, {snapshot.config['cpus']} CPUs"
        except KvmkitError:
            pass
        used = strftime("%Y-%m-%d %H:%M", localtime(each.used))
        rows.append((kernel, size, bytes_text(each.size), used))
    if rows:
        print("\n".join(table(("KERNEL", "MACHINE", "ON DISK", "USED"), rows)))
    else:
        print("no warm guests; kvmkit run --warm -- COMMAND keeps one")
