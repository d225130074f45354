"""``kvmkit rename``: give a running VM another name."""

from __future__ import annotations

from kvmkit.cli.options import Command
from kvmkit.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMAND", "main"]

COMMAND = Command(
    "kvmkit rename",
    "Give a running VM another name.",
    words="NAME NEW-NAME",
    most_words=2,
    complete="vm",
)


def main(arguments: Sequence[str]) -> int:
    """Rename the VM; 0."""
    options = COMMAND.parse(arguments)
    if options is None:
        return 0
    if len(options.words) != 2:
        raise UsageError("expected the VM's name and the new one", "see kvmkit rename --help")
    from kvmkit.control.listing import find_vm
    from kvmkit.control.names import check_name
    from kvmkit.control.steer import tell

    old, new = options.words
    tell(find_vm(old), "kvmkit-rename", name=check_name(new))
    return 0
